"""Reading and writing images: nothing moves, and nothing is lost."""

import gzip
import hashlib
import itertools
import pickle
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation
from niftis import DATA, OBLIQUE, SHAPE, affine_of, patched, save

from fusionflow.errors import GridError, ImageError, StoreError
from fusionflow.io.nifti import Orientation, read_header, read_volume
from fusionflow.io.nifti_write import write_slices, write_volume

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bids"
ORIENTATIONS = [
    "".join(codes)
    for axes in itertools.permutations(("LR", "PA", "IS"))
    for codes in itertools.product(*axes)
]


def by_place(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return world coordinates and value of every voxel, in an order of their own."""
    index = np.array(list(np.ndindex(data.shape)))
    world = nib.affines.apply_affine(affine, index).round(4)
    rows = np.column_stack([world, data.ravel()])
    return rows[np.lexsort(rows.T)]


class Asked:
    """Slices that remember how many were asked for at a time."""

    def __init__(self, data):
        self.data, self.shape, self.dtype, self.lengths = data, data.shape, data.dtype, []

    def __getitem__(self, rows):
        self.lengths.append(rows.stop - rows.start)
        return self.data[rows]


class TestOrientation:
    def test_there_are_48(self):
        assert len(set(ORIENTATIONS)) == 48

    @pytest.mark.parametrize("axcodes", ORIENTATIONS)
    def test_every_voxel_keeps_its_place_and_value_both_ways(self, tmp_path, axcodes):
        source = save(tmp_path / "a.nii.gz", affine=affine_of(axcodes), qform=1)
        volume = read_volume(source)
        assert volume.orientation.axcodes == tuple(axcodes)
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        assert volume.data.dtype == np.float32
        np.testing.assert_allclose(
            by_place(volume.data, volume.affine),
            by_place(DATA, nib.load(source).affine),
            atol=2e-4,
        )

        write_volume(tmp_path / "b.nii.gz", volume.data * 2, volume.orientation)
        before, after = nib.load(source), nib.load(tmp_path / "b.nii.gz")
        np.testing.assert_array_equal(after.get_fdata(), before.get_fdata() * 2)
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_allclose(after.get_qform(), before.get_qform(), atol=1e-4)
        assert (after.header["qform_code"], after.header["sform_code"]) == (1, 2)

    def test_ras_shape_and_affine_are_those_of_the_volume(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii.gz", affine=affine_of("SPL")))
        assert volume.orientation.shape == SHAPE
        assert volume.orientation.ras_shape == volume.data.shape == (5, 4, 3)
        np.testing.assert_array_equal(volume.orientation.ras_affine, volume.affine)

    def test_the_transpose_is_contiguous(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii.gz", affine=affine_of("LPS")))
        assert volume.data.T.flags.c_contiguous

    def test_it_travels(self, tmp_path):
        orientation = read_volume(save(tmp_path / "a.nii.gz", qform=1)).orientation
        assert len(pickle.dumps(orientation)) < 2000
        again = pickle.loads(pickle.dumps(orientation))
        write_volume(tmp_path / "b.nii.gz", DATA, orientation)
        write_volume(tmp_path / "c.nii.gz", DATA, again)
        assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


class TestPlacement:
    moved = OBLIQUE + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3)

    @pytest.mark.parametrize(("sform", "qform"), [(2, 0), (0, 1), (1, 1), (4, 2), (0, 0), (5, 3)])
    def test_codes_come_back(self, tmp_path, sform, qform):
        volume = read_volume(save(tmp_path / "a.nii.gz", sform=sform, qform=qform))
        write_volume(tmp_path / "b.nii.gz", volume.data, volume.orientation)
        image = nib.load(tmp_path / "b.nii.gz")
        codes = int(image.header["sform_code"]), int(image.header["qform_code"])
        assert codes == ((sform, qform) if sform or qform else (2, 0))
        np.testing.assert_allclose(image.affine, volume.orientation.affine, atol=1e-5)

    def test_without_codes_the_voxel_sizes_place_it_and_it_says_so(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", sform=0)
        volume = read_volume(path)
        np.testing.assert_allclose(volume.orientation.affine, nib.load(path).affine, atol=1e-6)
        assert "neither sform nor qform" in volume.notes[0]

    def test_of_two_that_disagree_the_sform_is_used_and_both_are_kept(self, tmp_path):
        image = nib.Nifti1Image(DATA, OBLIQUE)
        image.set_sform(OBLIQUE, 2)
        image.set_qform(self.moved, 1)
        image.to_filename(tmp_path / "a.nii.gz")
        volume = read_volume(tmp_path / "a.nii.gz")
        assert volume.notes == ("its sform and qform disagree; its sform is used",)
        np.testing.assert_allclose(volume.orientation.affine, OBLIQUE, atol=1e-5)
        write_volume(tmp_path / "b.nii.gz", volume.data, volume.orientation)
        np.testing.assert_allclose(
            nib.load(tmp_path / "b.nii.gz").get_qform(), self.moved, atol=1e-4
        )

    @given(
        half_turn_off=st.sampled_from([0, 1e-4, 1e-3, 1e-2]),
        axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda a: np.linalg.norm(a) > 0.1),
    )
    @settings(max_examples=25, deadline=None)
    def test_rounding_of_a_quaternion_is_no_disagreement(
        self, tmp_path_factory, half_turn_off, axis
    ):
        turn = nib.quaternions.angle_axis2mat(np.pi - half_turn_off, axis)
        shape = (256, 2, 256)
        data = np.zeros(shape, dtype=np.uint8)
        data[0] = 1
        path = tmp_path_factory.getbasetemp() / "turned.nii"
        save(path, data, nib.affines.from_matvec(turn), qform=1)
        assert read_header(path).notes == ()

    def test_an_invalid_qform_does_no_harm_beside_an_sform(self, tmp_path):
        path = patched(
            tmp_path / "a.nii.gz", (252, struct.pack("<h", 1)), (256, b"\0\0\x80\x40" * 3)
        )
        volume = read_volume(path)
        assert volume.notes == ("its qform is not valid; its sform is used",)
        write_volume(tmp_path / "b.nii.gz", volume.data, volume.orientation)
        assert read_header(tmp_path / "b.nii.gz").notes == ()

    def test_an_unknown_code_is_read_as_aligned(self, tmp_path):
        header = read_header(patched(tmp_path / "a.nii.gz", (254, struct.pack("<h", 77))))
        assert header.orientation.sform_code == 2


class TestValues:
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("code", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
    def test_types_and_byte_orders(self, tmp_path, order, code):
        data = DATA.astype(order + code)
        image = nib.Nifti1Image(data, OBLIQUE, nib.Nifti1Header(endianness=order), dtype=data.dtype)
        image.to_filename(tmp_path / "a.nii")
        assert read_header(tmp_path / "a.nii").dtype == data.dtype
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, DATA)

    def test_slope_and_intercept(self, tmp_path):
        image = nib.Nifti1Image(DATA.astype(np.int16), OBLIQUE)
        image.header.set_slope_inter(0.5, -3)
        image.to_filename(tmp_path / "a.nii.gz")
        np.testing.assert_allclose(
            read_volume(tmp_path / "a.nii.gz").data, nib.load(tmp_path / "a.nii.gz").get_fdata()
        )

    @pytest.mark.parametrize("slope", [0.0, np.nan])
    def test_no_slope_is_no_scaling(self, tmp_path, slope):
        path = patched(tmp_path / "a.nii.gz", (112, struct.pack("<ff", slope, 7)))
        np.testing.assert_array_equal(read_volume(path).data, DATA)

    def test_nifti_2(self, tmp_path):
        save(tmp_path / "a.nii.gz", kind=nib.Nifti2Image)
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, DATA)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_zero_counted_and_noted(self, tmp_path, bad):
        data = DATA.copy()
        data[1, 2, 3] = data[0, 0, 1] = bad
        volume = read_volume(save(tmp_path / "a.nii.gz", data))
        assert volume.nonfinite == 2
        assert volume.data[1, 2, 3] == volume.data[0, 0, 1] == 0
        assert volume.notes == ("2 of 60 voxels held NaN or infinity and were set to 0",)

    def test_beyond_float32_is_not_finite_either(self, tmp_path):
        data = DATA.astype(np.float64)
        data[0, 0, 0] = 1e300
        assert read_volume(save(tmp_path / "a.nii.gz", data)).nonfinite == 1

    def test_checksum_is_of_the_file(self, tmp_path):
        path = save(tmp_path / "a.nii.gz")
        assert read_volume(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_compression_is_seen_in_the_content_not_the_name(self, tmp_path):
        save(tmp_path / "a.nii").rename(tmp_path / "b.nii.gz")
        save(tmp_path / "a.nii.gz").rename(tmp_path / "b.nii")
        for name in ("b.nii", "b.nii.gz"):
            np.testing.assert_array_equal(read_volume(tmp_path / name).data, DATA)

    def test_extensions_are_passed_over(self, tmp_path):
        image = nib.Nifti1Image(DATA, OBLIQUE)
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
        image.to_filename(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").data, DATA)

    def test_header_alone(self, tmp_path):
        header = read_header(save(tmp_path / "a.nii.gz", np.stack([DATA] * 6, axis=-1)))
        assert header.shape == (3, 4, 5, 6)
        assert header.n_frames == 6
        np.testing.assert_allclose(header.zooms, (1, 1.5, 2), atol=1e-6)
        assert header.axcodes == ("R", "A", "S")


class TestFrames:
    frames = np.stack([DATA, DATA * 4, DATA * 10], axis=-1)

    def test_mean_is_weighted(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", self.frames, affine_of("LPS"))
        volume = read_volume(path, frame_weights=[1 / 6, 2 / 6, 3 / 6])
        expected = (DATA * (10 * 1 + 20 * 4 + 30 * 10) / 60)[::-1, ::-1]
        np.testing.assert_allclose(volume.data, expected, rtol=1e-6)
        assert volume.notes == ()

    def test_without_weights_it_is_plain_and_noted(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii.gz", self.frames))
        np.testing.assert_allclose(volume.data, DATA * 5, rtol=1e-6)
        assert "plain mean of 3 frames" in volume.notes[0]

    def test_a_frame_that_does_not_count_may_hold_anything(self, tmp_path):
        frames = self.frames.copy()
        frames[..., 1] = np.nan
        path = save(tmp_path / "a.nii.gz", frames)
        volume = read_volume(path, frame_weights=[0.5, 0, 0.5])
        np.testing.assert_allclose(volume.data, DATA * 5.5, rtol=1e-6)
        assert volume.nonfinite == 0

    @pytest.mark.parametrize("shape", [(3, 4, 5, 1), (3, 4, 5, 1, 1)])
    def test_axes_of_length_one_are_dropped(self, tmp_path, shape):
        path = save(tmp_path / "a.nii.gz", DATA.reshape(shape))
        np.testing.assert_array_equal(read_volume(path, frame_weights=[1]).data, DATA)

    def test_a_count_that_does_not_match_names_both(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", self.frames)
        with pytest.raises(ImageError, match="has 3 frames, but 2 weights"):
            read_volume(path, frame_weights=[0.5, 0.5])


class TestColours:
    @pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
    def test_lie_where_the_image_lies(self, tmp_path, codes):
        like = read_header(save(tmp_path / "t1w.nii.gz", affine=affine_of(codes))).orientation
        colours = np.random.default_rng(0).integers(0, 256, (*like.ras_shape, 3), np.uint8)
        write_slices(tmp_path / "rgb.nii.gz", colours.transpose(2, 1, 0, 3), like)
        image = nib.load(tmp_path / "rgb.nii.gz")
        np.testing.assert_allclose(image.affine, like.affine, atol=1e-5)
        assert image.get_data_dtype().names == ("R", "G", "B")
        raw = np.asarray(image.dataobj)
        stored = np.stack([raw[channel] for channel in "RGB"], axis=-1)
        ras = apply_orientation(stored, like.to_ras)
        np.testing.assert_array_equal(ras, colours)

    def test_of_another_grid_are_refused(self, tmp_path):
        like = read_header(save(tmp_path / "t1w.nii.gz")).orientation
        with pytest.raises(GridError):
            write_slices(tmp_path / "rgb.nii", np.zeros((2, 2, 2, 3), np.uint8), like)


class TestWriting:
    like = Orientation(SHAPE, affine_of("LPS"), ("L", "P", "S"))

    def test_the_file(self, tmp_path):
        write_volume(tmp_path / "a.nii.gz", DATA, self.like)
        header = nib.load(tmp_path / "a.nii.gz").header
        assert header.get_data_dtype() == np.float32
        assert header.get_xyzt_units()[0] == "mm"
        assert header["descrip"].item() == b"fusionflow"
        content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
        assert struct.unpack_from("<ff", content, 112) == (1, 0)  # nibabel hides what it applies
        assert len(content) == 352 + DATA.nbytes

    def test_the_same_array_gives_the_same_bytes(self, tmp_path):
        for name in ("a.nii.gz", "b.nii.gz"):
            write_volume(tmp_path / name, DATA, self.like)
        written = [(tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz")]
        assert written[0] == written[1]
        assert written[0][4:8] == bytes(4)

    def test_without_gz_it_is_not_compressed(self, tmp_path):
        write_volume(tmp_path / "a.nii", DATA, self.like)
        np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").data, DATA)

    def test_the_shape_must_fit(self, tmp_path):
        with pytest.raises(GridError, match=r"\(5, 4, 3\).*\(3, 4, 5\)"):
            write_volume(tmp_path / "a.nii.gz", DATA.T, self.like)

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(StoreError, match="cannot be written"):
            write_volume(tmp_path / "x" / "a.nii.gz", DATA, self.like)

    def test_nothing_else_is_left_behind(self, tmp_path):
        write_volume(tmp_path / "a.nii.gz", DATA, self.like)
        assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real cohort at {SHARED}")
@pytest.mark.parametrize("suffix", ["T1w", "pet"])
def test_real_images_agree_with_nibabel_and_come_back(tmp_path, suffix):
    paths = sorted(SHARED.glob(f"sub-*/*/*_{suffix}.nii.gz"))
    assert len(paths) == 11
    for path in paths:
        volume = read_volume(path)
        canonical = nib.as_closest_canonical(nib.load(path))
        np.testing.assert_array_equal(volume.data, canonical.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, canonical.affine, atol=1e-6)
        assert volume.notes == ()
        write_volume(tmp_path / path.name, volume.data, volume.orientation)
        before, after = nib.load(path), nib.load(tmp_path / path.name)
        np.testing.assert_array_equal(after.affine, before.affine)
        np.testing.assert_array_equal(after.get_fdata(), before.get_fdata(dtype=np.float32))
        for code in ("qform_code", "sform_code"):
            assert after.header[code] == before.header[code]


class TestStreams:
    """What goes block by block is what goes at once."""

    def test_the_hash_is_of_the_whole_file(self, tmp_path):
        path = save(tmp_path / "a.nii")
        content = path.read_bytes()
        for name, stored in (
            ("longer.nii", content + b"more"),
            ("members.nii.gz", gzip.compress(content[:700]) + gzip.compress(content[700:])),
            ("padded.nii.gz", gzip.compress(content) + bytes(1000)),
        ):
            (tmp_path / name).write_bytes(stored)
            volume = read_volume(tmp_path / name)
            assert volume.sha256 == hashlib.sha256(stored).hexdigest()
            np.testing.assert_array_equal(volume.data, DATA)

    @pytest.mark.parametrize("codes", ORIENTATIONS)
    @pytest.mark.parametrize("slab", [1, 2, 7])
    def test_slabs_give_the_bytes_of_the_whole(self, tmp_path, codes, slab):
        like = read_header(save(tmp_path / "t1w.nii", affine=affine_of(codes))).orientation
        data = np.random.default_rng(0).random(like.ras_shape, np.float32)
        write_volume(tmp_path / "whole.nii.gz", data, like)
        asked = Asked(data.T)
        write_slices(tmp_path / "slabs.nii.gz", asked, like, slab=slab)
        assert max(asked.lengths) <= slab
        assert sum(asked.lengths) == len(data.T)
        assert (tmp_path / "slabs.nii.gz").read_bytes() == (tmp_path / "whole.nii.gz").read_bytes()

    def test_frames_without_any_weight_are_refused(self, tmp_path):
        path = save(tmp_path / "a.nii", np.stack([DATA, DATA], -1))
        with pytest.raises(ImageError, match="none of them has a weight"):
            read_volume(path, frame_weights=[0, 0])
