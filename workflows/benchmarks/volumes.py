"""What the benchmarks measure on: real volumes where they are, phantoms else; tiny scans; weights.

A `Bare` process does to arrays in memory what a run does to scans, and nothing else: it is what
runs are compared with.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, NamedTuple, get_args

import nibabel as nib
import numpy as np
import torch
import torchvision
from measure import Result
from safetensors.torch import save_file

from fusionflow.config import METHODS, ConformOptions, Method, Precision
from fusionflow.conform import Conformed, conform
from fusionflow.graph import make_recipe
from fusionflow.int8 import has_int8
from fusionflow.io.nifti import read_volume
from fusionflow.io.store import Layout
from fusionflow.phantom import make_phantom
from fusionflow.stages import Recipe, decompose_slab, fuse_slab, reconstruct_slab

#: Registration is no part of what is compared: it has a benchmark of its own.
AS_IN_HEADER = ConformOptions(registration="header")
_LAST_TAP = 12  # relu3_1 of VGG19


class Pair(NamedTuple):
    """The files of one scan."""

    name: str
    t1w: Path
    pet: Path


def find_pair(name: str, given: Namespace, folder: Path, result: Result) -> Pair:
    """Return a scan of the real data, or a phantom in its stead, loudly."""
    place = given.data / "bids" / name
    t1w, pet = sorted(place.glob("anat/*_T1w.nii.gz")), sorted(place.glob("pet/*_pet.nii.gz"))
    if t1w and pet:
        return Pair(name, t1w[0], pet[0])
    result.skip(f"{name} is not at {place}; a phantom stands in its place")
    return phantom_pair(folder, 32 if given.quick else 96)


def phantom_pair(folder: Path, side: int) -> Pair:
    """Write a phantom whose PET lies on the grid of its MRI."""
    phantom = make_phantom(1, shape=(side, side, side))
    folder.mkdir(parents=True, exist_ok=True)
    pair = Pair(f"phantom-{side}", folder / "phantom_T1w.nii.gz", folder / "phantom_pet.nii.gz")
    nib.save(nib.Nifti1Image(phantom.t1w, phantom.t1w_affine), pair.t1w)
    nib.save(nib.Nifti1Image(phantom.pet, phantom.pet_affine), pair.pet)
    return pair


def thinned(pair: Pair, slices: int, folder: Path) -> Pair:
    """Write a scan with every n-th slice alone, so that about so many are left; 0 for all."""
    folder.mkdir(parents=True, exist_ok=True)
    mri = nib.as_closest_canonical(nib.load(pair.t1w))
    pet = nib.as_closest_canonical(nib.load(pair.pet))
    step = max(1, mri.shape[2] // slices) if slices else 1
    if step == 1:
        return pair
    cut = Pair(f"{pair.name}, a slice in {step}", folder / "T1w.nii.gz", folder / "pet.nii.gz")
    on_mri = mri.shape == pet.shape[:3] and np.allclose(mri.affine, pet.affine, atol=1e-3)
    for image, path in ((mri, cut.t1w), (pet, cut.pet)):
        if image is pet and not on_mri:  # it is resampled onto those slices anyway
            nib.save(pet, path)
            continue
        affine = image.affine @ np.diag([1.0, 1.0, float(step), 1.0])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:, :, ::step], affine), path)
    return cut


def cohort_of(pair: Pair, folder: Path, scans: int = 1) -> Path:
    """Write a BIDS tree of so many copies of a scan."""
    for number in range(1, scans + 1):
        name = f"sub-{number:02}"
        for source, place in ((pair.t1w, f"anat/{name}_T1w"), (pair.pet, f"pet/{name}_pet")):
            target = folder / name / f"{place}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


def tiny_cohort(folder: Path, scans: int, side: int = 16) -> Path:
    """Write a BIDS tree of so many small scans: a bright box in noise, another in each."""
    rng = np.random.default_rng(0)
    for number in range(scans):
        for datatype, suffix in (("anat", "T1w"), ("pet", "pet")):
            volume = rng.integers(0, 20, (side,) * 3).astype(np.int16)
            box = slice(side // 4, 3 * side // 4)
            volume[box, box, box] += rng.integers(100, 200)
            place = folder / f"sub-{number:05}" / datatype
            place.mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(volume, np.diag([4.0, 4.0, 4.0, 1.0]))
            nib.save(image, place / f"sub-{number:05}_{suffix}.nii.gz")
    return folder


def find_method(name: str, given: Namespace, folder: Path, result: Result) -> Method:
    """Return a method with the weights at hand: VGG19's, or random ones of its shape, loudly."""
    method = METHODS[name]
    if method.backbone != "vgg19" or method.rule == "learned":
        return method
    files = sorted(given.weights.glob("vgg19*.safetensors"), key=lambda path: len(path.name))
    if files:
        return method.model_copy(update={"weights": str(files[0])})
    result.skip(f"no vgg19*.safetensors in {given.weights}; random weights stand in their place")
    return method.model_copy(update={"weights": str(random_vgg19(folder / "vgg19.safetensors"))})


