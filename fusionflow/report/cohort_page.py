"""The report of a cohort: ``group.html`` in its output folder, made from what lies there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import zarr

from fusionflow import __version__
from fusionflow.cohort import Cohort, open_cohort
from fusionflow.errors import ConfigurationError, NoScansError, StoreError
from fusionflow.index import Index, read_index
from fusionflow.io.derivatives import COHORT_REPORT
from fusionflow.io.files import file_sha256, fingerprint, write_bytes
from fusionflow.ledger import OutputPaths
from fusionflow.report.cohort_data import Failures, packed, read_scans, reported
from fusionflow.report.page import render
from fusionflow.report.participants import participants_path, read_participants
from fusionflow.report.robust import THRESHOLD
from fusionflow.report.ways_compared import comparisons, side_by_side
from fusionflow.summary import cohort_table, summarise_records

logger = logging.getLogger(__name__)


#: Files beside the page that it names, if they are there.
_FILES = {
    "group_scans.tsv": "figures of the scans in the summary, as text",
    "group_scans.parquet": "the same, for pandas, R, DuckDB and others",
    "group_metrics.tsv": "figures of the cohort",
    "group_methods.md": "what was done, in words",
}
_MADE_OF = re.compile(rb'<script type="application/json" id="made-of">(.*?)</script>', re.DOTALL)
_TAIL = 65536


def write_cohort_report(
    paths: OutputPaths,
    *,
    summary: xr.DataTree | None = None,
    left_out: Mapping[str, str] | None = None,
    source: Path | None = None,
    compare_with: Sequence[Path] | None = None,
) -> Path:
    """Write ``group.html``, unless the one that is there says just the same.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    summary : DataTree, optional
        Of the scans that are not left out, where it is known already.
    left_out : mapping of str to str, optional
        Label -> why a published scan is not in the summary; by default what ``group.zarr`` says.
    source : Path, optional
        The input, for its ``participants.tsv``; by default that of the last run.
    compare_with : sequence of Path, optional
        Other output folders of the same people; by default those that the page was compared with
        before, as far as they are still there.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    StoreError
        If the folder or one to compare with holds no output, or the page cannot be written.
    """
    path = paths.root / COHORT_REPORT
    index = read_index(paths)
    if left_out is None:
        left_out = _left_out(paths)
    labels = index.published.labels
    left_out = {label: left_out[label] for label in labels if label in left_out}
    others = _before(path, paths) if compare_with is None else _opened(compare_with)
    people = participants_path(paths, source)
    has_report = reported(paths, labels)
    files = {name: about for name, about in _FILES.items() if (paths.root / name).is_file()}
    made_of = {
        "of": fingerprint(
            __version__,
            *(_digest(file) for file in (paths.index, people)),
            json.dumps([left_out, has_report, list(files)], sort_keys=True),
            *(f"{other.paths.root} {_digest(other.paths.index)}" for other in others),
        ),
        "compared": [os.path.relpath(other.paths.root, paths.root) for other in others],
    }
    if _made_of(path) == made_of:
        return path
    scans, table = read_scans(index.published), read_participants(people)
    figures, note = _cohort_figures(index, summary, left_out)
    page = render(
        "cohort.html.j2",
        title=paths.root.resolve().name,
        scans=scans,
        subjects=scans.table["participant_id"].nunique(),
        flagged=int((scans.table["alignment"] == "in doubt").sum()),
        failures=Failures.of(index.failures),
        removed=index.removed,
        left_out=left_out,
        left_out_by_reason=_by_reason(left_out),
        notes=[*table.notes, *note],
        figures=figures,
        comparisons=list(comparisons(index.published, "this output", others)),
        ways=side_by_side(index.published) if scans.table["way"].nunique() > 1 else None,
        files=files,
        threshold=THRESHOLD,
        version=__version__,
        data=packed(scans, table, has_report, left_out, index.removed),
        made_of=made_of,
    )
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _by_reason(left_out: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return each reason with its labels, the most frequent first."""
    found: dict[str, list[str]] = {}
    for label, why in sorted(left_out.items()):
        found.setdefault(why, []).append(label)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _digest(path: Path | None) -> str:
    """Return the SHA-256 of a file; nothing where there is none."""
    with contextlib.suppress(OSError):
        return file_sha256(path) if path else ""
    return ""


def _made_of(path: Path) -> Any:  # noqa: ANN401
    """Return what the page that is there says it was made of."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - _TAIL))
            found = _MADE_OF.search(stream.read())
        return json.loads(found[1]) if found else None
    except (OSError, ValueError, RecursionError):
        return None


def _opened(folders: Sequence[Path]) -> list[Cohort]:
    return [open_cohort(folder.absolute()) for folder in folders]


def _before(path: Path, paths: OutputPaths) -> list[Cohort]:
    """Open again what a page was compared with, as far as it is there."""
    made_of = _made_of(path)
    names = made_of.get("compared") if isinstance(made_of, dict) else None
    others = []
    for name in names if isinstance(names, list) else ():
        try:
            others.append(open_cohort(Path(os.path.normpath(paths.root / str(name)))))
        except (StoreError, ValueError) as error:
            logger.warning("%s is no longer compared with %s: %s", path, name, error)
    return others


def _left_out(paths: OutputPaths) -> dict[str, str]:
    """Return which scans the summary that is there leaves out, and why."""
    try:
        group = zarr.open_group(paths.group_store, mode="r", zarr_format=3)
        found = group.attrs.asdict().get("left_out", {})
    except (OSError, ValueError, KeyError):
        return {}
    return {str(key): str(why) for key, why in found.items()} if isinstance(found, dict) else {}


def _cohort_figures(
    index: Index, summary: xr.DataTree | None, left_out: Mapping[str, str]
) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the cohort's figures over subjects; or none, and why."""
    if summary is None:
        labels = index.published.labels
        chosen = [place for place, label in enumerate(labels) if label not in left_out]
        try:
            summary = summarise_records(index.published.chosen(chosen))
        except NoScansError:
            return None, []
        except ConfigurationError as error:
            return None, [f"There are no figures of the whole cohort: {error.message}."]
    return cohort_table(summary), []
