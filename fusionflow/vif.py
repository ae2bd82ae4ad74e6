"""Visual information fidelity: how much of what a source tells survives in the fused image.

References
----------
visual_information_fidelity
    H. R. Sheikh, A. C. Bovik, "Image information and visual quality", IEEE Transactions on Image
    Processing 15(2), 2006, equation 10; here in the pixel domain, as its authors' `vifp_mscale`
    computes it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from scipy.ndimage import correlate1d

from fusionflow.pixels import FloatArray, Image, consistent, finite

__all__ = ["visual_information_fidelity"]

SCALES: Final = (17, 9, 5, 3)  # the width of the window at each scale, in pixels of that scale
NOISE_VARIANCE: Final = 2.0  # of the eye's own noise, in squared grey levels of 0..255
TINY: Final = 1e-10  # a variance below this is none


def visual_information_fidelity(source: Image, fused: Image) -> float:
    r"""Visual information fidelity of a fused slice, in the pixel domain, at four scales.

    .. math:: \frac{\sum_{k,p} \log(1 + g^2 \sigma_s^2 / (\sigma_v^2 + \sigma_n^2))}
                   {\sum_{k,p} \log(1 + \sigma_s^2 / \sigma_n^2)}

    with, at every place :math:`p` of scale :math:`k`, :math:`g = \sigma_{sf} / \sigma_s^2` and
    :math:`\sigma_v^2 = \sigma_f^2 - g \sigma_{sf}`: the fused image is seen as a gain on the source
    plus noise, and the eye adds noise of variance :math:`\sigma_n^2 = 2` on the 0..255 scale, to
    which both images are brought first. A negative gain counts as none (:math:`g = 0`,
    :math:`\sigma_v^2 = \sigma_f^2`), and so does one where either variance is below 1e-10.

    Variances and covariance are weighted by a Gaussian window of 17, 9, 5 and 3 pixels, its sigma a
    fifth of its width, at the places where the whole of it fits. From one scale to the next both
    images are smoothed by the next scale's window, again where it fits, and every second pixel is
    kept.

    Parameters
    ----------
    source, fused : ndarray, shape (y, x), float32 or float64
        The slice to compare, 0..1 being the display window.

    Returns
    -------
    float
        0 (nothing survives) or more, no units; 1 for identical images, above 1 where contrast was
        added. Not symmetric, and blind to a constant added to either image. NaN for a source
        without contrast, and for a slice of fewer than 41 pixels along y or x, which has no fourth
        scale.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> ramp = np.add.outer(np.arange(64.0), np.arange(64.0)) / 126
    >>> round(visual_information_fidelity(ramp, ramp), 6)
    1.0
    >>> bool(visual_information_fidelity(ramp, ramp / 4) < 0.8)
    True
    """
    images, _ = consistent({"source": source, "fused": fused}, None, ndim=2)
    first, second = (255.0 * finite(name, image) for name, image in images.items())
    told = there = 0.0
    for scale, width in enumerate(SCALES):
        window = _gaussian_window(width)
        if scale:
            first, second = (_smooth(image, window)[::2, ::2] for image in (first, second))
        if min(first.shape) < width:
            return math.nan
        fidelity, information = _information(first, second, window)
        told, there = told + fidelity, there + information
    return told / there if there else math.nan


def _information(source: FloatArray, fused: FloatArray, window: FloatArray) -> tuple[float, float]:
    """Return what is told of the source at one scale, and what there is to tell, in nats."""
    mean_s, mean_f = _smooth(source, window), _smooth(fused, window)
    variance_s = _smooth(np.square(source), window) - np.square(mean_s)
    variance_f = _smooth(np.square(fused), window) - np.square(mean_f)
    covariance = _smooth(source * fused, window) - mean_s * mean_f

    counts = (variance_s >= TINY) & (variance_f >= TINY) & (covariance > 0)
    gain = np.divide(covariance, variance_s + TINY, out=np.zeros_like(covariance), where=counts)
    # Where there is no gain nothing is told, whatever the noise.
    noise = np.maximum(variance_f - gain * covariance, TINY)
    variance_s = np.where(variance_s >= TINY, variance_s, 0.0)
    told = np.log1p(np.square(gain) * variance_s / (noise + NOISE_VARIANCE))
    return float(told.sum()), float(np.log1p(variance_s / NOISE_VARIANCE).sum())


def _gaussian_window(width: int) -> FloatArray:
    offsets = np.arange(width) - (width - 1) / 2.0
    weights = np.exp(-0.5 * np.square(offsets / (width / 5.0)))
    return weights / weights.sum()


def _smooth(image: FloatArray, window: FloatArray) -> FloatArray:
    """Return the weighted mean around each pixel that has the whole window in `image`."""
    reach = len(window) // 2
    inner = slice(reach, -reach)
    rows = correlate1d(image, window, axis=0, mode="constant")[inner]
    return correlate1d(rows, window, axis=1, mode="constant")[:, inner]
