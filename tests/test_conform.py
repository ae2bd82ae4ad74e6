"""One grid for two images: what is moved, what is not, and how both are scaled."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fusionflow import resample
from fusionflow.alignment import Alignment
from fusionflow.config import ConformOptions
from fusionflow.conform import Conformed
from fusionflow.conform import conform as conform_as_asked
from fusionflow.errors import GridError, ImageError
from fusionflow.io.bids import discover
from fusionflow.io.nifti import Orientation, Volume, read_volume
from fusionflow.masks import head_mask
from fusionflow.pet_info import PetInfo
from fusionflow.resample import field_of_view, resample_to

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bids"

# World mm -> value: a different slope along each axis shows every flip and swap.
RAMP = np.array([0.5, -0.25, 0.125, 40.0])


def conform(t1w, pet, *, info=None, **options):
    """Conform as the headers say; what registration does is tested with it."""
    options = ConformOptions(registration="header", **options)
    return conform_as_asked(t1w, pet, options, info=info)


def grid(shape, sizes=(1.0, 1.0, 1.0), angles=(0.0, 0.0, 0.0), centre=(0.0, 0.0, 0.0)):
    """Return the affine of a grid around a place, turned by angles (radians) about its axes."""
    turn = nib.eulerangles.euler2mat(*angles) @ np.diag(sizes)
    return nib.affines.from_matvec(turn, np.array(centre) - turn @ ((np.array(shape) - 1) / 2))


def world_of(shape, affine):
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def ramp(shape, affine):
    return (world_of(shape, affine) @ RAMP[:3] + RAMP[3]).astype(np.float32)


def volume(data, affine):
    orientation = Orientation(data.shape, affine, nib.aff2axcodes(affine))
    return Volume(np.asfortranarray(data, dtype=np.float32), affine, orientation, "")


def save(path, data, affine):
    nib.Nifti1Image(data.astype(np.float32), affine).to_filename(path)
    return path


def head(shape, affine, radius=20.0):
    """Return a made-up T1w: a bright ball with a dark ventricle in faint noise."""
    r = np.linalg.norm(world_of(shape, affine), axis=-1)
    noise = np.random.default_rng(1).normal(0, 0.5, shape)
    return np.where(r < radius, 100 + r, 0) * (r > 4) + np.abs(noise)


SHAPE = (50, 52, 48)
AFFINE = grid(SHAPE)


@pytest.fixture
def t1w(tmp_path):
    return save(tmp_path / "t1w.nii.gz", head(SHAPE, AFFINE), AFFINE)


class TestResampling:
    @given(
        angles=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
        shift=st.tuples(*[st.floats(-3, 3)] * 3),
        sizes=st.tuples(*[st.floats(1.0, 3.0)] * 3),
    )
    @settings(max_examples=30, deadline=None)
    def test_a_ramp_in_world_space_is_exact_inside(self, angles, shift, sizes):
        source = (30, 28, 26)
        placed = grid(source, sizes, angles, shift)
        target, to = (12, 13, 11), grid((12, 13, 11), (1.1, 0.9, 1.0), (0.3, 0.2, -0.1))
        resampled = resample_to(volume(ramp(source, placed), placed), target, to)
        at = nib.affines.apply_affine(np.linalg.inv(placed), world_of(target, to))
        inside = ((at >= 0) & (at <= np.array(source) - 1)).all(axis=-1)
        assert inside.any()
        np.testing.assert_allclose(resampled[inside], ramp(target, to)[inside], atol=1e-4)

    def test_to_its_own_grid_changes_nothing(self):
        data = np.random.default_rng(0).random((9, 8, 7), dtype=np.float32)
        np.testing.assert_array_equal(
            resample_to(volume(data, grid((9, 8, 7))), (9, 8, 7), grid((9, 8, 7))), data
        )

    def test_the_edge_counts_for_half_a_voxel_and_beyond_there_is_nothing(self):
        data = np.array([5, 7, 9], dtype=np.float32).reshape(3, 1, 1)
        fine = np.diag([0.25, 1, 1, 1.0])
        fine[0, 3] = -1
        found = resample_to(volume(data, np.eye(4)), (17, 1, 1), fine).ravel()
        at = np.arange(17) * 0.25 - 1
        expected = np.where((at < -0.5) | (at > 2.5), 0, np.interp(at, [0, 1, 2], [5, 7, 9]))
        np.testing.assert_allclose(found, expected)

    def test_slabs_leave_no_seam(self, monkeypatch):
        data = np.random.default_rng(0).random((20, 21, 22), dtype=np.float32)
        source = volume(data, grid(data.shape, (2, 2, 2), (0.1, 0.2, 0.3)))
        whole = resample_to(source, SHAPE, AFFINE)
        monkeypatch.setattr("fusionflow.resample._SLAB_VOXELS", SHAPE[0] * SHAPE[1] * 5)
        np.testing.assert_allclose(resample_to(source, SHAPE, AFFINE), whole, atol=1e-6)

    def test_a_coarser_grid_sees_means_and_not_single_voxels(self):
        shape = (64, 64, 64)
        board = (np.indices(shape).sum(axis=0) % 2).astype(np.float32)
        coarse = resample_to(
            volume(board, grid(shape)), (10, 10, 10), grid((10, 10, 10), (4, 4, 4))
        )
        np.testing.assert_allclose(coarse, 0.5, atol=0.01)

    def test_only_the_axes_that_get_coarser_are_smoothed(self):
        data = np.random.default_rng(0).random((16, 16, 16), dtype=np.float32)
        along_z = resample_to(
            volume(data, grid(data.shape)), (16, 16, 5), grid((16, 16, 5), (1, 1, 3))
        )
        sigma = np.sqrt(8 / (8 * np.log(2)))
        smooth = ndimage.gaussian_filter1d(data, sigma, axis=2, mode="nearest")
        # The middle of five coarse slices lies between two fine ones.
        np.testing.assert_allclose(along_z[:, :, 2], smooth[:, :, 7:9].mean(axis=2), atol=1e-5)

    def test_total_uptake_survives_down_sampling(self):
        shape = (60, 60, 60)
        r = np.linalg.norm(world_of(shape, grid(shape)), axis=-1)
        spot = np.exp(-(r**2) / 50)
        coarse = resample_to(volume(spot, grid(shape)), (20, 20, 20), grid((20, 20, 20), (3, 3, 3)))
        assert coarse.sum() * 27 == pytest.approx(spot.sum(), rel=1e-3)


class TestGrid:
    def test_the_mri_is_never_resampled_and_an_equal_grid_is_taken_as_it_is(self, tmp_path, t1w):
        uptake = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
        found = conform(t1w, save(tmp_path / "pet.nii.gz", uptake, AFFINE))
        assert not found.resampled
        assert found.notes == ()
        for name, image in (("mri", nib.load(t1w).get_fdata(dtype=np.float32)), ("pet", uptake)):
            scaling = found.scaling[name]
            expected = (image.T - np.float32(scaling.offset)) / np.float32(scaling.scale)
            np.testing.assert_array_equal(getattr(found, name), expected)

    def test_flips_are_no_resampling(self, tmp_path, t1w):
        uptake = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
        flipped = nib.Nifti1Image(uptake, AFFINE).as_reoriented([[2, -1], [0, 1], [1, -1]])
        flipped.to_filename(tmp_path / "pet.nii.gz")
        straight = conform(t1w, save(tmp_path / "straight.nii.gz", uptake, AFFINE))
        turned = conform(t1w, tmp_path / "pet.nii.gz")
        assert not turned.resampled
        np.testing.assert_array_equal(turned.pet, straight.pet)

    @pytest.mark.parametrize(("shift", "resampled"), [(1e-4, False), (1e-2, True)])
    def test_a_thousandth_of_a_voxel_is_the_same_grid(self, tmp_path, t1w, shift, resampled):
        moved = grid(SHAPE, centre=(0, shift, 0))
        pet = save(tmp_path / "pet.nii.gz", head(SHAPE, AFFINE), moved)
        assert conform(t1w, pet).resampled is resampled

    def test_places_agree_through_both_affines(self, tmp_path, t1w):
        shape = (40, 42, 44)
        placed = grid(shape, (2, 2, 2), (0.2, 0.1, -0.3), (3, -2, 1))
        found = conform(t1w, save(tmp_path / "pet.nii.gz", ramp(shape, placed), placed))
        assert found.resampled
        assert "from 40 x 42 x 44 voxels of 2 x 2 x 2 mm to 50 x 52 x 48" in found.notes[0]
        original = found.pet * found.scaling["pet"].scale
        expected = ramp(SHAPE, found.affine).T
        inside = found.mask > 0
        np.testing.assert_allclose(original[inside], expected[inside], rtol=1e-5)

    def test_what_comes_out(self, tmp_path, t1w):
        found = conform(
            t1w,
            save(
                tmp_path / "pet.nii.gz",
                ramp((20,) * 3, grid((20,) * 3, (3,) * 3)),
                grid((20,) * 3, (3,) * 3),
            ),
        )
        assert isinstance(found, Conformed)
        for image, dtype in ((found.mri, "f4"), (found.pet, "f4"), (found.mask, "u1")):
            assert image.shape == SHAPE[::-1]
            assert image.dtype == np.dtype(dtype)
            assert image.flags.c_contiguous
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-6)
        assert found.orientation.shape == SHAPE
        assert found.sha256["t1w"] == read_volume(t1w).sha256
        assert pickle.loads(pickle.dumps(found)).notes == found.notes

    def test_the_same_twice(self, tmp_path, t1w):
        pet = save(
            tmp_path / "pet.nii.gz",
            ramp((20,) * 3, grid((20,) * 3, (3,) * 3)),
            grid((20,) * 3, (3,) * 3),
        )
        one, two = conform(t1w, pet), conform(t1w, pet)
        assert one.pet.tobytes() == two.pet.tobytes()
        assert one.mri.tobytes() == two.mri.tobytes()

    def test_no_overlap_names_files_and_boxes(self, tmp_path, t1w):
        pet = save(tmp_path / "pet.nii.gz", head(SHAPE, AFFINE), grid(SHAPE, centre=(500, 0, 0)))
        with pytest.raises(GridError) as caught:
            conform(t1w, pet)
        text = str(caught.value)
        assert str(t1w) in text
        assert str(pet) in text
        assert "x -25 to 25 mm" in text
        assert "x 475 to 525 mm" in text
        assert "align" in caught.value.mend

    def test_an_mri_far_coarser_than_the_pet_is_refused_before_it_is_smoothed(self, tmp_path):
        shape = (4, 4, 4)
        t1w = save(tmp_path / "t1w.nii", np.arange(64).reshape(shape), grid(shape, (4e5,) * 3))
        shape = (9, 9, 9)
        inside = (2e5,) * 3  # the centre of a voxel of the MRI
        pet = save(tmp_path / "pet.nii", np.arange(729).reshape(shape), grid(shape, centre=inside))
        with pytest.raises(GridError, match=r"t1w\.nii .* is 400000 times as large") as error:
            conform(t1w, pet)
        assert "pet.nii" in str(error.value)

    def test_little_overlap_is_noted(self, tmp_path, t1w):
        shape = (50, 52, 24)
        pet = save(
            tmp_path / "pet.nii.gz",
            np.random.default_rng(0).random(shape),
            grid(shape, centre=(0, 0, -20)),
        )
        found = conform(t1w, pet)
        assert any("covers only" in note and "% of the head" in note for note in found.notes)
        assert not found.pet[-10:].any()

    def test_beyond_the_pet_as_it_was_aligned_there_is_nothing(self, tmp_path, t1w, monkeypatch):
        """Its field of view moves with it: by the header it would lie 20 mm higher."""
        lies = grid((50, 52, 24), centre=(0, 0, 20))
        data = np.random.default_rng(0).random((50, 52, 24))
        pet = save(tmp_path / "pet.nii.gz", data, lies)
        lower = np.eye(4)
        lower[2, 3] = -20
        moved = Alignment("rigid", matrix=tuple(map(tuple, lower.tolist())))
        monkeypatch.setattr("fusionflow.conform.align", lambda *_: moved)
        found = conform(t1w, pet, pet_window=(-1, 1))
        np.testing.assert_allclose(found.pet[12:36], (data.T + 1) / 2, atol=1e-6)
        assert not found.pet[:12].any()
        assert not found.pet[36:].any()


class TestScaling:
    @given(slope=st.floats(0.01, 1e4), percentile=st.floats(90, 100))
    @settings(max_examples=10, deadline=None)
    def test_it_can_be_undone(self, tmp_path_factory, slope, percentile):
        folder = tmp_path_factory.getbasetemp()
        image = head(SHAPE, AFFINE) * slope
        noisy = ramp(SHAPE, AFFINE) - 41
        t1w = save(folder / "t1w.nii", image, AFFINE)
        pet = save(folder / "pet.nii", noisy, AFFINE)
        found = conform(t1w, pet, mri_percentile=percentile, pet_percentile=percentile)
        for name, original in (("mri", image), ("pet", noisy)):
            scaling = found.scaling[name]
            undone = getattr(found, name) * scaling.scale + scaling.offset
            np.testing.assert_allclose(undone.T, original, rtol=1e-5, atol=1e-5 * scaling.scale)

    def test_percentiles_become_one_and_nothing_is_clipped(self, tmp_path, t1w):
        uptake = head(SHAPE, AFFINE)
        uptake[25, 26, 35] = 1e5
        uptake[0, 0, 0] = -50
        found = conform(t1w, save(tmp_path / "pet.nii", uptake, AFFINE), pet_percentile=99)
        inside = found.mask > 0
        assert np.percentile(found.pet[inside], 99) == pytest.approx(1, rel=1e-5)
        assert np.percentile(found.mri[inside], 99.5) == pytest.approx(1, rel=1e-5)
        assert np.percentile(found.mri, 0.5) == pytest.approx(0, abs=1e-6)
        assert found.pet.max() > 500
        assert found.pet[0, 0, 0] < 0

    def test_no_uptake_stays_zero(self, tmp_path, t1w):
        uptake = head(SHAPE, AFFINE)
        uptake[20:30] = 0
        found = conform(t1w, save(tmp_path / "pet.nii", uptake, AFFINE))
        assert found.scaling["pet"].offset == 0
        assert not found.pet[:, :, 20:30].any()

    def test_no_uptake_in_the_head(self, tmp_path, t1w):
        uptake = np.zeros(SHAPE)
        uptake[:2] = 1
        pet = save(tmp_path / "pet.nii", uptake, AFFINE)
        with pytest.raises(ImageError, match=r"pet\.nii holds no uptake inside the head"):
            conform(t1w, pet)

    @pytest.mark.parametrize("which", ["t1w", "pet"])
    @pytest.mark.parametrize("value", [3e38, -3e38, 1e15])
    def test_a_value_that_is_damage_is_refused(self, tmp_path, t1w, which, value):
        pet = save(tmp_path / "pet.nii", head(SHAPE, AFFINE), AFFINE)
        path = {"t1w": t1w, "pet": pet}[which]
        data = nib.load(path).get_fdata(dtype=np.float32).copy()
        data[0, 0, 0] = value
        save(path, data, AFFINE)
        with pytest.raises(ImageError, match=rf"{path.name} holds a value of .* is damage"):
            conform(t1w, pet)

    def test_values_too_small_to_divide_by_are_refused(self, tmp_path, t1w):
        pet = save(tmp_path / "pet.nii", head(SHAPE, AFFINE) * 1e-45, AFFINE)
        data = nib.load(pet).get_fdata(dtype=np.float32).copy()
        data[0, 0, 0] = 1
        save(pet, data, AFFINE)
        with pytest.raises(ImageError, match=r"pet\.nii"):
            conform(t1w, pet)

    def test_frames_reach_the_reader(self, tmp_path, t1w):
        frames = np.stack([head(SHAPE, AFFINE)] * 2, axis=-1)
        pet = save(tmp_path / "pet.nii", frames, AFFINE)
        assert (
            "PET: mean of 2 frames over 90 s"
            in conform(t1w, pet, info=PetInfo(frame_durations=(30, 60))).notes[0]
        )
        assert "PET: plain mean" in conform(t1w, pet).notes[0]


class TestHeadMask:
    r = np.linalg.norm(world_of(SHAPE, AFFINE), axis=-1).T

    def test_a_ball_with_its_ventricle_and_without_the_noise(self):
        mask = head_mask(head(SHAPE, AFFINE).astype(np.float32).T)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask > 0, self.r < 20)

    @given(factor=st.floats(1e-3, 1e4))
    @settings(max_examples=10, deadline=None)
    def test_units_do_not_matter(self, factor):
        image = head(SHAPE, AFFINE).T
        np.testing.assert_array_equal(head_mask(image * factor), head_mask(image))

    def test_a_brain_in_zeros_that_fills_hardly_any_of_the_frame(self):
        image = np.where(self.r < 5, 80 + self.r, 0)
        assert (image > 0).mean() < 0.01
        np.testing.assert_array_equal(head_mask(image) > 0, self.r < 5)

    def test_what_is_not_connected_is_left(self):
        image = head(SHAPE, AFFINE).T
        image[:3, :3, :3] = 100
        assert not head_mask(image)[:3, :3, :3].any()

    def test_a_hole_that_opens_only_along_the_axis_is_filled(self):
        image = head(SHAPE, AFFINE).T
        image[:, 25:28, 24:27] = 0
        assert head_mask(image)[24, 26, 25]

    def test_a_frame_cropped_to_tissue_is_all_head(self):
        image = 60 + 40 * np.random.default_rng(0).random((10, 11, 12))
        assert head_mask(image).all()

    def test_it_is_noted(self, tmp_path):
        tissue = 60 + 40 * np.random.default_rng(0).random(SHAPE)
        path = save(tmp_path / "a.nii", tissue, AFFINE)
        assert "holds no air" in conform(path, path).notes[0]

    @given(
        st.integers(1, 6),
        st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, 5.0, -3.0]), min_size=36, max_size=36),
    )
    @settings(max_examples=50, deadline=None)
    def test_never_empty(self, depth, values):
        image = np.resize(np.array(values), (depth, 6, 6))
        image[0, 0, :2] = 0, 1
        assert head_mask(image).any()


@pytest.fixture(scope="module")
def cohort():
    return {
        scan.subject: conform(scan.t1w, scan.pet, info=scan.pet_info)
        for scan in discover(SHARED).scans
    }


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real cohort at {SHARED}")
class TestRealCohort:
    def test_only_the_3_mm_maps_are_resampled(self, cohort):
        assert {s for s, scan in cohort.items() if scan.resampled} == {
            f"juspace{n:02}" for n in range(1, 9)
        }

    def test_masks_are_heads(self, cohort):
        for subject, scan in cohort.items():
            z, y, x = (n // 2 for n in scan.mask.shape)
            assert scan.mask[z, y, x], subject
            assert (0.4 < scan.mask.mean() < 0.7) or subject == "brainweb", subject
        assert cohort["brainweb"].mask.all()

    def test_uptake_lies_in_the_brain(self, cohort):
        for subject, scan in cohort.items():
            inside = scan.mask > 0
            # The water average is smoothed so much that a twentieth of it lies in the air.
            assert scan.pet[inside].sum() > 0.9 * np.abs(scan.pet).sum(), subject
            assert np.percentile(scan.pet[inside], 99.5) == pytest.approx(1, rel=1e-4), subject

    def test_left_and_right_agree_with_world_space(self, cohort):
        """The caudate lies at about 12 mm to each side: raclopride must peak there, in MNI."""
        scan = cohort["juspace02"]
        for side in (-1, 1):
            world = [side * 12, 12, 10, 1]
            x, y, z = (np.linalg.inv(scan.affine) @ world)[:3].round().astype(int)
            assert scan.pet[z, y, x] > 3 * np.median(scan.pet[scan.mask > 0])


class TestSharesCovered:
    @pytest.mark.parametrize("voxels", [1, 200, 10**6])
    def test_are_those_of_the_field_of_view(self, monkeypatch, voxels):
        monkeypatch.setattr(resample, "_SLAB_VOXELS", voxels)  # slabs of 1, of 2, of all slices
        shape = (9, 11, 7)
        head = np.random.default_rng(0).random(shape) > 0.4
        pet = volume(np.zeros((5, 6, 4)), nib.affines.from_matvec(np.eye(3) * 1.3, (2, 1, -3)))
        covered = field_of_view(pet, shape, np.eye(4))
        of_frame, of_head = resample._shares_covered(pet, shape, np.eye(4), head)
        assert 0 < of_frame < 1
        assert of_frame == pytest.approx(covered.mean())
        assert of_head == pytest.approx(covered[head].mean())
