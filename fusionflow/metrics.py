"""Fusion-quality metrics: arrays in, numbers out.

A fused slice is compared with each source by :data:`PAIR_METRICS` and described once by
:data:`IMAGE_METRICS`; :func:`slice_metrics` computes them all for a stack of slices and shares
what they share. The functions behind single figures can be used on their own.

Conventions, because published figures of the same name differ by them:

- Images are scaled so that 0..1 is the display window, and the data range is therefore 1. (An
  MSE quoted on the 0..255 scale is ours times 255 squared; PSNR and SSIM do not change.)
- Values beyond the window are neither clipped nor refused, except that entropies see the image
  as an 8-bit picture would hold it: clipped to 0..1 and rounded to 256 levels.
- Entropies and mutual information are in bits, against one source at a time.
- A figure that is not defined is NaN, never a flattering number.
- Everything is computed in float64, one slice at a time: a slice's figures do not depend, in any
  bit, on the slices around it or on the number of threads.

Slices pool to scans as each metric declares: see :mod:`fusionflow.pooling`.

References
----------
mean_squared_error, rmse
    Z. Wang, A. C. Bovik, "Mean squared error: love it or leave it?", IEEE Signal Processing
    Magazine 26(1), 2009, equation 1 and its root.
psnr
    Q. Huynh-Thu, M. Ghanbari, "Scope of validity of PSNR in image/video quality assessment",
    Electronics Letters 44(13), 2008.
relative_rmse
    S. F. Panesar, A. Ganatra, "Advancements in Transfer Learning Strategies for PET and MRI
    Brain Image Fusion", IJISAE, 2024, table 1 (there named RMSE).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fusionflow.errors import InputError
from fusionflow.information import (
    Information,
    entropy,
    grey_levels,
    joint_entropy,
    mutual_information,
    normalised_mutual_information,
)
from fusionflow.pixels import FloatArray, Image, Mask, consistent, counted_pixels, finite
from fusionflow.pooling import Metric, pool_figures, pool_slices
from fusionflow.schema import SOURCES
from fusionflow.ssim import mean_ssim, structural_similarity

__all__ = [
    "IMAGE_METRICS",
    "PAIR_METRICS",
    "SOURCES",
    "Metric",
    "SliceMetrics",
    "entropy",
    "joint_entropy",
    "mean_squared_error",
    "mutual_information",
    "normalised_mutual_information",
    "pool_figures",
    "pool_slices",
    "psnr",
    "relative_rmse",
    "rmse",
    "root_mean_square",
    "slice_metrics",
    "structural_similarity",
]

Region: TypeAlias = Literal["frame", "mask"]


def _square(values: FloatArray) -> FloatArray:
    return np.square(values)


def _root(values: FloatArray) -> FloatArray:
    return np.sqrt(values)


def _psnr_from_mse(mse: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return 0.0 - 10.0 * np.log10(mse)  # 0.0, not -0.0, for an MSE of 1


def _mse_from_psnr(decibels: FloatArray) -> FloatArray:
    return np.power(10.0, decibels / -10.0)


PAIR_METRICS: Final[tuple[Metric, ...]] = (
    Metric("mse", "mean squared error", "1", (0.0, math.inf), "lower"),
    Metric(
        "psnr",
        "peak signal-to-noise ratio",
        "dB",
        (-math.inf, math.inf),
        "higher",
        forward=_mse_from_psnr,
        inverse=_psnr_from_mse,
    ),
    Metric(
        "rmse",
        "root mean squared error",
        "1",
        (0.0, math.inf),
        "lower",
        forward=_square,
        inverse=_root,
    ),
    Metric(
        "rmse_relative",
        "error norm relative to source norm",
        "1",
        (0.0, math.inf),
        "lower",
        quotient=("rmse", "rms"),
    ),
    Metric(
        "rms",
        "root mean square of source",
        "1",
        (0.0, math.inf),
        "neither",
        forward=_square,
        inverse=_root,
    ),
    Metric("ssim", "structural similarity", "1", (-1.0, 1.0), "higher"),
    Metric("mi", "mutual information", "bit", (0.0, 8.0), "higher"),
    Metric("nmi", "normalised mutual information", "1", (0.0, 1.0), "higher"),
    Metric("entropy", "entropy of source", "bit", (0.0, 8.0), "neither"),
    Metric("joint_entropy", "joint entropy of source and fused", "bit", (0.0, 16.0), "neither"),
)

IMAGE_METRICS: Final[tuple[Metric, ...]] = (
    Metric("entropy_fused", "entropy of fused", "bit", (0.0, 8.0), "neither"),
    Metric("joint_entropy_sources", "joint entropy of sources", "bit", (0.0, 16.0), "neither"),
)


@dataclass(frozen=True, eq=False)
class SliceMetrics:
    """The figures of every slice of a stack, float64.

    Attributes
    ----------
    pair : ndarray, shape (z, source, metric)
        Fused against each source, in the order of :data:`SOURCES` and :data:`PAIR_METRICS`.
    image : ndarray, shape (z, metric)
        One figure a slice, in the order of :data:`IMAGE_METRICS`.
    """

    pair: FloatArray
    image: FloatArray


def slice_metrics(
    mri: Image,
    pet: Image,
    fused: Image,
    mask: Mask | None = None,
    *,
    region: Region = "frame",
) -> SliceMetrics:
    """Compute every metric of every slice of a fused stack.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (z, y, x), float32 or float64
        The sources and the fused images on one grid, 0..1 being the display window.
    mask : ndarray, shape (z, y, x), bool or integer, optional
        Non-zero inside the head. A slice with an empty mask gets NaN for every figure, in both
        regions: an empty slice is fused perfectly by any method and would flatter all of them.
        Without a mask every slice counts.
    region : {"frame", "mask"}
        Whether a figure is taken over the whole slice or over its mask pixels alone.

    Returns
    -------
    SliceMetrics

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, ``region="mask"`` without a mask, or a slice with a
        value that is not finite (in or out of the mask; the message names the slice).

    Examples
    --------
    >>> mri, pet = np.random.default_rng(0).random((2, 3, 32, 32))
    >>> metrics = slice_metrics(mri, pet, (mri + pet) / 2)
    >>> metrics.pair.shape, metrics.image.shape
    ((3, 2, 10), (3, 2))
    """
    if region not in get_args(Region):
        raise InputError(f"region {region!r} is not known", "Use 'frame' or 'mask'")
    if region == "mask" and mask is None:
        raise InputError("region 'mask' needs a mask, and none was given")
    stacks, masks = consistent({"mri": mri, "pet": pet, "fused": fused}, mask, ndim=3)

    depth = len(stacks["fused"])
    pair = np.full((depth, len(SOURCES), len(PAIR_METRICS)), np.nan)
    image = np.full((depth, len(IMAGE_METRICS)), np.nan)
    for z in range(depth):
        slices = {name: finite(f"slice {z} of {name}", s[z]) for name, s in stacks.items()}
        inside = None if masks is None else masks[z]
        if inside is None or inside.any():
            pair[z], image[z] = _figures(**slices, inside=inside if region == "mask" else None)
    return SliceMetrics(pair, image)


def mean_squared_error(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Mean squared error, :math:`\frac{1}{N} \sum (f - s)^2`.

    Parameters
    ----------
    source, fused : ndarray of one shape, float32 or float64
        The pixels to compare.
    mask : ndarray of the same shape, bool or integer, optional
        Non-zero at the pixels that count; all of them by default.

    Returns
    -------
    float
        0 or more, in squared display windows; NaN where no pixel counts.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.
    """
    return _mse(*counted_pixels({"source": source, "fused": fused}, mask))


