"""The bands of a stack of slices, kept together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

#: Detail bands of one level of a DWT, in the order of PyWavelets.
DWT_DETAILS = ("h", "v", "d")
#: The detail band of one level of a Laplacian pyramid.
PYRAMID_DETAILS = ("l",)


@dataclass(frozen=True)
class Subbands:
    """The bands of a stack of slices, of a DWT or a Laplacian pyramid.

    Attributes
    ----------
    approximation : ndarray, (z, y', x') float32
        Band ``a`` of the coarsest level (the slices themselves where there are no levels).
    details : tuple of tuple of ndarray
        Bands ``h``, ``v``, ``d`` (a DWT) or ``l`` (a pyramid) for each level, coarsest first, each
        (z, y', x') float32.
    shape : tuple of int
        (y, x) of the slices, which odd sizes need on the way back.
    gain : float
        By how much each level enlarges the range of coefficients.
    """

    approximation: FloatArray
    details: tuple[tuple[FloatArray, ...], ...]
    shape: tuple[int, int]
    gain: float = 2.0

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.details)

    def bands(self) -> Iterator[tuple[str, int, FloatArray]]:
        """Yield (band, level, coefficients), coarsest first; level 1 is the finest."""
        yield "a", self.levels, self.approximation
        for index, level_bands in enumerate(self.details):
            names = DWT_DETAILS if len(level_bands) == len(DWT_DETAILS) else PYRAMID_DETAILS
            for band, coefficients in zip(names, level_bands, strict=True):
                yield band, self.levels - index, coefficients

    def with_bands(self, bands: Iterable[FloatArray]) -> Subbands:
        """Return the same bands with other coefficients, given in the order of `bands`."""
        rest = iter(bands)
        approximation = next(rest)
        details = tuple(tuple(next(rest) for _ in level_bands) for level_bands in self.details)
        return replace(self, approximation=approximation, details=details)

    def __sizeof__(self) -> int:
        """Return the bytes of all coefficients, which Dask's memory accounting reads."""
        return 64 + sum(coefficients.nbytes for _, _, coefficients in self.bands())
