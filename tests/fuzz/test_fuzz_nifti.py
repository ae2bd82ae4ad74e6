"""Damaged and made-up NIfTI images, through all that a run does with a pair."""

from __future__ import annotations

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from fuzzing import MB, cases, damaged, edits, memory_below, refused_at_most
from hypothesis import given
from hypothesis import strategies as st

from fusionflow.config import ConformOptions
from fusionflow.conform import conform
from fusionflow.errors import ImageError
from fusionflow.io.nifti import read_header, read_volume
from fusionflow.io.nifti_write import write_volume
from fusionflow.pet_info import pet_info

GRID = (9, 8, 7)


def head():
    z, y, x = np.indices(GRID[::-1])
    inside = (x - 4) ** 2 + (y - 4) ** 2 + (z - 3) ** 2 < 10
    return np.where(inside, 500 + 10 * x + y, 3 + z % 2).T.astype(np.float32)


def nifti(data, zoom, kind=nib.Nifti1Image):
    affine = np.diag([-zoom, zoom, zoom, 1.0])
    affine[:3, 3] = 4, -4, -3
    return kind(data, affine).to_bytes()


SOURCES = {
    "T1w": nifti(head(), 1.0),
    "T1w in two bytes": nifti(head().astype(np.int16), 1.0),
    "NIfTI-2": nifti(head(), 1.0, nib.Nifti2Image),
    "PET": nifti(head() * 30, 1.0),
    "PET on a coarser grid": nifti(head()[::2, ::2, ::2].copy() * 30, 2.0),
    "PET with frames": nifti(np.stack([head(), head() * 2, head() * 3], axis=-1), 1.0),
}
durations = st.none() | st.lists(
    st.sampled_from([0.0, 60.0, 5e-324, 1e308, -1.0]), min_size=3, max_size=3
)
shorts = st.sampled_from(
    [
        *range(-1, 9),
        16,
        32,
        64,
        128,
        256,
        511,
        512,
        768,
        1024,
        1280,
        1536,
        1792,
        2048,
        2304,
        32767,
        -32768,
    ]
) | st.integers(-32768, 32767)
singles = st.sampled_from(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        3.0,
        348.0,
        352.0,
        351.5,
        1e3,
        1e6,
        1e9,
        1e20,
        1e30,
        2.0**-126,
        1e-45,
        3.4028235e38,
        np.nan,
        np.inf,
        -np.inf,
    ]
).map(np.float32).map(float) | st.floats(width=32)
#: Of a NIfTI-1 header: where, of which type, how many.
FIELDS = [
    (0, "i", 1), (40, "h", 8), (70, "h", 2), (76, "f", 8), (108, "f", 1), (112, "f", 2),
    (123, "B", 1), (252, "h", 2), (256, "f", 6), (280, "f", 12), (344, "B", 4), (348, "i", 3),
]  # fmt: skip


@st.composite
def field_edits(draw):
    """Return (place, bytes) that put another number into one or more fields of a header."""
    of_type = {
        "h": shorts,
        "f": singles,
        "i": st.sampled_from([348, 540, 0, -1, 2**31 - 1, 16, 1 << 24]),
        "B": st.integers(0, 255),
    }
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        at, code, count = draw(st.sampled_from(FIELDS))
        first = draw(st.integers(0, count - 1))
        number = draw(st.integers(1, count - first))
        values = draw(st.lists(of_type[code], min_size=number, max_size=number))
        order = draw(st.sampled_from("<<<>"))
        changes.append(
            (at + first * struct.calcsize(code), struct.pack(f"{order}{number}{code}", *values))
        )
    return changes


@st.composite
def affines(draw):
    """Return the bytes of an sform of any shear, turn and size."""
    scale = draw(st.sampled_from([*[1.0] * 9, 1e-7, 1e-3, 30.0, 1e5, 1e7]))
    numbers = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-7, 0.70710678])
    rows = draw(st.lists(numbers, min_size=12, max_size=12))
    if draw(st.booleans()):  # a turn and a little of that shear, so that most grids meet
        grid = np.eye(4)[list(draw(st.permutations(range(3))))] * draw(st.sampled_from([1, -1]))
        rows = (grid + 0.1 * np.reshape(rows, (3, 4))).ravel().tolist()
    return [(254, struct.pack("<h", 1)), (280, struct.pack("<12f", *(n * scale for n in rows)))]


@st.composite
def voxel_edits(draw):
    """Return (place, bytes) that put numbers of any size among the voxels."""
    number = draw(st.sampled_from([1, 1, 4, 60, 250]))
    values = draw(st.lists(singles, min_size=number, max_size=number))
    return [(352 + 4 * draw(st.integers(0, 500)), struct.pack(f"<{number}f", *values))]


def patched(content, changes):
    content = bytearray(content)
    for at, new in changes:
        content[at : at + len(new)] = new
    return bytes(content)


