"""The 2-D discrete wavelet transform of stacks of slices, and back.

PyWavelets does the work; this module keeps the sizes right.
"""

from __future__ import annotations

import numpy as np
import pywt

from fusionflow.config import Wavelet
from fusionflow.errors import InputError
from fusionflow.subbands import FloatArray, Subbands


def decompose(slices: FloatArray, wavelet: Wavelet) -> Subbands:
    """Return the DWT of each slice of a stack.

    Parameters
    ----------
    slices : ndarray, (z, y, x) float32
        Slices of any size, odd ones too.
    wavelet : Wavelet
        Which transform.

    Returns
    -------
    Subbands
        A level halves the size; a constant image of 1 has approximation 2**levels.

    Raises
    ------
    InputError
        If slices are too small for that many levels of that wavelet.

    Examples
    --------
    >>> bands = decompose(np.ones((3, 5, 7), np.float32), Wavelet(name="haar"))
    >>> bands.approximation.shape, round(float(bands.approximation.mean()), 3)
    ((3, 3, 4), 2.0)
    """
    slices = np.asarray(slices, dtype=np.float32)
    if slices.ndim != 3:
        raise InputError(f"A stack of slices has axes (z, y, x), not {slices.ndim} of them")
    shape = (slices.shape[1], slices.shape[2])
    check_levels(shape, wavelet)
    approximation, *details = pywt.wavedec2(
        slices, wavelet.name, mode=wavelet.mode, level=wavelet.levels, axes=(-2, -1)
    )
    return Subbands(approximation, tuple(tuple(level) for level in details), shape)


def check_levels(shape: tuple[int, int], wavelet: Wavelet) -> None:
    """Refuse slices that are too small for the transform.

    Raises
    ------
    InputError
        If a further level would only transform what the border invented.
    """
    if wavelet.levels == 0:
        return
    most = pywt.dwtn_max_level(shape, wavelet.name)
    if wavelet.levels > most:
        raise InputError(
            f"Slices of {shape[0]} x {shape[1]} pixels carry {most} levels of {wavelet.name}, "
            f"not {wavelet.levels}",
            "Take fewer levels or a shorter wavelet",
        )


def reconstruct(subbands: Subbands, wavelet: Wavelet) -> FloatArray:
    """Return the slices whose DWT is `subbands`.

    Parameters
    ----------
    subbands : Subbands
        Bands as `decompose` gives them.
    wavelet : Wavelet
        The transform they were made with.

    Returns
    -------
    ndarray, (z, y, x) float32
        Equal to the slices that were decomposed to within float32 rounding.
    """
    rows, columns = subbands.shape
    slices = pywt.waverec2(
        [subbands.approximation, *subbands.details], wavelet.name, mode=wavelet.mode, axes=(-2, -1)
    )
    return np.ascontiguousarray(slices[:, :rows, :columns], dtype=np.float32)
