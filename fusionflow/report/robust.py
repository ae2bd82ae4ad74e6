"""How far a scan is from its like, by figures that a few odd scans do not move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusionflow.pixels import FloatArray

#: Makes the median absolute deviation of normally distributed figures their standard deviation.
MAD_TO_SD = 1.4826

#: Beyond it a figure is worth a look (Iglewicz & Hoaglin 1993, How to detect and handle outliers).
THRESHOLD = 3.5


@dataclass(frozen=True)
class Spread:
    """Middle and width of the finite figures of some scans.

    Attributes
    ----------
    n : int
        How many there are.
    centre : float
        Their median; NaN if there are none.
    scale : float
        1.4826 times the median absolute deviation; 0 if more than half of them are the same.
    differing : int
        How many are not the median.
    """

    n: int
    centre: float
    scale: float
    differing: int


def spread(values: FloatArray) -> Spread:
    """Return middle and width of figures.

    Parameters
    ----------
    values : ndarray, shape (scan,), float64
        NaN and infinities do not count.

    Examples
    --------
    >>> spread(np.array([1.0, 2.0, 3.0, np.nan, 100.0]))
    Spread(n=4, centre=2.5, scale=1.4826, differing=4)
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Spread(0, float("nan"), float("nan"), 0)
    centre = float(np.median(finite))
    away = np.abs(finite - centre)
    scale = MAD_TO_SD * float(np.median(away))
    return Spread(len(finite), centre, scale, int(np.count_nonzero(away)))


def robust_z(values: FloatArray) -> NDArray[np.float64]:
    """Return how many robust standard deviations each figure is from the median.

    Parameters
    ----------
    values : ndarray, shape (scan,), float64
        NaN where a scan has none.

    Returns
    -------
    ndarray, shape (scan,), float64
        NaN where there is no finite figure, and everywhere if more than half of the figures are
        the same: their deviation is 0, and nothing can be measured by it.

    Examples
    --------
    >>> robust_z(np.array([1.0, 2.0, 3.0])).round(3).tolist()
    [-0.674, 0.0, 0.674]
    """
    about = spread(values)
    away = np.where(np.isfinite(values), values, np.nan) - about.centre
    return away / about.scale if about.scale > 0 else np.full(len(values), np.nan)
