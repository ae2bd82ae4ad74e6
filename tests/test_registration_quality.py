"""Where a registration is not to be believed."""

import re
from dataclasses import replace

import numpy as np
import pytest
from registrations import phantom_pair, real, rotation, volume

from fusionflow.registration import moved, rigid
from fusionflow.registration_itk import climb, resolutions
from fusionflow.registration_quality import disagreement, implausible


@pytest.fixture(scope="module")
def phantom():
    return phantom_pair()


class TestDisagreement:
    def test_an_aligned_phantom_is_left(self, phantom):
        images = phantom.pet.data, phantom.mri.data, phantom.mask
        before = [image.copy() for image in images]
        found = disagreement(phantom.pet, phantom.mri, phantom.mask)
        for image, was in zip(images, before, strict=True):
            np.testing.assert_array_equal(image, was)
        assert found.verdict == "agrees"
        assert found.registration.displacement_mm < 0.6
        assert found.reason.startswith("by registration they are 0.")

    @pytest.mark.shared
    @pytest.mark.parametrize(
        "subject", ["brainweb", "harvard", "spm", *(f"juspace0{n}" for n in range(1, 9))]
    )
    def test_real_pairs_that_are_aligned_are_left(self, shared, subject):
        pair = real(shared, subject)
        assert disagreement(pair.pet, pair.mri, pair.mask).verdict == "agrees"

    @pytest.mark.parametrize(
        ("axis", "shift", "turn"), [(0, 4.3, 0), (2, -4.3, 0), (0, 0, 4.3), (1, 0, -4.3)]
    )
    def test_more_than_four_millimetres_or_degrees_are_not(self, phantom, axis, shift, turn):
        along = np.eye(3)[axis]
        away = rotation(turn * along, phantom.centre, shift * along)
        found = disagreement(moved(phantom.pet, away), phantom.mri, phantom.mask)
        assert found.verdict == "disagrees"
        assert phantom.error(found.registration, away) < 0.5

    def test_two_are(self, phantom):
        away = rotation((0, 2, 0), phantom.centre, (0, 0, 2))
        found = disagreement(moved(phantom.pet, away), phantom.mri, phantom.mask)
        assert found.verdict == "agrees"

    @pytest.mark.shared
    @pytest.mark.parametrize("subject", ["spm", "harvard", "juspace02"])
    def test_real_pairs_that_are_off_are_not_left(self, shared, subject):
        pair = real(shared, subject)
        away = rotation((5, -6, 4), pair.centre, (8, 6, -7))
        found = disagreement(moved(pair.pet, away), pair.mri, pair.mask)
        assert found.verdict == "disagrees"
        assert pair.error(found.registration, away) < 4

    def test_noise_does_not_move_anything(self, phantom):
        noise = np.random.default_rng(0).random(phantom.pet.data.shape)
        found = disagreement(volume(noise, phantom.pet.affine), phantom.mri, phantom.mask)
        assert found.verdict != "disagrees"

    def test_a_pet_that_is_no_head_does_not_move(self, phantom):
        data = np.random.default_rng(0).random((3, 3, 3))
        found = disagreement(volume(data, np.eye(4)), phantom.mri, phantom.mask)
        assert found.verdict == "implausible"

    def test_where_itk_gives_up_it_says_why_in_the_same_words_each_time(self):
        noise = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
        affine = np.diag([2.0, 2, 2, 1])
        images = resolutions(affine, noise, affine, noise, np.ones(noise.shape, bool))
        start = rotation((0, 0, 0), shift=(500, 0, 0))
        found, levels, settled = climb(images, start, np.full(3, 11.0))
        assert not settled
        np.testing.assert_array_equal(found, start)
        # ITK adds the address of an object, which differs from run to run.
        assert levels[-1].stop == "failed: All samples map outside moving image buffer"

    def test_half_a_head_is_not_enough(self, phantom):
        part = phantom.pet.data[:, :, :28]
        away = rotation((0, 0, 6), phantom.centre, (8, 0, 0))
        pet = moved(volume(part, phantom.pet.affine), away)
        found = disagreement(pet, phantom.mri, phantom.mask)
        assert found.verdict == "implausible"
        assert "of the head in the PET" in found.reason


class TestImplausible:
    @pytest.fixture(scope="class")
    @classmethod
    def good(cls, phantom):
        return rigid(phantom.pet, phantom.mri, phantom.mask)

    def test_a_good_one_is_not(self, good):
        assert implausible(good) is None

    @pytest.mark.parametrize(
        ("change", "because"),
        [
            ({"settled": False}, "did not settle"),
            ({"from_start_mm": 41.0}, "moves the head by 41 mm, more than 40 mm"),
            ({"rotation_deg": 31.0}, "turns the head by 31 degrees, more than 30"),
            ({"overlap": 0.59}, "leaves 59% of the head in the PET, less than 60%"),
            ({"metric_after": 0.04, "metric_before": 0.0}, r"share 0\.040 nats"),
            ({"metric_after": 0.5, "metric_before": 0.6}, r"less than before \(0\.500, 0\.600\)"),
            ({"restart_mm": 5.1}, r"from another start it ends 5\.1 mm away"),
        ],
    )
    def test_each_rule(self, good, change, because):
        assert re.search(because, implausible(replace(good, **change)))

    def test_a_header_that_missed_the_head_is_not_held_against_it(self, good):
        found = replace(good, start="centres", metric_before=0.9, displacement_mm=800.0)
        assert implausible(found) is None
