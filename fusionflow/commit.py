"""The last tasks of a scan: its fused shards, its files, and the one step that publishes it.

Everything is made in the scan's staging folder first. Then the group and the files take their
places as a version, and ``current.json`` makes it count. What lies in BIDS places are links to the
version's files, put there afterwards and mended by the next run if something came between.
"""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import uuid
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr

from fusionflow import schema
from fusionflow.errors import StoreError
from fusionflow.io import store
from fusionflow.io.bids import Scan
from fusionflow.io.derivatives import relative_folder, sidecar_content, write_scan_files
from fusionflow.ledger import (
    OutputFile,
    OutputPaths,
    Published,
    discard,
    publish,
    publishing,
    relative_to,
)
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, SliceMetrics
from fusionflow.stages import FusedSlab, Job, Staged
from fusionflow.summary import scan_figures


class WrittenShard(NamedTuple):
    """What is left of slabs once their voxels are in the store."""

    metrics: tuple[SliceMetrics, ...]
    seconds: float
    devices: frozenset[str]


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
        sum(slab.seconds for slab in slabs),
        frozenset(slab.device for slab in slabs),
    )


def commit_slabs(job: Job, staged: Staged, slabs: Sequence[FusedSlab]) -> Published:
    """Write the only shard of a scan and publish it."""
    return commit(job, staged, [write_shard(job, 0, slabs)])


def commit(job: Job, staged: Staged, shards: Sequence[WrittenShard]) -> Published:
    """Finish a scan's group and files, and publish them.

    Raises
    ------
    StoreError
        If the output cannot be written; the scan is then as it was before.
    """
    parts = [metrics for shard in shards for metrics in shard.metrics]
    slices = SliceMetrics(
        pair=np.concatenate([part.pair for part in parts]),
        image=np.concatenate([part.image for part in parts]),
    )
    scan, recipe, paths = job.scan, job.recipe, job.paths
    notes = staged.notes
    weights = recipe.weights.description if recipe.weights else None
    if recipe.weights is not None and recipe.weights.is_random:
        notes = (*notes, f"The backbone has RANDOM weights ({recipe.weights.identity})")
    seconds = sum(shard.seconds for shard in shards)
    devices = sorted(frozenset().union(*(shard.devices for shard in shards)))
    try:
        if job.group.is_dir():  # else this task ran before and its worker died later
            _finish(job, staged, slices, weights, notes)
        with publishing(paths, scan.label):
            stored = _put_in_place(job, staged.version)
            record = Published(
                label=scan.label,
                subject=scan.subject,
                session=scan.session,
                version=staged.version,
                request=job.request,
                method=recipe.method.model_dump(mode="json"),
                weights=weights,
                inputs=staged.inputs,
                frame_durations=scan.frame_durations,
                shape=job.layout.shape,
                affine=staged.affine,
                metrics=scan_figures(slices, seconds),
                seconds=seconds,
                notes=notes,
                outputs=_outputs(paths, scan, staged.version),
                stored=stored,
                software={**software_versions(), "device": ", ".join(devices)},
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            )
            publish(paths, record)
            export(paths, record)
    except OSError as error:
        raise StoreError(
            f"Cannot write the outputs of {scan.label}: {error.strerror or error}",
            "Check space and permissions",
        ) from error
    discard(job.staging)
    return record


def _finish(
    job: Job, staged: Staged, slices: SliceMetrics, weights: str | None, notes: tuple[str, ...]
) -> None:
    """Complete the group and write the files beside it, all in the staging folder."""
    layout, label = job.layout, job.scan.label
    method = job.recipe.method.model_dump(mode="json")
    group = zarr.open_group(job.group, mode="r+", zarr_format=3)
    if "metrics" not in group:  # else this task runs a second time
        pair_names = [metric.name for metric in PAIR_METRICS]
        image_names = [metric.name for metric in IMAGE_METRICS]
        store.write_small(group, "metrics", slices.pair, schema.METRICS.dims)
        store.write_small(group, "image_metrics", slices.image, schema.IMAGE_METRICS.dims)
        store.write_small(group, "source", schema.SOURCES, ("source",))
        store.write_small(group, "metric", pair_names, ("metric",))
        store.write_small(group, "image_metric", image_names, ("image_metric",))
    group.attrs.update(
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
        }
    )
    store.consolidate(job.group)
    volumes = {
        name: store.read_rows(job.group, name, 0, layout.shape[0])
        for name in ("mri", "pet", "mask", "fused")
    }
    files = job.staging / "files"
    files.mkdir(exist_ok=True)
    sources = {"t1w": job.scan.t1w, "pet": job.scan.pet}
    write_scan_files(
        files,
        label,
        volumes.pop("fused"),
        volumes,
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
    )


def _put_in_place(job: Job, version: str) -> tuple[OutputFile, ...]:
    """Move the finished group and files out of the staging folder, and say what they are.

    The same inputs and method may have been fused before. Then what is there stays, for readers
    have it open, unless it is not whole.
    """
    label, paths = job.scan.label, job.paths
    for made, target in (
        (job.group, paths.version(label, version)),
        (job.staging / "files", paths.version_files(label, version)),
    ):
        if not made.is_dir():  # moved when this task ran before
            continue
        if target.exists() and _contents(target) != _contents(made):
            aside = job.staging / f"damaged-{target.name}"
            target.rename(aside)
        if target.exists():
            discard(made)
        else:
            made.rename(target)
    group, files = paths.version(label, version), paths.version_files(label, version)
    return tuple(
        OutputFile.of(path, relative_to(path, paths.root), timed=False)
        for folder in (group, files)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _contents(folder: Path) -> dict[str, int]:
    """Return the files of a version: name -> bytes, of JSON 0, for its words may differ."""
    return {
        relative_to(path, folder): 0 if path.suffix == ".json" else path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


def _outputs(paths: OutputPaths, scan: Scan, version: str) -> tuple[OutputFile, ...]:
    """Describe the files that belong in BIDS places, from those they are copies of."""
    folder = relative_folder(scan.subject, scan.session)
    return tuple(
        OutputFile.of(path, (folder / path.name).as_posix(), timed=True)
        for path in sorted(paths.version_files(scan.label, version).iterdir())
    )


def export(paths: OutputPaths, record: Published) -> None:
    """Put a published scan's files in their BIDS places; done again, it changes nothing.

    They are links to the version's own files, or copies where a file system has no links.

    Raises
    ------
    StoreError
        If they cannot be written.
    """
    files = paths.version_files(record.label, record.version)
    try:
        for output in record.outputs:
            if output.is_there(paths.root):
                continue
            place = paths.root / output.path
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
            try:
                os.link(files / place.name, temporary)
            except OSError:
                shutil.copy2(files / place.name, temporary)
            temporary.replace(place)
    except OSError as error:
        raise StoreError(
            f"Cannot write the files of {record.label}: {error.strerror or error}",
            "Check space and permissions",
        ) from error


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of what decides the bits."""
    packages = ("fusionflow", "numpy", "PyWavelets", "scipy", "torch", "zarr", "nibabel", "dask")
    return {
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }
