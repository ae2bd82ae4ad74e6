"""How much faster two workers are than one, beside what two bare processes reach.

Two processes seldom are twice as fast as one: they share caches, memory and the clock of the chip.
So the speed-up of `ff.run` on a cohort is compared with that of processes that do the arithmetic
of as many volumes in memory and nothing else, in the same turns.

    python workflows/benchmarks/scaling.py --scans 6
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import distributed
from measure import Result, in_turn, options, ratios, seconds, spread
from volumes import (
    AS_IN_HEADER,
    Bare,
    cohort_of,
    find_method,
    find_pair,
    one_thread_a_process,
)

import fusionflow as ff
from fusionflow import clusters
from fusionflow.config import ClusterOptions, RunConfig


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        5,
        volume={"default": "sub-spm"},
        method={"default": "dwt-vgg19-l1"},
        scans={"type": int, "help": "Copies of the volume, a multiple of the workers; 6."},
        workers={"type": int, "default": 2},
    )
    given.scans = given.scans or given.workers * (1 if given.quick else 3)
    one_thread_a_process()
    result = Result("scaling", __doc__ or "", given)
    many = f"{given.workers} workers"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        pair = find_pair(given.volume, given, work, result)
        method = find_method(given.method, given, work, result)
        bids = cohort_of(pair, work / "bids", given.scans)
        config = RunConfig(method=method, conform=AS_IN_HEADER)
        outs = (work / f"out{number}" for number in itertools.count())
        clients = {
            count: stack.enter_context(clusters.connect(ClusterOptions(n_workers=count)))
            for count in (1, given.workers)
        }
        bare = {count: Bare(pair, method, count) for count in clients}
        for processes in bare.values():
            stack.callback(processes.close)

        def run(client: distributed.Client) -> float:
            out = next(outs)
            took = seconds(lambda: ff.run(bids, out, config, client=client))
            shutil.rmtree(out)
            return took

        def passes(count: int) -> float:
            """Return the seconds until the last of the processes is done."""
            return max(found[0] for found in bare[count].passes(given.scans // count))

        found = in_turn(
            {
                "run, 1 worker": lambda: run(clients[1]),
                f"run, {many}": lambda: run(clients[given.workers]),
                "bare, 1 process": lambda: passes(1),
                f"bare, {given.workers} processes": lambda: passes(given.workers),
            },
            given.repeats,
        )
    run_1, run_n, bare_1, bare_n = found.values()
    speed_up, ceiling = ratios(run_1, run_n), ratios(bare_1, bare_n)
    result.figures["speed-up of ff.run"] = spread(speed_up)
    result.figures["ceiling: speed-up of bare processes"] = spread(ceiling)
    result.goal("speed-up / ceiling", spread(ratios(speed_up, ceiling)), 0.95, at_most=False)
    title = f"{given.scans} scans of {pair.name}, {method.name}: seconds"
    rows = [[name, spread(times)] for name, times in found.items()]
    result.table(title, ["", "seconds"], rows)
    result.table(
        f"From 1 to {many}",
        ["", "times as fast"],
        [
            ["`ff.run`", spread(speed_up)],
            ["bare processes: DWT, network, inverse DWT, metrics", spread(ceiling)],
        ],
    )
    result.notes.append(
        "Clusters and processes were up beforehand, one torch thread each; a run also reads, "
        "conforms, writes, publishes and summarises."
    )
    result.write()


if __name__ == "__main__":
    main()
