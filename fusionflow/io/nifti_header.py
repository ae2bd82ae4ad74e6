"""What a NIfTI header says, checked: type, scaling, offset, and where the voxels lie.

Headers are parsed from their bytes and built for writing; no file is opened here.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.volumeutils import shape_zoom_affine

from fusionflow.errors import ImageError

__all__ = ["ImageHeader", "Orientation", "header_like", "parse_header"]

Affine: TypeAlias = npt.NDArray[np.float64]
NiftiHeader: TypeAlias = nib.Nifti1Header

HEADER_BYTES = 540  # of NIfTI-2, the longer one

# DEFLATE cannot do better: a match of 258 bytes costs two bits at least (zlib technical notes).
_MOST_EXPANSION = 1032
# Images that were measured are noise where they are not empty: they shrink to a tenth, rarely to a
# fiftieth. What shrinks more and is large was made to fill memory.
_USUAL_EXPANSION = 250
_LARGE_BYTES = 1 << 28
# A head at 0.2 mm has 1e9 voxels; conforming takes some 11 bytes for each.
_MOST_VOXELS = 1 << 30
# A voxel may be an electron microscope's or a whale's, but not these.
_SMALLEST_MM, _LARGEST_MM = 1e-6, 1e6
_FARTHEST_MM = 1e9
_ALIGNED = 2
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_LAST_CODE = 5
_FLAT = 1e-6
# Storing a quaternion as float32 can turn it by 1e-3 rad (near half turns, such as LPS), so a qform
# that was made from its sform can be 0.4 mm off at a corner: only more is a disagreement.
_SAME_PLACE_VOXELS = 1.0

AGAIN = "Fetch or convert it again"
GET = "Fetch it, for example with `datalad get`, `git annex get` or `git lfs pull`"
_CONVERT = "Convert it to a single-file NIfTI-1 (.nii or .nii.gz), for example with dcm2niix"


@dataclass(frozen=True, eq=False)
class Orientation:
    """How a file on disk lays out its voxels.

    It is all that is needed to write an array in RAS+ back in the layout of that file, and is small
    enough to travel with a task.

    Attributes
    ----------
    shape : tuple of int
        Shape (i, j, k) of the file's voxel array, without frames.
    affine : ndarray, (4, 4) float64
        File voxel indices -> world mm (RAS+).
    axcodes : tuple of str
        Direction in which each file axis grows, such as ``("L", "A", "S")``.
    qform_code, sform_code : int
        NIfTI codes of the two transforms in the file.
    qform : ndarray, (4, 4) float64, optional
        The file's qform, where it has a valid one; it can differ from the affine, which is the
        sform where there are both.
    """

    shape: tuple[int, int, int]
    affine: Affine
    axcodes: tuple[str, str, str]
    qform_code: int = 0
    sform_code: int = _ALIGNED
    qform: Affine | None = None

    @functools.cached_property
    def to_ras(self) -> npt.NDArray[np.float64]:
        """Permutation and flips from file axes to RAS+ axes, (3, 2), as nibabel writes them."""
        found = np.asarray(io_orientation(self.affine))
        found.setflags(write=False)
        return found

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """Shape (x, y, z) after the flips and permutations to RAS+."""
        where = self.to_ras[:, 0].astype(int)
        x, y, z = (self.shape[int(np.flatnonzero(where == axis)[0])] for axis in range(3))
        return x, y, z

    @property
    def ras_affine(self) -> Affine:
        """Affine (4, 4) of the RAS+ array: its voxel indices (x, y, z) -> world mm."""
        return np.asarray(self.affine @ inv_ornt_aff(self.to_ras, self.shape), dtype=np.float64)

    def as_stored(self, ras: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of an array (x, y, z) in RAS+ with the axes (i, j, k) of the file."""
        return np.asarray(apply_orientation(ras, ornt_transform(_RAS, self.to_ras)))


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """What the header of an image says, checked.

    Attributes
    ----------
    shape : tuple of int
        Shape (i, j, k) or (i, j, k, frame) as stored; trailing axes of length 1 are left out.
    dtype : numpy.dtype
        Stored type, byte order included.
    slope, intercept : float
        Value = stored * slope + intercept.
    offset : int
        Byte at which the voxels start.
    orientation : Orientation
        The layout of the file.
    notes : tuple of str
        What a person should know about it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    offset: int
    orientation: Orientation
    notes: tuple[str, ...] = ()

    @property
    def affine(self) -> Affine:
        """File voxel indices -> world mm (RAS+), (4, 4)."""
        return self.orientation.affine

    @property
    def axcodes(self) -> tuple[str, str, str]:
        """Direction in which each file axis grows."""
        return self.orientation.axcodes

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel size in mm along each file axis, from the affine."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def data_bytes(self) -> int:
        """Bytes that the voxels of all frames take, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def n_frames(self) -> int:
        """Number of frames; 1 for a 3-D image."""
        return self.shape[3] if len(self.shape) == 4 else 1


