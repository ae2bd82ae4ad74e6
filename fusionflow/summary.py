"""From slices to scans, subjects and the cohort, by reductions that are declared.

Slices are pooled as each metric declares (`fusionflow.metrics.Metric`): the PSNR of a scan is
that of its mean squared error, not a mean of decibels, and its relative RMSE is that of all
slices together. Sessions of one person are not
independent, so they are pooled to one figure first, and cohort figures are over subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from fusionflow.errors import ConfigurationError, NoScansError
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, Metric, SliceMetrics, pool_figures
from fusionflow.records import Published
from fusionflow.schema import SOURCES

FloatArray: TypeAlias = npt.NDArray[np.float64]

#: Seconds of DWT, network, rule and inverse DWT for a slice: a figure of the whole scan.
FUSION_TIME = Metric(
    name="fusion_time",
    long_name="fusion time per slice",
    units="s",
    value_range=(0.0, float("inf")),
    better="lower",
)

#: Figures of a scan that do not belong to one source.
SCAN_METRICS = (*IMAGE_METRICS, FUSION_TIME)


@dataclass(frozen=True)
class Statistic:
    """A figure over subjects.

    Attributes
    ----------
    name : str
        What it is called.
    doc : str
        What it is.
    reduce : callable
        Maps (subject,) float64 without NaN, at least one of them, to a number.
    """

    name: str
    doc: str
    reduce: Callable[[FloatArray], float]


def _sd(values: FloatArray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _quantile(values: FloatArray, share: float) -> float:
    """Interpolate linearly, but not between a number and infinity: that would be NaN."""
    low, high = (np.quantile(values, share, method=side) for side in ("lower", "higher"))
    if low == high or np.isinf(high):
        return float(high)
    return float(np.quantile(np.clip(values, low, high), share))


#: What is said of the cohort, in this order.
STATISTICS = (
    Statistic("n", "subjects", lambda values: float(len(values))),
    Statistic("mean", "arithmetic mean", lambda values: float(np.mean(values))),
    Statistic("sd", "standard deviation (n - 1)", _sd),
    Statistic("median", "median", lambda values: float(np.median(values))),
    Statistic("q25", "lower quartile", lambda values: _quantile(values, 0.25)),
    Statistic("q75", "upper quartile", lambda values: _quantile(values, 0.75)),
)


def scan_figures(slices: SliceMetrics, seconds: float) -> dict[str, Any]:
    """Pool the slices of a scan.

    Parameters
    ----------
    slices : SliceMetrics
        Of all slices.
    seconds : float
        Fusion time of the scan.

    Returns
    -------
    dict
        ``{metric: {source: figure}}``, and ``{metric: figure}`` for `SCAN_METRICS`. NaN where
        no slice has one.
    """
    pair = pool_figures(PAIR_METRICS, slices.pair)
    image = pool_figures(IMAGE_METRICS, slices.image)
    figures: dict[str, Any] = {
        metric.name: dict(zip(SOURCES, pair[:, index].tolist(), strict=True))
        for index, metric in enumerate(PAIR_METRICS)
    }
    for metric, figure in zip(IMAGE_METRICS, image.tolist(), strict=True):
        figures[metric.name] = figure
    figures[FUSION_TIME.name] = seconds / max(1, len(slices.image))
    return figures


def metrics_dataset(records: Sequence[Published]) -> xr.Dataset:
    """Return the scan-level figures of a cohort.

    Parameters
    ----------
    records : sequence of Published
        The scans.

    Returns
    -------
    Dataset
        A variable for each metric, (scan, source) or (scan), float64; coordinates ``scan``,
        ``subject``, ``session`` ('' where there is none), ``method``, ``source``.
    """
    pair = np.empty((len(PAIR_METRICS), len(records), len(SOURCES)))
    whole = np.empty((len(SCAN_METRICS), len(records)))
    names = np.empty((4, len(records)), dtype=object)
    for place, record in enumerate(records):  # once: each may be read from text on the way
        for row, metric in enumerate(PAIR_METRICS):
            pair[row, place] = [_figure(record.metrics, metric.name, item) for item in SOURCES]
        for row, metric in enumerate(SCAN_METRICS):
            whole[row, place] = _figure(record.metrics, metric.name, None)
        method = str(record.method.get("name", ""))
        names[:, place] = record.label, record.subject, record.session or "", method
    variables: dict[str, Any] = {
        metric.name: (("scan", "source"), values, _attributes(metric))
        for metric, values in zip(PAIR_METRICS, pair, strict=True)
    }
    variables |= {
        metric.name: ("scan", values, _attributes(metric))
        for metric, values in zip(SCAN_METRICS, whole, strict=True)
    }
    columns = zip(("scan", "subject", "session", "method"), names, strict=True)
    coords: dict[str, Any] = {name: ("scan", values) for name, values in columns}
    coords["source"] = ("source", np.array(SOURCES, dtype=object))
    return xr.Dataset(variables, coords=coords)


def _figure(metrics: Mapping[str, Any], name: str, source: str | None) -> float:
    value = metrics.get(name)
    if source is not None:
        value = value.get(source) if isinstance(value, Mapping) else None
    return float("nan") if value is None else float(value)


def _attributes(metric: Metric) -> dict[str, str]:
    return {"units": metric.units, "long_name": metric.long_name, "better": metric.better}


def summarise_records(records: Sequence[Published]) -> xr.DataTree:
    """Reduce scans to subjects and the cohort.

    Parameters
    ----------
    records : sequence of Published
        Scans, all made with one method.

    Returns
    -------
    DataTree
        The root holds the cohort, each metric (statistic, source) or (statistic), over
        subjects; ``/subjects`` and ``/scans`` hold each metric (subject|scan, source) or
        (subject|scan).

    Raises
    ------
    NoScansError
        If there are none.
    ConfigurationError
        If they were made with different methods: such figures do not belong together.
    """
    if not records:
        raise NoScansError("There are no fused scans to summarise", "Run the participant level")
    requests = {record.request: str(record.method.get("name")) for record in records}
    if len(requests) > 1:
        raise ConfigurationError(
            f"The scans were made in {len(requests)} different ways "
            f"({', '.join(sorted(requests.values()))})",
            "Run again with one method and the same options for all, then summarise",
        )
    scans = metrics_dataset(records)
    subjects = _by_subject(scans)
    cohort = _over_subjects(subjects)
    cohort.attrs = {
        "method": next(iter(requests.values())),
        "scans": len(records),
        "subjects": subjects.sizes["subject"],
    }
    return xr.DataTree.from_dict({"/": cohort, "/subjects": subjects, "/scans": scans})


def _by_subject(scans: xr.Dataset) -> xr.Dataset:
    """Pool the sessions of each subject as slices are pooled."""
    names, groups = np.unique(scans["subject"].values.astype(str), return_inverse=True)
    variables: dict[str, Any] = {}
    for metrics in (PAIR_METRICS, SCAN_METRICS):
        of_scans = np.stack([scans[metric.name].values for metric in metrics], axis=-1)
        pooled = np.stack(
            [pool_figures(metrics, of_scans[groups == index]) for index in range(len(names))]
        )
        for index, metric in enumerate(metrics):
            array = scans[metric.name]
            dims = ("subject", *array.dims[1:])
            variables[metric.name] = (dims, pooled[..., index], array.attrs)
    counts = np.bincount(groups, minlength=len(names)).astype(np.int64)
    return xr.Dataset(
        {**variables, "scans": ("subject", counts, {"long_name": "scans of the subject"})},
        coords={"subject": ("subject", names.astype(object)), "source": scans["source"]},
    )


def _over_subjects(subjects: xr.Dataset) -> xr.Dataset:
    """Apply every statistic to every metric, over the subjects that have one."""
    variables = {}
    for metric in (*PAIR_METRICS, *SCAN_METRICS):
        array = subjects[metric.name]
        columns = array.values.reshape(array.shape[0], -1).T
        values = np.array([[_statistic(item, column) for column in columns] for item in STATISTICS])
        variables[metric.name] = (
            ("statistic", *array.dims[1:]),
            values.reshape(len(STATISTICS), *array.shape[1:]),
            array.attrs,
        )
    names = np.array([statistic.name for statistic in STATISTICS], dtype=object)
    return xr.Dataset(
        variables, coords={"statistic": ("statistic", names), "source": subjects["source"]}
    )


def _statistic(statistic: Statistic, values: FloatArray) -> float:
    present = values[~np.isnan(values)]
    if not len(present):
        return 0.0 if statistic.name == "n" else float("nan")
    with np.errstate(invalid="ignore"):  # infinite PSNR of an unchanged source: sd is NaN
        return statistic.reduce(present)


def cohort_table(summary: xr.DataTree) -> pd.DataFrame:
    """Return the cohort figures: a row for each metric and source, a column a statistic."""
    cohort, names = summary.to_dataset(), [statistic.name for statistic in STATISTICS]
    rows = []
    for metric in (*PAIR_METRICS, *SCAN_METRICS):
        array = cohort[metric.name]
        sources = SOURCES if "source" in array.dims else ("",)
        columns = array.values.reshape(len(STATISTICS), len(sources)).T
        for source, values in zip(sources, columns.tolist(), strict=True):
            figures = dict(zip(names, values, strict=True))
            figures["n"] = int(figures["n"])
            rows.append({"metric": metric.name, "source": source, "units": metric.units, **figures})
    return pd.DataFrame(rows)


def scan_table(summary: xr.DataTree) -> pd.DataFrame:
    """Return the scan figures: a row a scan, columns such as ``ssim_mri``."""
    scans = summary["scans"].to_dataset()
    columns: dict[str, Any] = {
        "scan": scans["scan"].values,
        "participant_id": [f"sub-{subject}" for subject in scans["subject"].values],
        "session_id": [f"ses-{name}" if name else "n/a" for name in scans["session"].values],
        "method": scans["method"].values,
    }
    for metric in PAIR_METRICS:
        for source, values in zip(SOURCES, scans[metric.name].values.T, strict=True):
            columns[f"{metric.name}_{source}"] = values
    for metric in SCAN_METRICS:
        columns[metric.name] = scans[metric.name].values
    return pd.DataFrame(columns)