def run_through(folder, t1w, pet, frame_durations=None):
    """Do with a pair what a run does with it."""
    paths = folder / "sub-01_T1w.nii.gz", folder / "sub-01_pet.nii.gz"
    for path, content in zip(paths, (t1w, pet), strict=True):
        path.write_bytes(content)
    with refused_at_most(*paths):
        like = read_header(paths[0]).orientation
        info = pet_info({"FrameDuration": frame_durations})
        scan = conform(*paths, ConformOptions(registration="header"), info=info)
        for volume in (scan.mri, scan.pet):
            assert volume.shape == scan.mask.shape == like.ras_shape[::-1]
            assert volume.dtype == np.float32
            assert volume.flags.c_contiguous
            assert np.isfinite(volume).all()
        assert scan.mask.dtype == np.uint8
        assert set(np.unique(scan.mask)) <= {0, 1}
        assert scan.mask.any()
        assert np.isfinite(scan.affine).all()
        for scaling in scan.scaling.values():
            assert scaling.scale > 0
            assert np.isfinite([scaling.scale, scaling.offset]).all()
        assert "".join(scan.notes).isprintable()
        written = folder / "fused.nii"
        write_volume(written, scan.mri.T, scan.orientation)
        np.testing.assert_array_equal(read_volume(written).data.T, scan.mri)


class TestNifti:
    @given(
        which=st.sampled_from([*SOURCES]),
        changes=field_edits() | field_edits() | affines() | voxel_edits(),
        frame_durations=durations,
    )
    @cases(900)
    def test_absurd_fields(self, folder, which, changes, frame_durations):
        sources = {"T1w": SOURCES["T1w"], "PET": SOURCES["PET"]}
        sources["PET" if which.startswith("PET") else "T1w"] = patched(SOURCES[which], changes)
        run_through(folder, sources["T1w"], sources["PET"], frame_durations)

    @given(t1w=affines(), pet=affines())
    @cases(150)
    def test_any_two_grids(self, folder, t1w, pet):
        coarse = SOURCES["PET on a coarser grid"]
        run_through(folder, patched(SOURCES["T1w"], t1w), patched(coarse, pet))

    @given(which=st.sampled_from([*SOURCES]), edits=edits)
    @cases(200)
    def test_damaged_bytes(self, folder, which, edits):
        sources = {"T1w": SOURCES["T1w"], "PET": SOURCES["PET"]}
        sources["PET" if which.startswith("PET") else "T1w"] = damaged(SOURCES[which], edits)
        run_through(folder, sources["T1w"], sources["PET"])

    @given(
        edits=edits,
        cut=st.floats(0, 1),
        how=st.sampled_from(["damaged", "two members", "one damaged", "then zeros", "then text"]),
    )
    @cases(200)
    def test_damaged_gzip(self, folder, edits, cut, how):
        whole = SOURCES["T1w"]
        at = int(cut * len(whole))
        members = [gzip.compress(part, 1) for part in (whole[:at], whole[at:])]
        content = {
            "damaged": damaged(gzip.compress(whole, 1), edits),
            "two members": b"".join(members),
            "one damaged": members[0] + damaged(members[1], edits),
            "then zeros": gzip.compress(whole, 1) + bytes(100 * at),
            "then text": gzip.compress(whole, 1) + b"<!DOCTYPE html>",
        }[how]
        run_through(folder, content, SOURCES["PET"])

    @given(
        flag=st.sampled_from([bytes(4), b"\1\0\0\0", b"\xff" * 4]),
        size=st.sampled_from([0, 8, 16, 17, -16, 2**31 - 1, -(2**31)]),
        body=st.binary(max_size=64),
        offset=st.sampled_from([348, 352, 360, 368, 384, 416, 1e6, 3e9]),
    )
    @cases(100)
    def test_extensions(self, folder, flag, size, body, offset):
        whole = SOURCES["T1w"]
        extension = flag + struct.pack("<ii", size, 6) + body
        content = patched(whole[:348], [(108, struct.pack("<f", offset))])
        run_through(folder, content + extension + whole[352:], SOURCES["PET"])

    @pytest.mark.parametrize("frames", [1, 2000])
    def test_a_bomb_is_refused_before_it_takes_memory(self, tmp_path, frames):
        path = tmp_path / "a.nii.gz"
        dim = struct.pack("<8h", 4, 500, 500, 500, frames, 1, 1, 1)
        bytes_of_it = 500**3 * 4
        with gzip.open(path, "wb", 9) as stream:
            stream.write(patched(SOURCES["T1w"][:352], [(40, dim)]))
            for _ in range(bytes_of_it // 10 // MB):
                stream.write(bytes(MB))
        with memory_below(16 * MB), pytest.raises(ImageError, match=r"a\.nii\.gz"):
            read_volume(path)

    def test_what_follows_the_voxels_is_not_read_without_end(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        end = gzip.compress(bytes(8 * MB), 9)
        path.write_bytes(gzip.compress(SOURCES["T1w"]) + end * 1000)
        with memory_below(64 * MB), pytest.raises(ImageError, match="long after its last voxel"):
            read_volume(path)
