"""Rigid registration of a PET to an MRI by mutual information, with SimpleITK.

What is found is a matrix to put before the affine of the PET (`moved`): its voxels stay as they
are until they are resampled, once, onto the grid of the MRI. Whether it is to be believed, and
whether it was needed, is for `fusionflow.registration_quality` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fusionflow.errors import ConfigurationError, ImageError
from fusionflow.io.nifti import Affine, Volume
from fusionflow.registration_itk import Level, Shown, climb, metric, resolutions, world

__all__ = ["Level", "Registration", "mean_displacement", "moved", "rigid"]

FloatArray: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.uint8]
Triple: TypeAlias = tuple[float, float, float]

_PERCENTILES = (0.5, 99.5)
_NO_OVERLAP = 0.1
_RESTART_MM = (5.0, -5.0, 4.0)
_RESTART_DEG = (5.0, 4.0, -5.0)
_LOOK_AT = 1_000_000  # voxels, for percentiles


@dataclass(frozen=True)
class Registration:
    """How a PET was moved onto an MRI. All plain numbers: `dataclasses.asdict` of it is JSON.

    Attributes
    ----------
    matrix : tuple of tuple of float, 4 x 4
        Maps world mm of the PET's header -> world mm of the MRI (RAS+, both). A rotation and a
        translation, and nothing else.
    start : {"header", "centres"}
        Where it started: where the header puts the PET, or, where that misses the head, the centre
        of its uptake on the centre of the head.
    translation_mm : tuple of float
        How the PET was moved at the centre of the head, along x, y and z (right, front, up).
    distance_mm : float
        The length of that.
    rotation_deg : float
        Angle of the rotation, 0 to 180.
    rotations_deg : tuple of float
        The same as a rotation vector: the axis, times the angle.
    displacement_mm : float
        Mean distance over the head between where the header and where `matrix` puts the PET.
    from_start_mm : float
        The same, between the start and `matrix`.
    restart_mm : float
        The same, between `matrix` and what is found from another start, 8 mm and 8 degrees away
        from it, by all levels but the finest. A result to rely on is found again.
    metric_before, metric_after : float
        Mattes mutual information in nats over the head and 8 mm around it, at the finest level:
        0 is none, more is better. Before: as the header has it.
    overlap_before, overlap : float
        Share of the head in the PET's field of view, 0 to 1, before and after.
    levels : tuple of Level
        From coarse to fine.
    settled : bool
        Whether the finest level converged, rather than ran out of steps or failed.
    notes : tuple of str
        What a person should know.
    """

    matrix: tuple[tuple[float, ...], ...]
    start: Literal["header", "centres"]
    translation_mm: Triple
    distance_mm: float
    rotation_deg: float
    rotations_deg: Triple
    displacement_mm: float
    from_start_mm: float
    restart_mm: float
    metric_before: float
    metric_after: float
    overlap_before: float
    overlap: float
    levels: tuple[Level, ...]
    settled: bool
    notes: tuple[str, ...] = ()


def rigid(pet: Volume, mri: Volume, mask: Mask | None = None) -> Registration:
    """Find the rotation and translation that put a PET onto an MRI.

    Mutual information by Parzen windows (Mattes et al., 2003, "PET-CT image registration in the
    chest using free-form deformations", IEEE TMI 22), 32 bins, is climbed by regular steps along
    its gradient, at 8, 4 and 2 mm, with six parameters about the centre of the head, scaled by how
    far each moves the head. Samples are MRI voxels of the head and 8 mm around it, drawn with a
    fixed seed; those outside the PET's field of view do not count.

    Intensities are clipped first: the MRI to its 0.5th percentile over the frame and its 99.5th
    within the head; the PET to 0 and the 99.5th percentile of what stands out from its background
    (above a tenth of the way from the 2nd to the 98th percentile).

    One thread, no global setting of ITK is read or changed, and every sum is over the same samples
    in the same order: the same input gives the same bits, also in many threads at once.

    Parameters
    ----------
    pet, mri : Volume
        Of one subject, with any voxel sizes, obliqueness and handedness. Neither is changed.
    mask : ndarray, (z, y, x) uint8, optional
        1 within the head on the MRI's grid, as `fusionflow.masks.head_mask` makes it; by default
        all of the frame counts.

    Returns
    -------
    Registration
        Also where it went wrong; ask `fusionflow.registration_quality.implausible` before use.

    Raises
    ------
    ConfigurationError
        If the mask is empty or not on the MRI's grid.
    ImageError
        If an image holds no contrast to register by.
    """
    head = _head(mri, mask)
    middle = world(mri.affine, _centre(head))
    notes: list[str] = []
    start, begin = np.eye(4), "header"
    overlap_before = _overlap(pet, np.eye(4), mri, head)
    shown = _clipped_pet(pet.data)
    if overlap_before < _NO_OVERLAP:
        begin = "centres"
        start[:3, 3] = middle - world(pet.affine, ndimage.center_of_mass(shown[:]))
        notes.append(
            f"its header puts {overlap_before:.0%} of the head in its field of view, so that it "
            "was registered from the centre of its uptake on the centre of the head"
        )
    levels_of = resolutions(pet.affine, shown, mri.affine, _clipped_mri(mri.data, head), head)
    found, levels, settled = climb(levels_of, start, middle)
    again, _, _ = climb(levels_of[:-1] or levels_of, _nudged(found, middle), middle)

    finest = levels_of[-1]
    shift = world(found, middle) - middle
    turn = Rotation.from_matrix(found[:3, :3]).as_rotvec(degrees=True)
    mask = head.T.view(np.uint8)
    return Registration(
        matrix=tuple(tuple(float(value) for value in row) for row in found),
        start="header" if begin == "header" else "centres",
        translation_mm=_triple(shift),
        distance_mm=float(np.linalg.norm(shift)),
        rotation_deg=float(np.linalg.norm(turn)),
        rotations_deg=_triple(turn),
        displacement_mm=mean_displacement(found, np.eye(4), mask, mri.affine),
        from_start_mm=mean_displacement(found, start, mask, mri.affine),
        restart_mm=mean_displacement(found, again, mask, mri.affine),
        metric_before=metric(finest, np.eye(4), middle),
        metric_after=metric(finest, found, middle),
        overlap_before=overlap_before,
        overlap=_overlap(pet, found, mri, head),
        levels=levels,
        settled=settled,
        notes=tuple(notes),
    )


def moved(volume: Volume, matrix: npt.ArrayLike) -> Volume:
    """Return a volume as a rigid matrix puts it: another affine, the same voxels.

    Parameters
    ----------
    volume : Volume
    matrix : array-like, (4, 4)
        World mm -> world mm, such as ``Registration.matrix``.

    Returns
    -------
    Volume
        With the affine ``matrix @ volume.affine``. Only where the rotation makes other flips and
        permutations the closest to RAS+ are the voxels put in that order. ``orientation`` is that
        of the file, as if its header had been corrected.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    affine = matrix @ volume.affine
    to_ras = io_orientation(affine)
    data = volume.data
    if (to_ras != [[0, 1], [1, 1], [2, 1]]).any():
        affine = affine @ inv_ornt_aff(to_ras, data.shape)
        data = np.asfortranarray(apply_orientation(data, to_ras))
    of_file = matrix @ volume.orientation.affine
    qform = volume.orientation.qform
    orientation = replace(
        volume.orientation,
        affine=of_file,
        axcodes=aff2axcodes(of_file),
        qform=None if qform is None else matrix @ qform,
    )
    return replace(volume, data=data, affine=affine, orientation=orientation)


def mean_displacement(a: npt.ArrayLike, b: npt.ArrayLike, mask: Mask, affine: Affine) -> float:
    """Return how far apart two rigid matrices put a PET, on average over the head.

    For each voxel of the mask, at p in the world of the MRI, it is the distance between the places
    in the PET that are read for it: ``norm(inv(a) p - inv(b) p)``.

    Parameters
    ----------
    a, b : array-like, (4, 4)
        World mm of the PET -> world mm of the MRI.
    mask : ndarray, (z, y, x)
        Where to look; not empty.
    affine : ndarray, (4, 4)
        Of the mask's grid: voxel indices (x, y, z) -> world mm.

    Returns
    -------
    float
        In mm, at least 0; the same for (a, b) and (b, a).
    """
    per_voxel = (np.linalg.inv(np.asarray(a)) - np.linalg.inv(np.asarray(b))) @ affine
    total, count = 0.0, 0
    for z, plane in enumerate(mask):
        y, x = np.nonzero(plane)
        apart = np.stack([x, y], axis=1) @ per_voxel[:3, :2].T
        apart += per_voxel[:3, 2] * z + per_voxel[:3, 3]
        total += float(np.linalg.norm(apart, axis=1).sum())
        count += len(x)
    return total / count


def _head(mri: Volume, mask: Mask | None) -> npt.NDArray[np.bool_]:
    """Return the mask as (x, y, z), checked."""
    if mask is None:
        return np.ones(mri.data.shape, dtype=bool, order="F")
    if mask.shape != mri.data.shape[::-1]:
        raise ConfigurationError(
            f"A mask of shape {mask.shape} is not on the MRI's grid, {mri.data.shape[::-1]}",
            "Give it as (z, y, x), as `fusionflow.masks.head_mask` makes it",
        )
    if not mask.any():
        raise ConfigurationError("The head mask is empty", "Make it with another threshold")
    if mask.dtype == np.uint8 and mask.max() == 1:
        return mask.T.view(np.bool_)
    return np.asarray(mask.T > 0)


def _centre(head: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the centre of mass of a mask, (3,); whole numbers are summed, so it is exact."""
    middle = []
    for axis in range(3):
        count = head.sum(axis=tuple(other for other in range(3) if other != axis))
        middle.append(float(count @ np.arange(count.size)) / int(count.sum()))
    return np.array(middle)


def _clipped_mri(data: FloatArray, head: npt.NDArray[np.bool_]) -> Shown:
    """Return the MRI from its 0.5th percentile over the frame to its 99.5th in the head."""
    low = float(np.percentile(_some(data), _PERCENTILES[0]))
    high = float(np.percentile(_some_inside(data, head), _PERCENTILES[1]))
    return _clipped(data, low, high, "MRI")


def _clipped_pet(data: FloatArray) -> Shown:
    """Return the PET from 0 to the 99.5th percentile of what stands out from its background."""
    values = _some(data)
    low, high = np.percentile(values, (2, 98))
    bright = values[values > low + 0.1 * (high - low)]
    high = np.percentile(bright, _PERCENTILES[1]) if bright.size else 0.0
    return _clipped(data, 0.0, float(high), "PET")


def _clipped(data: FloatArray, low: float, high: float, name: str) -> Shown:
    """Return intensities between two bounds, scaled to 0 to 1."""
    if not high > low:
        raise ImageError(
            f"The {name} holds no contrast to register by", "Check that it is the right image"
        )
    return Shown(data, (low, high))


def _some(data: FloatArray) -> FloatArray:
    """Return about a million of the voxels, evenly spread."""
    flat = data.ravel(order="K")
    return flat[:: _stride(flat.size)]


def _some_inside(data: FloatArray, head: npt.NDArray[np.bool_]) -> FloatArray:
    """Return about a million of the voxels of the head: ``data[head]``, and of those every n-th."""
    stride, passed, parts = _stride(int(np.count_nonzero(head))), 0, []
    thick = max(1, _LOOK_AT // (head.shape[1] * head.shape[2]))
    for x in range(0, len(head), thick):
        inside = data[x : x + thick][head[x : x + thick]]
        parts.append(inside[-passed % stride :: stride])
        passed += inside.size
    return np.concatenate(parts)


def _stride(count: int) -> int:
    """Return which of so many voxels to look at: every n-th."""
    # An odd stride that is no divisor of a row visits all columns.
    return max(1, count // _LOOK_AT) | 1


def _overlap(pet: Volume, matrix: Affine, mri: Volume, head: npt.NDArray[np.bool_]) -> float:
    """Return the share of the head that falls on voxels of the PET."""
    to_pet = np.linalg.inv(matrix @ pet.affine) @ mri.affine
    inside = 0
    for z in range(head.shape[2]):
        x, y = np.nonzero(head[..., z])
        at = np.stack([x, y], axis=1) @ to_pet[:3, :2].T + (to_pet[:3, 2] * z + to_pet[:3, 3])
        inside += int(((at >= -0.5) & (at <= np.array(pet.data.shape) - 0.5)).all(axis=1).sum())
    return inside / int(np.count_nonzero(head))


def _nudged(matrix: Affine, middle: npt.NDArray[np.float64]) -> Affine:
    """Return a matrix 8 mm and 8 degrees away, about the centre of the head."""
    nudge = np.eye(4)
    turn = Rotation.from_rotvec(_RESTART_DEG, degrees=True).as_matrix()
    nudge[:3, :3] = turn
    nudge[:3, 3] = middle + _RESTART_MM - turn @ middle
    return np.asarray(nudge @ matrix)


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    """Return three plain numbers."""
    x, y, z = (float(value) for value in values)
    return x, y, z
