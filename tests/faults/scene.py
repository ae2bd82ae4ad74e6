"""What the tests of faults share: runs, clusters and clients of their own, and the judge."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import psutil
from runs import config

import fusionflow as ff
from fusionflow.config import ClusterOptions
from fusionflow.events import Failed, Fused
from fusionflow.index import read_index
from fusionflow.io.bids import discover
from fusionflow.io.files import UNFINISHED
from fusionflow.ledger import OutputPaths, read_attempt
from fusionflow.records import OutputFile

#: Of everything that is drawn at random here.
SEED = 20260731
#: Seconds for a process to go.
GONE = 30.0

#: A way without a network, as options of the command; `dwt_max` is the same as a configuration.
DWT_MAX = ("--method", "dwt-max", "--registration", "header")
INJECTION = Path(__file__).with_name("injection.py")


def dwt_max(**cluster) -> ff.RunConfig:
    """Return what `DWT_MAX` says: what names the weights is written down even if none are read."""
    how = config("dwt-max", weights="auto")
    return how.model_copy(update={"cluster": ClusterOptions(**cluster)})


@dataclass
class Told:
    """A run, and when it told of each scan."""

    report: ff.RunReport | None = None
    times: dict[str, float] = field(default_factory=dict)
    ended: float = 0.0


def run(bids, out, how, **options) -> Told:
    """Run, and keep when each scan was published or given up; with the error, if one ended it."""
    told = Told()

    def note(event: object) -> None:
        if isinstance(event, Fused):
            told.times[event.record.label] = time.time()
        elif isinstance(event, Failed):
            told.times[event.failure.label] = time.time()

    told.report = ff.run(bids, out, how, on_event=note, **options)
    told.ended = time.time()
    return told


def fused_arrays(out) -> dict[str, np.ndarray]:
    """Return every fused volume."""
    cohort = ff.open_cohort(out)
    return {label: cohort.scan(label).fused.values for label in cohort}


@dataclass(frozen=True)
class Finding:
    """What is in an output folder, compared with what should be."""

    lost: tuple[str, ...]
    twice: tuple[str, ...]
    damaged: tuple[str, ...]
    different: tuple[str, ...]
    leftovers: tuple[str, ...]


def examine(out: Path, expected: Mapping[str, np.ndarray], failed: Iterable[str] = ()) -> Finding:
    """Read all that is published, and look for what should not be there."""
    paths, failed = OutputPaths(out), set(failed)
    cohort = ff.open_cohort(out)
    named = [record.label for record in read_index(paths).published]
    twice = {label for label in named if named.count(label) > 1}
    damaged, different, extra = set(), set(), []
    for label in cohort:
        record = cohort.record(label)
        try:
            scan = cohort.scan(label).load()
        except (OSError, ValueError, ff.FusionflowError):
            damaged.add(label)
            continue
        if label in expected and scan.fused.values.tobytes() != expected[label].tobytes():
            different.add(label)
        if not all(_is_whole(item, out) for item in record.outputs):
            damaged.add(label)
        for path in paths.scan(label).iterdir():
            if path.name not in (record.version, "current.json", "attempt.json"):
                extra.append(path)
    for label in expected:
        if label not in failed and paths.attempt(label).exists():
            extra.append(paths.attempt(label))
    extra += [path for path in out.rglob(f"{UNFINISHED}*") if path not in extra]
    extra += [path for path in (paths.run_lock,) if path.exists()]
    return Finding(
        lost=tuple(sorted(set(expected) - set(named) - failed)),
        twice=tuple(sorted(twice)),
        damaged=tuple(sorted(damaged)),
        different=tuple(sorted(different)),
        leftovers=tuple(str(path.relative_to(out)) for path in extra),
    )


def _is_whole(item: OutputFile, out: Path) -> bool:
    path = out / item.path
    return path.is_file() and OutputFile.whole(path, item.path).sha256 == item.sha256


@dataclass
class _Row:
    runs: int = 0
    lost: int = 0
    equal: bool = True
    leftovers: int = 0
    seconds: list[float] = field(default_factory=list)


class Table:
    """What the tests measured, a row a fault."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}

    def add(self, fault: str, finding: Finding, seconds: Iterable[float], runs: int = 1) -> None:
        """Add what came of a fault, and how long it took to get over it, each time."""
        row = self.rows.setdefault(fault, _Row())
        row.runs += runs
        row.lost += len(finding.lost)
        row.equal = row.equal and not finding.different
        row.leftovers += len(finding.leftovers)
        row.seconds += seconds

    def __str__(self) -> str:
        lines = [
            "| fault | runs | scans lost | bits equal | leftovers | seconds to recover |",
            "|---|---|---|---|---|---|",
        ]
        for fault, row in self.rows.items():
            least, most = f"{min(row.seconds):.1f}", f"{max(row.seconds):.1f}"
            lines.append(
                f"| {fault} | {row.runs} | {row.lost} | {'yes' if row.equal else 'NO'} "
                f"| {row.leftovers} | {least if least == most else f'{least} to {most}'} |"
            )
        return "\n".join(lines)


