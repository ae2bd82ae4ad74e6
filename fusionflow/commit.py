"""The end of a scan: its fused shards and its files, and the one step that publishes it.

Tasks make everything in the scan's staging folder, and can run twice: a worker may die at any
moment. The runner then publishes: the group takes its place as a version, ``current.json`` makes
it count, and the files take theirs. If something comes in between, the next run sees files that
are not what the record says, and makes the scan again.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import platform
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import distributed
import numpy as np

from fusionflow import schema
from fusionflow.errors import StoreError
from fusionflow.io import store
from fusionflow.io.derivatives import (
    relative_folder,
    scan_file_names,
    sidecar_content,
    write_scan_files,
)
from fusionflow.io.files import discard, flush, flush_tree, relative_to, utc_now
from fusionflow.ledger import publish
from fusionflow.malloc import kept_memory
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, SliceMetrics
from fusionflow.plugins import installed_versions
from fusionflow.records import OutputFile, Published
from fusionflow.stages import FusedSlab, Seconds
from fusionflow.staging import Job, Staged
from fusionflow.summary import scan_figures


class WrittenShard(NamedTuple):
    """What is left of slabs once their voxels are in the store.

    `halved` is the smallest number of band images that a slab came to for lack of memory.
    """

    metrics: tuple[SliceMetrics, ...]
    seconds: Seconds
    devices: frozenset[str]
    halved: int | None = None


@kept_memory()
def write_shard(job: Job, start: int, slabs: Sequence[FusedSlab]) -> WrittenShard:
    """Write the slabs of one shard, in their order, beginning with slice `start`."""
    rows = np.concatenate([slab.fused for slab in slabs])
    try:
        store.write_rows(job.group, "fused", start, rows, job.layout)
    except OSError as error:
        raise StoreError(
            f"Cannot write {job.group}: {error.strerror or error}", "Check space and permissions"
        ) from error
    return WrittenShard(
        tuple(slab.metrics for slab in slabs),
        _total(slab.seconds for slab in slabs),
        frozenset(slab.device for slab in slabs),
        _smallest(slab.halved for slab in slabs),
    )


def _smallest(halved: Iterable[int | None]) -> int | None:
    return min((batch for batch in halved if batch is not None), default=None)


def _total(parts: Iterable[Seconds]) -> Seconds:
    return Seconds(*(sum(stage) for stage in zip(*parts, strict=True)))


@kept_memory()
def commit_slabs(job: Job, staged: Staged, slabs: Sequence[FusedSlab]) -> Published:
    """Write the only shard of a scan and finish it."""
    return commit(job, staged, [write_shard(job, 0, slabs)])


@kept_memory()
def commit(job: Job, staged: Staged, shards: Sequence[WrittenShard]) -> Published:
    """Finish a scan's group and files in its staging folder.

    Returns
    -------
    Published
        What `publish_scan` is to publish.

    Raises
    ------
    StoreError
        If they cannot be written.
    """
    began = time.perf_counter()
    parts = [metrics for shard in shards for metrics in shard.metrics]
    slices = SliceMetrics(
        pair=np.concatenate([part.pair for part in parts]),
        image=np.concatenate([part.image for part in parts]),
    )
    scan, recipe = job.scan, job.recipe
    notes = staged.notes
    weights = recipe.weights.description if recipe.weights else None
    if recipe.weights is not None and recipe.weights.is_random:
        notes = (*notes, f"The backbone has RANDOM weights ({recipe.weights.identity})")
    stages = _total(shard.seconds for shard in shards)
    seconds = sum(stages)
    software = {
        **software_versions(),
        **installed_versions(recipe.plugins),
        "device": ", ".join(sorted(frozenset().union(*(shard.devices for shard in shards)))),
    }
    halved = _smallest(shard.halved for shard in shards)
    if halved is not None:
        software["batch"] = str(halved)
        notes = (
            *notes,
            f"Out of memory on {software['device']}: {halved} band images at a time instead of up "
            f"to {recipe.method.batch}; last bits may differ",
        )
    try:
        _finish(job, staged, slices, weights, notes)
        flush_tree(job.staging)  # before a record says that it is there
    except OSError as error:
        raise _cannot_write(scan.label, error) from error
    return Published(
        label=scan.label,
        subject=scan.subject,
        session=scan.session,
        version=staged.version,
        request=job.request,
        method=recipe.method.model_dump(mode="json"),
        weights=weights,
        inputs=staged.inputs,
        pet_info=scan.pet_info,
        facts=scan.facts,
        shape=job.layout.shape,
        affine=staged.affine,
        metrics=scan_figures(slices, seconds),
        seconds=seconds,
        notes=notes,
        software=software,
        created=utc_now(),
        run=job.begun.run,
        attempt=job.begun.attempt,
        worker=_worker_name(),
        conformed=staged.conformed,
        timings={
            "conform": staged.seconds,
            **stages._asdict(),
            "commit": time.perf_counter() - began,
        },
    )


def _worker_name() -> str:
    """Return the host and the name of the worker that runs this; of the process if it is none."""
    try:
        name = str(distributed.get_worker().name)
    except ValueError:
        name = f"process {os.getpid()}"
    return f"{socket.gethostname()} {name}"


def _cannot_write(label: str, error: OSError) -> StoreError:
    return StoreError(
        f"Cannot write the outputs of {label}: {error.strerror or error}",
        "Check space and permissions",
    )


def _finish(
    job: Job, staged: Staged, slices: SliceMetrics, weights: str | None, notes: tuple[str, ...]
) -> None:
    """Complete the group and write the files beside it, all in the staging folder."""
    label = job.scan.label
    method = job.recipe.method.model_dump(mode="json")
    pair_names = [metric.name for metric in PAIR_METRICS]
    image_names = [metric.name for metric in IMAGE_METRICS]
    store.finish_group(
        job.group,
        (
            store.Small("metrics", slices.pair, schema.METRICS.dims),
            store.Small("image_metrics", slices.image, schema.IMAGE_METRICS.dims),
            store.Small("source", schema.SOURCES, ("source",)),
            store.Small("metric", pair_names, ("metric",)),
            store.Small("image_metric", image_names, ("image_metric",)),
        ),
        {
            "layout": schema.LAYOUT_VERSION,
            "label": label,
            "version": staged.version,
            "method": method,
            "weights": weights or "",
            "region": job.recipe.region,
            "affine": [list(row) for row in staged.affine],
            "conform": staged.conformed,
            "warnings": list(notes),
        },
    )
    files = job.staging / "files"
    discard(files)  # of a first run of this task that was cut short
    files.mkdir()
    sources = job.scan.files
    write_scan_files(
        files,
        label,
        {name: store.open_volume(job.group, name) for name in (*schema.SOURCES, "mask", "fused")},
        job.layout.slab,
        staged.orientation,
        sidecar_content(
            {name: relative_to(path, job.source) for name, path in sources.items()},
            method,
            weights,
            staged.version,
            staged.conformed,
            notes,
        ),
        f"{label}   {job.recipe.method.name}" + (f"   weights: {weights}" if weights else ""),
        staged.registration,
    )


def publish_scan(
    job: Job, record: Published, before: Callable[[Published], None] = lambda record: None
) -> Published:
    """Publish what the tasks of a scan finished; only the run that holds the output may.

    Parameters
    ----------
    job : Job
        The scan; its staging folder is gone afterwards.
    record : Published
        As `commit` returned it.
    before : callable
        Called with the record as it will be published; what it raises stops that.

    Returns
    -------
    Published
        The record as it was published, with its files.

    Raises
    ------
    StoreError
        If they cannot be written; before ``current.json`` the scan is as it was.
    """
    paths, scan = job.paths, job.scan
    folder = relative_folder(scan.subject, scan.session)
    try:
        files = sorted((job.staging / "files").iterdir())
        group = _put_group(job, record.version)
        record = replace(
            record,
            version=group.name,
            stored=tuple(
                OutputFile.sized(path, paths.root)
                for path in sorted(group.rglob("*"))
                if path.is_file()
            ),
            outputs=tuple(
                OutputFile.whole(path, (folder / path.name).as_posix()) for path in files
            ),
        )
        before(record)
        flush(paths.scan(scan.label))
        publish(paths, record)
        (paths.root / folder).mkdir(parents=True, exist_ok=True)
        for path in files:
            path.replace(paths.root / folder / path.name)
        for name in scan_file_names(scan.label):  # of another way of making it
            if name not in {path.name for path in files}:
                (paths.root / folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(scan.label, error) from error
    discard(job.staging)
    return record


def _put_group(job: Job, version: str) -> Path:
    """Move the finished group to its place and return that.

    The same inputs and method may have been fused before. If what is there is the same to the
    byte it stays; if not, for it may be damaged, the new group gets a name of its own: a published
    version never changes under its readers.
    """
    for attempt in itertools.count(1):
        name = version if attempt == 1 else f"{version}-{attempt}"
        target = job.paths.version(job.scan.label, name)
        if not target.exists():
            job.group.rename(target)
            return target
        if _same_files(job.group, target):
            return target
    raise AssertionError("unreachable")


def _same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same content."""
    names = [
        {relative_to(path, folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (one, other)
    ]
    if names[0] != names[1]:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of what decides the bits."""
    packages = ("fusionflow", "numpy", "PyWavelets", "scipy", "torch", "zarr", "nibabel", "dask")
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
