"""Figures on the scale of 8-bit pictures, as papers have them: 0..1 here is 0..255 there."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from fusionflow.metrics import mean_squared_error
from fusionflow.pixels import FloatArray, Image, consistent, finite

LEVELS: Final = 255.0


def standard_deviation(image: Image) -> float:
    r"""Compute the standard deviation of all pixels, :math:`\sqrt{\overline{(f - \bar f)^2}}`.

    Parameters
    ----------
    image : ndarray, shape (y, x), float32 or float64
        The slice, 0..1 being the display window.

    Returns
    -------
    float
        0 (a constant image) to 127.5, in grey levels of 0..255; NaN where there is no pixel.

    Raises
    ------
    InputError
        Not two dimensions or not floating point, or values that are not finite.

    Examples
    --------
    >>> standard_deviation(np.array([[0.0, 1.0]]))
    127.5
    """
    arrays, _ = consistent({"image": image}, None, ndim=2)
    pixels = finite("image", arrays["image"])
    return LEVELS * float(pixels.std()) if pixels.size else math.nan


def mean_squared_levels(source: Image, fused: Image) -> float:
    """Mean squared error on the 0..255 scale, as the literature's tables have it.

    That of :func:`fusionflow.metrics.mean_squared_error` times 255 squared.

    Parameters
    ----------
    source, fused : ndarray, shape (y, x), float32 or float64
        The slice to compare, 0..1 being the display window.

    Returns
    -------
    float
        0 to 65025, in squared grey levels.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.
    """
    return LEVELS**2 * mean_squared_error(source, fused)


def eight_bit(image: Image) -> FloatArray:
    """Return an image as it is read back from an 8-bit picture.

    Parameters
    ----------
    image : ndarray, float32 or float64
        0..1 being the display window.

    Returns
    -------
    ndarray, float64
        Clipped to 0..1 and rounded to multiples of 1/255; half a level to the even one, so that the
        average of two pictures is not brightened.

    Raises
    ------
    InputError
        Not floating point, or values that are not finite.
    """
    arrays, _ = consistent({"image": image}, None)
    return np.rint(np.clip(finite("image", arrays["image"]), 0.0, 1.0) * LEVELS) / LEVELS