def parse_header(path: Path, head: bytes, size: int, compressed: bool) -> ImageHeader:
    """Check the first `HEADER_BYTES` of an image that takes ``size`` bytes on disk."""
    header = _nifti_header(path, head)
    dim = [int(n) for n in header["dim"]]
    shape = tuple(dim[1 : dim[0] + 1])
    if not 1 <= dim[0] <= 7 or min(shape) < 0:
        raise ImageError(f"{path} has a damaged header: its dimensions are {dim}", AGAIN)
    if 0 in shape:
        raise ImageError(f"{path} holds no voxels: its shape is {shape}", AGAIN)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (3, 4):
        raise ImageError(
            f"{path} has {len(shape)} dimensions (shape {shape}), not 3, or 4 with its frames",
            "Give a 3-D image, or a 4-D image whose last axis is time",
        )

    codes, code = nib.nifti1.data_type_codes, int(header["datatype"])
    if code not in codes.dtype:
        raise ImageError(f"{path} has the unknown data type code {code}", AGAIN)
    dtype = np.dtype(codes.dtype[code]).newbyteorder(header.endianness)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ImageError(
            f"{path} holds {codes.label[code]} voxels, which are not one real number each",
            "Give a scalar image: the magnitude of a complex one, the uptake behind a coloured one",
        )

    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):  # the standard's way to say: no scaling
        slope, intercept = 1.0, 0.0
    start, least = float(header["vox_offset"]), int(header["sizeof_hdr"])
    if not math.isfinite(slope + intercept + start) or 0 != start < least:
        raise ImageError(
            f"{path} has a damaged header: slope {slope:g}, intercept {intercept:g}, "
            f"voxels from byte {start:g}",
            AGAIN,
        )
    offset = int(start) or least + 4
    claimed = offset + math.prod(shape) * dtype.itemsize
    if claimed > (size * _MOST_EXPANSION if compressed else size):
        raise ImageError(
            f"{path} claims {claimed} bytes (shape {shape}, {dtype.name}), which the {size} bytes "
            "on disk cannot hold: it is truncated, or its header is damaged",
            AGAIN,
        )
    taken = offset + math.prod(shape) * max(dtype.itemsize, 4)  # float32 at the least
    if math.prod(shape[:3]) > _MOST_VOXELS or (
        compressed and taken > max(_LARGE_BYTES, size * _USUAL_EXPANSION)
    ):
        raise ImageError(
            f"{path} would take {taken} bytes of memory (shape {shape}) from {size} bytes on disk, "
            "more than an image that was measured",
            "Check where it comes from; crop or resample it if its size is meant",
        )
    orientation, notes = _orientation(path, header, shape[:3])
    return ImageHeader(shape, dtype, slope, intercept, offset, orientation, notes)


