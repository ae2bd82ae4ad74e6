"""The picture that readers want: PET in colour on the MRI."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from fusionflow.colour import colourise

_LEVELS = 256


@cache
def _colours() -> npt.NDArray[np.uint8]:
    """Return the colour of each pair of levels, (mri, pet, 3)."""
    levels = np.linspace(0, 1, _LEVELS)
    mri, pet = np.meshgrid(levels, levels, indexing="ij")
    return colourise(mri, pet)


def pet_on_mri(
    mri: npt.NDArray[np.floating], pet: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Colour an MRI by uptake: lightness carries the anatomy, hue the uptake.

    Each voxel is what `fusionflow.colour.colourise` makes of the two, to 1/255 of either.

    Parameters
    ----------
    mri, pet : ndarray, (...) float
        Scaled: 0 to 1 is what is shown, what is beyond is cut.

    Returns
    -------
    ndarray, (..., 3) uint8
        sRGB.
    """
    levels = (
        np.floor(np.clip(image, 0, 1) * (_LEVELS - 1) + 0.5).astype(np.intp) for image in (mri, pet)
    )
    return _colours()[tuple(levels)]
