"""Every bad image says what is wrong with it, and none does harm."""

import contextlib
import gzip
import os
import struct
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from niftis import DATA, OBLIQUE, SHAPE, patched, save

from fusionflow.errors import ImageError
from fusionflow.io.nifti import read_header, read_volume
from fusionflow.io.nifti_write import write_volume


def dims(*dim: int) -> tuple[int, bytes]:
    return 40, struct.pack(f"<{len(dim)}h", *dim)


HEADERS = {
    "not NIfTI": ((0, b"\x01\x02\x03\x04"), "is not a NIfTI image"),
    "no magic": ((344, b"\0\0\0\0"), "is not a NIfTI image"),
    "a pair": ((344, b"ni1\0"), r"one half of an \.hdr/\.img pair"),
    "1-D": (dims(1, 60), "has 1 dimensions"),
    "2-D": (dims(2, 12, 5), "has 2 dimensions"),
    "5-D": (dims(5, 3, 2, 2, 1, 5), "has 5 dimensions"),
    "no axes": (dims(0), "damaged header"),
    "nine axes": (dims(9, 3, 4, 5), "damaged header"),
    "negative": (dims(3, -3, 4, 5), "damaged header: its dimensions are"),
    "zero": (dims(3, 3, 0, 5), "holds no voxels"),
    "absurd": (dims(4, 32767, 32767, 32767, 32767), "which the .* bytes on disk cannot hold"),
    "complex": ((70, struct.pack("<hh", 32, 64)), "holds complex64 voxels"),
    "colour": ((70, struct.pack("<hh", 128, 24)), "holds RGB voxels"),
    "float128": ((70, struct.pack("<hh", 1536, 128)), "one real number each"),
    "unknown type": ((70, struct.pack("<hh", 999, 8)), "unknown data type code 999"),
    "infinite slope": ((112, struct.pack("<ff", np.inf, 0)), "damaged header: slope inf"),
    "no intercept": ((112, struct.pack("<ff", 2, np.nan)), "intercept nan"),
    "offset": ((108, struct.pack("<f", 12)), "voxels from byte 12"),
    "nan offset": ((108, struct.pack("<f", np.nan)), "voxels from byte nan"),
    "singular": ((280, bytes(16)), "axes that coincide|size"),
    "coinciding": ((280, struct.pack("<12f", *[1, 2, 3, 0] * 3)), "axes that coincide"),
    "nan affine": ((280, struct.pack("<f", np.nan)), "affine that is not valid"),
}


