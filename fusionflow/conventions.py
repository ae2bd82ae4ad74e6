"""Figures of fusion quality as well-known code bases compute them, so that numbers compare.

Papers take their tables from a few code bases, which give different things the same name.
:func:`convention` returns the figures of one of them, under its own names, for the images that it
would read: 8-bit pictures, so every image is clipped to the display window and rounded to grey
levels first. What is not in a table below is computed as in :mod:`fusionflow.quality`.

``cddfuse``: the ``Evaluator`` of CDDFuse (Zhao et al., CVPR 2023).

====  =======================================  ====================================================
name  ours                                     theirs
====  =======================================  ====================================================
MI    bits, ``mi``                             nats: ours times 0.693; summed over the sources
VIF   one figure a source; NaN for a flat one  summed over the sources; 1 for a source without
                                               contrast
Qabf  ``G`` is 1 between equal edges           ``G`` is their strength: 0.0005 more for an unchanged
                                               source
SSIM  one figure a source; Gaussian 11 x 11    summed over the sources; uniform 7 x 7 window, sample
      window, data range that of the images    covariance, and a data range of 2 for values of
                                               0..255 (scikit-image's guess for float32), so that
                                               ``C1`` and ``C2`` are all but 0 and noise in the
                                               background decides; in float32
CC    ``cc``                                   the same, the mean of both sources
MSE   one figure a source                      the mean of both sources, 0..255 scale
PSNR  one figure a source, peak 255            of that mean, and its peak is the brightest pixel of
                                               the fused image
====  =======================================  ====================================================

EN, SD, SF, AG and SCD are ours. Its test script stretches every fused image to 0..255 before it
saves and scores it; that is up to whoever makes the image.

``vifb``: the MATLAB code of VIFB (Zhang, Ye and Xiao, CVPR Workshops 2020).

====  =======================================  ====================================================
name  ours                                     theirs
====  =======================================  ====================================================
MI    bits, ``mi``                             nats, summed over the sources; it stretches each
                                               image to 0..255 first, which changes nothing
SSIM  one figure a source                      summed over the sources
RMSE  --                                       the norm of the difference over the number of pixels,
                                               mean of both sources: 256 times too small for a
                                               256 x 256 image
PSNR  one figure a source                      with that in place of the MSE
Qabf  ``G`` is 1 between equal edges           ``G`` is their strength
SF    mean over the differences                their sum over the number of pixels
AG    mean over the pixels                     their sum over the number of pixels without the last
                                               row and column
EI    --                                       mean strength of the Sobel edges, the image continued
                                               by its border
CE    --                                       Kullback-Leibler divergence of the grey levels of the
                                               fused image from those of a source, in bits, without
                                               the levels that one of them lacks, mean of both; it
                                               may be negative
====  =======================================  ====================================================

EN and SD are ours (the latter is filed under "variance" there). Qcb and Qcv are left out. It reads
the fused images as JPEG.

``tang``: the evaluation code of L. Tang (SeAFusion and what followed), in the Python port that goes
round with many papers' code.

=======  ====================================  ====================================================
name     ours                                  theirs
=======  ====================================  ====================================================
EN       ``en``                                with 1e-7 added in the logarithm
MI       bits, ``mi``                          the same, summed over the sources
AG       mean over the pixels                  as VIFB
CC       ``cc``                                the same
VIF      one figure a source                   summed over the sources
MSE      0..255 scale, one figure a source     0..1 scale, the mean of both sources
PSNR     one figure a source                   of that mean, but with the peak of 255: 48.13 dB more
Qabf     ``G`` is 1 between equal edges        ``G`` is their strength
Nabf     faint edges weigh 0.001               they weigh nothing
SSIM     one figure a source                   summed over the sources; values of 0..255 are
                                               multiplied by 255, but the data range stays 255, so
                                               that ``C1`` and ``C2`` are all but 0
MS_SSIM  one figure a source                   the same two differences; and sides that are no
                                               multiples of 16 are continued by zeros
=======  ====================================  ====================================================

SF, SD and SCD are ours. SSIM and MS_SSIM are computed in float64 here and in float32 there, where
the variance of bright flat areas is lost in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import sobel, uniform_filter

from fusionflow.correlations import correlation, sum_of_correlations
from fusionflow.errors import InputError
from fusionflow.gradients import (
    average_gradient,
    edge_preservation,
    fusion_artefacts,
    spatial_frequency,
)
from fusionflow.grey_levels import eight_bit, mean_squared_levels, standard_deviation
from fusionflow.information import LEVELS, entropy, grey_levels, mutual_information
from fusionflow.multiscale import multiscale_ssim
from fusionflow.pixels import FloatArray, Image, consistent
from fusionflow.ssim import structural_similarity
from fusionflow.vif import visual_information_fidelity

__all__ = ["CONVENTIONS", "Assess", "convention"]

PEAK: Final = 255.0
Figure: TypeAlias = Callable[[FloatArray, FloatArray, FloatArray], float]


class Assess(Protocol):
    """What :func:`convention` returns; :func:`fusionflow.quality.assess` is one, too."""

    def __call__(
        self, mri: Image, pet: Image, fused: Image, names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Compute figures of one slice."""