def psnr(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Peak signal-to-noise ratio, :math:`10 \log_{10}(1 / \mathrm{MSE})`.

    The peak is 1, the width of the display window. Parameters and errors are those of
    :func:`mean_squared_error`.

    Returns
    -------
    float
        In dB; infinite for identical images, NaN where no pixel counts.
    """
    return float(_psnr_from_mse(np.asarray(mean_squared_error(source, fused, mask))))


def rmse(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Root mean squared error, :math:`\sqrt{\mathrm{MSE}}`.

    Parameters and errors are those of :func:`mean_squared_error`.

    Returns
    -------
    float
        0 or more, in display windows; NaN where no pixel counts.
    """
    return math.sqrt(mean_squared_error(source, fused, mask))


def relative_rmse(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Error norm relative to the norm of the source, :math:`\|f - s\|_2 / \|s\|_2`.

    Not symmetric. Parameters and errors are those of :func:`mean_squared_error`.

    Returns
    -------
    float
        0 or more, no units; 1 for a fused image of zeros. NaN where no pixel counts or where the
        source is zero throughout, whatever the fused image.
    """
    return _relative_rmse(*counted_pixels({"source": source, "fused": fused}, mask))


def root_mean_square(source: Image, mask: Mask | None = None) -> float:
    r"""Root mean square of an image, :math:`\|s\|_2 / \sqrt{N}`.

    Parameters and errors are those of :func:`mean_squared_error`.

    Returns
    -------
    float
        0 or more, in display windows; NaN where no pixel counts.
    """
    return _rms(*counted_pixels({"source": source}, mask))


def _figures(
    mri: FloatArray, pet: FloatArray, fused: FloatArray, inside: NDArray[np.bool_] | None
) -> tuple[list[list[float]], list[float]]:
    """Compute the pair and the image figures of one slice, or of its mask pixels."""
    ssim = mean_ssim([mri, pet], fused, inside)
    if inside is not None:
        mri, pet, fused = mri[inside], pet[inside], fused[inside]
    mri_levels, pet_levels, fused_levels = grey_levels(mri), grey_levels(pet), grey_levels(fused)
    mri_fused = Information.of(mri_levels, fused_levels)
    pet_fused = Information.of(pet_levels, fused_levels)
    mri_pet = Information.of(mri_levels, pet_levels)

    pair = [
        _pair_figures(mri, fused, ssim[0], mri_fused),
        _pair_figures(pet, fused, ssim[1], pet_fused),
    ]
    image = {"entropy_fused": mri_fused.second, "joint_entropy_sources": mri_pet.joint}
    return pair, [image[metric.name] for metric in IMAGE_METRICS]


def _pair_figures(
    source: FloatArray, fused: FloatArray, ssim: float, information: Information
) -> list[float]:
    mse = _mse(source, fused)
    figures = {
        "mse": mse,
        "psnr": float(_psnr_from_mse(np.asarray(mse))),
        "rmse": math.sqrt(mse),
        "rmse_relative": _relative_rmse(source, fused),
        "rms": _rms(source),
        "ssim": ssim,
        "mi": information.mutual,
        "nmi": information.normalised,
        "entropy": information.first,
        "joint_entropy": information.joint,
    }
    return [figures[metric.name] for metric in PAIR_METRICS]


def _mse(source: FloatArray, fused: FloatArray) -> float:
    return float(np.square(fused - source).mean()) if fused.size else math.nan


def _rms(source: FloatArray) -> float:
    return math.sqrt(np.square(source).mean()) if source.size else math.nan


def _relative_rmse(source: FloatArray, fused: FloatArray) -> float:
    norm = math.sqrt(np.square(source).sum())
    return math.sqrt(np.square(fused - source).sum()) / norm if norm else math.nan
