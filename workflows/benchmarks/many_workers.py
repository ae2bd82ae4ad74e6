"""What a scan costs the scheduler and the client of a run by the number of workers, without work.

Scheduler, flight and graphs are a run's own; a scan has four slabs, 14 tasks. What its tasks do is
left out: the workers are Dask's, all of them in one process, and their tasks only take time. So
the processor time of scheduler and client is what a scan costs them, and its inverse is how many
scans a second they can bring through, whatever the work. Publishing is the client's, too, and is
measured on a disk by `per_scan.py`.

A line through the numbers of workers but the largest says what that should take; the largest is
held out and compared with it.

    python workflows/benchmarks/many_workers.py --workers 10 100 300 1000
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import distributed
import numpy as np
import psutil
from measure import Result, options, resident, shown
from processes import scheduler
from volumes import AS_IN_HEADER, one_thread_a_process, tiny_cohort

import fusionflow as ff
from fusionflow import commit, graph, stages, staging
from fusionflow.cluster_options import ClusterOptions
from fusionflow.config import METHODS, RunConfig
from fusionflow.flight import Flight
from fusionflow.io.inputs import discover
from fusionflow.io.store import Layout
from fusionflow.ledger import OutputPaths
from fusionflow.records import Published
from fusionflow.staging import Job
from fusionflow.survey import new_attempt
from fusionflow.tenancy import Tenancy
from fusionflow.trouble import Trouble

#: Of the scan whose tasks are sent: four slabs, one shard.
_SHAPE = (94, 256, 256)
#: Of workers that look after nothing: a thousand of them share a processor.
_QUIET = {
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "1h",  # else fifty times a second
    "distributed.admin.tick.cycle": "1h",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
}


def serve(address: str, workers: int, record: bytes, pause: float, ready: Connection) -> None:
    """Be so many workers, whose tasks only take time."""
    published = pickle.loads(record)
    logging.getLogger("distributed").setLevel(logging.ERROR)

    def idle(*_: object) -> None:
        time.sleep(pause)

    def committed(job: Job, *_: object) -> Published:
        time.sleep(pause)
        return replace(published, label=job.scan.label)

    # Tasks travel by name, and this is what the name means here.
    for module, name in (
        (staging, "stage_scan"),
        (staging, "decompose_staged"),
        (stages, "fuse_slab"),
        (staging, "reconstruct_staged"),
    ):
        setattr(module, name, idle)
    commit.commit_slabs = committed  # type: ignore[assignment]

    async def live() -> None:
        with tempfile.TemporaryDirectory() as folder:
            started = [
                distributed.Worker(
                    address,
                    nthreads=1,
                    memory_limit=0,
                    dashboard=False,
                    host="127.0.0.1",
                    local_directory=folder,
                )
                for _ in range(workers)
            ]
            for worker in started:  # one after another: a thousand at once time out
                await worker
            ready.send(None)
            await asyncio.Event().wait()

    with dask.config.set(_QUIET):
        asyncio.run(live())


@contextlib.contextmanager
def workers_of(address: str, workers: int, record: Published, pause: float) -> Iterator[None]:
    """Have so many workers in a process of their own, killed at the end."""
    ours, theirs = get_context("spawn").Pipe()
    given = (address, workers, pickle.dumps(record), pause, theirs)
    process = get_context("spawn").Process(target=serve, args=given, daemon=True)
    process.start()
    try:
        while not ours.poll(1.0):
            if not process.is_alive():
                raise RuntimeError("the workers did not start")
        yield
    finally:
        process.kill()
        process.join()


@dataclass
class Counting:
    """What a flight reports to: it counts, and lets all go on."""

    published: int = 0

    def publish(self, job: Job, record: Published) -> None:
        """Count a scan; its record came all the way."""
        if record.label != job.scan.label:
            raise RuntimeError(f"{record.label} came back for {job.scan.label}")
        self.published += 1

    def try_again(self, job: Job, trouble: Trouble, *, alone: bool) -> Job:
        """Nothing may fail here."""
        raise RuntimeError(f"{job.scan.label}: {trouble.reason} (alone: {alone})")

    def give_up(self, job: Job, trouble: Trouble) -> None:
        """Nothing may fail here."""
        raise RuntimeError(f"{job.scan.label}: {trouble.reason}")

    put_off = give_up

    def sent(self, job: Job) -> None:
        """Take no notice."""

    def staffed(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Take no notice."""

    def is_stopping(self) -> bool:
        """Go on."""
        return False

    def look_after(self) -> None:
        """Take no notice."""