class TestBadFiles:
    @pytest.mark.parametrize("read", [read_header, read_volume])
    @pytest.mark.parametrize(("patch", "says"), HEADERS.values(), ids=HEADERS)
    def test_headers(self, tmp_path, patch, says, read):
        path = patched(tmp_path / "a.nii.gz", patch)
        with pytest.raises(ImageError, match=says) as caught:
            read(path)
        assert str(path) in caught.value.message
        assert caught.value.mend

    def test_zero_voxel_size_without_sform(self, tmp_path):
        path = patched(tmp_path / "a.nii.gz", (254, bytes(2)), (80, struct.pack("<f", 0)))
        with pytest.raises(ImageError, match="voxels of size 0 x"):
            read_volume(path)

    def test_invalid_qform_alone(self, tmp_path):
        path = patched(
            tmp_path / "a.nii.gz", (252, struct.pack("<hh", 1, 0)), (256, b"\0\0\x80\x40" * 3)
        )
        with pytest.raises(ImageError, match="affine that is not valid"):
            read_volume(path)

    @pytest.mark.parametrize("size", [0, 1, 4, 100, 347, 351])
    def test_cut_within_the_header(self, tmp_path, size):
        save(tmp_path / "a.nii")
        os.truncate(tmp_path / "a.nii", size)
        says = {0: "is empty", 1: "not a NIfTI", 351: "truncated"}.get(size, "within its header")
        with pytest.raises(ImageError, match=says):
            read_volume(tmp_path / "a.nii")

    def test_cut_within_the_voxels(self, tmp_path):
        save(tmp_path / "a.nii")
        os.truncate(tmp_path / "a.nii", 500)
        with pytest.raises(ImageError, match=r"claims 592 bytes .* 500 bytes .* truncated"):
            read_volume(tmp_path / "a.nii")

    @pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
    def test_cut_gzip(self, tmp_path, share):
        noise = np.random.default_rng(0).random((10, 10, 10), dtype=np.float32)
        path = save(tmp_path / "a.nii.gz", noise)
        os.truncate(path, int(path.stat().st_size * share))
        with pytest.raises(ImageError, match="truncated or damaged"):
            read_volume(path)

    def test_a_whole_gzip_of_a_cut_image(self, tmp_path):
        whole = gzip.decompress(save(tmp_path / "a.nii.gz").read_bytes())
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(whole[:-1]))
        with pytest.raises(ImageError, match="ends before its last voxel"):
            read_volume(tmp_path / "a.nii.gz")

    @pytest.mark.parametrize("at", [20, -20, -6])
    def test_a_flipped_byte_in_the_gzip(self, tmp_path, at):
        noise = np.random.default_rng(0).random((10, 10, 10), dtype=np.float32)
        content = bytearray(save(tmp_path / "a.nii.gz", noise).read_bytes())
        content[at] ^= 0xFF
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(ImageError):
            read_volume(tmp_path / "a.nii.gz")

    def test_not_there(self, tmp_path):
        with pytest.raises(ImageError, match=r"a\.nii is not there"):
            read_volume(tmp_path / "a.nii")

    def test_content_not_fetched(self, tmp_path):
        (tmp_path / "a.nii.gz").symlink_to(".git/annex/objects/x")
        (tmp_path / "b.nii.gz").write_text("/annex/objects/MD5E-s5--d41d8.nii.gz\n")
        for name in ("a.nii.gz", "b.nii.gz"):
            with pytest.raises(ImageError, match=r"content that is not here\. .*datalad get"):
                read_volume(tmp_path / name)

    def test_a_folder(self, tmp_path):
        with pytest.raises(ImageError, match="cannot be read: Is a directory"):
            read_header(tmp_path)

    def test_a_web_page(self, tmp_path):
        (tmp_path / "a.nii.gz").write_text("<!DOCTYPE html><title>Log in</title>" * 20)
        with pytest.raises(ImageError, match="is not a NIfTI image"):
            read_volume(tmp_path / "a.nii.gz")

    @pytest.mark.parametrize(
        ("value", "says"), [(3, "constant: every voxel is 3"), (np.nan, "no finite value")]
    )
    def test_nothing_in_it(self, tmp_path, value, says):
        path = save(tmp_path / "a.nii.gz", np.full(SHAPE, value, dtype=np.float32))
        with pytest.raises(ImageError, match=says):
            read_volume(path)

    @pytest.mark.parametrize("read", [read_header, read_volume])
    def test_a_pipe_is_not_waited_for(self, tmp_path, read):
        os.mkfifo(tmp_path / "a.nii.gz")
        with pytest.raises(ImageError, match=r"a\.nii\.gz cannot be read: Not a regular file"):
            read(tmp_path / "a.nii.gz")

    def test_more_voxels_than_a_scanner_makes(self, tmp_path):
        path = save(tmp_path / "a.nii", DATA.astype(np.uint8))
        content = bytearray(path.read_bytes())
        content[40:48] = dims(3, 1025, 1024, 1024)[1]
        path.write_bytes(content)
        os.truncate(path, 2 << 30)  # without a block on the disk
        with pytest.raises(ImageError, match="more than an image that was measured"):
            read_volume(path)

    def test_more_than_a_measured_image_shrinks_to(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        content = bytearray(gzip.decompress(save(path).read_bytes()))
        content[40:48] = dims(3, 450, 450, 450)[1]
        noise = np.random.default_rng(0).bytes(1 << 20)
        path.write_bytes(gzip.compress(bytes(content) + noise))
        with pytest.raises(ImageError, match="more than an image that was measured"):
            read_volume(path)

    def test_what_follows_the_voxels_has_an_end(self, tmp_path):
        whole = gzip.decompress(save(tmp_path / "a.nii.gz").read_bytes())
        for more in (1 << 20, 10 << 20):
            (tmp_path / f"{more}.nii.gz").write_bytes(gzip.compress(whole + bytes(more)))
        np.testing.assert_array_equal(read_volume(tmp_path / f"{1 << 20}.nii.gz").data, DATA)
        with pytest.raises(ImageError, match="goes on long after its last voxel"):
            read_volume(tmp_path / f"{10 << 20}.nii.gz")

    @pytest.mark.parametrize("row", [(1e7, 0, 0, 0), (1e-7, 0, 0, 0), (1, 0, 0, 1e10)])
    def test_sizes_and_places_that_no_head_has(self, tmp_path, row):
        path = patched(tmp_path / "a.nii.gz", (280, struct.pack("<4f", *row)))
        with pytest.raises(ImageError, match="affine that is not valid"):
            read_header(path)

    def test_an_absurd_qform_does_no_harm_beside_an_sform(self, tmp_path):
        image = nib.Nifti2Image(DATA, OBLIQUE)
        image.set_sform(OBLIQUE, 2)
        image.set_qform(OBLIQUE, 1)
        image.header["pixdim"][2] = 1e300
        image.to_filename(tmp_path / "a.nii")
        volume = read_volume(tmp_path / "a.nii")
        assert volume.notes == ("its qform is not valid; its sform is used",)
        write_volume(tmp_path / "b.nii", volume.data, volume.orientation)
        assert read_header(tmp_path / "b.nii").notes == ()

    def test_what_does_not_fit_in_memory(self, tmp_path):
        path = save(tmp_path / "a.nii")
        content = bytearray(path.read_bytes())
        content[40:48] = dims(3, 500, 500, 500)[1]
        path.write_bytes(content)
        os.truncate(path, 1 << 29)  # without a block on the disk
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from fusionflow.io.nifti import read_volume\n"
            "pages = int(Path('/proc/self/statm').read_text().split()[0])\n"
            "most = pages * resource.getpagesize() + (1 << 28)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
            "read_volume(sys.argv[1])"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
        assert "ImageError" in ran.stderr
        assert f"{path} does not fit in the memory" in ran.stderr

    @given(st.binary(min_size=1, max_size=64), st.integers(0, 351))
    @settings(max_examples=200, deadline=None)
    def test_any_damage_is_read_or_refused_never_worse(self, tmp_path_factory, damage, at):
        path = tmp_path_factory.getbasetemp() / "damaged.nii.gz"
        content = bytearray(gzip.decompress(save(path).read_bytes()))
        content[at : at + len(damage)] = damage
        path.write_bytes(gzip.compress(bytes(content), 1))
        with contextlib.suppress(ImageError):
            assert np.isfinite(read_volume(path).data).all()
