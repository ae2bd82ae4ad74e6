"""One scan on one grid: the MRI as it is, the PET on the MRI's own grid, both scaled.

The MRI is only flipped and permuted to RAS+, never resampled, so that a fused voxel is an MRI
voxel (but for ``space``, which puts whole cohorts on the grid of a template). The PET is taken as
it is where it lies on that grid already, and is otherwise resampled once, straight from its own
voxels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusionflow.alignment import Alignment, Mode, align
from fusionflow.config import ConformOptions
from fusionflow.errors import ImageError
from fusionflow.frames import frame_weights, parse_frames
from fusionflow.intensity import (
    LARGEST_SCALED,
    LARGEST_STORED,
    FloatArray,
    Scaling,
    check_values,
    percentile_scaling,
    scaled,
)
from fusionflow.io.nifti import Affine, Orientation, Volume, read_header, read_volume
from fusionflow.masks import find_mask, read_mask
from fusionflow.pet_info import PetInfo
from fusionflow.registration_picture import contours
from fusionflow.resample import (
    check_overlap,
    check_voxel_sizes,
    describe_grid,
    field_of_view,
    resample_to,
    same_grid,
)
from fusionflow.suv import reference_mean, suv_factor

__all__ = ["Conformed", "conform"]

_PathLike = str | os.PathLike[str]

_LITTLE_COVERED = 0.5
_MRI_OFFSET_PERCENTILE = 0.5


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
        The layout of the T1w file (or of ``space``), for writing results that lie over it.
    scaling : mapping of str to Scaling
        Of ``"mri"`` and ``"pet"``.
    resampled : bool
        Whether the PET was resampled.
    notes : tuple of str
        What a person should know.
    sha256 : mapping of str to str
        Checksums of the files that were read, by role.
    units : str
        Of the PET before scaling: ``stored``, ``SUV`` or ``SUVR``.
    suv_factor : float or None
        What takes the stored values to SUV, where the metadata say it.
    alignment : Alignment
        How the PET was brought onto the MRI.
    mask_from : str
        ``file`` or the name of the rule.
    outlines : PIL.Image.Image or None
        The PET over the MRI before and after registration; None where none was tried.
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
    units: str
    suv_factor: float | None
    alignment: Alignment
    mask_from: str
    outlines: Image.Image | None = None


def conform(
    t1w: _PathLike,
    pet: _PathLike,
    options: ConformOptions | None = None,
    *,
    info: PetInfo | None = None,
    mask: _PathLike | None = None,
    reference: _PathLike | None = None,
    pet_in_t1w_space: bool = False,
) -> Conformed:
    """Put one PET/T1w pair on the MRI's grid and scale both.

    The MRI has no units: its 0.5th percentile over the frame (air, or the zeros around a stripped
    brain) becomes 0, and its ``mri_percentile`` within the head becomes 1. The PET is a
    concentration: its zero means no uptake and stays zero, so that ratios between places survive
    and negative noise stays negative, and its ``pet_percentile`` within the head becomes 1.
    Percentiles, for one hot or broken voxel would otherwise set the scale of all; within the head,
    for the share of air in the frame would. With ``pet_window`` the PET is scaled by fixed limits
    instead, which makes scans comparable if its units are. Nothing is clipped: the hottest lesion
    is the finding.

    Parameters
    ----------
    t1w, pet : path-like
        NIfTI images of one subject.
    options : ConformOptions, optional
        How.
    info : PetInfo, optional
        Metadata of the PET.
    mask : path-like, optional
        Of the head or brain, in the space of the T1w.
    reference : path-like, optional
        Mask of the reference region for SUVR, in the space of the T1w.
    pet_in_t1w_space : bool
        Whether the PET was aligned before, so that it is not registered again.

    Returns
    -------
    Conformed

    Raises
    ------
    ConfigurationError
        If an option cannot be used.
    ImageError
        If an image cannot be read, has no contrast or no uptake within the head, or its metadata
        do not allow what was asked for.
    GridError
        If the fields of view hardly overlap, or registration fails.
    """
    options, info = options or ConformOptions(), info or PetInfo()
    mri = read_volume(t1w)
    weights, about_frames = frame_weights(
        pet, read_header(pet).n_frames, info, parse_frames(options.frames)
    )
    uptake = read_volume(pet, frame_weights=weights)
    for path, volume in ((t1w, mri), (pet, uptake)):
        check_values(path, volume.data, LARGEST_STORED)
    notes = [f"T1w: {note}" for note in mri.notes]
    notes += [f"PET: {note}" for note in (*uptake.notes, *about_frames)]

    head, mask_from = _head(t1w, mri, options.mask, mask, notes)
    mode: Mode = "in T1w space" if pet_in_t1w_space else options.registration
    alignment = align(t1w, pet, mri, uptake, head, mode)
    notes += alignment.notes
    outlines = None
    if alignment.registration is not None:
        outlines = contours(uptake, mri, alignment.registration["matrix"], head)
    uptake = alignment.apply(uptake, mri)
    sha256 = {"t1w": mri.sha256, "pet": uptake.sha256}
    if options.space is not None:
        mri, head = _onto_template(t1w, options.space, mri, head, notes)

    shape, affine = mri.data.shape, mri.affine
    if same_grid(uptake, shape, affine):
        resampled, on_grid = False, uptake.data
        covered = np.ones(head.shape, dtype=bool)
    else:
        resampled = True
        covered = field_of_view(uptake, shape, affine).T
        check_overlap(t1w, pet, mri, uptake, covered)
        check_voxel_sizes(t1w, pet, mri, uptake)
        on_grid = resample_to(uptake, shape, affine)
        notes.append(
            f"PET: resampled onto the MRI's grid from {describe_grid(uptake)} to "
            f"{describe_grid(mri)}"
        )
        of_head = float(covered[head > 0].mean())
        if of_head < _LITTLE_COVERED:
            notes.append(f"PET: its field of view covers only {of_head:.0%} of the head")

    factor, missing = suv_factor(info)
    units, per_unit = "stored", 1.0
    if options.pet_units == "suv":
        if factor is None:
            raise ImageError(
                f"{pet} cannot be brought to SUV: its metadata lack {', '.join(missing)}",
                "Complete its sidecar and participants.tsv, or take pet_units: stored",
            )
        units, per_unit = "SUV", factor
    elif options.pet_units == "suvr":
        region, about = _reference(pet, reference, shape, affine)
        notes += about
        units = "SUVR"
        per_unit = 1 / reference_mean(on_grid.T, region & covered, str(reference))
    if per_unit != 1:
        on_grid = on_grid * np.float32(per_unit)

    scaling = {
        "mri": percentile_scaling(
            mri.data.T,
            head > 0,
            float(np.percentile(mri.data, _MRI_OFFSET_PERCENTILE)),
            options.mri_percentile,
            f"{t1w} holds no contrast inside the head",
        ),
        "pet": percentile_scaling(
            on_grid.T,
            (head > 0) & covered,
            0.0,
            options.pet_percentile,
            f"{pet} holds no uptake inside the head",
        ),
    }
    if options.pet_window is not None:
        low, high = options.pet_window
        scaling["pet"] = Scaling(low, high - low)
    images = {"mri": mri.data, "pet": on_grid}
    both = {name: scaled(data, scaling[name]) for name, data in images.items()}
    if options.pet_window is not None:
        both["pet"][~covered] = 0
    for path, name in ((t1w, "mri"), (pet, "pet")):
        check_values(path, both[name], LARGEST_SCALED, "times what is in the head")
    return Conformed(
        mri=both["mri"],
        pet=both["pet"],
        mask=head,
        affine=affine,
        orientation=mri.orientation,
        scaling=scaling,
        resampled=resampled,
        notes=tuple(notes),
        sha256=sha256,
        units=units,
        suv_factor=factor,
        alignment=alignment,
        mask_from=mask_from,
        outlines=outlines,
    )


def _head(
    t1w: _PathLike, mri: Volume, rule: str, mask: _PathLike | None, notes: list[str]
) -> tuple[npt.NDArray[np.uint8], str]:
    """Return the mask of the head or brain, and where it is from."""
    if rule == "auto" and mask is not None:
        inside, about = read_mask(mask, mri.data.shape, mri.affine)
        notes += [f"mask: {note}" for note in about]
        return inside.astype(np.uint8), "file"
    rule = "head" if rule == "auto" else rule
    head = find_mask(rule, mri.data.T, mri.affine, t1w)
    if head.all():
        notes.append("T1w: its frame holds no air, so all of it counts as head")
    return head, rule


def _onto_template(
    t1w: _PathLike,
    space: _PathLike,
    mri: Volume,
    head: npt.NDArray[np.uint8],
    notes: list[str],
) -> tuple[Volume, npt.NDArray[np.uint8]]:
    """Resample the MRI and its mask onto the grid of a template that it is aligned with."""
    orientation = read_header(space).orientation
    shape, affine = orientation.ras_shape, orientation.ras_affine
    grid = Volume(np.empty(shape, np.float32), affine, orientation, "")
    if same_grid(mri, shape, affine):
        return replace(mri, orientation=orientation), head
    covered = field_of_view(mri, shape, affine).T
    check_overlap(space, t1w, grid, mri, covered)
    check_voxel_sizes(space, t1w, grid, mri)
    notes.append(
        f"T1w: resampled onto the grid of {os.path.basename(space)}, {describe_grid(grid)}"
    )
    of_head = replace(mri, data=np.asfortranarray(head.T, dtype=np.float32))
    on_grid = (resample_to(of_head, shape, affine).T > 0.5).astype(np.uint8)
    if not on_grid.any():
        raise ImageError(
            f"Nothing of the head in {t1w} lies on the grid of {space}",
            "Give images that are aligned with it",
        )
    moved = replace(
        mri, data=resample_to(mri, shape, affine), affine=affine, orientation=orientation
    )
    return moved, on_grid


def _reference(
    pet: _PathLike, reference: _PathLike | None, shape: tuple[int, ...], affine: Affine
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Return the reference region on the grid, and notes."""
    if reference is None:
        raise ImageError(
            f"SUVR was asked for, and there is no mask of the reference region for {pet}",
            "Give reference_region with derivatives that hold *_label-REGION_mask.nii.gz, or a "
            "manifest with the column reference",
        )
    region, notes = read_mask(reference, shape, affine)
    return region, tuple(f"reference region: {note}" for note in notes)