def assert_recovered(
    out: Path,
    expected: Mapping[str, np.ndarray],
    *,
    bids: Path,
    how: ff.RunConfig,
    failed: Iterable[str] = (),
    gone: Iterable[psutil.Process] = (),
    client: distributed.Client | None = None,
) -> Finding:
    """Make sure that a fault left no trace.

    Nothing is lost, twice, damaged, different or left behind; what was not given up is done, so
    that another run leaves it alone; and no process is left over.

    Parameters
    ----------
    out : Path
        The output folder.
    expected : mapping
        Label -> fused volume of an undisturbed run.
    bids, how
        As the run had them.
    failed : iterable of str
        Scans that were to be given up.
    gone : iterable of Process
        What must be gone beside.
    client : Client, optional
        The cluster that is to live on.
    """
    failed = sorted(failed)
    finding = examine(out, expected, failed)
    assert finding == Finding((), (), (), (), ()), finding
    assert ff.open_cohort(out).labels == tuple(sorted(set(expected) - set(failed)))
    attempts = {scan.label: read_attempt(OutputPaths(out), scan.label)
                for scan in discover(bids).scans}  # fmt: skip
    assert sorted(label for label, attempt in attempts.items() if attempt) == failed
    if not failed:
        again = ff.run(bids, out, how, client=client)
        assert (again.fused, again.failed) == ([], [])
        assert again.unchanged == sorted(expected)
    assert_no_orphans(gone)
    return finding


def assert_no_orphans(processes: Iterable[psutil.Process]) -> None:
    """Wait until processes are gone."""
    _, alive = psutil.wait_procs(list(processes), timeout=GONE)
    assert [process for process in alive if not _is_zombie(process)] == []


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def descendants(pid: int | None = None) -> set[psutil.Process]:
    """Return the worker processes below a process, and what else it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {
            process
            for process in psutil.Process(pid).children(recursive=True)
            if not _is_helper(process)
        }
    return set()


def _is_helper(process: psutil.Process) -> bool:
    """Whether a process is multiprocessing's own, which ends with its parent."""
    try:
        line = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return True
    return "resource_tracker" in line or "forkserver import main" in line


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fusionflow.cli", "fusionflow.runner", "fusionflow.progress"])


class Command:
    """``fusionflow`` as a process of its own, started from one that has everything imported.

    Parameters
    ----------
    log : Path
        Where its output goes.
    *words
        What comes after ``fusionflow``.
    """

    def __init__(self, log: Path, *words: Any) -> None:
        self.log, self.started = log, time.time()
        self.process = _CONTEXT.Process(target=_command, args=(str(log), [*map(str, words)]))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def descendants(self) -> set[psutil.Process]:
        return descendants(self.pid)

    def send(self, number: signal.Signals) -> float:
        """Send a signal to a process that is alive, and say when."""
        assert self.process.is_alive(), self.output
        os.kill(self.pid, number)
        return time.time()

    def end(self, seconds: float) -> int:
        """Return the exit code once it ended by itself."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"not ended within {seconds} s:\n{self.output}")
        return self.process.exitcode


def _command(log: str, words: list[str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    # As from a terminal, even where the tests run in a script's background, which ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from fusionflow.cli import main

    main(words, prog_name="fusionflow")


class Dask:
    """A scheduler and workers started from the command line, on this machine.

    Parameters
    ----------
    folder : Path
        For its files and logs.
    workers : int
        How many, of one thread each.
    """

    def __init__(self, folder: Path, workers: int = 2) -> None:
        self.folder = folder
        folder.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard",
            "--scheduler-file", file,
        )  # fmt: skip
        for _ in range(workers):
            self._start(
                "worker", "--scheduler-file", file, "--nthreads", 1, "--no-dashboard",
                "--memory-limit", "1.5GB", "--local-directory", folder,
            )  # fmt: skip
        self._client = distributed.Client(scheduler_file=str(file), timeout=60)
        self.address = self._client.scheduler.address
        self.wait(workers)

    def _start(self, *words: Any) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("dask")), *map(str, words)]
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._processes.append(process)
        return process

    def wait(self, workers: int) -> None:
        """Wait until so many workers are there."""
        self._client.wait_for_workers(workers, timeout=120)

    def workers(self) -> set[str]:
        """Return the addresses of the workers."""
        return set(self._client.scheduler_info(n_workers=-1)["workers"])

    def processes(self) -> set[psutil.Process]:
        """Return all its processes."""
        found = set()
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                found |= {parent, *parent.children(recursive=True)}
        return found

    def stop(self) -> None:
        """End every process of it."""
        left = self.processes()
        with contextlib.suppress(OSError, TimeoutError):
            self._client.close(timeout=5)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes:
            process.wait(timeout=GONE)
        assert_no_orphans(left)