def _nifti_header(path: Path, head: bytes) -> NiftiHeader:
    """Return nibabel's header, in the byte order of the file and not yet checked."""
    if not head:
        raise ImageError(f"{path} is empty", AGAIN)
    if head.startswith((b"/annex/objects", b"version https://git-lfs")):
        raise ImageError(f"{path} is a pointer to content that is not here", GET)
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    for endianness in "<>":
        declared = int(np.frombuffer(head[:4].ljust(4), f"{endianness}i4")[0])
        if declared not in kinds:
            continue
        if len(head) < declared:
            raise ImageError(f"{path} is truncated within its header", AGAIN)
        header = kinds[declared](head[:declared], endianness=endianness, check=False)
        magic = header["magic"].item()[:3]
        if magic in (b"ni1", b"ni2"):
            raise ImageError(f"{path} is one half of an .hdr/.img pair", _CONVERT)
        if magic in (b"n+1", b"n+2"):
            return header
    raise ImageError(f"{path} is not a NIfTI image", _CONVERT)


@np.errstate(invalid="ignore", over="ignore")  # damaged numbers are refused below
def _orientation(
    path: Path, header: NiftiHeader, shape: tuple[int, ...]
) -> tuple[Orientation, tuple[str, ...]]:
    """Decide which of sform, qform and voxel sizes places the voxels, in this order."""
    # A code that the standard does not know says that the voxels are placed, and no more.
    qform_code, sform_code = (
        code if 0 <= code <= _LAST_CODE else _ALIGNED
        for code in (int(header["qform_code"]), int(header["sform_code"]))
    )
    qform = _qform(header) if qform_code else None
    notes: tuple[str, ...] = ()
    if sform_code:
        affine = np.asarray(header.get_sform(), dtype=np.float64)
        if qform_code and qform is None:
            notes = ("its qform is not valid; its sform is used",)
        elif qform is not None and not _same_place(affine, qform, shape):
            notes = ("its sform and qform disagree; its sform is used",)
    elif qform_code:
        affine = np.zeros((4, 4)) if qform is None else qform
    else:
        zooms = np.abs(header["pixdim"][1:4])
        affine = np.asarray(shape_zoom_affine(shape, zooms, True), dtype=np.float64)
        notes = (
            "it has neither sform nor qform: placed by its voxel sizes around its centre, "
            "with left on the right as in Analyze files",
        )
    if not _places(affine):
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        raise ImageError(
            f"{path} is placed by an affine that is not valid (voxels of size "
            f"{' x '.join(f'{size:g}' for size in sizes)} mm, axes that coincide, or far away)",
            "Convert it again, or copy a valid qform to its sform or the other way round",
        )
    i, j, k = shape
    axcodes = aff2axcodes(affine)
    return Orientation((i, j, k), affine, axcodes, qform_code, sform_code, qform), notes


def _places(affine: Affine) -> bool:
    """Say whether an affine (4, 4) can be where voxels are."""
    # Column by column, so that small voxels are not taken for none.
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(
        np.isfinite(affine).all()
        and ((sizes >= _SMALLEST_MM) & (sizes <= _LARGEST_MM)).all()
        and np.abs(affine[:3, 3]).max() <= _FARTHEST_MM
        and abs(np.linalg.det(affine[:3, :3] / sizes)) >= _FLAT
    )


def _qform(header: NiftiHeader) -> Affine | None:
    """Return the qform (4, 4), or None if it is not valid."""
    header = header.copy()
    # The standard reads a qfac of 0 as 1, and voxel sizes have no sign.
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        affine = np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError:  # not a unit quaternion
        return None
    return affine if _places(affine) else None


def _same_place(sform: Affine, qform: Affine, shape: tuple[int, ...]) -> bool:
    """Say whether two affines put every corner of the array in about the same place."""
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    apart = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    return bool(apart <= _SAME_PLACE_VOXELS * np.linalg.norm(qform[:3, :3], axis=0).min())


def header_like(
    like: Orientation, description: str, dtype: npt.DTypeLike = np.float32
) -> NiftiHeader:
    """Build the NIfTI-1 header of an image that is laid out like another."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(like.shape)
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    qform = like.affine if like.qform is None else like.qform
    header.set_qform(qform, code=like.qform_code)  # sets the zooms, too
    if like.sform_code or not like.qform_code:
        header.set_sform(like.affine, code=like.sform_code or _ALIGNED)
    return header
