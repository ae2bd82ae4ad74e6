"""Correlations of the fused image with its sources, and of what it has beyond them.

References
----------
correlation
    J. Ma, Y. Ma, C. Li, "Infrared and visible image fusion methods and applications: a survey",
    Information Fusion 45, 2019, section 4.
sum_of_correlations
    V. Aslantas, E. Bendes, "A new image quality metric for image fusion: the sum of the
    correlations of differences", AEU International Journal of Electronics and Communications
    69(12), 2015.
"""

from __future__ import annotations

import math

import numpy as np

from fusionflow.pixels import FloatArray, Image, consistent, finite

__all__ = ["correlation", "sum_of_correlations"]


def correlation(a: Image, b: Image) -> float:
    r"""Pearson correlation, :math:`\mathrm{cov}(a, b) / (\sigma_a \sigma_b)`.

    Parameters
    ----------
    a, b : ndarray, shape (y, x), float32 or float64
        Two slices, such as a source and the fused one.

    Returns
    -------
    float
        -1 to 1, no units; not changed by an increasing linear map of either image. NaN where an
        image is constant to 12 digits.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> ramp = np.linspace(0, 1, 12).reshape(3, 4)
    >>> round(correlation(ramp, 0.5 - ramp / 4), 12)
    -1.0
    """
    first, second = _images(a=a, b=b)
    return _correlation(first, second, _size(first), _size(second))


def sum_of_correlations(mri: Image, pet: Image, fused: Image) -> float:
    """Sum of the correlations of differences (SCD), r(fused - pet, mri) + r(fused - mri, pet).

    What the fused image has beyond one source is compared with the other source, by
    :func:`correlation`.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (y, x), float32 or float64
        The two sources and the fused slice.

    Returns
    -------
    float
        -2 to 2, no units; higher is better, and the sum of the sources has 2. Symmetric in the
        sources. NaN where a source is constant, and where the fused slice differs from a source by
        a constant alone (to 12 digits), as a source handed back does.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> mri, pet = np.random.default_rng(0).random((2, 16, 16))
    >>> round(sum_of_correlations(mri, pet, mri + pet), 12)
    2.0
    """
    m, p, f = _images(mri=mri, pet=pet, fused=fused)
    # A difference is known to no more digits than what it is the difference of.
    size_m, size_p, size_f = (_size(image) for image in (m, p, f))
    return _correlation(f - p, m, max(size_f, size_p), size_m) + _correlation(
        f - m, p, max(size_f, size_m), size_p
    )


def _images(**images: Image) -> list[FloatArray]:
    arrays, _ = consistent(images, None, ndim=2)
    return [finite(name, array) for name, array in arrays.items()]


def _size(image: FloatArray) -> float:
    return float(np.abs(image).max(initial=0.0))


def _correlation(a: FloatArray, b: FloatArray, size_a: float, size_b: float) -> float:
    """Correlate images that are known to 12 digits of their sizes."""
    for image, size in ((a, size_a), (b, size_b)):
        if not image.size or np.ptp(image) <= 1e-12 * size:
            return math.nan
    # Scaled, so that no square vanishes.
    a, b = (image / np.abs(image).max() for image in (a - a.mean(), b - b.mean()))
    r = float((a * b).sum()) / math.sqrt(float(np.square(a).sum() * np.square(b).sum()))
    return min(max(r, -1.0), 1.0)
