"""Structural similarity of a slice with its sources, over all of it or over a mask.

References
----------
Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004,
equations 13 to 17.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fusionflow.pixels import FloatArray, Image, Mask, consistent, finite

__all__ = ["mean_ssim", "structural_similarity"]

SIGMA: Final = 1.5
RADIUS: Final = 5  # a window of 11 pixels
C1: Final = 0.01**2
C2: Final = 0.03**2


def structural_similarity(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Mean structural similarity of one slice.

    .. math:: \frac{(2 \mu_s \mu_f + C_1)(2 \sigma_{sf} + C_2)}
                   {(\mu_s^2 + \mu_f^2 + C_1)(\sigma_s^2 + \sigma_f^2 + C_2)}

    at every pixel, with means, variances and the covariance (of the population) weighted by an
    11 x 11 Gaussian window of sigma 1.5; :math:`C_1 = 0.01^2` and :math:`C_2 = 0.03^2`, the data
    range being 1. The mean is over the pixels around which the whole window fits, or over the
    mask pixels, for which the image is continued by reflection at its border.

    Parameters
    ----------
    source, fused : ndarray, shape (y, x), float32 or float64
        The slice to compare.
    mask : ndarray, shape (y, x), bool or integer, optional
        Non-zero at the pixels that count. Windows may reach beyond the mask.

    Returns
    -------
    float
        -1 to 1, no units; 1 for identical images. NaN for a slice of fewer than 11 pixels along
        y or x, and for an empty mask.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.
    """
    images, inside = consistent({"source": source, "fused": fused}, mask, ndim=2)
    first, second = (finite(name, image) for name, image in images.items())
    if inside is not None and not inside.any():
        return math.nan
    return mean_ssim([first], second, inside)[0]


def mean_ssim(
    sources: Sequence[FloatArray], fused: FloatArray, inside: NDArray[np.bool_] | None
) -> list[float]:
    """Compute the SSIM of a fused slice with each of its sources, over a non-empty mask."""
    if min(fused.shape) < 2 * RADIUS + 1:
        return [math.nan] * len(sources)
    if inside is not None:
        inside, fused, *sources = _cut_to_mask(inside, fused, *sources)

    mean_f, square_f = _local_mean(fused), np.square(fused)
    figures = []
    for source in sources:
        mean_s = _local_mean(source)
        product = mean_s * mean_f
        squares = np.square(mean_s) + np.square(mean_f)
        # Only the sum of the two variances is needed, so the squares are filtered as one.
        variances = _local_mean(np.square(source) + square_f) - squares
        covariance = _local_mean(source * fused) - product
        # True but for rounding, and so SSIM stays in -1..1 for images far beyond the window.
        np.maximum(variances, 0.0, out=variances)
        np.clip(covariance, -variances / 2.0, variances / 2.0, out=covariance)
        ssim = (2.0 * product + C1) * (2.0 * covariance + C2)
        ssim /= (squares + C1) * (variances + C2)
        figures.append(float((ssim if inside is None else ssim[inside]).mean()))
    return figures


def _cut_to_mask(inside: NDArray[np.bool_], *images: FloatArray) -> list[NDArray[Any]]:
    """Cut a mask to its bounding box, and images to that and a window's reach around it."""
    box, reach = [], []
    for axis in (0, 1):
        hits = np.flatnonzero(inside.any(axis=1 - axis))
        box.append(slice(hits[0], hits[-1] + 1))
        reach.append(slice(hits[0], hits[-1] + 1 + 2 * RADIUS))
    padded = (np.pad(image, RADIUS, mode="symmetric") for image in images)
    return [inside[*box], *(image[*reach] for image in padded)]


def _gaussian_window() -> FloatArray:
    offsets = np.arange(-RADIUS, RADIUS + 1)
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    return weights / weights.sum()


_WINDOW: Final = _gaussian_window()


def _local_mean(image: FloatArray) -> FloatArray:
    """Return the Gaussian-weighted mean around each pixel that has the whole window in `image`."""
    for axis in (0, 1):
        windows = sliding_window_view(image, len(_WINDOW), axis=axis)
        image = np.einsum("yxw,w->yx", windows, _WINDOW)
    return image
