"""Entropies and mutual information of the grey levels of images, in bits.

An image is seen as an 8-bit picture would hold it: clipped to 0..1 and rounded, half up, to 256
levels. All figures of two images follow from the histogram of their pairs of levels.

References
----------
entropy, joint_entropy
    C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27,
    1948, section 6.
mutual_information
    G. Qu, D. Zhang, P. Yan, "Information measure for performance of image fusion", Electronics
    Letters 38(7), 2002, of which ours is the term of one source.
normalised_mutual_information
    M. Hossny, S. Nahavandi, D. Creighton, "Comments on 'Information measure for performance of
    image fusion'", Electronics Letters 44(18), 2008, of which ours is the term of one source.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fusionflow.pixels import FloatArray, Image, Mask, counted_pixels

__all__ = [
    "Information",
    "entropy",
    "grey_levels",
    "joint_entropy",
    "mutual_information",
    "normalised_mutual_information",
]

LEVELS: Final = 256


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

    Examples
    --------
    >>> entropy(np.array([0.0, 0.0, 0.5, 1.0]))
    1.5
    """
    (pixels,) = counted_pixels({"image": image}, mask)
    return _entropy(np.bincount(grey_levels(pixels)))


def joint_entropy(a: Image, b: Image, mask: Mask | None = None) -> float:
    r"""Entropy of the pairs of grey levels, :math:`-\sum_{ij} p_{ij} \log_2 p_{ij}`.

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 to 16 bits, and not less than the entropy of either image; NaN where no pixel counts.
    """
    return Information.of(*map(grey_levels, counted_pixels({"a": a, "b": b}, mask))).joint


def mutual_information(a: Image, b: Image, mask: Mask | None = None) -> float:
    """Mutual information of the grey levels, H(a) + H(b) - H(a, b).

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 to 8 bits, and not more than the entropy of either image; NaN where no pixel counts.
    """
    return Information.of(*map(grey_levels, counted_pixels({"a": a, "b": b}, mask))).mutual


def normalised_mutual_information(a: Image, b: Image, mask: Mask | None = None) -> float:
    """Mutual information relative to the mean entropy, 2 MI / (H(a) + H(b)).

    Two images of one shape, otherwise as :func:`entropy`.

    Returns
    -------
    float
        0 (independent) to 1 (each tells the other), no units. NaN where no pixel counts and
        where both images are constant: then there is nothing to tell.
    """
    return Information.of(*map(grey_levels, counted_pixels({"a": a, "b": b}, mask))).normalised


def grey_levels(pixels: FloatArray) -> NDArray[np.intp]:
    """Round to the grey levels of an 8-bit picture, as a flat array."""
    scaled = np.clip(pixels.ravel(), 0.0, 1.0) * (LEVELS - 1) + 0.5
    # Through uint8, which truncates: float64 to int64 at once is several times slower.
    return scaled.astype(np.uint8).astype(np.intp)


class Information(NamedTuple):
    """Entropies, in bits, of two images and of their pairs of grey levels."""

    first: float
    second: float
    joint: float

    @classmethod
    def of(cls, a: NDArray[np.intp], b: NDArray[np.intp]) -> Information:
        """Derive all three from the joint histogram of two images of grey levels."""
        joint = np.bincount(a * LEVELS + b, minlength=LEVELS**2).reshape(LEVELS, LEVELS)
        return cls(_entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0)), _entropy(joint))

    @property
    def mutual(self) -> float:
        """What each image tells of the other, in bits."""
        # Rounding may leave it a hair outside its bounds.
        return min(max(self.first + self.second - self.joint, 0.0), self.first, self.second)

    @property
    def normalised(self) -> float:
        """Mutual information relative to the mean of the two entropies, 0 to 1."""
        total = self.first + self.second
        return 2.0 * self.mutual / total if total else math.nan


def _entropy(counts: NDArray[np.intp]) -> float:
    counts = counts[counts > 0]
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum() / total) if total else math.nan
