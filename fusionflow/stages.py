"""What each task does: conform, decompose, fuse, reconstruct, write, commit.

The first three functions work on arrays; the others are the same steps for a scan whose
volumes lie in its store. They run on workers, and hold no more than a slab or one scan.
"""

from __future__ import annotations

import datetime
import os
import platform
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zarr

import fusionflow
from fusionflow import schema
from fusionflow.backbones import Weights
from fusionflow.config import ConformOptions, Method
from fusionflow.conform import conform
from fusionflow.errors import InputError, StoreError
from fusionflow.fusion import fuse_subbands
from fusionflow.io import store
from fusionflow.io.bids import Scan
from fusionflow.io.derivatives import relative_folder, sidecar_content, write_scan_files
from fusionflow.io.nifti import Orientation
from fusionflow.ledger import InputFile, OutputPaths, Published, discard, fingerprint, publish
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, SliceMetrics, slice_metrics
from fusionflow.placement import require_gpu
from fusionflow.summary import scan_figures
from fusionflow.wavelet import FloatArray, Subbands, decompose, reconstruct

Region = Literal["frame", "mask"]


@dataclass(frozen=True)
class Recipe:
    """How slices are fused and measured; what a task needs to know besides its data.

    Attributes
    ----------
    method : Method
        How.
    weights : Weights or None
        Of the backbone, None if the method reads none.
    region : {"frame", "mask"}
        Where metrics are computed.
    torch_threads : int
        Threads of one forward.
    needs_gpu : bool
        Whether a fuse task must have been given a GPU by the scheduler.
    """

    method: Method
    weights: Weights | None
    region: Region = "frame"
    torch_threads: int = 1
    needs_gpu: bool = False


@dataclass(frozen=True)
class Job:
    """One scan to fuse, as the tasks of its graph share it.

    Attributes
    ----------
    scan : Scan
        What to fuse.
    source : Path
        Root of the BIDS tree.
    paths : OutputPaths
        Where results go.
    layout : store.Layout
        Slabs and shards.
    recipe : Recipe
        How.
    conform : ConformOptions
        How the scan is prepared.
    request : str
        Fingerprint of all that was asked for.
    token : str
        Names this attempt.
    """

    scan: Scan
    source: Path
    paths: OutputPaths
    layout: store.Layout
    recipe: Recipe
    conform: ConformOptions
    request: str
    token: str

    @property
    def staging(self) -> Path:
        """Where the scan is made."""
        return self.paths.staging(self.scan.label, self.token)

    @property
    def group(self) -> Path:
        """The Zarr group in the making."""
        return self.staging / "group"


class BandsOfBoth(NamedTuple):
    """Bands of a slab of both sources, and the seconds that it took so far."""

    mri: Subbands
    pet: Subbands
    seconds: float


class FusedBands(NamedTuple):
    """Fused bands of a slab, and the seconds that it took so far."""

    bands: Subbands
    seconds: float


class FusedSlab(NamedTuple):
    """A fused slab (z, y, x) float32, metrics of its slices, and the seconds that it took."""

    fused: FloatArray
    metrics: SliceMetrics
    seconds: float


def decompose_slab(mri: FloatArray, pet: FloatArray, recipe: Recipe) -> BandsOfBoth:
    """Return the DWT of a slab of both sources."""
    start = time.perf_counter()
    wavelet = recipe.method.wavelet
    of_mri, of_pet = decompose(mri, wavelet), decompose(pet, wavelet)
    return BandsOfBoth(of_mri, of_pet, time.perf_counter() - start)


def fuse_slab(bands: BandsOfBoth, recipe: Recipe) -> FusedBands:
    """Merge the bands of a slab.

    Raises
    ------
    PlacementError
        If this must run on a GPU worker and the scheduler was not asked for one.
    """
    if recipe.needs_gpu:
        require_gpu()
    # The nanny of a worker leaves torch one thread, the machine may give it all: neither is meant.
    if torch.get_num_threads() != recipe.torch_threads:
        torch.set_num_threads(recipe.torch_threads)
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fused = fuse_subbands(bands.mri, bands.pet, recipe.method, recipe.weights, device=device)
    return FusedBands(fused, bands.seconds + time.perf_counter() - start)


