"""The pages of many scans, made beside each other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from fusionflow.errors import FusionflowError, NoScansError
from fusionflow.ledger import OutputPaths
from fusionflow.report.cohort_data import report_place
from fusionflow.report.page import MADE_BY
from fusionflow.signals import interrupts_left_to_us

#: Bytes of a page that hold what made it.
_HEAD = 4096


@dataclass(frozen=True)
class Written:
    """What came of the page of a scan: where it is, or why it is not there."""

    label: str
    path: Path | None = None
    trouble: str = ""


def chosen_labels(
    paths: OutputPaths, labels: Sequence[str], participants: Sequence[str]
) -> list[str]:
    """Return the labels of the scans of some people; all if none are named.

    Raises
    ------
    NoScansError
        If somebody is named who has no fused scan.
    """
    wanted = {f"sub-{name.removeprefix('sub-')}" for name in participants}
    people = {label: label.partition("_ses-")[0] for label in labels}
    if unknown := sorted(wanted - set(people.values())):
        raise NoScansError(
            f"{paths.root} holds no fused scan of {', '.join(unknown)}",
            "`fusionflow status` lists those that it holds",
        )
    return [label for label in labels if not wanted or people[label] in wanted]


def due(paths: OutputPaths, labels: Sequence[str]) -> list[str]:
    """Return the scans whose page is not there, or older than the scan or than fusionflow."""
    return [label for label in labels if _is_due(paths, label)]


def _is_due(paths: OutputPaths, label: str) -> bool:
    page = paths.root / report_place(label)
    try:
        if page.stat().st_mtime_ns < paths.current(label).stat().st_mtime_ns:
            return True
        with page.open("rb") as file:
            return MADE_BY.encode() not in file.read(_HEAD)
    except OSError:
        return True


def write_pages(root: Path, labels: Sequence[str], jobs: int) -> Iterator[Written]:
    """Write the pages of scans, in processes of their own; yield each as it is done.

    Parameters
    ----------
    root : Path
        The output folder.
    labels : sequence of str
        Which scans. What is wrong with one stops no other.
    jobs : int
        How many are made at a time.
    """
    if jobs == 1 or len(labels) < 2:
        for label in labels:
            yield _written(root, label)
        return
    context = multiprocessing.get_context("spawn")  # no thread of ours is copied
    with ProcessPoolExecutor(min(jobs, len(labels)), mp_context=context) as pool:
        with interrupts_left_to_us():
            futures = {pool.submit(_written, root, label): label for label in labels}
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield Written(
                        futures[future],
                        trouble="A process that wrote pages was killed, perhaps for its memory. "
                        "Run again with --jobs 1",
                    )
        finally:  # what has not begun when somebody interrupts is not begun
            pool.shutdown(wait=True, cancel_futures=True)


def _written(root: Path, label: str) -> Written:
    from fusionflow.report.scan import write_scan_report

    try:
        return Written(label, write_scan_report(root, label))
    except (FusionflowError, OSError) as error:
        return Written(label, trouble=str(error))
    except Exception as error:  # of damaged files anything can come
        return Written(label, trouble=f"{type(error).__name__}: {error}. Run fusionflow again")
