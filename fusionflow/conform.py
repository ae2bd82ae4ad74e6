"""One scan on one grid: the MRI as it is, the PET on the MRI's own grid, both scaled.

The MRI is only flipped and permuted to RAS+, never resampled, so that a fused voxel is an MRI
voxel (but for ``space``, which puts whole cohorts on the grid of a template). The PET is taken as
it is where it lies on that grid already, and is otherwise resampled once, straight from its own
voxels.

Memory is what limits the size of a scan, so the two are prepared one after the other, each is
handed over as soon as it is done, and what can be done in place is. At the peak this takes some
nine bytes a voxel: a volume, and its labels or a copy to find percentiles in, and the mask; and
what whoever it is handed to still holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusionflow.alignment import Alignment, Mode, align, registers
from fusionflow.config import ConformOptions
from fusionflow.frames import frame_weights, parse_frames
from fusionflow.intensity import (
    LARGEST_SCALED,
    LARGEST_STORED,
    FloatArray,
    Scaling,
    check_values,
    percentile_scaling,
    scale_in_place,
)
from fusionflow.io.nifti import (
    Affine,
    ImageHeader,
    Orientation,
    Volume,
    grid_of,
    read_header,
    read_volume,
)
from fusionflow.masks import find_mask, read_mask
from fusionflow.pet_info import PetInfo
from fusionflow.registration_picture import contours
from fusionflow.resample import field_of_view, onto_mri, onto_template, same_grid
from fusionflow.suv import to_units

__all__ = ["Conformed", "Keep", "Preparation", "conform", "conform_into"]

_PathLike = str | os.PathLike[str]
_Bools: TypeAlias = npt.NDArray[np.bool_]
_Mask: TypeAlias = npt.NDArray[np.uint8]

#: Takes the name of a volume and its voxels (z, y, x), which are its own from then on.
Keep: TypeAlias = Callable[[str, npt.NDArray[Any]], None]

_MRI_OFFSET_PERCENTILE = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class Preparation:
    """How a scan was made ready to be fused.

    Attributes
    ----------
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Conformed(Preparation):
    """One scan, ready to be fused, and how it was made so.

    Attributes
    ----------
    mri, pet : ndarray, (z, y, x) float32, C-contiguous
        Scaled intensities: about 0 to 1 within the head, and beyond where the image is (a hot
        lesion, negative noise). ``pet`` is 0 outside its field of view.
    mask : ndarray, (z, y, x) uint8
        1 within the head.
    """

    mri: FloatArray
    pet: FloatArray
    mask: _Mask


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
    volumes: dict[str, Any] = {}
    told = conform_into(
        volumes.__setitem__,
        t1w,
        pet,
        options,
        info=info,
        mask=mask,
        reference=reference,
        pet_in_t1w_space=pet_in_t1w_space,
    )
    return Conformed(**volumes, **vars(told))