def reconstruct_slab(
    fused: FusedBands,
    mri: FloatArray,
    pet: FloatArray,
    mask: npt.NDArray[Any] | None,
    recipe: Recipe,
) -> FusedSlab:
    """Return a fused slab and the metrics of its slices."""
    start = time.perf_counter()
    image = reconstruct(fused.bands, recipe.method.wavelet)
    seconds = fused.seconds + time.perf_counter() - start
    metrics = slice_metrics(mri, pet, image, mask, region=recipe.region)
    return FusedSlab(image, metrics, seconds)


@dataclass(frozen=True)
class Staged:
    """What conforming a scan told about it; its volumes are in the store.

    Attributes
    ----------
    version : str
        Fingerprint of inputs and request.
    inputs : tuple of InputFile
        T1w and PET as they were read.
    affine : tuple of tuple of float
        Voxel (x, y, z) to world mm.
    orientation : Orientation
        Layout of the T1w file.
    conformed : dict
        Scaling and resampling.
    notes : tuple of str
        Warnings.
    """

    version: str
    inputs: tuple[InputFile, ...]
    affine: tuple[tuple[float, ...], ...]
    orientation: Orientation
    conformed: dict[str, Any]
    notes: tuple[str, ...]


def stage_scan(job: Job) -> Staged:
    """Conform a scan and write its volumes into the group in the making.

    Raises
    ------
    InputError
        If an image cannot be used, or changes while it is read.
    StoreError
        If the output cannot be written.
    """
    scan = job.scan
    files = {"t1w": scan.t1w, "pet": scan.pet}
    try:
        before = {name: os.stat(path) for name, path in files.items()}
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}") from error
    conformed = conform(
        scan.t1w,
        scan.pet,
        frame_durations=scan.frame_durations,
        mri_percentile=job.conform.mri_percentile,
        pet_percentile=job.conform.pet_percentile,
    )
    inputs = []
    for name, path in files.items():
        was = before[name]
        is_now = os.stat(path)
        if (was.st_size, was.st_mtime_ns) != (is_now.st_size, is_now.st_mtime_ns):
            raise InputError(f"{path} changed while it was read", "Run again when it is complete")
        inputs.append(InputFile(str(path), was.st_size, was.st_mtime_ns, conformed.sha256[name]))
    if conformed.mri.shape != job.layout.shape:
        raise InputError(f"{scan.t1w} changed its shape since it was planned", "Run again")
    _write_conformed(job, conformed.mri, conformed.pet, conformed.mask)
    return Staged(
        version=fingerprint(
            job.request, repr(scan.frame_durations), *(item.sha256 for item in inputs)
        )[:16],
        inputs=tuple(inputs),
        affine=tuple(tuple(map(float, row)) for row in conformed.affine),
        orientation=conformed.orientation,
        conformed={
            "Resampled": "PET onto the T1w grid, trilinear" if conformed.resampled else "no",
            "Scaling": {
                name: {"offset": scaling.offset, "scale": scaling.scale}
                for name, scaling in conformed.scaling.items()
            },
        },
        notes=(*scan.notes, *conformed.notes),
    )


def _write_conformed(
    job: Job, mri: FloatArray, pet: FloatArray, mask: npt.NDArray[np.uint8]
) -> None:
    """Write the sources, aside first: a scheduler may run this task a second time."""
    aside = job.staging / f"conform-{uuid.uuid4().hex[:8]}"
    variables = {item.name: item for item in (schema.MRI, schema.PET, schema.MASK, schema.FUSED)}
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        store.create_group(aside, job.layout, variables)
        for name, volume in (("mri", mri), ("pet", pet), ("mask", mask)):
            store.write_rows(aside, name, 0, volume, job.layout)
        try:
            aside.rename(job.group)
        except OSError:
            if not job.group.is_dir():
                raise
            discard(aside)  # the first run of this task did it, with the same bits
    except OSError as error:
        raise StoreError(
            f"Cannot write {job.staging}: {error.strerror or error}",
            "Check space and permissions",
        ) from error