def template(folder: Path) -> tuple[Job, Published]:
    """Return a scan as a run sends it, and a record as it comes back."""
    bids, out = tiny_cohort(folder / "bids", 1), folder / "out"
    config = RunConfig(method=METHODS["average"], conform=AS_IN_HEADER)
    report = ff.run(bids, out, config)
    (scan,), paths = discover(bids).scans, OutputPaths(out)
    job = Job(
        scan=scan,
        source=bids,
        paths=paths,
        layout=Layout.of_shape(_SHAPE),
        recipe=graph.make_recipe(config.method),
        conform=config.conform,
        request="0" * 64,
        token=graph.new_token(),
        staging=paths.staging(scan.label, "0"),
        begun=replace(new_attempt(scan, bids, "0" * 64), run="many-workers"),
    )
    return job, report.fused[0]


def copies(job: Job, scans: int) -> Iterator[Job]:
    """Yield so many scans like one."""
    for number in range(scans):
        subject = f"{number:06}"
        yield replace(job, scan=replace(job.scan, subject=subject), token=graph.new_token())


def measured(
    job: Job, record: Published, workers: int, scans: int, pause: float, folder: Path
) -> dict[str, float]:
    """Bring scans through so many workers; return ms of processor time a scan, and more."""
    with (
        scheduler(folder) as (pid, address),
        workers_of(address, workers, record, pause),
        distributed.Client(address) as client,
    ):
        client.wait_for_workers(workers)
        tenancy = Tenancy.of("many-workers", ClusterOptions(address=address), client)

        def fly(some: int) -> dict[str, float]:
            gc.collect()
            ground, process = Counting(), psutil.Process(pid)
            before = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
            options_ = ClusterOptions(address=address)
            Flight(client, tenancy, ground, options_, job.recipe).fly(copies(job, some))
            if ground.published != some:
                raise RuntimeError(f"{ground.published} of {some} scans came back")
            after = sum(process.cpu_times()[:2]), time.process_time(), time.perf_counter()
            told = [(end - start) for start, end in zip(before, after, strict=True)]
            names = ("scheduler", "client", "elapsed")
            return {name: 1e3 * value / some for name, value in zip(names, told, strict=True)}

        fly(workers)  # everybody had a task
        idle = sum(psutil.Process(pid).cpu_times()[:2])
        time.sleep(5)
        idle = (sum(psutil.Process(pid).cpu_times()[:2]) - idle) / 5
        found = fly(scans)
        return found | {"idle": 100 * idle, "rss": resident(pid) / 1000}


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        1,
        workers={"type": int, "nargs": "+", "help": "10 100 300 1000 unless told."},
        scans={"type": int, "help": "At each number of workers; 1000 unless told."},
        pause={"type": float, "default": 0.0, "help": "Seconds that a task takes."},
    )
    given.workers = sorted(given.workers or ((2, 4, 6) if given.quick else (10, 100, 300, 1000)))
    given.scans = given.scans or (20 if given.quick else 1000)
    if len(given.workers) < 3:
        raise SystemExit("Give three numbers of workers: a line needs two, and one is held out")
    one_thread_a_process()
    result = Result("many_workers", __doc__ or "", given)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        job, record = template(folder)
        found = {
            count: measured(job, record, count, given.scans, given.pause, folder)
            for count in given.workers
        }
    result.table(
        f"A scan of {len(job.layout.slabs)} slabs, without work: ms of processor time",
        ["workers", "scheduler", "client", "elapsed", "scheduler idle, %", "scheduler, MB"],
        [[count, *row.values()] for count, row in found.items()],
    )
    held_out = given.workers[-1]
    for process in ("scheduler", "client"):
        counts = given.workers[:-1]
        line = np.polyfit(counts, [found[count][process] for count in counts], 1)
        expected, seen = float(np.polyval(line, held_out)), found[held_out][process]
        result.figures[f"{process}: ms a scan with {held_out} workers"] = seen
        result.figures[f"{process}: the same by a line through fewer"] = expected
        result.figures[f"{process}: scans a second at most"] = 1e3 / seen
        result.notes.append(
            f"{process}: {shown(seen)} ms a scan with {held_out} workers, {shown(expected)} by a "
            f"line through fewer: at most {shown(1e3 / seen)} scans a second"
        )
    result.write()


if __name__ == "__main__":
    main()
