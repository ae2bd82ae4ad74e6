"""What a scan costs besides arithmetic: tiny scans, and a method that only averages.

The milliseconds of a scan are the slope between a cohort and one of twice its size, so that what a
run costs once cancels out. What reading and writing the same arrays and files costs by itself is
measured in the same turns, in one process, and taken off. And how long it takes to open a cohort of
many published scans.

    python workflows/benchmarks/per_scan.py --scans 200 --published 10000
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Scheduler, SchedulerPlugin
from measure import Cell, Result, in_turn, options, seconds, shown, spread
from volumes import AS_IN_HEADER, one_thread_a_process, tiny_cohort

import fusionflow as ff
from fusionflow import clusters, schema
from fusionflow.config import METHODS, ClusterOptions, RunConfig
from fusionflow.events import RunReport
from fusionflow.index import write_index
from fusionflow.io import store
from fusionflow.io.derivatives import write_scan_files
from fusionflow.io.files import flush_tree
from fusionflow.io.nifti import read_volume
from fusionflow.ledger import OutputPaths
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS

CONFIG = RunConfig(method=METHODS["average"], conform=AS_IN_HEADER)
_OPEN = """
import sys, time
start = time.perf_counter()
from fusionflow import open_cohort
middle = time.perf_counter()
assert len(open_cohort(sys.argv[1])) == int(sys.argv[2])
print(middle - start, time.perf_counter() - middle)
"""


class Tasks(SchedulerPlugin):
    """Counts the tasks that come to a scheduler."""

    name = "tasks"

    def __init__(self) -> None:
        self.count = 0

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **more: object) -> None:
        """Count those of a graph."""
        self.count += len(tasks)


def count_of_tasks(dask_scheduler: Scheduler) -> int:
    """Return how many came so far."""
    return dask_scheduler.plugins["tasks"].count


#: What reading and writing alone consists of.
FILES = ("reading NIfTI", "writing Zarr", "NIfTI, PNG and JSON", "flushing to the disk")


def only_files(bids: Path, out: Path, scans: int) -> dict[str, float]:
    """Read and write what a run does, without a run; return the seconds of each part."""
    spent = dict.fromkeys(FILES, 0.0)
    for number in range(scans):
        label = f"sub-{number:05}"
        (out / label).mkdir(parents=True)
        for name, took in zip(FILES, files_of(bids / label, out / label, label), strict=True):
            spent[name] += took
    shutil.rmtree(out)
    return spent


def files_of(source: Path, folder: Path, label: str) -> list[float]:
    """Read and write what belongs to one scan; return the seconds of each of `FILES`."""
    times = [time.perf_counter()]
    image = read_volume(source / "anat" / f"{label}_T1w.nii.gz")
    other = read_volume(source / "pet" / f"{label}_pet.nii.gz")
    mri, pet = (np.ascontiguousarray(item.data.T, np.float32) / 200 for item in (image, other))
    mask = (mri > 0.5).astype(np.uint8)
    times.append(time.perf_counter())
    layout, group = store.Layout.of_shape(mri.shape), folder / "group"
    volumes = (schema.MRI, schema.PET, schema.MASK, schema.FUSED)
    store.create_group(group, layout, volumes)
    for name, rows in (("mri", mri), ("pet", pet), ("mask", mask), ("fused", mri)):
        store.write_rows(group, name, 0, rows, layout)
    figures = np.zeros((len(mri), 2, len(PAIR_METRICS)))
    of_images = np.zeros((len(mri), len(IMAGE_METRICS)))
    small = [
        store.Small("metrics", figures, schema.METRICS.dims),
        store.Small("image_metrics", of_images, schema.IMAGE_METRICS.dims),
        store.Small("source", schema.SOURCES, ("source",)),
    ]
    for name, metrics in (("metric", PAIR_METRICS), ("image_metric", IMAGE_METRICS)):
        small.append(store.Small(name, [item.name for item in metrics], (name,)))
    store.finish_group(group, small, {"label": label})
    times.append(time.perf_counter())
    written = {item.name: store.open_volume(group, item.name) for item in volumes}
    write_scan_files(folder, label, written, layout.slab, image.orientation, {"of": label}, label)
    times.append(time.perf_counter())
    flush_tree(folder)
    times.append(time.perf_counter())
    return np.diff(times).tolist()


def slope(given: Namespace, workers: int, work: Path, result: Result) -> None:
    """Measure the milliseconds of a scan."""
    cohorts = {
        name: tiny_cohort(work / name, scans, given.side)
        for name, scans in (("n", given.scans), ("2n", 2 * given.scans))
    }
    outs = (work / f"out{number}" for number in itertools.count())
    reports: list[RunReport] = []
    parts: list[dict[str, float]] = []
    with clusters.connect(ClusterOptions(n_workers=workers)) as client:
        client.register_plugin(Tasks())

        def files() -> float:
            parts.append(only_files(cohorts["n"], next(outs), given.scans))
            return sum(parts[-1].values())

        def run(bids: Path) -> float:
            out = next(outs)
            took = seconds(lambda: reports.append(ff.run(bids, out, CONFIG, client=client)))
            shutil.rmtree(out)
            return took

        ff.run(cohorts["n"], next(outs), CONFIG, participant_labels=["00000"], client=client)
        before = client.run_on_scheduler(count_of_tasks)
        found = in_turn(
            {"n": lambda: run(cohorts["n"]), "2n": lambda: run(cohorts["2n"]), "files": files},
            given.repeats,
            warm_up=False,
        )
        tasks = client.run_on_scheduler(count_of_tasks) - before
    to_ms = 1000 / given.scans
    total = [to_ms * (two - one) for one, two in zip(found["n"], found["2n"], strict=True)]
    alone = [to_ms * value for value in found["files"]]
    fused = [record for report in reports for record in report.fused]
    told = f"{workers} worker{'s' if workers > 1 else ''}"
    result.figures[f"{told}: ms a scan"] = spread(total)
    result.figures["Dask tasks a scan"] = each = tasks / len(fused)
    rows: list[list[Cell]] = [[f"all: slope, {given.scans} to {2 * given.scans}", spread(total)]]
    if workers == 1:
        rest = [one - other for one, other in zip(total, alone, strict=True)]
        result.figures["reading and writing alone, ms a scan"] = spread(alone)
        result.goal("overhead a scan, ms (all less reading and writing)", spread(rest), 60)
        rows.append(["reading and writing its arrays and files, alone", spread(alone)])
        for name in FILES:
            rows.append([f"of it: {name}", spread([to_ms * part[name] for part in parts])])
        rows.append(["the difference: overhead", spread(rest)])
        inside = 0.0
        for name in fused[0].timings:
            value = 1000 * statistics.mean(record.timings[name] for record in fused)
            inside += value
            rows.append([f"in tasks, by the records: {name}", value])
        others = spread([value - inside for value in total])
        rows.append(["all less these: Dask, metrics, slabs, ledger, publishing", others])
    title = f"{told}: ms a scan of {given.side}³ voxels, `average`, {shown(each)} Dask tasks"
    result.table(title, ["", "ms"], rows)


def opening(given: Namespace, work: Path, result: Result) -> None:
    """Measure how long a cohort of many published scans takes to open, in fresh processes."""
    paths = OutputPaths(work / "many")
    ff.run(tiny_cohort(work / "one", 1, given.side), paths.root, CONFIG)
    record = json.loads(paths.current("sub-00000").read_text())
    text = json.dumps({**record, "label": "LABEL", "subject": "SUBJECT"})
    for number in range(1, given.published):
        label = f"sub-{number:05}"
        paths.scan(label).mkdir()
        own = text.replace("LABEL", label).replace("SUBJECT", label[4:])
        paths.current(label).write_text(own.replace("sub-00000", label))
    index = seconds(lambda: write_index(paths))
    command = [sys.executable, "-c", _OPEN, str(paths.root), str(given.published)]
    found = [
        [float(value) for value in subprocess.check_output(command, text=True).split()]
        for _ in range(given.repeats + 1)
    ][1:]
    opened = spread([value for _, value in found])
    result.goal(f"open_cohort of {given.published} scans, s", opened, 1)
    result.figures["bytes of the index for a scan"] = paths.index.stat().st_size / given.published
    result.table(
        f"{given.published} published scans: seconds",
        ["", "seconds"],
        [
            ["`ff.open_cohort`, in a fresh process", opened],
            ["importing fusionflow before that", spread([value for value, _ in found])],
            ["writing the index from the records, once", index],
            ["size of the index, MB", paths.index.stat().st_size / 1e6],
        ],
    )


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        3,
        scans={"type": int, "help": "N; runs are over N and 2N. 200 unless told."},
        side={"type": int, "default": 16},
        published={"type": int, "help": "Scans of the cohort to open; 10000 unless told."},
    )
    given.scans = given.scans or (3 if given.quick else 200)
    given.published = given.published or (100 if given.quick else 10000)
    one_thread_a_process()
    result = Result("per_scan", __doc__ or "", given)
    result.notes.append(
        "The goal is for one worker: with more, scans are made beside each other, while reading "
        "and writing alone is measured in one process."
    )
    counts = (1,) if given.quick else (1, clusters.available_cores())
    with tempfile.TemporaryDirectory() as folder:
        for workers in dict.fromkeys(counts):
            slope(given, workers, Path(folder) / str(workers), result)
        opening(given, Path(folder), result)
    result.write()


if __name__ == "__main__":
    main()
