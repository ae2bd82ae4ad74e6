"""How intensities are scaled for fusion: by percentiles of the scan, or by a fixed window."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusionflow.errors import ImageError

FloatArray = npt.NDArray[np.float32]

# Beyond these it is damage (a flipped bit of an exponent), and squares and sums overflow later.
LARGEST_STORED = 1e30
LARGEST_SCALED = 1e9


@dataclass(frozen=True)
class Scaling:
    """How an image was scaled: ``scaled = (original - offset) / scale``, not clipped.

    Attributes
    ----------
    offset, scale : float
        In the units of the image as stored, or SUV or SUVR; ``scale`` is positive.
    """

    offset: float
    scale: float


def percentile_scaling(
    values: FloatArray, where: npt.NDArray[np.bool_], offset: float, percentile: float, wrong: str
) -> Scaling:
    """Return the scaling that takes ``offset`` to 0 and a percentile to 1."""
    inside = values[where]
    scale = 0.0
    if inside.size:
        scale = float(np.percentile(inside, percentile, overwrite_input=True)) - offset
    if not scale > 0:
        raise ImageError(
            wrong, "Check that it is the right image and that the two are aligned in world space"
        )
    return Scaling(offset, scale)


def scale_in_place(values: FloatArray, scaling: Scaling) -> None:
    """Scale intensities where they are."""
    with np.errstate(all="ignore"):  # what overflows is refused by the caller
        values -= np.float32(scaling.offset)
        values /= np.float32(scaling.scale)


def check_values(
    path: str | os.PathLike[str], values: FloatArray, most: float, unit: str = ""
) -> None:
    """Refuse values that no image holds; NaN is refused as well."""
    largest = max(float(values.max()), -float(values.min()))
    if not largest <= most:
        raise ImageError(
            f"{path} holds a value of {' '.join((f'{largest:g}', unit)).strip()}, which is damage",
            "Fetch or convert it again",
        )
