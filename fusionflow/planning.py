"""What a run would do to an input, from headers alone: scans, steps, memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusionflow.config import Precision, RunConfig
from fusionflow.errors import FusionflowError, GridError, WeightsError
from fusionflow.frames import frame_weights, parse_frames
from fusionflow.graph import make_recipe
from fusionflow.int8 import has_int8
from fusionflow.io.files import relative_to
from fusionflow.io.inputs import find_scans
from fusionflow.io.nifti import ImageHeader, Volume, grid_of, read_header
from fusionflow.io.scans import Excluded, Scan
from fusionflow.io.store import SMALL_SCAN, Layout
from fusionflow.kept import Kept
from fusionflow.masks import mask_rule
from fusionflow.resample import describe_grid, same_grid
from fusionflow.stages import Recipe, decompose_slab, fuse_slab, reconstruct_slab
from fusionflow.suv import suv_factor
from fusionflow.transform import check_levels

#: Measured: bytes that a worker holds for each voxel of the largest image of a scan while it
#: conforms, stores or finishes that, and for each pixel of a slice while the network reads it,
#: beside what it needs to be there at all, and to have a network.
_BYTES_A_VOXEL = 11
#: Volumes and files of a small scan are written beside other work on it.
_BYTES_A_VOXEL_OF_A_SMALL_SCAN = 15
_BYTES_A_PIXEL_OF_NETWORK = 2_000
#: Of those, what is kept for the next slice: by Winograd's convolutions, or as maps for int8.
_BYTES_A_PIXEL_KEPT = {"float32": 300, "bfloat16": 300, "int8": 800}
BYTES_OF_A_WORKER = 670e6
_BYTES_OF_A_NETWORK = 170e6
#: oneDNN keeps a program for each size that convolutions of int8 had, the last thousand.
_BYTES_OF_PROGRAMS = {"float32": 0.0, "bfloat16": 0.0, "int8": 90e6}
#: Of a worker's memory, for itself and what scans in flight hold: there Dask begins to spill.
_SHARE = 0.6
#: At most so many slices, and pixels, are fused to see how long it takes.
_PROBE_SLICES, _PROBE_PIXELS = 2, 128**2


@dataclass(frozen=True)
class Outlook:
    """What a run would do to a scan.

    Attributes
    ----------
    label : str
        Which scan.
    files : dict
        Role -> path, relative to the input.
    shape : tuple of int
        (z, y, x) of what is fused.
    voxel_mm : tuple of float
        Along (z, y, x).
    steps : tuple of str
        What would be done, in order.
    notes : tuple of str
        What a person should know.
    memory_bytes : float
        What a worker would need, estimated.
    seconds : float or None
        Of one core, estimated by fusing slices of noise; None if the method cannot run here.
    """

    label: str
    files: dict[str, str]
    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    steps: tuple[str, ...]
    notes: tuple[str, ...]
    memory_bytes: float
    seconds: float | None


@dataclass(frozen=True)
class Outlooks:
    """What a run would do.

    Attributes
    ----------
    scans : tuple of Outlook
        What would run.
    excluded : tuple of Excluded
        What would not, and why.
    notes : tuple of str
        On the input as a whole, and on what could not be estimated.
    """

    scans: tuple[Outlook, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return asdict(self)


def plan(
    source: Path,
    config: RunConfig | None = None,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
) -> Outlooks:
    """Say what a run would do to each scan. Headers are read, voxels are not.

    Parameters
    ----------
    source : Path
        BIDS dataset or manifest.
    config : RunConfig, optional
        As for a run.
    participant_labels, session_labels : sequence of str
        Only these.

    Raises
    ------
    ConfigurationError
        If the input cannot be read or an option cannot be used.
    """
    config = config or RunConfig()
    found = find_scans(
        source, config.input, participant_labels=participant_labels, session_labels=session_labels
    )
    parse_frames(config.conform.frames)
    if config.conform.mask != "auto":
        mask_rule(config.conform.mask)
    notes = list(found.notes)
    recipe: Recipe | None = None
    timed: Recipe | None = None
    try:
        recipe = timed = make_recipe(config.method, config.region, mask=config.conform.mask)
        in_int8 = recipe.weights is not None and recipe.method.precision == "int8"
        if in_int8 and not has_int8():  # workers may have it
            notes.append("no estimate of time: this processor has no convolutions of 8 bits")
            timed = None
    except WeightsError as error:
        notes.append(f"no estimate of time: {error}")
    scans, excluded = [], list(found.excluded)
    for scan in found.scans:
        try:
            scans.append(_outlook(scan, found.root, config, recipe, timed))
        except FusionflowError as error:
            excluded.append(Excluded(scan.label, str(error), broken=True))
    return Outlooks(tuple(scans), tuple(excluded), tuple(notes))


def voxels_held(t1w: ImageHeader, pet: ImageHeader, grid: int) -> int:
    """Return the voxels of the largest volume that conforming holds, in those of float32.

    Parameters
    ----------
    t1w, pet : ImageHeader
        The images.
    grid : int
        Voxels of the grid that results get.
    """
    of_mri, of_pet = (math.prod(image.orientation.ras_shape) for image in (t1w, pet))
    if pet.n_frames > 1:  # their mean is made in float64, beside the frame that is next
        of_pet = of_pet * (_BYTES_A_VOXEL + 8) // _BYTES_A_VOXEL
    return max(grid, of_mri, of_pet)


def bytes_for_scans(limits: Iterable[float], *, reads_network: bool) -> float:
    """Return how many bytes scans in flight may hold, together, on workers of such limits."""
    bare = BYTES_OF_A_WORKER + (_BYTES_OF_A_NETWORK if reads_network else 0)
    return sum(max(0.0, limit * _SHARE - bare) for limit in limits)


def memory_needed(
    voxels: int, pixels: int, *, reads_network: bool, precision: Precision = "float32"
) -> float:
    """Return about how many bytes a worker needs for a scan.

    Parameters
    ----------
    voxels : int
        Of the largest of T1w, PET, and the grid that results get.
    pixels : int
        Of a slice.
    reads_network : bool
        Whether the method has a network.
    precision : str
        Of the method.
    """
    of_small = min(voxels, SMALL_SCAN) * _BYTES_A_VOXEL_OF_A_SMALL_SCAN
    need = BYTES_OF_A_WORKER + max(voxels * _BYTES_A_VOXEL, of_small)
    if reads_network:  # one stage at a time
        need += pixels * _BYTES_A_PIXEL_KEPT[precision]
        need = max(need, BYTES_OF_A_WORKER + pixels * _BYTES_A_PIXEL_OF_NETWORK)
        need += _BYTES_OF_A_NETWORK + _BYTES_OF_PROGRAMS[precision]
    return need


def seconds_a_slice(recipe: Recipe, rows: int, columns: int) -> float:
    """Return how long a slice takes here, by fusing slices of noise.

    Timed once in a process for a method and size, and kept: it does not follow what else the
    machine does later. That loads the network.
    """
    return _probed.get((recipe, rows, columns), lambda: _probe(recipe, rows, columns))


#: Seconds by recipe, rows and columns.
_probed: Kept[float] = Kept(most=256)


def _probe(recipe: Recipe, rows: int, columns: int) -> float:
    slices = min(max(1, _PROBE_PIXELS // (rows * columns)), _PROBE_SLICES)
    noise = np.random.default_rng(0).random((2, slices, rows, columns), dtype=np.float32)
    for count in (1, slices):  # the first loads the network
        mri, pet = noise[:, :count]
        began = time.perf_counter()
        fused = fuse_slab(decompose_slab(mri, pet, recipe), recipe)
        reconstruct_slab(fused, mri, pet, None, recipe)
    return (time.perf_counter() - began) / slices


def _outlook(
    scan: Scan, root: Path, config: RunConfig, recipe: Recipe | None, timed: Recipe | None
) -> Outlook:
    """Look at the headers of one scan; `timed` tells how long it takes, if anything does."""
    options = config.conform
    t1w, pet = read_header(scan.t1w), read_header(scan.pet)
    mri, uptake = grid_of(t1w), grid_of(pet)
    grid = mri if options.space is None else grid_of(read_header(options.space))
    x, y, z = grid.data.shape
    check_levels((y, x), config.method.transform)
    _, frames = frame_weights(scan.pet, pet.n_frames, scan.pet_info, parse_frames(options.frames))
    steps = [
        *(f"PET: {note}" for note in frames),
        _mask_step(scan, config),
        _alignment_step(scan, config, mri, uptake),
    ]
    if options.space is not None and not same_grid(mri, grid.data.shape, grid.affine):
        steps.append(f"both resampled onto {options.space.name}, {describe_grid(grid)}")
    steps.append(_units_step(scan, config))
    steps.append(f"{config.method.name} on {z} slices of {y} x {x}")
    layout = Layout.of_shape((z, y, x))
    size_x, size_y, size_z = np.linalg.norm(grid.affine[:3, :3], axis=0).tolist()
    return Outlook(
        label=scan.label,
        files={role: relative_to(path, root) for role, path in scan.files.items()},
        shape=layout.shape,
        voxel_mm=(size_z, size_y, size_x),
        steps=tuple(steps),
        notes=(*scan.notes, *(f"T1w: {n}" for n in t1w.notes), *(f"PET: {n}" for n in pet.notes)),
        memory_bytes=memory_needed(
            voxels_held(t1w, pet, x * y * z),
            x * y,
            reads_network=bool(recipe and recipe.weights),
            precision=config.method.precision,
        ),
        seconds=None if timed is None else seconds_a_slice(timed, y, x) * z,
    )


def _mask_step(scan: Scan, config: RunConfig) -> str:
    rule = config.conform.mask
    if rule == "auto" and scan.mask is not None:
        return f"mask from {scan.mask.name}"
    return f"mask by the rule {'head' if rule == 'auto' else rule}"


def _alignment_step(scan: Scan, config: RunConfig, mri: Volume, uptake: Volume) -> str:
    mode = config.conform.registration
    if scan.pet_in_t1w_space:
        return "PET is in T1w space already"
    if mode == "none":
        if uptake.data.shape != mri.data.shape:
            raise GridError(
                f"registration: none takes voxel for voxel, and {scan.t1w} has "
                f"{mri.data.shape} voxels, {scan.pet} {uptake.data.shape}",
                "Take header, rigid or auto",
            )
        return "PET voxel for voxel"
    here = same_grid(uptake, mri.data.shape, mri.affine)
    if mode == "header":
        if here:
            return "PET lies on the MRI's grid"
        return f"PET resampled through the headers from {describe_grid(uptake)}"
    if mode == "rigid":
        return f"PET registered, and resampled once from {describe_grid(uptake)}"
    return "PET registered where the headers disagree" + (
        "; it lies on the MRI's grid"
        if here
        else f", and resampled once from {describe_grid(uptake)}"
    )


def _units_step(scan: Scan, config: RunConfig) -> str:
    units, window = config.conform.pet_units, config.conform.pet_window
    if units == "suv":
        factor, missing = suv_factor(scan.pet_info)
        if factor is None:
            raise GridError(
                f"{scan.pet} cannot be brought to SUV: its metadata lack {', '.join(missing)}",
                "Complete its sidecar and participants.tsv, or take pet_units: stored",
            )
    if units == "suvr" and scan.reference is None:
        raise GridError(f"There is no mask of the reference region for {scan.pet}")
    name = {"stored": "stored values", "suv": "SUV", "suvr": "SUVR"}[units]
    if window is None:
        return f"PET in {name}, scaled by the {config.conform.pet_percentile:g}th percentile"
    return f"PET in {name}, scaled from {window[0]:g} to {window[1]:g}"
