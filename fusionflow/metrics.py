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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fusionflow.errors import InputError

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
    "pool_slices",
    "psnr",
    "relative_rmse",
    "rmse",
    "slice_metrics",
    "structural_similarity",
]

Image: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_ | np.integer[Any]]
FloatArray: TypeAlias = NDArray[np.float64]
Region: TypeAlias = Literal["frame", "mask"]

LEVELS: Final = 256  # grey levels of the 8-bit picture that entropies are taken of
SSIM_SIGMA: Final = 1.5
SSIM_RADIUS: Final = 5  # a window of 11 pixels
SSIM_C1: Final = 0.01**2
SSIM_C2: Final = 0.03**2


# ---------------------------------------------------------------- what is measured


def _identity(values: FloatArray) -> FloatArray:
    return values


def _square(values: FloatArray) -> FloatArray:
    return np.square(values)


def _root(values: FloatArray) -> FloatArray:
    return np.sqrt(values)


def _psnr_from_mse(mse: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return 0.0 - 10.0 * np.log10(mse)  # 0.0, not -0.0, for an MSE of 1


def _mse_from_psnr(decibels: FloatArray) -> FloatArray:
    return np.power(10.0, decibels / -10.0)


@dataclass(frozen=True)
class Metric:
    """What a figure is, and how the figures of many slices become one.

    Attributes
    ----------
    name : str
        Short name, e.g. ``"ssim"``.
    long_name : str
        Name for tables and axes.
    units : str
        ``"1"``, ``"dB"`` or ``"bit"``.
    value_range : tuple of float
        Lowest and highest possible value.
    better : {"higher", "lower", "neither"}
        Which way is better. Entropies are ``"neither"``: noise raises them too.
    forward, inverse : callable
        Slices pool to ``inverse(mean(forward(figures)))``. Module-level functions, so that a
        metric can be pickled.
    """

    name: str
    long_name: str
    units: str
    value_range: tuple[float, float]
    better: Literal["higher", "lower", "neither"]
    forward: Callable[[FloatArray], FloatArray] = _identity
    inverse: Callable[[FloatArray], FloatArray] = _identity


SOURCES: Final = ("mri", "pet")

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
    Metric("rmse_relative", "error norm relative to source norm", "1", (0.0, math.inf), "lower"),
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


# ---------------------------------------------------------------- stacks of slices


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
    ((3, 2, 9), (3, 2))
    """
    if region not in get_args(Region):
        raise InputError(f"region {region!r} is not known", "Use 'frame' or 'mask'")
    if region == "mask" and mask is None:
        raise InputError("region 'mask' needs a mask, and none was given")
    stacks, masks = _consistent({"mri": mri, "pet": pet, "fused": fused}, mask, ndim=3)

    depth = len(stacks["fused"])
    pair = np.full((depth, len(SOURCES), len(PAIR_METRICS)), np.nan)
    image = np.full((depth, len(IMAGE_METRICS)), np.nan)
    for z in range(depth):
        slices = {name: _finite(f"slice {z} of {name}", s[z]) for name, s in stacks.items()}
        inside = None if masks is None else masks[z]
        if inside is None or inside.any():
            pair[z], image[z] = _figures(**slices, inside=inside if region == "mask" else None)
    return SliceMetrics(pair, image)


def pool_slices(
    metric: Metric,
    values: NDArray[np.floating[Any]],
    axis: int | tuple[int, ...] | None = 0,
) -> FloatArray:
    """Pool the figures of many slices into one, as the metric declares.

    MSE pools to its mean, RMSE to the root of the mean of squares, PSNR to the PSNR of the mean
    MSE, everything else to its mean. All slices weigh the same.

    Parameters
    ----------
    metric : Metric
        What the figures are.
    values : ndarray
        Figures of slices. NaN is a slice that does not count.
    axis : int, tuple of int, or None
        The axis or axes that hold slices; None for all.

    Returns
    -------
    ndarray
        `values` without `axis`; NaN where no slice counts.

    Examples
    --------
    >>> rmse = next(metric for metric in PAIR_METRICS if metric.name == "rmse")
    >>> float(pool_slices(rmse, np.array([1.0, 7.0, np.nan])))
    5.0
    """
    figures = np.asarray(values, dtype=np.float64)
    counts = ~np.isnan(figures)
    with np.errstate(all="ignore"):
        total = np.where(counts, metric.forward(figures), 0.0).sum(axis)
        return np.asarray(metric.inverse(np.asarray(total / counts.sum(axis))))


# ---------------------------------------------------------------- single figures


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

    References
    ----------
    Z. Wang, A. C. Bovik, "Mean squared error: love it or leave it?", IEEE Signal Processing
    Magazine 26(1), 2009, equation 1.
    """
    return _mse(*_pixels({"source": source, "fused": fused}, mask))


def psnr(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Peak signal-to-noise ratio, :math:`10 \log_{10}(1 / \mathrm{MSE})`.

    The peak is 1, the width of the display window. Parameters and errors are those of
    :func:`mean_squared_error`.

    Returns
    -------
    float
        In dB; infinite for identical images, NaN where no pixel counts.

    References
    ----------
    Q. Huynh-Thu, M. Ghanbari, "Scope of validity of PSNR in image/video quality assessment",
    Electronics Letters 44(13), 2008.
    """
    return float(_psnr_from_mse(np.asarray(mean_squared_error(source, fused, mask))))


def rmse(source: Image, fused: Image, mask: Mask | None = None) -> float:
    r"""Root mean squared error, :math:`\sqrt{\mathrm{MSE}}`.

    Parameters and errors are those of :func:`mean_squared_error`.

    Returns
    -------
    float
        0 or more, in display windows; NaN where no pixel counts.

    References
    ----------
    Z. Wang, A. C. Bovik, "Mean squared error: love it or leave it?", IEEE Signal Processing
    Magazine 26(1), 2009: the root of equation 1.
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

    References
    ----------
    S. F. Panesar, A. Ganatra, "Advancements in Transfer Learning Strategies for PET and MRI
    Brain Image Fusion", IJISAE, 2024, table 1 (there named RMSE).
    """
    return _relative_rmse(*_pixels({"source": source, "fused": fused}, mask))


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

    References
    ----------
    Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error
    visibility to structural similarity", IEEE Transactions on Image Processing 13(4), 2004,
    equations 13 to 17.
    """
    images, inside = _consistent({"source": source, "fused": fused}, mask, ndim=2)
    first, second = (_finite(name, image) for name, image in images.items())
    if inside is not None and not inside.any():
        return math.nan
    return _ssim([first], second, inside)[0]


def entropy(image: Image, mask: Mask | None = None) -> float:
    r"""Entropy of an image of 256 grey levels, :math:`-\sum_i p_i \log_2 p_i`.

    Parameters
    ----------
    image : ndarray, float32 or float64
        The pixels; 0..1 becomes the levels 0 to 255, rounded half up, and what is beyond is
        clipped.
    mask : ndarray of the same shape, bool or integer, optional
        Non-zero at the pixels that count; all of them by default.

    Returns
    -------
    float
        0 (a constant image) to 8 bits; NaN where no pixel counts.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    References
    ----------
    C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27,
    1948, section 6.

    Examples
    --------
    >>> entropy(np.array([0.0, 0.0, 0.5, 1.0]))
    1.5
    """
    (pixels,) = _pixels({"image": image}, mask)
    return _entropy(np.bincount(_levels(pixels)))


def joint_entropy(a: Image, b: Image, mask: Mask | None = None) -> float:
    r"""Entropy of the pairs of grey levels, :math:`-\sum_{ij} p_{ij} \log_2 p_{ij}`.

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 to 16 bits, and not less than the entropy of either image; NaN where no pixel counts.

    References
    ----------
    C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27,
    1948, section 6.
    """
    return _information(*map(_levels, _pixels({"a": a, "b": b}, mask))).joint


def mutual_information(a: Image, b: Image, mask: Mask | None = None) -> float:
    """Mutual information of the grey levels, H(a) + H(b) - H(a, b).

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 to 8 bits, and not more than the entropy of either image; NaN where no pixel counts.

    References
    ----------
    G. Qu, D. Zhang, P. Yan, "Information measure for performance of image fusion", Electronics
    Letters 38(7), 2002, of which this is the term of one source.
    """
    return _information(*map(_levels, _pixels({"a": a, "b": b}, mask))).mutual


def normalised_mutual_information(a: Image, b: Image, mask: Mask | None = None) -> float:
    """Mutual information relative to the mean entropy, 2 MI / (H(a) + H(b)).

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 (independent) to 1 (each tells the other), no units. NaN where no pixel counts and
        where both images are constant: then there is nothing to tell.

    References
    ----------
    M. Hossny, S. Nahavandi, D. Creighton, "Comments on 'Information measure for performance of
    image fusion'", Electronics Letters 44(18), 2008, of which this is the term of one source.
    """
    return _information(*map(_levels, _pixels({"a": a, "b": b}, mask))).normalised


# ---------------------------------------------------------------- input


def _consistent(
    images: Mapping[str, Image], mask: Mask | None, ndim: int | None = None
) -> tuple[dict[str, Image], NDArray[np.bool_] | None]:
    """Return images of one shape by name, and their mask as booleans."""
    arrays = {name: np.asarray(image) for name, image in images.items()}
    first, shape = next((name, array.shape) for name, array in arrays.items())
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
            raise InputError(
                f"{name} is {array.dtype}, not float32 or float64",
                "Scale it so that 0..1 is the display window",
            )
        if ndim is not None and array.ndim != ndim:
            raise InputError(f"{name} has {array.ndim} dimensions, not {ndim}")
        if array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}, but {first} has {shape}")
    if mask is None:
        return arrays, None
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui":
        raise InputError(f"mask is {mask.dtype}, neither bool nor integer")
    if mask.shape != shape:
        raise InputError(f"mask has shape {mask.shape}, but {first} has {shape}")
    return arrays, mask != 0


def _finite(what: str, image: Image) -> FloatArray:
    """Return an image as contiguous float64, or refuse it for its values."""
    # Within float32's range no square, and no product of squares, overflows in float64.
    limit = float(np.finfo(np.float32).max)
    pixels = np.ascontiguousarray(image, dtype=np.float64)
    # NaN makes both comparisons false.
    if not (pixels.min(initial=0.0) >= -limit and pixels.max(initial=0.0) <= limit):
        raise InputError(
            f"{what} holds values that are not finite, or beyond the range of float32",
            "Replace them before measuring",
        )
    return pixels


def _pixels(images: Mapping[str, Image], mask: Mask | None) -> list[FloatArray]:
    """Return, for each image, the pixels that count."""
    arrays, inside = _consistent(images, mask)
    pixels = [_finite(name, array) for name, array in arrays.items()]
    return pixels if inside is None else [array[inside] for array in pixels]


# ---------------------------------------------------------------- one slice


def _figures(
    mri: FloatArray, pet: FloatArray, fused: FloatArray, inside: NDArray[np.bool_] | None
) -> tuple[list[list[float]], list[float]]:
    """Compute the pair and the image figures of one slice, or of its mask pixels."""
    ssim = _ssim([mri, pet], fused, inside)
    if inside is not None:
        mri, pet, fused = mri[inside], pet[inside], fused[inside]
    mri_levels, pet_levels, fused_levels = _levels(mri), _levels(pet), _levels(fused)
    mri_fused = _information(mri_levels, fused_levels)
    pet_fused = _information(pet_levels, fused_levels)
    mri_pet = _information(mri_levels, pet_levels)

    pair = [
        _pair_figures(mri, fused, ssim[0], mri_fused),
        _pair_figures(pet, fused, ssim[1], pet_fused),
    ]
    image = {"entropy_fused": mri_fused.second, "joint_entropy_sources": mri_pet.joint}
    return pair, [image[metric.name] for metric in IMAGE_METRICS]


def _pair_figures(
    source: FloatArray, fused: FloatArray, ssim: float, information: _Information
) -> list[float]:
    mse = _mse(source, fused)
    figures = {
        "mse": mse,
        "psnr": float(_psnr_from_mse(np.asarray(mse))),
        "rmse": math.sqrt(mse),
        "rmse_relative": _relative_rmse(source, fused),
        "ssim": ssim,
        "mi": information.mutual,
        "nmi": information.normalised,
        "entropy": information.first,
        "joint_entropy": information.joint,
    }
    return [figures[metric.name] for metric in PAIR_METRICS]


def _mse(source: FloatArray, fused: FloatArray) -> float:
    return float(np.square(fused - source).mean()) if fused.size else math.nan


def _relative_rmse(source: FloatArray, fused: FloatArray) -> float:
    norm = math.sqrt(np.square(source).sum())
    return math.sqrt(np.square(fused - source).sum()) / norm if norm else math.nan


def _ssim(
    sources: Sequence[FloatArray], fused: FloatArray, inside: NDArray[np.bool_] | None
) -> list[float]:
    """Compute the SSIM of a fused slice with each of its sources, over a non-empty mask."""
    if min(fused.shape) < 2 * SSIM_RADIUS + 1:
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
        ssim = (2.0 * product + SSIM_C1) * (2.0 * covariance + SSIM_C2)
        ssim /= (squares + SSIM_C1) * (variances + SSIM_C2)
        figures.append(float((ssim if inside is None else ssim[inside]).mean()))
    return figures


def _cut_to_mask(inside: NDArray[np.bool_], *images: FloatArray) -> list[NDArray[Any]]:
    """Cut a mask to its bounding box, and images to that and a window's reach around it."""
    box, reach = [], []
    for axis in (0, 1):
        hits = np.flatnonzero(inside.any(axis=1 - axis))
        box.append(slice(hits[0], hits[-1] + 1))
        reach.append(slice(hits[0], hits[-1] + 1 + 2 * SSIM_RADIUS))
    padded = (np.pad(image, SSIM_RADIUS, mode="symmetric") for image in images)
    return [inside[*box], *(image[*reach] for image in padded)]


def _gaussian_window() -> FloatArray:
    offsets = np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * np.square(offsets / SSIM_SIGMA))
    return weights / weights.sum()


