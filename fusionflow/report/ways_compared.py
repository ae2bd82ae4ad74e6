"""Ways of fusing compared: person by person where people are the same, else side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusionflow.cohort import Cohort
from fusionflow.index import Records
from fusionflow.pixels import FloatArray
from fusionflow.report.columns import figure_columns
from fusionflow.summary import cohort_table, summarise_records

#: With fewer differences no signed-rank test can reach 0.05.
_LEAST_DIFFERENCES = 6


@dataclass(frozen=True)
class Difference:
    """One figure of two ways, over the people who have both.

    Attributes
    ----------
    name, source, better : str
        Which figure, against which source, and which way is better.
    n : int
        People with a finite difference.
    median, q25, q75 : float
        Of the differences, first way less second; NaN without any.
    higher, lower : int
        In how many people the first way has the larger, and the smaller figure.
    p : float
        Two-sided, of Wilcoxon's signed-rank test; NaN with fewer than 6 differences that are
        not 0.
    """

    name: str
    source: str
    better: str
    n: int
    median: float
    q25: float
    q75: float
    higher: int
    lower: int
    p: float

    @property
    def p_text(self) -> str:
        """The p as people write it; a dash where there is none."""
        if np.isnan(self.p):
            return "–"
        return "< 0.001" if self.p < 0.001 else f"{self.p:.3f}"


@dataclass(frozen=True)
class Comparison:
    """Two ways of fusing.

    Attributes
    ----------
    first, second : str
        What they are called.
    scans, subjects : int
        How many are in both.
    differences : tuple of Difference
        One for each figure.
    """

    first: str
    second: str
    scans: int
    subjects: int
    differences: tuple[Difference, ...]


def difference(first: FloatArray, second: FloatArray) -> tuple[int, float, float, float, int, int]:
    """Return n, median and quartiles of paired differences, and how many are above and below 0.

    Parameters
    ----------
    first, second : ndarray, shape (subject,), float64
        Figures of the same people; where one is not finite the pair does not count.

    Examples
    --------
    >>> difference(np.array([3.0, 5.0, np.nan]), np.array([1.0, 1.0, 1.0]))
    (2, 3.0, 2.5, 3.5, 2, 0)
    """
    both = np.isfinite(first) & np.isfinite(second)
    away = first[both] - second[both]
    if not len(away):
        return 0, float("nan"), float("nan"), float("nan"), 0, 0
    median, q25, q75 = (float(value) for value in np.quantile(away, (0.5, 0.25, 0.75)))
    return len(away), median, q25, q75, int(np.sum(away > 0)), int(np.sum(away < 0))


def signed_rank_p(first: FloatArray, second: FloatArray) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test, NaN where it could not be small."""
    both = np.isfinite(first) & np.isfinite(second)
    away = first[both] - second[both]
    away = away[away != 0]
    if len(away) < _LEAST_DIFFERENCES:
        return float("nan")
    from scipy import stats  # takes as long to import as all the rest

    return float(stats.wilcoxon(away).pvalue)


def comparisons(own: Records, name: str, others: list[Cohort]) -> Iterator[Comparison]:
    """Yield every way of a cohort against every way of the others, by people in both.

    Sessions of one person are pooled first, as in the summary.

    Parameters
    ----------
    own : Records
        Scans of the cohort.
    name : str
        What it is called.
    others : list of Cohort
        Other outputs of the same people.
    """
    mine = _ways(own, name) if others else {}
    for other in others:
        for second, theirs in _ways(other.records, _folder_name(other.paths.root)).items():
            for first, records in mine.items():
                common = sorted(set(records.labels) & set(theirs.labels))
                if common:
                    yield _compared(first, second, _only(records, common), _only(theirs, common))


@dataclass(frozen=True)
class SideBySide:
    """The ways in which the scans of one cohort were made.

    Attributes
    ----------
    ways : dict of str to int
        What each is called -> scans made so.
    rows : tuple of tuple
        Name of a figure, its source, and for each way n, median and quartiles over people.
    """

    ways: dict[str, int]
    rows: tuple[tuple[str, str, tuple[tuple[int, float, float, float], ...]], ...]


def side_by_side(records: Records) -> SideBySide | None:
    """Return the figures of each way in which scans were made; None if there is only one.

    Parameters
    ----------
    records : Records
        Scans of one cohort. Each was made in one way, so the ways are about different scans.
    """
    ways = _ways(records)
    if len(ways) < 2:
        return None
    tables = [cohort_table(summarise_records(item)) for item in ways.values()]
    rows = []
    for place, column in enumerate(figure_columns()):
        rows_of_ways = [table.loc[place].to_dict() for table in tables]
        of_ways = tuple(
            (int(row["n"]), float(row["median"]), float(row["q25"]), float(row["q75"]))
            for row in rows_of_ways
        )
        rows.append((column["name"], column["source"], of_ways))
    return SideBySide({name: len(item) for name, item in ways.items()}, tuple(rows))


def _folder_name(root: Path) -> str:
    """Return the last two folders of a path: the last alone is often ``fused``."""
    return "/".join(root.parts[-2:])


def _ways(records: Records, name: str = "") -> dict[str, Records]:
    """Return the records of each way in which scans were made, by what it is called."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, record in enumerate(records):
        places.setdefault((record.request, str(record.method["name"])), []).append(place)
    names = [method for _, method in places]
    return {
        method
        + (f" {request[:6]}" if names.count(method) > 1 else "")
        + (f" ({name})" if name else ""): records.chosen(chosen)
        for (request, method), chosen in places.items()
    }


def _only(records: Records, labels: list[str]) -> Records:
    places = {label: place for place, label in enumerate(records.labels)}
    return records.chosen(places[label] for label in labels)


def _compared(first: str, second: str, records: Records, others: Records) -> Comparison:
    one, two = (summarise_records(item)["subjects"].to_dataset() for item in (records, others))
    found = []
    for column in figure_columns():
        pair = [item[column["metric"]] for item in (one, two)]
        if column["source"]:
            pair = [item.sel(source=column["source"].lower()) for item in pair]
        a, b = (np.asarray(item.values, np.float64) for item in pair)
        found.append(
            Difference(
                column["name"], column["source"], column["better"],
                *difference(a, b), signed_rank_p(a, b),
            )
        )  # fmt: skip
    return Comparison(first, second, len(records), one.sizes["subject"], tuple(found))
