"""Structural similarity at several scales.

References
----------
multiscale_ssim
    Z. Wang, E. P. Simoncelli, A. C. Bovik, "Multi-scale structural similarity for image quality
    assessment", Asilomar Conference on Signals, Systems and Computers, 2003, equation 7.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from fusionflow.pixels import FloatArray, Image, consistent, finite
from fusionflow.ssim import C2, RADIUS, SIGMA, structural_similarity

__all__ = ["multiscale_ssim"]

SCALE_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST_SIDE: Final = (2 * RADIUS + 1) * 2 ** (len(SCALE_WEIGHTS) - 1)


def multiscale_ssim(source: Image, fused: Image) -> float:
    r"""Structural similarity at five scales.

    .. math:: s_5^{w_5} \prod_{k=1}^{5} \max(c_k, 0)^{w_k}, \qquad
              c_k = \overline{(2 \sigma_{sf} + C_2) / (\sigma_s^2 + \sigma_f^2 + C_2)}

    with, at the last scale alone, the whole of :func:`fusionflow.ssim.structural_similarity` in
    place of :math:`c_5` and the lightness :math:`s_5`, and not less than 0;
    :math:`w` = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333. Windows, constants and the places that
    count are those of the single-scale index. From scale to scale, blocks of 2 x 2 pixels are
    averaged; an odd last row or column is averaged with itself.

    Parameters
    ----------
    source, fused : ndarray, shape (y, x), float32 or float64
        The slice to compare, 0..1 being the display window.

    Returns
    -------
    float
        0 to 1, no units; 1 for identical images. Symmetric. NaN for a slice of fewer than 176
        pixels (11 times 2 to the power of 4) along y or x: with fewer scales it would be another
        figure.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.
    """
    arrays, _ = consistent({"source": source, "fused": fused}, None, ndim=2)
    first, second = (finite(name, array) for name, array in arrays.items())
    if min(first.shape) < SMALLEST_SIDE:
        return math.nan
    product = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        if scale:
            first, second = _halve(first), _halve(second)
        last = scale == len(SCALE_WEIGHTS) - 1
        index = structural_similarity(first, second) if last else _contrast(first, second)
        product *= max(index, 0.0) ** weight
    return product


def _contrast(source: FloatArray, fused: FloatArray) -> float:
    """Return SSIM without its lightness, where the whole window fits."""
    mean_s, mean_f = _local_mean(source), _local_mean(fused)
    variances = _local_mean(np.square(source) + np.square(fused))
    variances -= np.square(mean_s) + np.square(mean_f)
    covariance = _local_mean(source * fused) - mean_s * mean_f
    # True but for rounding, and so it stays in -1..1 for images far beyond the window.
    np.maximum(variances, 0.0, out=variances)
    np.clip(covariance, -variances / 2.0, variances / 2.0, out=covariance)
    return float(((2.0 * covariance + C2) / (variances + C2)).mean())


def _local_mean(image: FloatArray) -> FloatArray:
    inner = slice(RADIUS, -RADIUS)
    return np.asarray(gaussian_filter(image, SIGMA, radius=RADIUS)[inner, inner])


def _halve(image: FloatArray) -> FloatArray:
    height, width = image.shape
    image = np.pad(image, ((0, height % 2), (0, width % 2)), mode="edge")
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4.0