def convention(name: str) -> Assess:
    """Return what computes the figures of a slice as a published code base does.

    Parameters
    ----------
    name : str
        One of :data:`CONVENTIONS`; what they are is at the top of this module.

    Returns
    -------
    callable
        To be used as :func:`fusionflow.quality.assess`, with the code base's own names. A figure
        that is not defined is NaN, except where the code base gives a number.

    Raises
    ------
    InputError
        No such convention.

    Examples
    --------
    >>> mri, pet = np.random.default_rng(0).random((2, 64, 64))
    >>> figures = convention("cddfuse")(mri, pet, mri, ["VIF", "Qabf"])
    >>> {name: bool(figure > 1) for name, figure in figures.items()}
    {'VIF': True, 'Qabf': False}
    """
    if name not in CONVENTIONS:
        raise InputError(
            f"convention {name!r} is not known", f"Use one of {', '.join(CONVENTIONS)}"
        )
    return partial(_assess, name)


def _assess(
    name: str, mri: Image, pet: Image, fused: Image, names: Sequence[str] | None = None
) -> dict[str, float]:
    figures = CONVENTIONS[name]
    arrays, _ = consistent({"mri": mri, "pet": pet, "fused": fused}, None, ndim=2)
    images = [eight_bit(array) for array in arrays.values()]
    wanted = figures if names is None else names
    if unknown := [figure for figure in wanted if figure not in figures]:
        raise InputError(
            f"convention {name!r} has no figure {unknown[0]!r}", f"Use some of {', '.join(figures)}"
        )
    if not images[0].size:
        return dict.fromkeys(wanted, math.nan)
    return {figure: figures[figure](*images) for figure in wanted}


def _of_fused(
    function: Callable[[FloatArray], float], mri: FloatArray, pet: FloatArray, fused: FloatArray
) -> float:
    del mri, pet
    return function(fused)


def _sum(
    function: Callable[[FloatArray, FloatArray], float],
    mri: FloatArray,
    pet: FloatArray,
    fused: FloatArray,
) -> float:
    return function(mri, fused) + function(pet, fused)


def _mean(
    function: Callable[[FloatArray, FloatArray], float],
    mri: FloatArray,
    pet: FloatArray,
    fused: FloatArray,
) -> float:
    return _sum(function, mri, pet, fused) / 2.0


def _decibels(peak: float, error: float) -> float:
    if not (peak and error):
        return math.nan if peak == error else math.copysign(math.inf, peak - error)
    return 10.0 * math.log10(peak**2 / error)


def _nats(source: FloatArray, fused: FloatArray) -> float:
    return mutual_information(source, fused) * math.log(2.0)


def _vif_or_1(source: FloatArray, fused: FloatArray) -> float:
    return 1.0 if np.ptp(source) == 0 else visual_information_fidelity(source, fused)