def decompose_staged(job: Job, staged: Staged, start: int, stop: int) -> BandsOfBoth:
    """Read a slab of both sources and return its DWT; `staged` says that it is there."""
    mri, pet = (store.read_rows(job.group, name, start, stop) for name in schema.SOURCES)
    return decompose_slab(mri, pet, job.recipe)


def reconstruct_staged(job: Job, fused: FusedBands, start: int, stop: int) -> FusedSlab:
    """Return a fused slab and its metrics against what was staged."""
    mri, pet, mask = (
        store.read_rows(job.group, name, start, stop) for name in (*schema.SOURCES, "mask")
    )
    return reconstruct_slab(fused, mri, pet, mask, job.recipe)


class WrittenShard(NamedTuple):
    """What is left of slabs once their voxels are in the store."""

    metrics: tuple[SliceMetrics, ...]
    seconds: float


def write_shard(job: Job, start: int, slabs: Sequence[FusedSlab]) -> WrittenShard:
    """Write the slabs of one shard, in their order, beginning with slice `start`."""
    rows = np.concatenate([slab.fused for slab in slabs])
    try:
        store.write_rows(job.group, "fused", start, rows, job.layout)
    except OSError as error:
        raise StoreError(
            f"Cannot write {job.group}: {error.strerror or error}", "Check space and permissions"
        ) from error
    return WrittenShard(tuple(slab.metrics for slab in slabs), sum(slab.seconds for slab in slabs))


def commit_slabs(job: Job, staged: Staged, slabs: Sequence[FusedSlab]) -> Published:
    """Write the only shard of a scan and publish it."""
    return commit(job, staged, [write_shard(job, 0, slabs)])


def commit(job: Job, staged: Staged, shards: Sequence[WrittenShard]) -> Published:
    """Finish a scan's group and files, and publish them.

    Everything is made in the staging folder first. Then the group and the files take their
    places, and ``current.json`` makes them count.
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
    folder = relative_folder(scan.subject, scan.session)
    seconds = sum(shard.seconds for shard in shards)
    try:
        names = _finish(job, staged, slices, weights, notes)
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
            outputs=tuple(str(folder / name) for name in names),
            software=software_versions(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        _put_in_place(job, staged.version, folder, names)
    except OSError as error:
        raise StoreError(
            f"Cannot write the outputs of {scan.label}: {error.strerror or error}",
            "Check space and permissions",
        ) from error
    publish(paths, record)
    discard(job.staging)
    return record


def _finish(
    job: Job, staged: Staged, slices: SliceMetrics, weights: str | None, notes: tuple[str, ...]
) -> tuple[str, ...]:
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
    return write_scan_files(
        files,
        label,
        volumes.pop("fused"),
        volumes,
        staged.orientation,
        sidecar_content(
            {name: path.relative_to(job.source).as_posix() for name, path in sources.items()},
            method,
            weights,
            staged.version,
            staged.conformed,
            notes,
        ),
        f"{label}   {job.recipe.method.name}" + (f"   weights: {weights}" if weights else ""),
    )


def _put_in_place(job: Job, version: str, folder: Path, names: Sequence[str]) -> None:
    """Move the finished group and files out of the staging folder."""
    target = job.paths.version(job.scan.label, version)
    try:
        job.group.rename(target)
    except OSError:
        if not (target / "zarr.json").is_file():
            raise
        # The same inputs and method were fused before: the group there holds the same.
    destination = job.paths.root / folder
    destination.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.replace(job.staging / "files" / name, destination / name)


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of what decides the bits."""
    packages = ("numpy", "PyWavelets", "scipy", "torch", "zarr", "nibabel", "dask")
    return {
        "fusionflow": fusionflow.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
