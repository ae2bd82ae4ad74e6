"""Feature mutual information: how much the neighbourhoods of a fused image tell of the sources'.

References
----------
feature_mutual_information
    M. Haghighat, A. Aghagolzadeh, H. Seyedarabi, "A non-reference image fusion metric based on
    mutual information of image features", Computers and Electrical Engineering 37(5), 2011;
    computed in windows as in M. Haghighat, M. A. Razian, "Fast-FMI: non-reference image fusion
    metric", AICT 2014.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fusionflow.errors import InputError
from fusionflow.gradients import grey_grid
from fusionflow.pixels import FloatArray, Image, consistent, finite

__all__ = ["Feature", "feature_mutual_information"]

Feature: TypeAlias = Literal["pixel", "gradient", "gradient-x"]

WIDTH: Final = 3
PLACES: Final = WIDTH * WIDTH
TINY: Final = float(np.finfo(np.float64).tiny)
CHUNK: Final = 1024  # windows at a time: their joint distributions stay in the processor's cache


def feature_mutual_information(
    mri: Image, pet: Image, fused: Image, feature: Feature = "pixel"
) -> float:
    r"""Feature mutual information in windows of 3 x 3 pixels, the mean of both sources.

    In every window, the values of a feature, shifted and scaled to 0..1 (all 1 where they are
    equal) and divided by their sum, are seen as the distribution :math:`p` of a random variable
    over the nine places, counted down the columns. Of the joint distribution of a source's and the
    fused image's only a correlation is known, for which :math:`c`, the Pearson correlation of the
    nine pairs :math:`(p_s, p_f)`, is taken. The joint distribution is then

    .. math:: p_{ij} = \phi\, u_{ij} + (1 - \phi)\, p_{s,i}\, p_{f,j},
              \qquad \phi = c\, \sigma_s \sigma_f / \mathrm{cov}(u)

    where :math:`u` is the one of these marginals with the greatest correlation (if :math:`c \geq
    0`) or the least (if :math:`c < 0`), Frechet's bounds, whose distribution functions are
    :math:`\min(P_s, P_f)` and :math:`\max(P_s + P_f - 1, 0)`; standard deviations and covariance
    are those of the places, as numbers 1 to 9. The figure of the window is
    :math:`2 (H_s + H_f - H_{sf}) / (H_s + H_f)`, 1 where the windows are equal and 0 where the
    feature is constant in one of them; of the slice, the mean over all windows and both sources.

    As :math:`c` is no correlation of places, :math:`\phi` may exceed 1. It is left so, as is done
    by the authors' code with which published figures were computed: terms
    :math:`-p \log_2 |p|` are summed whatever the sign of :math:`p`.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (y, x), float32 or float64
        The two sources and the fused slice.
    feature : {"pixel", "gradient", "gradient-x"}
        The values themselves (what tables call FMI or FMI pixel), the magnitude of the gradient, or
        its component along x alone, which is what the authors' code computes for "gradient".
        Derivatives are central differences, and one-sided at the border. Pixels are put on a
        :func:`~fusionflow.gradients.grey_grid` first: rounding must not make a feature of nothing.

    Returns
    -------
    float
        0 to 1, no units, where :math:`\phi` does not exceed 1; higher is better. Symmetric in the
        sources; not changed by transposition or rotation to more than some thousandths, but not
        invariant. NaN for a slice of fewer than 3 pixels along y or x.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, values that are not finite, or an unknown feature.

    Examples
    --------
    >>> image = np.add.outer(np.arange(8.0), np.arange(8.0) ** 2) / 100
    >>> feature_mutual_information(image, image, image)
    1.0
    """
    if feature not in get_args(Feature):
        raise InputError(f"feature {feature!r} is not known", f"Use one of {get_args(Feature)}")
    images, _ = consistent({"mri": mri, "pet": pet, "fused": fused}, None, ndim=2)
    if min(images["fused"].shape) < WIDTH:
        return math.nan
    first, second, windows = (
        _windows(_feature(grey_grid(finite(name, image)), feature))
        for name, image in images.items()
    )
    return (_mean_information(first, windows) + _mean_information(second, windows)) / 2.0


def _feature(image: FloatArray, feature: Feature) -> FloatArray:
    if feature == "pixel":
        return image
    along_y, along_x = np.gradient(image)
    return np.asarray(np.hypot(along_x, along_y) if feature == "gradient" else along_x)


def _windows(feature: FloatArray) -> FloatArray:
    """Return every window as a column of its nine values, those of a column of it together."""
    windows = sliding_window_view(feature, (WIDTH, WIDTH)).transpose(3, 2, 0, 1)
    return np.ascontiguousarray(windows).reshape(PLACES, -1)


def _mean_information(source: FloatArray, fused: FloatArray) -> float:
    same = (source == fused).all(axis=0)
    flat = _is_flat(source) | _is_flat(fused)
    (rest,) = np.nonzero(~(same | flat))
    total = float(same.sum())
    for start in range(0, len(rest), CHUNK):
        chosen = rest[start : start + CHUNK]
        total += float(_information(source[:, chosen], fused[:, chosen]).sum())
    return total / len(same)


def _is_flat(windows: FloatArray) -> NDArray[np.bool_]:
    return (windows == windows[0]).all(axis=0)


def _information(source: FloatArray, fused: FloatArray) -> FloatArray:
    """Return the normalised mutual information of pairs of windows, none of them flat."""
    p_s, p_f = _distribution(source), _distribution(fused)
    entropies = _entropy(p_s) + _entropy(p_f)

    d_s, d_f = p_s - p_s.mean(axis=0), p_f - p_f.mean(axis=0)
    correlation = (d_s * d_f).sum(axis=0)
    correlation /= np.sqrt(np.square(d_s).sum(axis=0) * np.square(d_f).sum(axis=0))

    # The least correlated joint distribution is the most correlated of one, turned around.
    p_s = np.where(correlation < 0, p_s[::-1], p_s)
    bound, covariance = _most_correlated(p_s, p_f)
    spread = np.sqrt(_variance(p_s) * _variance(p_f))
    # One place has it all, in one of them: then every joint distribution is the independent one.
    phi = np.zeros_like(covariance)
    np.divide(np.abs(correlation) * spread, covariance, out=phi, where=covariance > 1e-12)

    joint = bound
    joint *= phi
    joint += p_s[:, None] * ((1.0 - phi) * p_f)
    mutual = entropies - _entropy(joint.reshape(PLACES * PLACES, -1))
    return np.divide(2.0 * mutual, entropies, out=np.zeros_like(mutual), where=entropies > 0)


def _distribution(windows: FloatArray) -> FloatArray:
    least = windows.min(axis=0)
    # Scaled before the sum, so that the widest of ranges does not overflow.
    scaled = (windows - least) / (windows.max(axis=0) - least)
    return scaled / scaled.sum(axis=0)


def _variance(p: FloatArray) -> FloatArray:
    places = np.arange(PLACES, dtype=np.float64)
    return np.maximum(np.square(places) @ p - np.square(places @ p), 0.0)


def _most_correlated(p: FloatArray, q: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the joint distribution whose distribution function is the lesser of both.

    And the covariance of the places, which is the excess of that distribution function over the
    independent one, summed (Hoeffding's).
    """
    up_to_p, up_to_q = (np.minimum(np.cumsum(m, axis=0), 1.0) for m in (p, q))
    up_to_p[-1] = up_to_q[-1] = 1.0
    before_p, before_q = (np.vstack([np.zeros_like(m[:1]), m[:-1]]) for m in (up_to_p, up_to_q))
    joint = np.minimum(up_to_p[:, None], up_to_q)
    covariance = joint.sum(axis=(0, 1)) - up_to_p.sum(axis=0) * up_to_q.sum(axis=0)
    joint -= np.maximum(before_p[:, None], before_q)
    return np.maximum(joint, 0.0, out=joint), covariance


def _entropy(p: FloatArray) -> FloatArray:
    """Return the sum over the first axis of -p log |p|, in nats."""
    logarithms = np.abs(p)
    np.maximum(logarithms, TINY, out=logarithms)  # 0 log 0 is 0
    np.log(logarithms, out=logarithms)
    return np.asarray(-np.einsum("pw,pw->w", p, logarithms))
