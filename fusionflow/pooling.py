"""What a figure is, and how the figures of many slices become one.

A :class:`Metric` declares its own reduction: a quasi-arithmetic mean, so that PSNR pools to the
PSNR of the mean MSE and not to a mean of decibels; or the quotient of two other metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusionflow.errors import InputError
from fusionflow.pixels import FloatArray

__all__ = ["Metric", "pool_figures", "pool_slices"]


def _identity(values: FloatArray) -> FloatArray:
    return values


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
    quotient : tuple of str, optional
        The names of two metrics, themselves no quotients. Slices then pool to the pooled first
        over the pooled second: a mean of ratios would follow the slices in which the denominator
        all but vanishes.
    """

    name: str
    long_name: str
    units: str
    value_range: tuple[float, float]
    better: Literal["higher", "lower", "neither"]
    forward: Callable[[FloatArray], FloatArray] = _identity
    inverse: Callable[[FloatArray], FloatArray] = _identity
    quotient: tuple[str, str] | None = None


def pool_slices(
    metric: Metric,
    values: NDArray[np.floating[Any]],
    axis: int | tuple[int, ...] | None = 0,
) -> FloatArray:
    """Pool the figures of many slices into one, as the metric declares.

    MSE pools to its mean, RMSE and RMS to the root of the mean of squares, PSNR to the PSNR of the
    mean MSE, everything else to its mean. All slices weigh the same.

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

    Raises
    ------
    InputError
        The metric is a quotient, which cannot be pooled without the two that it is made of.

    Examples
    --------
    >>> from fusionflow.metrics import PAIR_METRICS
    >>> rmse = next(metric for metric in PAIR_METRICS if metric.name == "rmse")
    >>> float(pool_slices(rmse, np.array([1.0, 7.0, np.nan])))
    5.0
    """
    if metric.quotient is not None:
        raise InputError(
            f"{metric.name} pools to the ratio of {' and '.join(metric.quotient)}, not by itself",
            "Pool the three together with pool_figures",
        )
    figures = np.asarray(values, dtype=np.float64)
    counts = ~np.isnan(figures)
    with np.errstate(all="ignore"):
        total = np.where(counts, metric.forward(figures), 0.0).sum(axis)
        return np.asarray(metric.inverse(np.asarray(total / counts.sum(axis))))


def pool_figures(
    metrics: Sequence[Metric], values: NDArray[np.floating[Any]], axis: int = 0
) -> FloatArray:
    r"""Pool the figures of many slices by several metrics, quotients among them.

    A quotient's own figures are not looked at: a slice without a source to relate to, whose
    relative RMSE is not defined, still adds its error to the pooled one. Over slices of one size,
    relative RMSE thus pools to :math:`\|f - s\|_2 / \|s\|_2` of all of them at once.

    Parameters
    ----------
    metrics : sequence of Metric
        What the figures are, such as ``fusionflow.metrics.PAIR_METRICS``.
    values : ndarray, shape (..., metric)
        Figures of slices, the last axis in the order of `metrics`. NaN does not count.
    axis : int
        The axis that holds slices.

    Returns
    -------
    ndarray
        `values` without `axis`. NaN where no slice counts, and for a quotient whose denominator
        pools to 0.

    Raises
    ------
    InputError
        The last axis does not hold `metrics`, or holds slices, or lacks a part of a quotient.

    Examples
    --------
    >>> from fusionflow.metrics import PAIR_METRICS
    >>> metrics = [metric for metric in PAIR_METRICS if metric.name.startswith("rm")]
    >>> [metric.name for metric in metrics]
    ['rmse', 'rmse_relative', 'rms']
    >>> pool_figures(metrics, np.array([[0.5, 1.0, 0.5], [0.5, 500.0, 0.001]])).round(3)
    array([0.5  , 1.414, 0.354])
    """
    figures = np.asarray(values, dtype=np.float64)
    names = [metric.name for metric in metrics]
    if figures.ndim < 2 or figures.shape[-1] != len(names) or axis in (-1, figures.ndim - 1):
        raise InputError(
            f"figures of shape {figures.shape} do not pool over axis {axis}, {len(names)} metrics",
            "Let the last axis run over the metrics, and another over the slices",
        )
    slices = np.moveaxis(figures, axis, 0)
    pooled = np.full(slices.shape[1:], np.nan)
    for index, metric in enumerate(metrics):
        if metric.quotient is None:
            pooled[..., index] = pool_slices(metric, slices[..., index])
    for index, metric in enumerate(metrics):
        if metric.quotient is None:
            continue
        if missing := set(metric.quotient) - set(names):
            raise InputError(f"{metric.name} cannot be pooled without {', '.join(missing)}")
        part, whole = (pooled[..., names.index(name)] for name in metric.quotient)
        with np.errstate(all="ignore"):
            np.divide(part, whole, out=pooled[..., index], where=whole != 0)
    return pooled
