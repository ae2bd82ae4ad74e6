"""Figures of slices as lines of an SVG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, Metric
from fusionflow.schema import SOURCES

FloatArray = npt.NDArray[np.float64]

#: Size of the drawing, in units of its own.
WIDTH, HEIGHT = 600.0, 120.0
_MARGIN = 4.0

_BETTER = {"higher": "higher is better", "lower": "lower is better", "neither": ""}


@dataclass(frozen=True)
class Line:
    """A figure of every slice.

    Attributes
    ----------
    name : str
        ``mri``, ``pet`` (against that source) or ``fused``.
    path : str
        As the ``d`` of an SVG path; slices without a figure leave a gap.
    values : tuple of float
        By slice, NaN where there is none.
    """

    name: str
    path: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One metric over the slices.

    Attributes
    ----------
    metric : Metric
        Which.
    lines : tuple of Line
        One for each source, or one for the fused image.
    low, high : float
        What is at the bottom and at the top; NaN where no slice has a figure.
    """

    metric: Metric
    lines: tuple[Line, ...]
    low: float
    high: float

    @property
    def hint(self) -> str:
        """Which way is better, in words; empty where neither is."""
        return _BETTER[self.metric.better]


def curves(pair: Mapping[str, FloatArray], image: Mapping[str, FloatArray]) -> list[Curve]:
    """Return a curve for every metric.

    Parameters
    ----------
    pair : mapping of str to ndarray, (z, source)
        Metric -> figures against each source.
    image : mapping of str to ndarray, (z,)
        Metric -> figures of the fused image.
    """
    found = [
        _curve(metric, dict(zip(SOURCES, pair[metric.name].T, strict=True)))
        for metric in PAIR_METRICS
        if metric.name in pair
    ]
    return found + [
        _curve(metric, {"fused": image[metric.name]})
        for metric in IMAGE_METRICS
        if metric.name in image
    ]


def _curve(metric: Metric, values: Mapping[str, FloatArray]) -> Curve:
    drawn = np.concatenate(list(values.values()))
    drawn = drawn[np.isfinite(drawn)]
    low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (np.nan, np.nan)
    lines = [
        Line(name, _path(figures, low, high), tuple(map(float, figures)))
        for name, figures in values.items()
    ]
    return Curve(metric, tuple(lines), low, high)


def _path(values: FloatArray, low: float, high: float) -> str:
    """Return a line through the figures; a figure alone between gaps becomes a short dash."""
    across = np.linspace(0, WIDTH, len(values)) if len(values) > 1 else np.array([WIDTH / 2])
    span = high - low if high > low else 1.0
    inside = HEIGHT - 2 * _MARGIN
    pen, parts = False, []
    for x, value in zip(across, values, strict=True):
        if not np.isfinite(value):
            pen = False
            continue
        y = _MARGIN + inside * (1 - (value - low) / span)
        parts.append(f"L{x:.1f} {y:.1f}" if pen else f"M{x:.1f} {y:.1f}h.1")
        pen = True
    return "".join(parts)
