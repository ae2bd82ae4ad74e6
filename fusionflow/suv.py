"""Standardised uptake: by body weight (SUV), or relative to a reference region (SUVR)."""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from fusionflow.errors import ImageError
from fusionflow.io.nifti import Affine, Volume
from fusionflow.masks import read_mask
from fusionflow.pet_info import PetInfo

_PER_ML = {"Bq/mL": 1.0, "kBq/mL": 1e3, "MBq/mL": 1e6}
_LEAST_REFERENCE_VOXELS = 10


def suv_factor(info: PetInfo) -> tuple[float | None, tuple[str, ...]]:
    r"""Return what takes an image to SUV, or what is missing.

    SUV by body weight, in g/mL:

    .. math:: SUV = \frac{C}{D \, 2^{-t / T} / w}

    with the activity concentration C, the dose D at injection, the half-life T, the time t from
    injection to that which decay correction refers to, and the weight w (Boellaard et al., 2015,
    FDG PET/CT: EANM procedure guidelines for tumour imaging, version 2.0, section "SUV").

    Parameters
    ----------
    info : PetInfo
        Of the image.

    Returns
    -------
    float or None
        Factor of the stored values; None if something is missing.
    tuple of str
        Sidecar fields that are missing or cannot be used.

    Examples
    --------
    >>> suv_factor(PetInfo(units="Bq/mL", dose_bq=200e6, weight_kg=80, decay_corrected=True,
    ...                    decay_seconds=0, half_life=6586.2))
    (0.0004, ())
    """
    if info.units == "g/mL":
        return 1.0, ()
    missing = []
    per_ml = _PER_ML.get(info.units)
    if per_ml is None:
        missing.append("Units (Bq/mL)")
    if info.dose_bq is None:
        missing.append("InjectedRadioactivity with its unit")
    if info.weight_kg is None:
        missing.append("the body weight (weight in participants.tsv, or PatientWeight)")
    if info.decay_corrected is not True:
        missing.append("ImageDecayCorrected: true")
    if info.decay_seconds is None:
        missing.append("InjectionStart and ImageDecayCorrectionTime")
    elif info.decay_seconds and info.half_life is None:
        missing.append("TracerRadionuclide")
    if missing or info.dose_bq is None or info.weight_kg is None or per_ml is None:
        return None, tuple(missing)
    decayed = 1.0
    if info.decay_seconds and info.half_life:
        decayed = math.exp(-math.log(2) * info.decay_seconds / info.half_life)
    return per_ml * info.weight_kg * 1000 / (info.dose_bq * decayed), ()


def reference_mean(
    pet: npt.NDArray[np.floating], reference: npt.NDArray[np.bool_], where: str
) -> float:
    """Return the mean uptake of a reference region, by which SUVR divides.

    Parameters
    ----------
    pet : ndarray
        Uptake.
    reference : ndarray of bool
        The region, on the same grid.
    where : str
        What messages call it.

    Raises
    ------
    ImageError
        If the region is empty there, or its uptake is not positive.
    """
    inside = pet[reference]
    if inside.size < _LEAST_REFERENCE_VOXELS:
        raise ImageError(
            f"{where} holds {inside.size} voxels of the reference region within the PET's field of "
            f"view; {_LEAST_REFERENCE_VOXELS} are needed",
            "Check that it is on the grid of, or aligned with, the T1w image",
        )
    mean = float(inside.mean(dtype=np.float64))
    if not mean > 0:
        raise ImageError(
            f"The mean uptake of the reference region {where} is {mean:g}",
            "Check that it is the right region and that it is aligned with the PET",
        )
    return mean


def to_units(
    pet: str | os.PathLike[str],
    uptake: Volume,
    covered: npt.NDArray[np.bool_] | None,
    wanted: str,
    info: PetInfo,
    reference: str | os.PathLike[str] | None,
    notes: list[str],
) -> tuple[float | None, str]:
    """Bring the PET to the units that are wanted, where it is; return its SUV factor and units."""
    factor, missing = suv_factor(info)
    units, per_unit = "stored", 1.0
    if wanted == "suv":
        if factor is None:
            raise ImageError(
                f"{pet} cannot be brought to SUV: its metadata lack {', '.join(missing)}",
                "Complete its sidecar and participants.tsv, or take pet_units: stored",
            )
        units, per_unit = "SUV", factor
    elif wanted == "suvr":
        region, about = _reference(pet, reference, uptake.data.shape, uptake.affine)
        notes += about
        if covered is not None:
            region &= covered
        units, per_unit = "SUVR", 1 / reference_mean(uptake.data.T, region, str(reference))
    if per_unit != 1:
        uptake.data[...] *= np.float32(per_unit)
    return factor, units


def _reference(
    pet: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None,
    shape: tuple[int, ...],
    affine: Affine,
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
