"""Which source a fused band is from: its weight map, taken back from what is stored.

Rules give every coefficient a weight w of the MRI and 1 - w of the PET. From the bands M, P and F
of the MRI, the PET and the fused slice it follows that w = (F - P) / (M - P): the rule itself, its
network and its weights are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pywt

from fusionflow.config import Transform, Wavelet
from fusionflow.report.planes import Levels, levels
from fusionflow.subbands import FloatArray
from fusionflow.transform import decompose

#: Where MRI and PET differ by less, in display windows, a weight would be rounding of float32: an
#: eighth of a grey level of 256.
LEAST_DIFFERENCE = 1 / 2048

_PERCENTILE = 99.5
_PET, _EVEN, _MRI = (217, 95, 14), (242, 242, 242), (33, 102, 172)
_UNKNOWN = (88, 88, 88)
_STEPS = 100

#: The colour of weights 0, 1/2, 1, and of those that cannot be known.
COLOURS = {"pet": _PET, "even": _EVEN, "mri": _MRI, "unknown": _UNKNOWN}

_WORDS = {
    "a": "smooth part: brightness of whole regions",
    "h": "edges that run from left to right",
    "v": "edges that run from front to back",
    "d": "corners and slanting edges, and noise",
    "l": "detail of all directions",
    "pixels": "the pixels themselves",
}


@dataclass(frozen=True, eq=False)
class BandOfSlice:
    """One band of a slice.

    Attributes
    ----------
    name : str
        ``a``, ``h``, ``v``, ``d``, ``l`` of a pyramid, or ``pixels``.
    level : int
        1 is the finest; 0 of pixels.
    mri, pet, fused : ndarray, (y', x') float32
        Coefficients.
    weight : ndarray, (y', x') float32
        Of the MRI, NaN where it cannot be known.
    span : float
        By how much coefficients of a constant image of 1 are larger than it.
    """

    name: str
    level: int
    mri: FloatArray
    pet: FloatArray
    fused: FloatArray
    weight: FloatArray
    span: float

    @property
    def words(self) -> str:
        """What the band holds."""
        return _WORDS[self.name]

    @property
    def share(self) -> float:
        """Mean weight of the MRI, each counted by how much MRI and PET differ; NaN if unknown."""
        known = np.isfinite(self.weight)
        by = np.abs(self.mri - self.pet)[known]
        return float(np.average(self.weight[known], weights=by)) if by.size else float("nan")

    @property
    def known(self) -> float:
        """Part of the coefficients whose weight is known, 0 to 1."""
        return float(np.isfinite(self.weight).mean())

    @property
    def limit(self) -> float:
        """What is shown white: of detail bands also, negative, what is black."""
        if self.name in ("a", "pixels"):
            return self.span
        both = np.abs(np.stack([self.mri, self.pet, self.fused]))
        return max(float(np.percentile(both, _PERCENTILE)), LEAST_DIFFERENCE * self.span)

    def pictures(self) -> dict[str, Levels]:
        """Return the three bands by name, (y', x') uint8, front up, on one scale."""
        images: Mapping[str, FloatArray] = {"mri": self.mri, "pet": self.pet, "fused": self.fused}
        smooth = self.name in ("a", "pixels")
        return {
            name: levels(image / self.limit if smooth else image / self.limit / 2 + 0.5)[::-1]
            for name, image in images.items()
        }


def bands_of_slice(
    mri: FloatArray, pet: FloatArray, fused: FloatArray, transform: Transform
) -> list[BandOfSlice]:
    """Return the bands of a slice, with their weights.

    Parameters
    ----------
    mri, pet, fused : ndarray, (y, x) float32
        As they are stored: 0 to 1 is the display window.
    transform : Transform
        Of the method that fused them.

    Returns
    -------
    list of BandOfSlice
        Coarsest first. A wavelet's weights are those that the rule gave, to rounding; at the frame,
        where coefficients also hold what the transform made up beyond it, they are NaN. The levels
        of a Laplacian pyramid overlap, so there they say only what the fused image shows.

    Raises
    ------
    InputError
        If the slices are too small for the transform.
    """
    of = [decompose(image[None], transform) for image in (mri, pet, fused)]
    found = []
    for of_mri, of_pet, of_fused in zip(*(bands.bands() for bands in of), strict=True):
        name, level, coefficients = of_mri
        m, p, f = coefficients[0], of_pet[2][0], of_fused[2][0]
        span = of[0].gain ** level
        weight = weights(m, p, f, LEAST_DIFFERENCE * span)
        if isinstance(transform, Wavelet) and (ring := frame_width(transform, level)):
            inside = np.zeros(weight.shape, bool)
            inside[ring:-ring, ring:-ring] = True
            weight[~inside] = np.nan
        found.append(BandOfSlice(name if level else "pixels", level, m, p, f, weight, span))
    return found


def weights(mri: FloatArray, pet: FloatArray, fused: FloatArray, least: float) -> FloatArray:
    """Return the weight of the MRI, NaN where MRI and PET differ by less than `least`.

    Examples
    --------
    >>> mri, pet = np.float32([1, 2, 0.5]), np.float32([0, 4, 0.5])
    >>> weights(mri, pet, np.float32(0.25) * mri + np.float32(0.75) * pet, 0.01).tolist()
    [0.25, 0.25, nan]
    """
    apart = mri - pet
    differ = np.abs(apart) >= least
    weight = np.full(apart.shape, np.nan, np.float32)
    return np.divide(fused - pet, apart, out=weight, where=differ)


def frame_width(wavelet: Wavelet, level: int) -> int:
    """Return how many coefficients from the frame reach beyond it.

    A coefficient is made of as many samples as the filter is long, two for each step; those near
    the frame of one level spoil those of the next.
    """
    length = pywt.Wavelet(wavelet.name).dec_len
    width = 0
    for _ in range(level):
        width = (length + width + 1) // 2
    return width


def weight_levels(weight: FloatArray) -> Levels:
    """Return weights, (y', x'), as places in `PALETTE`, (y', x') uint8, front up.

    Weights beyond 0 to 1, which no rule of ours gives, become 0 and 1.
    """
    known = np.isfinite(weight)
    steps = np.clip(np.where(known, weight, 0), 0, 1) * _STEPS + np.float32(0.5)
    return np.where(known, steps, _STEPS + 1).astype(np.uint8)[::-1]


def _palette() -> Levels:
    """Return a colour for each step from the PET's over even to the MRI's, then the unknown."""
    share = np.linspace(0, 1, _STEPS + 1)
    inks = np.array([_PET, _EVEN, _MRI]).T
    ramp = [np.interp(share, (0, 0.5, 1), ink) for ink in inks]
    return np.concatenate([np.rint(np.transpose(ramp)), [_UNKNOWN]]).astype(np.uint8)


#: The colours of weights, (level, 3) uint8: a hundredth each, and the last of those not known.
PALETTE = _palette()
