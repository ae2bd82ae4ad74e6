"""Grids: whether two are one, what one covers of the other, and resampling, once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusionflow.errors import GridError, ImageError
from fusionflow.io.nifti import Affine, Volume, grid_of, read_header

FloatArray = npt.NDArray[np.float32]

# Affines are stored as float32: grids that are meant to be one differ by less than this.
_SAME_GRID_VOXELS = 1e-3
_COARSER = 1.5
_SLAB_VOXELS = 1 << 21
_LEAST_COVERED = 0.01
_LITTLE_COVERED = 0.5
_MOST_TIMES_COARSER = 100


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
    for slab, inside in _fields_of_view(volume, shape, affine):
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
        part[~inside] = 0
        resampled[..., slab] = part
    return resampled


def same_grid(volume: Volume, shape: Sequence[int], affine: Affine) -> bool:
    """Say whether a volume lies on a grid, to a thousandth of a voxel at every corner."""
    if volume.data.shape != tuple(shape):
        return False
    corners = _corners(shape, 0)
    there = _apply(np.linalg.inv(affine) @ volume.affine, corners)
    return bool(np.abs(there - corners).max() <= _SAME_GRID_VOXELS)


def onto_mri(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    mri: Volume,
    uptake: Volume,
    head: npt.NDArray[np.uint8],
    notes: list[str],
) -> Volume:
    """Resample the PET onto the grid of the MRI."""
    shape, affine = mri.data.shape, mri.affine
    of_frame, of_head = _shares_covered(uptake, shape, affine, head.view(np.bool_).T)
    check_overlap(t1w, pet, mri, uptake, of_frame)
    check_voxel_sizes(t1w, pet, mri, uptake)
    notes.append(
        f"PET: resampled onto the MRI's grid from {describe_grid(uptake)} to {describe_grid(mri)}"
    )
    if of_head < _LITTLE_COVERED:
        notes.append(f"PET: its field of view covers only {of_head:.0%} of the head")
    return replace(mri, data=resample_to(uptake, shape, affine))


def onto_template(
    t1w: str | os.PathLike[str],
    space: str | os.PathLike[str],
    mri: Volume,
    head: npt.NDArray[np.uint8],
    notes: list[str],
) -> tuple[Volume, npt.NDArray[np.uint8]]:
    """Resample the MRI and its mask onto the grid of a template that it is aligned with."""
    template = read_header(space)
    orientation = template.orientation
    shape, affine = orientation.ras_shape, orientation.ras_affine
    grid = grid_of(template)
    if same_grid(mri, shape, affine):
        return replace(mri, orientation=orientation), head
    check_overlap(space, t1w, grid, mri, field_of_view(mri, shape, affine).mean())
    check_voxel_sizes(space, t1w, grid, mri)
    notes.append(
        f"T1w: resampled onto the grid of {os.path.basename(space)}, {describe_grid(grid)}"
    )
    of_head = replace(mri, data=np.asfortranarray(head.T, dtype=np.float32))
    on_grid = (resample_to(of_head, shape, affine).T > 0.5).view(np.uint8)
    del of_head
    if not on_grid.any():
        raise ImageError(
            f"Nothing of the head in {t1w} lies on the grid of {space}",
            "Give images that are aligned with it",
        )
    moved = replace(
        mri, data=resample_to(mri, shape, affine), affine=affine, orientation=orientation
    )
    return moved, on_grid


def check_overlap(
    t1w: str | os.PathLike[str],
    pet: str | os.PathLike[str],
    mri: Volume,
    uptake: Volume,
    covered: float,
) -> None:
    """Refuse a pair of which one covers hardly any of the other's frame."""
    if covered >= _LEAST_COVERED:
        return
    raise GridError(
        f"The fields of view do not overlap: {t1w} spans {_span(mri)}, {pet} spans {_span(uptake)}",
        "Check that both are of one subject, and align the PET with the T1w "
        "(its affine, or a registration) before fusion",
    )


def check_voxel_sizes(
    t1w: str | os.PathLike[str], pet: str | os.PathLike[str], mri: Volume, uptake: Volume
) -> None:
    """Refuse an MRI so coarse that smoothing the PET to it would never end."""
    coarser = _times_coarser(uptake, mri.affine).max()
    if coarser > _MOST_TIMES_COARSER:
        raise GridError(
            f"A voxel of {t1w} ({describe_grid(mri)}) is {coarser:g} times as large as one of "
            f"{pet} ({describe_grid(uptake)})",
            "Check the voxel sizes and units of both",
        )


def _times_coarser(volume: Volume, affine: Affine) -> npt.NDArray[np.float64]:
    """Return how far a voxel of a grid reaches along each axis of a volume, in its voxels."""
    to_volume = np.linalg.inv(volume.affine) @ affine
    return np.asarray(np.linalg.norm(to_volume[:3, :3], axis=1))


def field_of_view(volume: Volume, shape: Sequence[int], affine: Affine) -> npt.NDArray[np.bool_]:
    """Say which voxels (x, y, z) of a grid a volume covers."""
    covered = np.empty(tuple(shape), dtype=bool, order="F")
    for slab, inside in _fields_of_view(volume, shape, affine):
        covered[..., slab] = inside
    return covered


def _shares_covered(
    volume: Volume, shape: Sequence[int], affine: Affine, head: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """Return how much of a grid (x, y, z) a volume covers, and how much of the head in it.

    Counted slab by slab: beside two volumes there is no room for what `field_of_view` returns.
    """
    of_frame = of_head = 0
    for slab, inside in _fields_of_view(volume, shape, affine):
        of_frame += int(np.count_nonzero(inside))
        of_head += int(np.count_nonzero(inside & head[..., slab]))
    return of_frame / head.size, of_head / max(1, int(np.count_nonzero(head)))


def _fields_of_view(
    volume: Volume, shape: Sequence[int], affine: Affine
) -> Iterator[tuple[slice, npt.NDArray[np.bool_]]]:
    """Give slabs of a grid (x, y, z), and which of their voxels fall on a volume's voxels."""
    to_volume = np.linalg.inv(volume.affine) @ affine
    for slab in _slabs(shape):
        x, y, z = np.ogrid[: shape[0], : shape[1], slab]
        inside = np.ones(np.broadcast_shapes(x.shape, y.shape, z.shape), dtype=bool)
        for row, n in zip(to_volume[:3], volume.data.shape, strict=True):
            at = row[0] * x + row[1] * y + row[2] * z + row[3]
            # The slack keeps the edge straight where it falls right between two voxels.
            inside &= (at >= -0.5 - _SAME_GRID_VOXELS) & (at <= n - 0.5 + _SAME_GRID_VOXELS)
        yield slab, inside


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


def describe_grid(volume: Volume) -> str:
    """Return shape and voxel size of a volume, as text."""
    sizes = np.linalg.norm(volume.affine[:3, :3], axis=0)
    return (
        f"{' x '.join(str(n) for n in volume.data.shape)} voxels of "
        f"{' x '.join(f'{size:.3g}' for size in sizes)} mm"
    )