def precisions() -> list[Precision]:
    """Return the arithmetic that networks can have here, float32 first."""
    return [each for each in get_args(Precision) if each != "int8" or has_int8()]


def random_vgg19(path: Path) -> Path:
    """Write random weights of VGG19 as far as its default taps need them."""
    torch.manual_seed(0)
    layers = torchvision.models.vgg19().features[:_LAST_TAP]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"features.{name}": value for name, value in layers.state_dict().items()}, path)
    return path


def in_memory(pair: Pair) -> Conformed:
    """Return a scan as a run conforms it."""
    read_volume(pair.t1w)  # into the page cache
    return conform(pair.t1w, pair.pet, AS_IN_HEADER)


def bare_stages(scan: Conformed, recipe: Recipe) -> tuple[dict[str, float], np.ndarray]:
    """Do what tasks do to slabs; return the seconds of each stage, and the fused volume."""
    spent = dict.fromkeys(("decompose", "fuse", "reconstruct and metrics"), 0.0)
    fused = []
    for start, stop in Layout.of_shape(scan.mri.shape).slabs:
        mri, pet, mask = (volume[start:stop] for volume in (scan.mri, scan.pet, scan.mask))
        times = [time.perf_counter()]
        bands = decompose_slab(mri, pet, recipe)
        times.append(time.perf_counter())
        merged = fuse_slab(bands, recipe)
        times.append(time.perf_counter())
        fused.append(reconstruct_slab(merged, mri, pet, mask, recipe).fused)
        times.append(time.perf_counter())
        for stage, took in zip(spent, np.diff(times), strict=True):
            spent[stage] += float(took)
    return spent, np.concatenate(fused)


_process: dict[str, Any] = {}


def _begin(pair: Pair, method: Method, barrier: Barrier | None) -> None:
    _process.update(scan=in_memory(pair), recipe=make_recipe(method), barrier=barrier)


def _passes(times: int) -> tuple[float, dict[str, float], str]:
    """Go over the volume so many times; return the seconds, those of the last, and its checksum."""
    if _process["barrier"] is not None:
        _process["barrier"].wait()
    start = time.perf_counter()
    for _ in range(times):
        spent, fused = bare_stages(_process["scan"], _process["recipe"])
    return time.perf_counter() - start, spent, checksum(fused)


def _in_process(function: Callable[..., Any]) -> Any:  # noqa: ANN401
    return function(_process["scan"], _process["recipe"])


def checksum(volume: np.ndarray) -> str:
    """Return what tells whether two volumes are the same bits."""
    return hashlib.sha256(np.ascontiguousarray(volume).tobytes()).hexdigest()


class Bare:
    """Processes that hold a volume in memory and work on it with one thread, begun together."""

    def __init__(self, pair: Pair, method: Method, count: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(count) if count > 1 else None
        self._pools = [
            ProcessPoolExecutor(1, context, _begin, (pair, method, barrier)) for _ in range(count)
        ]

    def passes(self, times: int) -> list[tuple[float, dict[str, float], str]]:
        """Go over the volume so many times in every process, beginning together."""
        return [future.result() for future in self._all(_passes, times)]

    def call(self, function: Callable[..., Any]) -> Any:  # noqa: ANN401
        """Return what a function of the scan and the recipe gives in the first process."""
        return self._pools[0].submit(_in_process, function).result()

    def _all(self, function: Callable[..., Any], *arguments: object) -> list[Future[Any]]:
        return [pool.submit(function, *arguments) for pool in self._pools]

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def one_thread_a_process() -> None:
    """Let processes that are started from now on have one thread, as Dask's workers have."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
