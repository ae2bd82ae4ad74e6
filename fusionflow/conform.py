"""One scan on one grid: the MRI as it is, the PET on the MRI's own grid, both scaled.

The MRI is only flipped and permuted to RAS+, never resampled, so that a fused voxel is an MRI
voxel. The PET is taken as it is where it lies on that grid already, and is otherwise resampled
once, straight from its own voxels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusionflow.errors import ConfigurationError, GridError, ImageError
from fusionflow.io.nifti import Affine, Orientation, Volume, read_volume

__all__ = ["Conformed", "Scaling", "conform", "head_mask", "resample_to"]

FloatArray = npt.NDArray[np.float32]

# Affines are stored as float32: grids that are meant to be one differ by less than this.
_SAME_GRID_VOXELS = 1e-3
_COARSER = 1.5
_SLAB_VOXELS = 1 << 21
_LEAST_COVERED = 0.01
_LITTLE_COVERED = 0.5
_MRI_OFFSET_PERCENTILE = 0.5
_AIR_AT_MOST = 0.25
# Beyond these it is damage (a flipped bit of an exponent), and squares and sums overflow later.
_LARGEST_STORED = 1e30
_LARGEST_SCALED = 1e9
_MOST_TIMES_COARSER = 100


@dataclass(frozen=True)
class Scaling:
    """How an image was scaled: ``scaled = (original - offset) / scale``, not clipped.

    Attributes
    ----------
    offset, scale : float
        In the units of the image as stored; ``scale`` is positive.
    """

    offset: float
    scale: float


@dataclass(frozen=True, eq=False)
class Conformed:
    """One scan, ready to be fused.

    Attributes
    ----------
    mri, pet : ndarray, (z, y, x) float32, C-contiguous
        Scaled intensities: about 0 to 1 within the head, and beyond where the image is (a hot
        lesion, negative noise). ``pet`` is 0 outside its field of view.
    mask : ndarray, (z, y, x) uint8
        1 within the head.
    affine : ndarray, (4, 4) float64
        Voxel indices in the order (x, y, z) -> world mm (RAS+).
    orientation : Orientation
        The layout of the T1w file, for writing results that lie over it.
    scaling : mapping of str to Scaling
        Of ``"mri"`` and ``"pet"``.
    resampled : bool
        Whether the PET was resampled.
    notes : tuple of str
        What a person should know.
    sha256 : mapping of str to str
        Checksums of the ``"t1w"`` and ``"pet"`` files.
    """

    mri: FloatArray
    pet: FloatArray
    mask: npt.NDArray[np.uint8]
    affine: Affine
    orientation: Orientation
    scaling: Mapping[str, Scaling]
    resampled: bool
    notes: tuple[str, ...]
    sha256: Mapping[str, str]


def conform(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    *,
    frame_durations: Sequence[float] | None = None,
    mri_percentile: float = 99.5,
    pet_percentile: float = 99.5,
) -> Conformed:
    """Put one PET/T1w pair on the MRI's grid and scale both.

    The MRI has no units: its 0.5th percentile over the frame (air, or the zeros around a stripped
    brain) becomes 0, and its ``mri_percentile`` within the head becomes 1. The PET is a
    concentration: its zero means no uptake and stays zero, so that ratios between places survive
    and negative noise stays negative, and its ``pet_percentile`` within the head becomes 1.
    Percentiles, for one hot or broken voxel would otherwise set the scale of all; within the head,
    for the share of air in the frame would. Nothing is clipped: the hottest lesion is the finding.

    Parameters
    ----------
    t1w, pet : path-like
        NIfTI images of one subject, aligned in world space.
    frame_durations : sequence of float, optional
        Duration of each PET frame in seconds.
    mri_percentile, pet_percentile : float
        In (0, 100].

    Returns
    -------
    Conformed

    Raises
    ------
    ConfigurationError
        If a percentile is out of range.
    ImageError
        If an image cannot be read, or has no contrast or no uptake within the head.
    GridError
        If the fields of view hardly overlap.
    """
    for name, value in (("mri_percentile", mri_percentile), ("pet_percentile", pet_percentile)):
        if not 0 < value <= 100:
            raise ConfigurationError(f"{name} is {value}", "Give a number above 0, up to 100")

    mri = read_volume(t1w)
    uptake = read_volume(pet, frame_durations=frame_durations)
    for path, volume in ((t1w, mri), (pet, uptake)):
        _check_values(path, volume.data, _LARGEST_STORED)
    notes = [f"T1w: {note}" for note in mri.notes] + [f"PET: {note}" for note in uptake.notes]
    mask = head_mask(mri.data.T)
    if mask.all():
        notes.append("T1w: its frame holds no air, so all of it counts as head")

    if _same_grid(uptake, mri.data.shape, mri.affine):
        resampled, on_grid = False, uptake.data
        covered = np.ones(mask.shape, dtype=bool)
    else:
        resampled = True
        covered = _field_of_view(uptake, mri.data.shape, mri.affine).T
        _check_overlap(t1w, pet, mri, uptake, covered)
        _check_voxel_sizes(t1w, pet, mri, uptake)
        on_grid = resample_to(uptake, mri.data.shape, mri.affine)
        notes.append(f"PET: resampled onto the MRI's grid from {_grid(uptake)} to {_grid(mri)}")
        of_head = float(covered[mask > 0].mean())
        if of_head < _LITTLE_COVERED:
            notes.append(f"PET: its field of view covers only {of_head:.0%} of the head")

    head = mask > 0
    scaling = {
        "mri": _scaling(
            mri.data.T,
            head,
            float(np.percentile(mri.data, _MRI_OFFSET_PERCENTILE)),
            mri_percentile,
            f"{t1w} holds no contrast inside the head",
        ),
        "pet": _scaling(
            on_grid.T,
            head & covered,
            0.0,
            pet_percentile,
            f"{pet} holds no uptake inside the head",
        ),
    }
    scaled = {
        name: _scaled(data, scaling[name]) for name, data in (("mri", mri.data), ("pet", on_grid))
    }
    for path, name in ((t1w, "mri"), (pet, "pet")):
        _check_values(path, scaled[name], _LARGEST_SCALED, "times what is in the head")
    return Conformed(
        mri=scaled["mri"],
        pet=scaled["pet"],
        mask=mask,
        affine=mri.affine,
        orientation=mri.orientation,
        scaling=scaling,
        resampled=resampled,
        notes=tuple(notes),
        sha256={"t1w": mri.sha256, "pet": uptake.sha256},
    )


def resample_to(volume: Volume, shape: Sequence[int], affine: Affine) -> FloatArray:
    """Resample a volume onto another grid: once, trilinear, through both affines.

    A grid coarser than the volume by more than 1.5 along an axis would alias, so the volume is
    first smoothed along that axis to the resolution of the grid: a Gaussian whose variance is the
    difference of those of the two voxel sizes, each taken as a full width at half maximum (Cardoso
    et al., 2015, "Scale factor point spread function matching", MICCAI).

    A voxel is a box, not a point: up to half a voxel beyond the outermost centres the value at the
    edge counts, and beyond that there is no data and the result is 0.

    Parameters
    ----------
    volume : Volume
        What to resample.
    shape : sequence of int
        Shape (x, y, z) of the grid.
    affine : ndarray, (4, 4)
        The grid's voxel indices -> world mm.

    Returns
    -------
    ndarray, (x, y, z) float32
        In Fortran order. It is made in slabs, so temporaries stay small.
    """
    to_volume = np.linalg.inv(volume.affine) @ affine
    # The variance of a ball of one grid voxel, seen along each axis of the volume.
    ratio = _times_coarser(volume, affine)
    sigma = np.where(ratio > _COARSER, np.sqrt(np.maximum(ratio**2 - 1, 0) / (8 * np.log(2))), 0)
    source = volume.data
    if sigma.any():
        source = ndimage.gaussian_filter(source, sigma.tolist(), mode="nearest")

    resampled = np.empty(tuple(shape), dtype=np.float32, order="F")
    for slab in _slabs(shape):
        offset = to_volume[:3, 3] + to_volume[:3, 2] * slab.start
        part = ndimage.affine_transform(
            source,
            to_volume[:3, :3],
            offset=offset,
            output_shape=resampled[..., slab].shape,
            output=np.float32,
            order=1,
            mode="nearest",
        )
        part[~_inside(volume.data.shape, to_volume, shape, slab)] = 0
        resampled[..., slab] = part
    return resampled


def head_mask(mri: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Separate the head (or the brain, if it is all there is) from air.

    The threshold is that of BET (Smith, 2002, "Fast robust automated brain extraction", Human Brain
    Mapping 17): a tenth of the way from the 2nd to the 98th percentile of the intensities. Of what
    is brighter, the largest connected component is kept, and its holes (ventricles, sinuses) are
    filled, first those that are closed in 3-D, then in each axial slice.

    Air is near zero in a magnitude image. Where the 2nd percentile is above a quarter of the 98th,
    the frame is cropped to tissue and holds no air to set a threshold by: all of it is head.

    Parameters
    ----------
    mri : ndarray, (z, y, x)
        A T1-weighted image, not constant.

    Returns
    -------
    ndarray, (z, y, x) uint8
        1 within the head, never empty.
    """
    low, high = np.percentile(mri, (2, 98))
    if low > _AIR_AT_MOST * abs(high) and low < high:
        return np.ones(mri.shape, dtype=np.uint8)
    if low == high:
        # A head so small, or a brain so tightly stripped, that nearly all of the frame is empty.
        low = mri.min()
        high = np.percentile(mri[mri > low], 98)
    bright = mri > low + 0.1 * (high - low)
    components, _ = ndimage.label(bright)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    head = components == sizes.argmax()
    in_plane = ndimage.generate_binary_structure(3, 1)
    in_plane[[0, 2]] = False
    head = _fill(head, ndimage.generate_binary_structure(3, 1), axes=(0, 1, 2))
    head = _fill(head, in_plane, axes=(1, 2))
    return head.astype(np.uint8)


