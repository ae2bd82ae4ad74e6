"""A PET is put onto its MRI, where it must be, and is otherwise left exactly as it is."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registrations import Pair, misalignment, phantom_pair, real, rotation, volume
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fusionflow import registration, registration_itk
from fusionflow.errors import ConfigurationError, ImageError
from fusionflow.io.nifti import read_volume
from fusionflow.registration import mean_displacement, moved, rigid
from fusionflow.registration_quality import disagreement, implausible
from fusionflow.resample import resample_to

#: All seeds of the acceptance test; a few of them by default.
SEEDS = range(int(os.environ.get("FUSIONFLOW_REGISTRATIONS", "3")))
FEW = SEEDS[: max(1, len(SEEDS) // 5)]


@pytest.fixture(scope="module")
def phantom():
    return phantom_pair()


@pytest.fixture(scope="module")
def brainweb(shared):
    """The simulated BrainWeb head; every second voxel of each axis of the MRI."""
    mri, pet = (read_volume(shared / f"data/train/brainweb_{n}.nii.gz") for n in ("t1", "osem"))
    step = np.diag([2.0, 2, 2, 1])
    return Pair(volume(mri.data[::2, ::2, ::2], mri.affine @ step), pet)


class TestAccuracy:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_a_misaligned_phantom_is_put_back_to_half_a_millimetre(self, phantom, seed):
        away = misalignment(seed, phantom.centre)
        found = rigid(moved(phantom.pet, away), phantom.mri, phantom.mask)
        assert phantom.error(found, away) < 0.5
        assert implausible(found) is None

    @pytest.mark.shared
    def test_misaligned_real_geometry_is_put_back_to_a_millimetre(self, brainweb):
        errors = []
        for seed in SEEDS:
            away = misalignment(seed, brainweb.centre)
            found = rigid(moved(brainweb.pet, away), brainweb.mri, brainweb.mask)
            errors.append(brainweb.error(found, away))
        # 19 of 20, and all of a few.
        assert sum(error < 1 for error in errors) >= len(SEEDS) - len(SEEDS) // 20

    @pytest.mark.shared
    @pytest.mark.parametrize("subject", ["harvard", "spm", "juspace07"])
    @pytest.mark.parametrize("seed", FEW)
    def test_from_anywhere_the_same_place_is_found(self, shared, subject, seed):
        pair = real(shared, subject)
        own = rigid(pair.pet, pair.mri, pair.mask)
        away = misalignment(seed, pair.centre)
        found = rigid(moved(pair.pet, away), pair.mri, pair.mask)
        undone = np.array(found.matrix) @ away
        assert mean_displacement(undone, own.matrix, pair.mask, pair.mri.affine) < 1
        assert pair.error(found, away) < 4  # of a published alignment, itself good to a few mm

    def test_a_pet_on_an_oblique_grid_in_any_order_of_axes(self, phantom):
        # The same places, sampled on a turned grid whose axes are swapped and flipped.
        shape = (60, 75, 62)
        turn = rotation((9, -14, 20))[:3, :3] @ np.diag([3.0, 3.0, 3.4])
        affine = nib.affines.from_matvec(turn, phantom.centre - turn @ ((np.array(shape) - 1) / 2))
        oblique = resample_to(phantom.pet, shape, affine)
        flips = np.array([[2, -1], [0, 1], [1, -1]])
        data = nib.orientations.apply_orientation(oblique, flips)
        pet = volume(data, affine @ nib.orientations.inv_ornt_aff(flips, shape))
        assert nib.aff2axcodes(pet.affine) != ("R", "A", "S")
        away = misalignment(11, phantom.centre)
        # `moved` would put it in RAS+ order; here ITK has to cope.
        pet = replace(pet, affine=away @ pet.affine)
        found = rigid(pet, phantom.mri, phantom.mask)
        assert phantom.error(found, away) < 0.7

    def test_left_handed_grids(self, phantom):
        axis = 1

        def flipped(image):
            undo = np.eye(4)
            undo[axis, axis], undo[axis, 3] = -1, image.data.shape[axis] - 1
            return volume(np.flip(image.data, axis), image.affine @ undo)

        mri, pet = flipped(phantom.mri), flipped(phantom.pet)
        assert np.linalg.det(mri.affine) < 0
        away = misalignment(5, phantom.centre)
        pet = replace(pet, affine=away @ pet.affine)
        found = rigid(pet, mri, np.flip(phantom.mask, 2 - axis))
        assert phantom.error(found, away) < 0.5

    def test_a_sheared_affine_is_gone_through_as_it_is(self, phantom):
        shear = np.eye(4)
        shear[0, 1] = 0.15
        shape = (75, 80, 66)
        affine = shear @ np.diag([2.7, 2.7, 2.7, 1])
        affine[:3, 3] = phantom.centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        away = misalignment(6, phantom.centre)
        pet = volume(resample_to(phantom.pet, shape, affine), affine)
        assert phantom.error(rigid(moved(pet, away), phantom.mri, phantom.mask), away) < 0.7

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda d: d * 1e-4, id="other units"),
            pytest.param(lambda d: d - 0.02 * d.max() * (d < 0.05 * d.max()), id="negative air"),
            pytest.param(lambda d: np.where(d == d.max(), 1e3 * d, d), id="one hot voxel"),
        ],
    )
    def test_whatever_the_scale_of_the_pet(self, phantom, change):
        away = misalignment(7, phantom.centre)
        pet = volume(change(phantom.pet.data), phantom.pet.affine)
        assert phantom.error(rigid(moved(pet, away), phantom.mri, phantom.mask), away) < 0.5

    def test_without_a_mask(self, phantom):
        away = misalignment(8, phantom.centre)
        assert phantom.error(rigid(moved(phantom.pet, away), phantom.mri), away) < 0.5

    def test_headers_that_miss_each_other_start_from_the_centres(self, phantom):
        away = rotation((5, -4, 6), phantom.centre, (400, -300, 900))
        found = rigid(moved(phantom.pet, away), phantom.mri, phantom.mask)
        assert found.start == "centres"
        assert "0% of the head in its field of view" in found.notes[0]
        assert (found.metric_before, found.overlap_before) == (0, 0)
        assert phantom.error(found, away) < 0.5
        assert implausible(found) is None
        assert disagreement(moved(phantom.pet, away), phantom.mri, phantom.mask).verdict == (
            "disagrees"
        )


class TestWhatComesOut:
    away = rotation((4, -3, 5), (2, -11, 6), (6, -5, 3))

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, phantom):
        return rigid(moved(phantom.pet, cls.away), phantom.mri, phantom.mask)

    def test_the_matrix_takes_the_pet_to_the_mri_and_is_rigid(self, found):
        matrix = np.array(found.matrix)
        np.testing.assert_allclose(matrix @ self.away, np.eye(4), atol=0.4)
        np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)

    def test_figures_are_those_of_the_matrix(self, phantom, found):
        matrix = np.array(found.matrix)
        shift = matrix[:3, :3] @ phantom.centre + matrix[:3, 3] - phantom.centre
        np.testing.assert_allclose(found.translation_mm, shift, atol=1e-9)
        assert found.distance_mm == pytest.approx(np.linalg.norm(shift))
        turn = Rotation.from_matrix(matrix[:3, :3])
        np.testing.assert_allclose(found.rotations_deg, turn.as_rotvec(degrees=True), atol=1e-9)
        assert found.rotation_deg == pytest.approx(np.rad2deg(turn.magnitude()))
        np.testing.assert_allclose(found.rotations_deg, (-4, 3, -5), atol=0.7)
        assert found.displacement_mm == found.from_start_mm
        assert found.displacement_mm == pytest.approx(
            mean_displacement(matrix, np.eye(4), phantom.mask, phantom.mri.affine)
        )

    def test_more_is_shared_and_it_is_found_again(self, found):
        assert found.metric_after > found.metric_before + 0.1
        assert found.restart_mm < 1
        assert found.overlap == 1
        assert found.settled
        assert [level.spacing_mm for level in found.levels] == [8, 4, 2]
        assert all(0 < level.iterations < 200 for level in found.levels)

    def test_it_is_json(self, found):
        assert json.loads(json.dumps(asdict(found)))["matrix"] == [list(r) for r in found.matrix]

    def test_the_same_bits_in_any_thread_whatever_itk_is_set_to(self, phantom, found):
        import SimpleITK

        pet = moved(phantom.pet, self.away)
        was = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
        try:
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(3)
            with ThreadPoolExecutor(3) as pool:
                again = list(pool.map(lambda _: rigid(pet, phantom.mri, phantom.mask), range(3)))
            assert SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads() == 3
        finally:
            SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(was)
        assert again == [found] * 3

    def test_fusionflow_is_imported_without_simpleitk(self):
        code = (
            "import sys, fusionflow, fusionflow.registration_quality; "
            "print('SimpleITK' in sys.modules)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert found.stdout.split() == [b"False"]


class TestRefusal:
    def test_a_mask_of_another_grid(self, phantom):
        with pytest.raises(ConfigurationError, match=r"\(z, y, x\)"):
            rigid(phantom.pet, phantom.mri, phantom.mask[:-1])

    def test_an_empty_mask(self, phantom):
        with pytest.raises(ConfigurationError, match="empty"):
            rigid(phantom.pet, phantom.mri, np.zeros_like(phantom.mask))

    @pytest.mark.parametrize("value", [0, -5])
    def test_a_pet_without_uptake(self, phantom, value):
        flat = volume(np.full((20, 20, 20), value), np.diag([9.0, 9, 9, 1]))
        with pytest.raises(ImageError, match="The PET holds no contrast"):
            rigid(flat, phantom.mri, phantom.mask)


class TestMoved:
    @given(
        angles=st.tuples(*[st.floats(-180, 180)] * 3),
        shift=st.tuples(*[st.floats(-50, 50)] * 3),
    )
    @settings(max_examples=50)
    def test_every_voxel_goes_where_the_matrix_takes_it(self, angles, shift):
        data = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
        affine = rotation((3, 20, -7)) @ np.diag([2.0, 1.5, 3.0, 1])
        matrix = rotation(angles, shift=shift)
        was = volume(data, affine)
        found = moved(was, matrix)
        index = np.moveaxis(np.indices(found.data.shape), 0, -1).reshape(-1, 3)
        back = np.linalg.inv(matrix @ affine) @ found.affine
        there = nib.affines.apply_affine(back, index)
        np.testing.assert_allclose(there, np.rint(there), atol=1e-9)
        there = np.rint(there).astype(int)
        np.testing.assert_array_equal(data[tuple(there.T)], found.data.ravel())
        assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
        assert found.data.flags.f_contiguous
        # The file's layout, read again with its corrected header, is the same volume.
        np.testing.assert_allclose(found.orientation.ras_affine, found.affine, atol=1e-9)
        assert found.orientation.ras_shape == found.data.shape

    def test_a_small_turn_leaves_the_voxels_as_they_are(self, phantom):
        found = moved(phantom.pet, rotation((5, 4, 3)))
        assert found.data is phantom.pet.data

    def test_the_registered_pet_lies_on_the_mri(self, phantom):
        away = rotation((6, -5, 4), phantom.centre, (9, -7, 5))
        off = moved(phantom.pet, away)
        back = moved(off, rigid(off, phantom.mri, phantom.mask).matrix)
        shape, affine = phantom.mri.data.shape, phantom.mri.affine
        truth, was, found = (resample_to(v, shape, affine) for v in (phantom.pet, off, back))
        assert np.abs(found - truth).mean() < 0.1 * np.abs(was - truth).mean()


class TestMeanDisplacement:
    mask = np.ones((5, 6, 7), np.uint8)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])

    def test_of_a_shift_it_is_its_length(self):
        shift = rotation((0, 0, 0), shift=(3, 4, 12))
        assert mean_displacement(shift, np.eye(4), self.mask, self.affine) == pytest.approx(13)

    @given(*[st.tuples(*[st.floats(-30, 30)] * 6)] * 2)
    @settings(max_examples=30)
    def test_voxel_by_voxel_and_either_way_round(self, one, other):
        a, b = (rotation(v[:3], shift=v[3:]) for v in (one, other))
        mask = (np.indices(self.mask.shape).sum(axis=0) % 3 == 0).astype(np.uint8)
        places = nib.affines.apply_affine(self.affine, np.argwhere(mask.T))
        apart = [nib.affines.apply_affine(np.linalg.inv(m), places) for m in (a, b)]
        expected = np.linalg.norm(apart[0] - apart[1], axis=1).mean()
        assert mean_displacement(a, b, mask, self.affine) == pytest.approx(expected, abs=1e-9)
        assert mean_displacement(b, a, mask, self.affine) == pytest.approx(expected, abs=1e-9)


class TestSlabs:
    """What is smoothed and looked at slab by slab is what it would be at once, to the bit."""

    def test_smoothed_voxels(self, monkeypatch):
        monkeypatch.setattr(registration_itk, "_SLAB_VOXELS", 30 * 28 * 5)
        data = np.random.default_rng(0).random((30, 28, 33), np.float32) * 3
        sigma, first, step = np.array([1.3, 0.7, 2.1]), np.array([1, 0, 2]), np.array([3, 2, 4])
        clipped = (np.clip(data, np.float32(0.5), np.float32(2)) - np.float32(0.5)) / np.float32(
            1.5
        )
        whole = ndimage.gaussian_filter(clipped, sigma, mode="nearest", truncate=3)
        found = registration_itk._smoothed(
            registration_itk.Shown(data, (0.5, 2.0)), sigma, first, step
        )
        np.testing.assert_array_equal(found, whole[1::3, ::2, 2::4])

    def test_voxels_of_the_head(self, monkeypatch):
        monkeypatch.setattr(registration, "_LOOK_AT", 1000)
        rng = np.random.default_rng(0)
        data, head = rng.random((30, 28, 33), np.float32), rng.random((30, 28, 33)) > 0.4
        wanted = data[head][:: max(1, int(head.sum()) // 1000) | 1]
        np.testing.assert_array_equal(registration._some_inside(data, head), wanted)

    def test_centre_of_the_head(self):
        head = np.random.default_rng(0).random((30, 28, 33)) > 0.4
        assert tuple(registration._centre(head)) == ndimage.center_of_mass(head)
