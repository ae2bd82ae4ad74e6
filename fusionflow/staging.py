"""What the tasks of a scan do before it is finished: conform it, and the steps of its slabs.

A scan is made in a staging folder; its volumes go from task to task through the Zarr group there.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fusionflow import schema
from fusionflow.config import ConformOptions
from fusionflow.conform import Keep, Preparation, conform_into
from fusionflow.errors import InputChangedError, InputError, StoreError
from fusionflow.io import store
from fusionflow.io.files import discard, file_sha256, fingerprint, relative_to
from fusionflow.io.nifti import Orientation
from fusionflow.io.scans import Scan
from fusionflow.ledger import OutputPaths
from fusionflow.malloc import kept_memory
from fusionflow.plugins import require
from fusionflow.records import Attempt, InputFile
from fusionflow.registration_picture import picture_of
from fusionflow.stages import (
    BandsOfBoth,
    FusedBands,
    FusedSlab,
    Recipe,
    decompose_slab,
    reconstruct_slab,
)


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
    staging : Path
        Where the scan is made; the runner makes and removes it.
    begun : Attempt
        What is written down of it while it runs.
    why : str
        Why it is made.
    """

    scan: Scan
    source: Path
    paths: OutputPaths
    layout: store.Layout
    recipe: Recipe
    conform: ConformOptions
    request: str
    token: str
    staging: Path
    begun: Attempt
    why: str = ""

    @property
    def group(self) -> Path:
        """The Zarr group in the making."""
        return self.staging / "group"


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
    seconds : float
        What it took.
    registration : bytes or None
        PNG of the PET over the MRI before and after registration; None where none was tried.
    """

    version: str
    inputs: tuple[InputFile, ...]
    affine: tuple[tuple[float, ...], ...]
    orientation: Orientation
    conformed: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    registration: bytes | None = None


@kept_memory()
def stage_scan(job: Job) -> Staged:
    """Conform a scan and write its volumes into the group in the making.

    Raises
    ------
    InputError
        If an image cannot be used.
    InputChangedError
        If one changes while it is read.
    StoreError
        If the output cannot be written.
    PlacementError
        If this worker has another version of a plug-in.
    """
    began = time.perf_counter()
    require(job.recipe.plugins)
    scan = job.scan
    files = scan.files
    try:
        before = {name: os.stat(path) for name, path in files.items()}
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}") from error
    with _group_aside(job) as keep:
        try:
            conformed = conform_into(
                keep,
                scan.t1w,
                scan.pet,
                job.conform,
                info=scan.pet_info,
                mask=scan.mask,
                reference=scan.reference,
                pet_in_t1w_space=scan.pet_in_t1w_space,
            )
        finally:  # what is wrong with a file that just changed is not what is wrong with it
            for name, path in files.items():
                _check_unchanged(path, before[name])
    inputs = [
        InputFile(
            relative_to(path, job.source),
            before[name].st_size,
            before[name].st_mtime_ns,
            conformed.sha256.get(name) or file_sha256(path),
        )
        for name, path in files.items()
    ]
    registration = None
    if conformed.outlines is not None:
        registration = picture_of(conformed.outlines, conformed.alignment, scan.label)
    return Staged(
        version=fingerprint(
            job.request,
            scan.facts,
            *(f"{name} {item.sha256}" for name, item in zip(files, inputs, strict=True)),
        )[:16],
        inputs=tuple(inputs),
        affine=tuple(tuple(map(float, row)) for row in conformed.affine),
        orientation=conformed.orientation,
        conformed=_described(conformed, job.conform),
        notes=(*scan.notes, *conformed.notes),
        seconds=time.perf_counter() - began,
        registration=registration,
    )


def _described(conformed: Preparation, options: ConformOptions) -> dict[str, Any]:
    """Return how a scan was prepared, for records and sidecars."""
    grid = "the T1w grid" if options.space is None else f"the grid of {options.space.name}"
    return {
        "Alignment": conformed.alignment.to_json(),
        "Resampled": f"PET onto {grid}, trilinear" if conformed.resampled else "no",
        "Frames": options.frames,
        "Units": conformed.units,
        "SUVFactor": conformed.suv_factor,
        "Mask": conformed.mask_from,
        "Space": None if options.space is None else options.space.name,
        "Scaling": {
            name: {"offset": scaling.offset, "scale": scaling.scale}
            for name, scaling in conformed.scaling.items()
        },
        "Options": options.model_dump(mode="json", exclude={"space"}),
    }


def _check_unchanged(path: Path, before: os.stat_result) -> None:
    try:
        now = os.stat(path)
    except OSError:
        now = None
    if now is None or (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise InputChangedError(
            f"{path} changed while it was read", "Run again when it is complete"
        )


@contextlib.contextmanager
def _group_aside(job: Job) -> Iterator[Keep]:
    """Make the group of a scan, and give what writes its volumes.

    It is made aside first, for a scheduler may run this task a second time; and shard by shard, for
    what Zarr holds while it writes is several times what it is given. The volumes of a small scan
    are written by a thread while the next is read, and what goes wrong is raised a little later.
    """
    aside = job.staging / f"conform-{uuid.uuid4().hex[:8]}"
    variables = (schema.MRI, schema.PET, schema.MASK, schema.FUSED)
    pool, writings = ThreadPoolExecutor(1), list[Future[None]]()

    @kept_memory()
    def write(name: str, volume: npt.NDArray[Any]) -> None:
        with _says_where(job):
            for start, stop in job.layout.shards:
                store.write_rows(aside, name, start, volume[start:stop], job.layout)

    def keep(name: str, volume: npt.NDArray[Any]) -> None:
        if volume.shape != job.layout.shape:
            raise InputChangedError(
                f"{job.scan.t1w} changed its shape since it was planned", "Run again"
            )
        writings.append(pool.submit(write, name, volume))
        for writing in writings:
            if writing.done() or volume.size > store.SMALL_SCAN:
                writing.result()

    try:
        with _says_where(job):
            # In a folder that is gone if its run is: what is left of that ends here.
            store.create_group(aside, job.layout, variables)
        try:
            yield keep
            for writing in writings:
                writing.result()
        finally:
            pool.shutdown(cancel_futures=True)
    except BaseException:
        discard(aside)
        raise
    with _says_where(job):
        try:
            aside.rename(job.group)
        except OSError:
            if not job.group.is_dir():
                raise
            discard(aside)  # the first run of this task did it, with the same bits


@contextlib.contextmanager
def _says_where(job: Job) -> Iterator[None]:
    """Turn what goes wrong with the store into a `StoreError` with a mend."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"Cannot write {job.staging}: {error.strerror or error}",
            "Check space and permissions",
        ) from error


@kept_memory()
def decompose_staged(job: Job, staged: Staged, start: int, stop: int) -> BandsOfBoth:
    """Read a slab of both sources and return its DWT; `staged` says that it is there."""
    mri, pet = (store.read_rows(job.group, name, start, stop) for name in schema.SOURCES)
    return decompose_slab(mri, pet, job.recipe)


@kept_memory()
def reconstruct_staged(job: Job, fused: FusedBands, start: int, stop: int) -> FusedSlab:
    """Return a fused slab and its metrics against what was staged."""
    mri, pet, mask = (
        store.read_rows(job.group, name, start, stop) for name in (*schema.SOURCES, "mask")
    )
    return reconstruct_slab(fused, mri, pet, mask, job.recipe)