def _fill(
    mask: npt.NDArray[np.bool_], structure: npt.NDArray[np.bool_], axes: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Fill what is not connected to the faces of the frame across ``axes``.

    By labels, which visits each voxel a few times; `scipy.ndimage.binary_fill_holes` dilates until
    nothing changes, which takes as many passes as the frame is wide.
    """
    outside, n = ndimage.label(~mask, structure=structure)
    open_to_air = np.zeros(n + 1, dtype=bool)
    for axis in axes:
        for end in (0, -1):
            open_to_air[np.unique(outside.take(end, axis=axis))] = True
    open_to_air[0] = False  # the mask itself
    return ~open_to_air[outside]


def _scaling(
    values: FloatArray, where: npt.NDArray[np.bool_], offset: float, percentile: float, wrong: str
) -> Scaling:
    """Return the scaling that takes ``offset`` to 0 and a percentile to 1."""
    inside = values[where]
    scale = float(np.percentile(inside, percentile)) - offset if inside.size else 0.0
    if not scale > 0:
        raise ImageError(
            wrong, "Check that it is the right image and that the two are aligned in world space"
        )
    return Scaling(offset, scale)


def _scaled(data: FloatArray, scaling: Scaling) -> FloatArray:
    """Return scaled intensities as (z, y, x), C-contiguous."""
    with np.errstate(all="ignore"):  # what overflows is refused by the caller
        scaled = data.T - np.float32(scaling.offset)
        scaled /= np.float32(scaling.scale)
    return np.ascontiguousarray(scaled)


def _check_values(
    path: str | os.PathLike[str], values: FloatArray, most: float, unit: str = ""
) -> None:
    """Refuse values that no image holds; NaN is refused as well."""
    largest = max(float(values.max()), -float(values.min()))
    if not largest <= most:
        raise ImageError(
            f"{path} holds a value of {' '.join((f'{largest:g}', unit)).strip()}, which is damage",
            "Fetch or convert it again",
        )


def _same_grid(volume: Volume, shape: Sequence[int], affine: Affine) -> bool:
    """Say whether a volume lies on a grid, to a thousandth of a voxel at every corner."""
    if volume.data.shape != tuple(shape):
        return False
    corners = _corners(shape, 0)
    there = _apply(np.linalg.inv(affine) @ volume.affine, corners)
    return bool(np.abs(there - corners).max() <= _SAME_GRID_VOXELS)


def _check_overlap(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    mri: Volume,
    uptake: Volume,
    covered: npt.NDArray[np.bool_],
) -> None:
    """Refuse a pair whose fields of view hardly share a place."""
    if covered.mean() >= _LEAST_COVERED:
        return
    raise GridError(
        f"The fields of view do not overlap: {t1w} spans {_span(mri)}, {pet} spans {_span(uptake)}",
        "Check that both are of one subject, and align the PET with the T1w "
        "(its affine, or a registration) before fusion",
    )


def _check_voxel_sizes(
    t1w: str | os.PathLike[str], pet: str | os.PathLike[str], mri: Volume, uptake: Volume
) -> None:
    """Refuse an MRI so coarse that smoothing the PET to it would never end."""
    coarser = _times_coarser(uptake, mri.affine).max()
    if coarser > _MOST_TIMES_COARSER:
        raise GridError(
            f"A voxel of {t1w} ({_grid(mri)}) is {coarser:g} times as large as one of {pet} "
            f"({_grid(uptake)})",
            "Check the voxel sizes and units of both",
        )


def _times_coarser(volume: Volume, affine: Affine) -> npt.NDArray[np.float64]:
    """Return how far a voxel of a grid reaches along each axis of a volume, in its voxels."""
    to_volume = np.linalg.inv(volume.affine) @ affine
    return np.asarray(np.linalg.norm(to_volume[:3, :3], axis=1))


def _field_of_view(volume: Volume, shape: Sequence[int], affine: Affine) -> npt.NDArray[np.bool_]:
    """Say which voxels (x, y, z) of a grid a volume covers."""
    to_volume = np.linalg.inv(volume.affine) @ affine
    covered = np.empty(tuple(shape), dtype=bool, order="F")
    for slab in _slabs(shape):
        covered[..., slab] = _inside(volume.data.shape, to_volume, shape, slab)
    return covered


def _inside(
    extent: Sequence[int], to_volume: Affine, shape: Sequence[int], slab: slice
) -> npt.NDArray[np.bool_]:
    """Say which voxels of a slab fall on the boxes of a volume's voxels."""
    x, y, z = np.ogrid[: shape[0], : shape[1], slab]
    inside = np.ones(np.broadcast_shapes(x.shape, y.shape, z.shape), dtype=bool)
    for row, n in zip(to_volume[:3], extent, strict=True):
        at = row[0] * x + row[1] * y + row[2] * z + row[3]
        # The slack keeps the edge straight where it falls right between two voxels.
        inside &= (at >= -0.5 - _SAME_GRID_VOXELS) & (at <= n - 0.5 + _SAME_GRID_VOXELS)
    return inside


def _slabs(shape: Sequence[int]) -> list[slice]:
    """Cut a grid (x, y, z) along z."""
    thick = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    return [slice(z, min(z + thick, shape[2])) for z in range(0, shape[2], thick)]


def _corners(shape: Sequence[int], beyond: float) -> npt.NDArray[np.float64]:
    """Return the corners of a voxel array, (8, 3), from the outermost centres outwards."""
    return np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1 + 2 * beyond) - beyond


def _apply(affine: Affine, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(points @ affine[:3, :3].T + affine[:3, 3])


def _span(volume: Volume) -> str:
    """Return the world bounding box of a volume, as text."""
    world = _apply(volume.affine, _corners(volume.data.shape, 0.5))
    return ", ".join(
        f"{name} {low:.0f} to {high:.0f} mm"
        for name, low, high in zip("xyz", world.min(axis=0), world.max(axis=0), strict=True)
    )


def _grid(volume: Volume) -> str:
    """Return shape and voxel size of a volume, as text."""
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    return (
        f"{' x '.join(str(n) for n in volume.data.shape)} voxels of "
        f"{' x '.join(f'{size:.3g}' for size in sizes)} mm"
    )
