"""What the tasks of a slab do: decompose, fuse, reconstruct.

These work on arrays; `fusionflow.staging` has the same steps for a scan whose volumes lie in its
store, and `fusionflow.commit` the tasks that end a scan.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy.typing as npt
import torch

from fusionflow.config import Method
from fusionflow.cpu_layers import threads_lock
from fusionflow.device import Batch, described
from fusionflow.fusion import fuse_subbands, load_network
from fusionflow.malloc import apart, kept_memory
from fusionflow.metrics import SliceMetrics, slice_metrics
from fusionflow.placement import require_gpu
from fusionflow.plugins import Plugin, require
from fusionflow.subbands import FloatArray, Subbands
from fusionflow.transform import decompose, reconstruct
from fusionflow.weights import Weights

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
    needs_gpu : bool
        Whether a fuse task must have been given a GPU by the scheduler.
    plugins : tuple of Plugin
        What comes from other packages, in the versions of the process that planned the run.
    """

    method: Method
    weights: Weights | None
    region: Region = "frame"
    needs_gpu: bool = False
    plugins: tuple[Plugin, ...] = ()

    @property
    def suits_gpus(self) -> bool:
        """Whether a GPU could do what this has for one."""
        return self.weights is not None and self.method.precision != "int8"


class Seconds(NamedTuple):
    """What the stages of a slab took."""

    decompose: float
    fuse: float = 0.0
    reconstruct: float = 0.0


class BandsOfBoth(NamedTuple):
    """Bands of a slab of both sources."""

    mri: Subbands
    pet: Subbands
    seconds: Seconds


class FusedBands(NamedTuple):
    """Fused bands of a slab, the device they were made on, and the batch if memory was short."""

    bands: Subbands
    seconds: Seconds
    device: str = "cpu"
    halved: int | None = None


class FusedSlab(NamedTuple):
    """A fused slab (z, y, x) float32, metrics of its slices, and where it was made.

    `halved` is how many band images went through the network at a time in the end, if memory was
    short.
    """

    fused: FloatArray
    metrics: SliceMetrics
    seconds: Seconds
    device: str = "cpu"
    halved: int | None = None


@kept_memory()
def decompose_slab(mri: FloatArray, pet: FloatArray, recipe: Recipe) -> BandsOfBoth:
    """Return the DWT of a slab of both sources."""
    start = time.perf_counter()
    transform = recipe.method.transform
    of_mri, of_pet = decompose(mri, transform), decompose(pet, transform)
    return BandsOfBoth(_apart(of_mri), _apart(of_pet), Seconds(time.perf_counter() - start))


def _apart(bands: Subbands) -> Subbands:
    return bands.with_bands(apart(band) for _, _, band in bands.bands())


def device_of(recipe: Recipe) -> str:
    """Return where this process fuses.

    A GPU is used where the scheduler gives it out; else several tasks would share it unasked. A
    worker may advertise one that torch does not see: `fusionflow.preflight` says so aloud.
    """
    return "cuda" if recipe.needs_gpu and torch.cuda.is_available() else "cpu"


@kept_memory()
def fuse_slab(bands: BandsOfBoth, recipe: Recipe) -> FusedBands:
    """Merge the bands of a slab.

    Raises
    ------
    PlacementError
        If this must run on a GPU worker and the scheduler was not asked for one, or the worker has
        another version of a plug-in.
    DeviceMemoryError
        If memory does not hold what the network makes of one image.
    """
    if recipe.needs_gpu:
        require_gpu()
    require(recipe.plugins)
    device = device_of(recipe)
    method, weights = recipe.method, recipe.weights
    if weights is not None:
        load_network(method, weights, device)  # once a process, and not fusion time
    batch = Batch(method, device)
    told = device if weights is None else described(device, method.precision)
    with torch_threads(method.threads):
        start = time.perf_counter()
        fused = fuse_subbands(bands.mri, bands.pet, method, weights, batch)
        seconds = bands.seconds._replace(fuse=time.perf_counter() - start)
    return FusedBands(_apart(fused), seconds, told, batch.halved)


class _TorchThreads:
    """How many tasks of this process run with a number of torch threads, and what was before."""

    lock = threads_lock
    inside = 0
    before = 1


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Run with that many torch threads: a nanny leaves one, a machine gives all; neither is meant.

    The number is the process's. It is put back when the last of the tasks that run beside each
    other is done, so that a caller's own torch code finds its number again.
    """
    state = _TorchThreads
    with state.lock:
        if state.inside == 0:
            state.before = torch.get_num_threads()
        state.inside += 1
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
    try:
        yield
    finally:
        with state.lock:
            state.inside -= 1
            if state.inside == 0 and state.before != threads:
                torch.set_num_threads(state.before)


@kept_memory()
def reconstruct_slab(
    fused: FusedBands,
    mri: FloatArray,
    pet: FloatArray,
    mask: npt.NDArray[Any] | None,
    recipe: Recipe,
) -> FusedSlab:
    """Return a fused slab and the metrics of its slices."""
    start = time.perf_counter()
    image = reconstruct(fused.bands, recipe.method.transform)
    seconds = fused.seconds._replace(reconstruct=time.perf_counter() - start)
    metrics = slice_metrics(mri, pet, image, mask, region=recipe.region)
    return FusedSlab(apart(image), metrics, seconds, fused.device, fused.halved)