def _uniform_ssim(source: FloatArray, fused: FloatArray) -> float:
    """SSIM of scikit-image 0.19 with its defaults, of float32 images of 0..255."""
    width, data_range = 7, 2.0
    if min(fused.shape) < width:
        return math.nan
    x, y = (np.rint(PEAK * image).astype(np.float32) for image in (source, fused))
    mean = partial(uniform_filter, size=width)
    mean_x, mean_y = mean(x), mean(y)
    sample = np.float32(width**2 / (width**2 - 1))
    variance_x = sample * (mean(x * x) - mean_x * mean_x)
    variance_y = sample * (mean(y * y) - mean_y * mean_y)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    c1, c2 = np.float32((0.01 * data_range) ** 2), np.float32((0.03 * data_range) ** 2)
    ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    ssim /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    inner = slice(width // 2, -(width // 2))
    return float(ssim[inner, inner].mean(dtype=np.float64))


def _psnr_of_brightest(mri: FloatArray, pet: FloatArray, fused: FloatArray) -> float:
    return _decibels(PEAK * float(fused.max()), _mean(mean_squared_levels, mri, pet, fused))


def _norm_over_size(source: FloatArray, fused: FloatArray) -> float:
    return PEAK * math.sqrt(float(np.square(source - fused).sum())) / fused.size


def _psnr_of_norm(mri: FloatArray, pet: FloatArray, fused: FloatArray) -> float:
    return _decibels(PEAK, _mean(_norm_over_size, mri, pet, fused))


def _psnr_of_mixed_scales(mri: FloatArray, pet: FloatArray, fused: FloatArray) -> float:
    return _decibels(PEAK, _mean(mean_squared_levels, mri, pet, fused) / PEAK**2)


def _frequency_over_size(fused: FloatArray) -> float:
    steps = (np.square(np.diff(fused, axis=axis)).sum() for axis in (0, 1))
    return PEAK * math.sqrt(sum(steps) / fused.size)


def _gradient_over_less(fused: FloatArray) -> float:
    height, width = fused.shape
    if min(height, width) < 2:
        return math.nan
    return average_gradient(fused) * fused.size / ((height - 1) * (width - 1))


def _edge_intensity(fused: FloatArray) -> float:
    along_y, along_x = (sobel(PEAK * fused, axis=axis, mode="nearest") for axis in (0, 1))
    return float(np.hypot(along_x, along_y).mean())


def _level_shares(image: FloatArray) -> NDArray[np.float64]:
    return np.bincount(grey_levels(image), minlength=LEVELS) / image.size


def _divergence(source: FloatArray, fused: FloatArray) -> float:
    p, q = _level_shares(source), _level_shares(fused)
    both = (p > 0) & (q > 0)
    return float((p[both] * np.log2(p[both] / q[both])).sum())


def _entropy_of_more(fused: FloatArray) -> float:
    shares = _level_shares(fused)
    return -float((shares * np.log2(shares + 1e-7)).sum())


def _mean_squared(source: FloatArray, fused: FloatArray) -> float:
    return mean_squared_levels(source, fused) / PEAK**2


def _ssim_without_constants(source: FloatArray, fused: FloatArray) -> float:
    return structural_similarity(PEAK * source, PEAK * fused)


def _multiscale_without_constants(source: FloatArray, fused: FloatArray) -> float:
    return multiscale_ssim(PEAK * source, PEAK * fused)


_TIED: Final[Figure] = partial(edge_preservation, ties="strength")

CONVENTIONS: Final[Mapping[str, Mapping[str, Figure]]] = MappingProxyType(
    {
        "cddfuse": {
            "EN": partial(_of_fused, entropy),
            "SD": partial(_of_fused, standard_deviation),
            "SF": partial(_of_fused, spatial_frequency),
            "AG": partial(_of_fused, average_gradient),
            "MI": partial(_sum, _nats),
            "MSE": partial(_mean, mean_squared_levels),
            "CC": partial(_mean, correlation),
            "PSNR": _psnr_of_brightest,
            "SCD": sum_of_correlations,
            "VIF": partial(_sum, _vif_or_1),
            "Qabf": _TIED,
            "SSIM": partial(_sum, _uniform_ssim),
        },
        "vifb": {
            "CE": partial(_mean, _divergence),
            "EN": partial(_of_fused, entropy),
            "MI": partial(_sum, _nats),
            "PSNR": _psnr_of_norm,
            "AG": partial(_of_fused, _gradient_over_less),
            "EI": partial(_of_fused, _edge_intensity),
            "Qabf": _TIED,
            "SD": partial(_of_fused, standard_deviation),
            "SF": partial(_of_fused, _frequency_over_size),
            "RMSE": partial(_mean, _norm_over_size),
            "SSIM": partial(_sum, structural_similarity),
        },
        "tang": {
            "EN": partial(_of_fused, _entropy_of_more),
            "MI": partial(_sum, mutual_information),
            "SF": partial(_of_fused, spatial_frequency),
            "AG": partial(_of_fused, _gradient_over_less),
            "SD": partial(_of_fused, standard_deviation),
            "CC": partial(_mean, correlation),
            "SCD": sum_of_correlations,
            "VIF": partial(_sum, visual_information_fidelity),
            "MSE": partial(_mean, _mean_squared),
            "PSNR": _psnr_of_mixed_scales,
            "Qabf": _TIED,
            "Nabf": partial(fusion_artefacts, faint_weight=0.0),
            "SSIM": partial(_sum, _ssim_without_constants),
            "MS_SSIM": partial(_sum, _multiscale_without_constants),
        },
    }
)
"""The figures of each convention, by the names that its code base gives them."""
