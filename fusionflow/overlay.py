"""The picture that readers want: PET in colour on the MRI."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from fusionflow.colour import colourise
from fusionflow.io.nifti_write import Slices

_LEVELS = 256


@cache
def _colours() -> npt.NDArray[np.void]:
    """Return the colour of each pair of levels, that of the MRI times 256 and that of the PET."""
    levels = np.linspace(0, 1, _LEVELS)
    mri, pet = np.meshgrid(levels, levels, indexing="ij")
    colours = np.ascontiguousarray(colourise(mri, pet)).reshape(-1, 3)
    return colours.view("V3")[:, 0]  # taken three bytes at a time


def _level(image: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    return np.clip(image * (_LEVELS - 1) + 0.5, 0, _LEVELS - 0.5).astype(np.uint8)


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
    both = np.asarray(_level(mri).astype(np.uint16) << 8 | _level(pet))
    return _colours().take(both.ravel()).view(np.uint8).reshape(*both.shape, 3)


@dataclass(frozen=True, eq=False)
class Overlay:
    """The colours of a volume, (z, y, x, 3) uint8, made when its slices are asked for.

    Attributes
    ----------
    mri, pet : Slices
        (z, y, x), scaled as for `pet_on_mri`.
    slab : int
        Slices of them that are read at a time.
    """

    mri: Slices
    pet: Slices
    slab: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x, 3)."""
        return (*self.mri.shape, 3)

    def __getitem__(self, where: int | slice) -> npt.NDArray[np.uint8]:
        """Return the colours of a slice, or of several."""
        if isinstance(where, int):
            return pet_on_mri(self.mri[where], self.pet[where])
        first, last, _ = where.indices(self.shape[0])
        colours = np.empty((last - first, *self.shape[1:]), np.uint8)
        for start in range(first, last, self.slab):
            slab = slice(start, min(start + self.slab, last))
            # Slice by slice, for levels and indices take more than what they are made of.
            for z, (mri, pet) in enumerate(zip(self.mri[slab], self.pet[slab], strict=True), start):
                colours[z - first] = pet_on_mri(mri, pet)
        return colours