def conform_into(
    keep: Keep,
    t1w: _PathLike,
    pet: _PathLike,
    options: ConformOptions | None = None,
    *,
    info: PetInfo | None = None,
    mask: _PathLike | None = None,
    reference: _PathLike | None = None,
    pet_in_t1w_space: bool = False,
) -> Preparation:
    """Conform as `conform` does, and hand each volume over as soon as it is done.

    Parameters
    ----------
    keep : callable
        Called with ``"mask"``, ``"mri"`` and ``"pet"``, each once and in this order, and with what
        `Conformed` has under that name. The mask is not to be changed.
    t1w, pet, options, info, mask, reference, pet_in_t1w_space
        As for `conform`, and so are the errors.

    Returns
    -------
    Preparation
    """
    options, info = options or ConformOptions(), info or PetInfo()
    mode: Mode = "in T1w space" if pet_in_t1w_space else options.registration
    mri = read_volume(t1w)
    check_values(t1w, mri.data, LARGEST_STORED)
    sha256 = {"t1w": mri.sha256}
    source = _Uptake.of(pet, info, options.frames)
    of_t1w = [f"T1w: {note}" for note in mri.notes]
    notes: list[str] = []

    head, mask_from = _head(t1w, mri, options.mask, mask, notes)
    outlines = None
    if registers(mode):
        # Both are in memory here. The PET is read again below, for in between the MRI is finished.
        uptake = source.read()
        alignment = align(t1w, pet, mri, uptake, head, mode)
        if alignment.registration is not None:
            outlines = contours(uptake, mri, alignment.registration["matrix"], head)
        del uptake
    else:
        alignment = align(t1w, pet, mri, source.grid, head, mode)
    notes += alignment.notes
    own_grid = mri.grid
    if options.space is not None:
        mri, head = onto_template(t1w, options.space, mri, head, notes)
    keep("mask", head)
    of_mri = _finish_mri(t1w, mri, head, options.mri_percentile)
    keep("mri", mri.data.T)
    mri = mri.grid

    uptake = source.read()
    sha256["pet"] = uptake.sha256
    of_pet = [f"PET: {note}" for note in (*uptake.notes, *source.notes)]
    uptake = alignment.apply(uptake, own_grid)
    resampled = not same_grid(uptake, mri.data.shape, mri.affine)
    covered = None  # all of it
    if resampled:
        before = uptake.grid
        uptake = onto_mri(t1w, pet, mri, uptake, head, notes)
        covered = field_of_view(before, mri.data.shape, mri.affine).T
    else:
        uptake = replace(uptake, affine=mri.affine)
    factor, units = to_units(pet, uptake, covered, options.pet_units, info, reference, notes)
    of_uptake = _finish_pet(pet, uptake, head, covered, options)
    keep("pet", uptake.data.T)
    return Preparation(
        affine=mri.affine,
        orientation=mri.orientation,
        scaling={"mri": of_mri, "pet": of_uptake},
        resampled=resampled,
        notes=(*of_t1w, *of_pet, *notes),
        sha256=sha256,
        units=units,
        suv_factor=factor,
        alignment=alignment,
        mask_from=mask_from,
        outlines=outlines,
    )


@dataclass(frozen=True)
class _Uptake:
    """The PET as a file: what its header says, and how to read it."""

    path: _PathLike
    header: ImageHeader
    weights: list[float]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: _PathLike, info: PetInfo, frames: str) -> _Uptake:
        header = read_header(path)
        weights, notes = frame_weights(path, header.n_frames, info, parse_frames(frames))
        return cls(path, header, weights, notes)

    @property
    def grid(self) -> Volume:
        """The PET without its voxels."""
        return grid_of(self.header)

    def read(self) -> Volume:
        volume = read_volume(self.path, frame_weights=self.weights)
        check_values(self.path, volume.data, LARGEST_STORED)
        return volume


def _finish_mri(t1w: _PathLike, mri: Volume, head: _Mask, percentile: float) -> Scaling:
    """Scale the MRI where it is."""
    values = mri.data.T
    scaling = percentile_scaling(
        values,
        head.view(np.bool_),
        float(np.percentile(values, _MRI_OFFSET_PERCENTILE)),
        percentile,
        f"{t1w} holds no contrast inside the head",
    )
    scale_in_place(values, scaling)
    check_values(t1w, values, LARGEST_SCALED, "times what is in the head")
    return scaling


def _finish_pet(
    pet: _PathLike, uptake: Volume, head: _Mask, covered: _Bools | None, options: ConformOptions
) -> Scaling:
    """Scale the PET, which lies on the grid, where it is."""
    values, inside = uptake.data.T, head.view(np.bool_)
    scaling = percentile_scaling(
        values,
        inside if covered is None else inside & covered,
        0.0,
        options.pet_percentile,
        f"{pet} holds no uptake inside the head",
    )
    if options.pet_window is not None:
        low, high = options.pet_window
        scaling = Scaling(low, high - low)
    scale_in_place(values, scaling)
    if options.pet_window is not None and covered is not None:
        values[~covered] = 0
    check_values(pet, values, LARGEST_SCALED, "times what is in the head")
    return scaling


def _head(
    t1w: _PathLike, mri: Volume, rule: str, mask: _PathLike | None, notes: list[str]
) -> tuple[_Mask, str]:
    """Return the mask of the head or brain, and where it is from."""
    if rule == "auto" and mask is not None:
        inside, about = read_mask(mask, mri.data.shape, mri.affine)
        notes += [f"mask: {note}" for note in about]
        return inside.view(np.uint8), "file"
    rule = "head" if rule == "auto" else rule
    head = find_mask(rule, mri.data.T, mri.affine, t1w)
    if head.all():
        notes.append("T1w: its frame holds no air, so all of it counts as head")
    return head, rule
