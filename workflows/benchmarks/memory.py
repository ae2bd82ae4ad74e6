"""What a scan leaves behind in the memory of client, scheduler and worker, and whether it ends.

Each is a process of its own. One run goes over many tiny scans; after 10, 100, 1000, ... of them
all three collect their garbage and give free pages back (`malloc_trim`), and their resident memory
is read from outside. The slope after the first 100 is what a scan costs. Then the same with larger
volumes: were anything kept that grows with voxels, the slope would.

    python workflows/benchmarks/memory.py --scans 3000
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measure import Result, options, resident, shown, trim
from processes import dask_process, scheduler
from volumes import AS_IN_HEADER, one_thread_a_process, tiny_cohort

import fusionflow as ff
from fusionflow.clusters import connect
from fusionflow.config import METHODS, ClusterOptions, RunConfig
from fusionflow.events import Event, Fused

PROCESSES = ("client", "scheduler", "worker")
#: Resident kB by process, after so many scans.
Samples = dict[int, dict[str, float]]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a scheduler and one worker, each a process of its own; yield the address."""
    with scheduler(folder) as (_, address):
        own = ("--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
        with dask_process("dask_worker", *own, "--host", "127.0.0.1", address):
            yield address


def sampled(folder: Path, scans: int, side: int, marks: tuple[int, ...]) -> Samples:
    """Run over so many scans; this process is the client."""
    bids = tiny_cohort(folder / "bids", scans, side)
    config = RunConfig(method=METHODS["average"], conform=AS_IN_HEADER)
    samples: Samples = {}
    done = 0
    with cluster(folder) as address, connect(ClusterOptions(address=address)) as client:

        def look(event: Event) -> None:
            nonlocal done
            done += isinstance(event, Fused)
            if isinstance(event, Fused) and done in marks:
                pids = (trim(), client.run_on_scheduler(trim), *client.run(trim).values())
                samples[done] = dict(zip(PROCESSES, map(resident, pids), strict=True))

        report = ff.run(bids, folder / "out", config, client=client, on_event=look)
        if len(report.fused) != scans:
            raise RuntimeError(f"{report.counts}")
    return samples


def alone(folder: Path, scans: int, side: int, marks: tuple[int, ...]) -> Samples:
    """Do that in a process that did nothing before."""
    folder.mkdir(parents=True)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(sampled, folder, scans, side, marks).result()


def slopes(samples: Samples, after: int) -> dict[str, float]:
    """Return kB a scan in each process, a line through the samples from `after` scans on."""
    counts = [count for count in samples if count >= after]
    return {
        process: float(np.polyfit(counts, [samples[n][process] for n in counts], 1)[0])
        for process in PROCESSES
    }


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        1,
        scans={"type": int, "help": "Of the long run; 3000 unless told."},
        sides={"type": int, "nargs": 2, "default": [16, 48]},
        side_scans={"type": int, "help": "Scans of each size; 300 unless told."},
    )
    given.scans = given.scans or (12 if given.quick else 3000)
    given.side_scans = given.side_scans or (10 if given.quick else 300)
    if given.quick:
        given.sides = [16, 24]
    one_thread_a_process()
    result = Result("memory", __doc__ or "", given)
    after = 2 if given.quick else 100
    wanted = (2, 5, 10, 100, 150, 200, 250, 300, 500, 700, 1000, 1500, 2000, 2500, 3000)
    marks = tuple(sorted({n for n in wanted if n <= given.scans} | {given.scans}))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        samples = alone(work / "long", given.scans, given.sides[0], marks)
        steps = tuple(mark for mark in marks if mark <= given.side_scans)
        short = {mark: samples[mark] for mark in steps}
        large = alone(work / "large", given.side_scans, given.sides[1], steps)
    rows = [
        [count, *(row[process] / 1000 for process in PROCESSES)] for count, row in samples.items()
    ]
    result.table("Resident memory, MB, after so many scans", ["scans", *PROCESSES], rows)
    for process, slope in slopes(samples, after).items():
        what = f"{process}: kB a scan, from {after} to {given.scans} scans"
        result.goal(what, slope, 25)
    by_side = slopes(short, after), slopes(large, after)
    result.table(
        f"kB a scan by size of the volumes, scans {after} to {given.side_scans}",
        ["volumes", "kB of a volume", *PROCESSES],
        [
            [f"{side}³", side**3 * 4 / 1000, *(found[process] for process in PROCESSES)]
            for side, found in zip(given.sides, by_side, strict=True)
        ],
    )
    voxels = (given.sides[1] ** 3 - given.sides[0] ** 3) * 4 / 1000
    for process in PROCESSES:
        kept = (by_side[1][process] - by_side[0][process]) / voxels
        result.figures[f"{process}: volumes kept for each scan"] = kept
        result.notes.append(f"{process}: {shown(kept)} volumes (float32) kept for each scan")
    result.write()


if __name__ == "__main__":
    main()
