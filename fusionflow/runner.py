"""The run: what is to be made of an input, on which cluster, and what came of it."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import distributed

from fusionflow import __version__, cohort
from fusionflow.config import RunConfig
from fusionflow.errors import LockedError, StoreError
from fusionflow.events import Event, LeftOut, RunReport
from fusionflow.handle import RunHandle
from fusionflow.history import RunLog, new_run, read_last_run, write_last_run
from fusionflow.index import is_whole, write_index
from fusionflow.intake import make_plan, make_root
from fusionflow.io.derivatives import write_dataset_files
from fusionflow.io.files import utc_now
from fusionflow.io.inputs import find_scans
from fusionflow.ledger import OutputPaths, scan_labels, sweep
from fusionflow.participants import ParticipantLevel, Plan
from fusionflow.report.cohort_page import write_cohort_report
from fusionflow.runlock import RunLock

logger = logging.getLogger(__name__)

Level = Literal["participant", "group"]


class RunOptions(TypedDict, total=False):
    """What `run` takes by name, for those who check types."""

    participant_labels: Sequence[str]
    session_labels: Sequence[str]
    levels: Sequence[Level]
    retry_failed: bool
    force: bool
    settle: float
    client: distributed.Client | None
    on_event: Callable[[Event], None] | None
    stop: Callable[[], bool] | None


Folder: TypeAlias = str | PathLike[str]


@overload
def run(
    bids_dir: Folder,
    out_dir: Folder,
    config: RunConfig | None = None,
    *,
    wait: Literal[True] = True,
    **options: Unpack[RunOptions],
) -> RunReport: ...


@overload
def run(
    bids_dir: Folder,
    out_dir: Folder,
    config: RunConfig | None = None,
    *,
    wait: Literal[False],
    **options: Unpack[RunOptions],
) -> RunHandle: ...


def run(
    bids_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    levels: Sequence[Level] = ("participant", "group"),
    retry_failed: bool = False,
    force: bool = False,
    settle: float = 0,
    client: distributed.Client | None = None,
    on_event: Callable[[Event], None] | None = None,
    stop: Callable[[], bool] | None = None,
    wait: bool = True,
) -> RunReport | RunHandle:
    """Fuse the scans of a BIDS tree, and summarise the cohort.

    What was made from the same inputs with the same options before is left as it is.

    Parameters
    ----------
    bids_dir : path-like
        The tree; or a manifest, a table (.tsv) with participant_id, t1w and pet.
    out_dir : path-like
        The output folder; made if it is not there.
    config : RunConfig, optional
        Method and options; by default ``dwt-vgg19`` on a local cluster.
    participant_labels, session_labels : sequence of str
        Restrict the run; with or without ``sub-`` and ``ses-``.
    levels : sequence of {"participant", "group"}
        What to do.
    retry_failed : bool
        Try scans in quarantine again, too.
    force : bool
        Make every scan again.
    settle : float
        Seconds that the files of a scan must have been left alone; others wait for a later run.
    client : distributed.Client, optional
        A cluster to run on; otherwise one is started or reached as `config` says. Unless
        ``cluster.shared`` is false others may work on it, too, and no worker is restarted.
    on_event : callable, optional
        Called with each `Event`, in the thread of the run.
    stop : callable, optional
        Asked about every second, in that thread. Once it is true no further scan begins; those in
        flight are finished and published, and the report's state is ``"interrupted"``. What did
        not begin is due next time. What it raises ends the run.
    wait : bool
        False starts the run in a thread and returns at once; what goes wrong is then raised by
        `RunHandle.result`.

    Returns
    -------
    RunReport
        Or, with ``wait=False``, a `RunHandle`.

    Raises
    ------
    NoScansError
        If there is nothing to fuse (or, at the group level alone, to summarise).
    ConfigurationError
        If options or the cluster cannot be used.
    WeightsNotFoundError
        If the weights are not there.
    LockedError
        If another run writes the output folder.
    ClusterError
        If the cluster cannot be reached, or is gone; what was published stays.
    StoreError
        If the output folder cannot be written.
    """
    if not wait:
        go = functools.partial(
            run, bids_dir, out_dir, config,
            participant_labels=participant_labels, session_labels=session_labels, levels=levels,
            retry_failed=retry_failed, force=force, settle=settle, client=client,
        )  # fmt: skip
        return RunHandle(go, on_event, stop)
    config = config or RunConfig()
    source, paths = Path(bids_dir).absolute(), OutputPaths(Path(out_dir).absolute())
    tell = on_event or (lambda event: None)
    report = RunReport(run=new_run())
    plan: Plan | None = None
    work: ParticipantLevel | None = None
    if "participant" in levels:
        plan = make_plan(source, paths, config, participant_labels, session_labels)
    elif not paths.scans.is_dir():
        raise StoreError(f"{paths.root} holds no fused cohort", "Run the participant level first")
    with _held(paths, report.run) as lock:
        start = {
            "input": str(source),
            "output": str(paths.root),
            "fusionflow": __version__,
            "config": config.model_dump(mode="json"),
            "request": plan.request if plan else None,
            "weights": plan.recipe.weights.description if plan and plan.recipe.weights else None,
        }
        if plan is None:  # what the scans were made from and how stays known
            with contextlib.suppress(StoreError):
                last = read_last_run(paths) or {}
                start |= {key: last[key] for key in ("input", "config", "request") if key in last}
        log = RunLog(paths, report.run, start)
        began = time.monotonic()
        try:
            if plan is not None:
                write_dataset_files(paths, plan.source)
                work = ParticipantLevel(plan, paths, config, lock, log, tell, report)
                work.again, work.stop = (retry_failed, force), stop or work.stop
                work.go(client, settle)
                if work.changed or not _is_index_current(paths, lock, report):
                    write_index(paths, report.removed)
            else:
                write_index(paths)
            if "group" in levels:
                _summarise(paths, source, config, report, tell, plan)
            report.state = "interrupted" if work is not None and work.stopped else "done"
        except KeyboardInterrupt:
            report.state = "interrupted"
            raise
        except LockedError:  # the folder is another run's by now, and so is its summary
            report.state = "stopped"
            raise
        except BaseException as error:
            report.state = "stopped"
            start["stopped"] = str(error)
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            log.end(state=report.state, seconds=seconds, counts=report.counts)
            if lock.is_held:
                _conclude(paths, {**start, **report.to_json()}, log.begun, seconds)
    return report


def _is_index_current(paths: OutputPaths, lock: RunLock, report: RunReport) -> bool:
    """Whether the last run left an index that holds for a run that changed nothing."""
    try:
        last = read_last_run(paths) or {}
    except StoreError:
        return False
    ended_well = lock.taken_from is None and last.get("state") == "done"
    return ended_well and last.get("removed") == list(report.removed) and is_whole(paths)


def _conclude(paths: OutputPaths, content: dict[str, Any], begun: str, seconds: float) -> None:
    """Replace the machine-readable summary, as far as the disk lets us."""
    try:
        write_last_run(paths, {**content, "started": begun, "ended": utc_now(), "seconds": seconds})
    except StoreError as error:
        logger.warning("%s", error)


@contextlib.contextmanager
def _held(paths: OutputPaths, run: str) -> Iterator[RunLock]:
    """Hold the output folder, and clean up after a run that held it and died."""
    make_root(paths)
    with RunLock(paths.run_lock, run, on_wait=_say_wait) as lock:
        for folder in (paths.root, paths.scans, paths.logs):
            sweep(folder)
        if lock.taken_from is not None:
            logger.warning("Going on after a run that ended badly (%s)", lock.taken_from)
            for label in scan_labels(paths):
                sweep(paths.scan(label))
        yield lock


def _say_wait(holder: object, seconds: float) -> None:
    logger.warning(
        "run.lock names a run on another machine (%s). Waiting %.0f s for a sign of life",
        holder, seconds,
    )  # fmt: skip


def _summarise(
    paths: OutputPaths,
    source: Path,
    config: RunConfig,
    report: RunReport,
    tell: Callable[[Event], None],
    plan: Plan | None,
) -> None:
    """Summarise the scans that are in the input and were made as this run asks.

    Raises
    ------
    NoScansError
        If there are none; but not at the end of a run that fused some or tried to.
    ConfigurationError
        If the group level is run alone and scans were made in different ways.
    """
    found = plan.everything if plan else find_scans(source, config.input)
    report.summary, report.left_out = cohort.write_summary(
        paths,
        present={scan.label for scan in found.scans},
        request=plan.request if plan else None,
    )
    if report.summary is not None:
        write_cohort_report(paths, summary=report.summary, left_out=report.left_out, source=source)
    for label, why in report.left_out.items():
        tell(LeftOut(label, why))
