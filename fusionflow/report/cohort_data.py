"""What the report of a cohort shows, from its index and a table of its people."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from fusionflow.index import Records
from fusionflow.ledger import OutputPaths
from fusionflow.records import Attempt, Published
from fusionflow.report.columns import (
    figure_columns,
    packed_column,
    packed_figures,
    packed_texts,
    rounded,
)
from fusionflow.report.participants import Participants
from fusionflow.report.robust import spread
from fusionflow.summary import metrics_dataset, scan_table

#: Records that are held in memory at a time.
_BLOCK = 1000

#: Failures that are shown; more of them share a cause, and `fusionflow status` lists all.
_MOST_FAILURES = 500


@dataclass(frozen=True)
class Scans:
    """Every published scan, a row each.

    Attributes
    ----------
    table : DataFrame
        ``scan``, ``participant_id``, ``session_id``, ``method``, every figure, and besides what
        the report groups by: ``way`` (fingerprint of all that was asked for), ``tracer``,
        ``alignment``, ``created``.
    """

    table: pd.DataFrame

    @property
    def methods(self) -> dict[str, int]:
        """Method -> scans made with it, the most used first."""
        return dict(Counter(self.table["method"]).most_common())

    @property
    def newest(self) -> str:
        """When the newest scan was made; empty if there is none."""
        return str(self.table["created"].max()) if len(self.table) else ""


def read_scans(records: Records) -> Scans:
    """Read what the report says of scans.

    Parameters
    ----------
    records : Records
        Published scans; they are read once, and not all held at a time.
    """
    blocks = [
        _rows(records[start : start + _BLOCK]) for start in range(0, max(1, len(records)), _BLOCK)
    ]
    return Scans(pd.concat(blocks, ignore_index=True))


def _rows(records: Sequence[Published]) -> pd.DataFrame:
    table = scan_table(xr.DataTree.from_dict({"/scans": metrics_dataset(records)}))
    return table.assign(
        way=[record.request for record in records],
        tracer=[record.pet_info.tracer or "n/a" for record in records],
        alignment=["in doubt" if record.is_flagged else "not in doubt" for record in records],
        created=[record.created for record in records],
    )


def report_place(label: str) -> str:
    """Return where the page of a scan lies, relative to the output folder.

    Examples
    --------
    >>> report_place("sub-01_ses-02"), report_place("sub-03")
    ('sub-01/ses-02/fused/sub-01_ses-02_fused.html', 'sub-03/fused/sub-03_fused.html')
    """
    subject, session, name = label.partition("_ses-")
    folder = f"{subject}/ses-{name}" if session else subject
    return f"{folder}/fused/{label}_fused.html"


def reported(paths: OutputPaths, labels: Sequence[str]) -> list[bool]:
    """Return for each scan whether there is a page of it."""
    root = str(paths.root)  # joining thousands of paths takes longer than looking
    return [os.path.isfile(f"{root}/{report_place(label)}") for label in labels]


def packed(
    scans: Scans,
    people: Participants,
    has_report: Sequence[bool],
    left_out: Mapping[str, str],
    removed: Sequence[str],
) -> dict[str, Any]:
    """Return what the scripts of the page read.

    Parameters
    ----------
    scans : Scans
        All that are published.
    people : Participants
        What is known of the people.
    has_report : sequence of bool
        Whether a scan has a page of its own, in the order of `scans`.
    left_out : mapping of str to str
        Label -> why it is not in the summary.
    removed : sequence of str
        Labels that the input no longer has.

    Returns
    -------
    dict
        ``labels``, ``reports``, ``ways`` (which way each was made, for what is compared with
        what), ``columns`` (to group and filter by), ``figures`` with, for each way, the middle
        and the width of a figure.
    """
    table = scans.table
    ways = sorted(set(table["way"]))
    codes = np.array([ways.index(way) for way in table["way"]], int)
    gone = set(removed)
    summary = [
        left_out.get(label, "the input no longer has it" if label in gone else "part of it")
        for label in table["scan"]
    ]
    texts: dict[str, Iterable[Any]] = {
        "participant_id": table["participant_id"],
        "session_id": table["session_id"],
        "method": table["method"],
        "tracer": table["tracer"],
        "alignment": table["alignment"],
        "summary": summary,
    }
    columns = [
        {"name": name, "kind": "text", **packed_texts([str(value) for value in values])}
        for name, values in texts.items()
    ]
    nobody: dict[str, str] = {}
    rows = [people.rows.get(person, nobody) for person in table["participant_id"]]
    for name in people.columns:
        title = f"{name} (participants.tsv)" if name in texts else name
        columns.append(packed_column(title, [row.get(name, "") for row in rows]))
    return {
        "labels": list(table["scan"]),
        "reports": [int(there) for there in has_report],
        "ways": codes,
        "columns": columns,
        "figures": [_figure(column, table, codes, len(ways)) for column in figure_columns()],
    }


def _figure(
    column: dict[str, str], table: pd.DataFrame, codes: np.ndarray, ways: int
) -> dict[str, Any]:
    """Return a figure of all scans, and its middle and width among those made the same way."""
    values = rounded(table[column["key"]].to_numpy(np.float64))
    about = [spread(values[codes == way]) for way in range(ways)]
    return {
        **column,
        "values": packed_figures(values),
        "centre": [item.centre for item in about],
        "scale": [item.scale for item in about],
        "differing": [item.differing for item in about],
        "n": [item.n for item in about],
    }


@dataclass(frozen=True)
class Failures:
    """Scans that could not be fused.

    Attributes
    ----------
    shown : tuple of Attempt
        The first of them.
    failed, quarantined : int
        How many the next run tries again, and how many it does not.
    """

    shown: tuple[Attempt, ...]
    failed: int
    quarantined: int

    @classmethod
    def of(cls, attempts: Sequence[Attempt]) -> Failures:
        """Count attempts."""
        counts = Counter(item.state for item in attempts)
        return cls(tuple(attempts[:_MOST_FAILURES]), counts["failed"], counts["quarantined"])

    @property
    def more(self) -> int:
        """How many are not shown."""
        return self.failed + self.quarantined - len(self.shown)
