"""The Laplacian pyramid of stacks of slices, and back (Burt & Adelson 1983, IEEE Trans. Comm.).

A level is what a slice has and its smoothed, halved and enlarged copy lacks; the last level is
the smallest copy. It is no wavelet transform; methods that use it are there to compare with.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from fusionflow.errors import InputError
from fusionflow.subbands import FloatArray, Subbands

#: Burt and Adelson's five taps with a = 3/8: binomial, close to a Gaussian.
_KERNEL = np.array([1, 4, 6, 4, 1], np.float32) / 16


def _smooth(slices: FloatArray, gain: float = 1.0) -> FloatArray:
    for axis in (-2, -1):
        kernel = _KERNEL * np.float32(gain)
        slices = ndimage.correlate1d(slices, kernel, axis=axis, mode="mirror")
    return slices


def _reduce(slices: FloatArray) -> FloatArray:
    """Smooth, and keep every second pixel."""
    return _smooth(slices)[:, ::2, ::2]


def _expand(slices: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Put zeros between the pixels, and smooth them away."""
    wide = np.zeros((len(slices), *shape), np.float32)
    wide[:, ::2, ::2] = slices
    return _smooth(wide, gain=2.0)


def decompose(slices: FloatArray, levels: int) -> Subbands:
    """Return the pyramid of each slice of a stack.

    Parameters
    ----------
    slices : ndarray, (z, y, x) float32
        Slices of any size.
    levels : int
        Levels of band ``l``; each is half the size of the one before.

    Returns
    -------
    Subbands
        Band ``l`` for each level, and the smallest copy as approximation. All have the range of
        the slices.

    Raises
    ------
    InputError
        If slices are too small for that many levels.
    """
    shape = (slices.shape[1], slices.shape[2])
    check_levels(shape, levels)
    details: list[tuple[FloatArray, ...]] = []
    for _ in range(levels):
        smaller = _reduce(slices)
        details.insert(0, (slices - _expand(smaller, (slices.shape[1], slices.shape[2])),))
        slices = smaller
    return Subbands(np.ascontiguousarray(slices), tuple(details), shape, gain=1.0)


def check_levels(shape: tuple[int, int], levels: int) -> None:
    """Refuse slices that are too small for that many levels.

    Raises
    ------
    InputError
        If the smallest copy would have one pixel or none along an axis.
    """
    if min(shape) < 2 ** (levels + 1):
        raise InputError(
            f"Slices of {shape[0]} x {shape[1]} pixels are too small for a pyramid of {levels} "
            "levels",
            "Take fewer levels",
        )


def reconstruct(subbands: Subbands) -> FloatArray:
    """Return the slices whose pyramid is `subbands`.

    Returns
    -------
    ndarray, (z, y, x) float32
        Equal to the slices that were decomposed to within float32 rounding.
    """
    slices = subbands.approximation
    for (detail,) in subbands.details:
        slices = detail + _expand(slices, (detail.shape[1], detail.shape[2]))
    return np.ascontiguousarray(slices, dtype=np.float32)