_WINDOW: Final = _gaussian_window()


def _local_mean(image: FloatArray) -> FloatArray:
    """Return the Gaussian-weighted mean around each pixel that has the whole window in `image`."""
    for axis in (0, 1):
        windows = sliding_window_view(image, len(_WINDOW), axis=axis)
        image = np.einsum("yxw,w->yx", windows, _WINDOW)
    return image


def _levels(pixels: FloatArray) -> NDArray[np.intp]:
    """Round to the grey levels of an 8-bit picture, as a flat array."""
    scaled = np.clip(pixels.ravel(), 0.0, 1.0) * (LEVELS - 1) + 0.5
    # Through uint8, which truncates: float64 to int64 at once is several times slower.
    return scaled.astype(np.uint8).astype(np.intp)


class _Information(NamedTuple):
    """Entropies, in bits, of two images and of their pairs of grey levels."""

    first: float
    second: float
    joint: float

    @property
    def mutual(self) -> float:
        # Rounding may leave it a hair outside its bounds.
        return min(max(self.first + self.second - self.joint, 0.0), self.first, self.second)

    @property
    def normalised(self) -> float:
        total = self.first + self.second
        return 2.0 * self.mutual / total if total else math.nan


def _information(a: NDArray[np.intp], b: NDArray[np.intp]) -> _Information:
    """Derive all entropies of two images of grey levels from their joint histogram."""
    joint = np.bincount(a * LEVELS + b, minlength=LEVELS**2).reshape(LEVELS, LEVELS)
    return _Information(_entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0)), _entropy(joint))


def _entropy(counts: NDArray[np.intp]) -> float:
    counts = counts[counts > 0]
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum() / total) if total else math.nan
