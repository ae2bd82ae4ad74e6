"""Pairs of slices to train on: read, cut into squares, varied.

What is drawn depends on the seed and on the number of the step alone, so a training that goes on
after a break sees what it would have seen without.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from fusionflow.config import ConformOptions, InputOptions
from fusionflow.conform import conform
from fusionflow.errors import ConfigurationError, InputError
from fusionflow.images import find_pair_folders, read_pair
from fusionflow.io.inputs import find_scans
from fusionflow.phantom import make_phantom
from fusionflow.subbands import FloatArray
from fusionflow.train_config import (
    PLANES,
    Augmentation,
    Phantoms,
    Pictures,
    Plane,
    Scans,
    Source,
    TrainConfig,
    Volumes,
)

__all__ = ["Batch", "SlicePair", "check_apart", "checksum", "draw", "read_slices"]

#: Share of a slice that must be brighter than this, in the MRI, for it to be worth reading.
_LEAST_HEAD, _DARK = 0.05, 0.1
#: What the smallest slices need, for the figures of a whole slice.
_LEAST_SIDE = 48


@dataclass(frozen=True)
class SlicePair:
    """One slice of both sources.

    Attributes
    ----------
    name : str
        Where it is from.
    mri, pet : ndarray, (y, x) float32
        0..1.
    """

    name: str
    mri: FloatArray
    pet: FloatArray

    def checksum(self) -> str:
        """Return a SHA-256 over the values, whatever the slice is called."""
        shape = str(self.mri.shape).encode()
        return hashlib.sha256(shape + self.mri.tobytes() + self.pet.tobytes()).hexdigest()


def checksum(slices: Sequence[SlicePair]) -> str:
    """Return a SHA-256 over the values of some slices, in their order."""
    return hashlib.sha256("".join(pair.checksum() for pair in slices).encode()).hexdigest()


def check_apart(train: Sequence[SlicePair], validation: Sequence[SlicePair]) -> None:
    """Make sure that no slice is both trained on and validated with.

    Raises
    ------
    ConfigurationError
        If one is.
    """
    seen = {pair.checksum(): pair.name for pair in train}
    for pair in validation:
        if pair.checksum() in seen:
            raise ConfigurationError(
                f"The slice {pair.name} is there to train on and to validate with",
                "Validate with slices of other people",
            )


def read_slices(sources: Sequence[Source]) -> list[SlicePair]:
    """Read all slices of some sources that show a head.

    Raises
    ------
    ConfigurationError
        If a source has none.
    InputError
        If an image cannot be used.
    """
    found: list[SlicePair] = []
    for source in sources:
        before = len(found)
        found += _READERS[source.kind](source)
        if len(found) == before:
            raise ConfigurationError(
                f"No slice that shows a head comes from {source.canonical()}",
                f"Its pictures must match `names`, its scans have a T1w and a PET, and slices be "
                f"at least {_LEAST_SIDE} pixels wide and high",
            )
    return found


def _of_pictures(source: Source) -> Iterator[SlicePair]:
    assert isinstance(source, Pictures)
    pairs = [
        pair
        for pair in find_pair_folders(Path(source.folder))
        if fnmatch.fnmatch(pair.name, source.names)
    ]
    for pair in pairs[:: source.every]:
        read = read_pair(pair, source.pet)
        if min(read.mri.shape) < _LEAST_SIDE:
            raise InputError(
                f"{pair.mri} has {read.mri.shape[1]} x {read.mri.shape[0]} pixels; the figures of "
                f"a slice need {_LEAST_SIDE} or more each way",
                "Take it out, or name others with `names`",
            )
        yield SlicePair(pair.name, read.mri.astype(np.float32), read.pet.astype(np.float32))


def _of_scans(source: Source) -> Iterator[SlicePair]:
    assert isinstance(source, Scans)
    found = find_scans(Path(source.path), InputOptions(), participant_labels=source.participants)
    for scan in found.scans:
        yield from _of_files(scan.label, scan.t1w, scan.pet, source.planes, source.every)


def _of_volumes(source: Source) -> Iterator[SlicePair]:
    assert isinstance(source, Volumes)
    name = Path(source.t1w).name.split(".")[0]
    yield from _of_files(name, Path(source.t1w), Path(source.pet), source.planes, source.every)


def _of_phantoms(source: Source) -> Iterator[SlicePair]:
    assert isinstance(source, Phantoms)
    for seed in range(source.first, source.first + source.count):
        phantom = make_phantom(seed, shape=source.shape)
        with tempfile.TemporaryDirectory() as folder:
            t1w, pet = Path(folder) / "t1w.nii", Path(folder) / "pet.nii"
            nib.save(nib.Nifti1Image(phantom.t1w, phantom.t1w_affine), t1w)
            nib.save(nib.Nifti1Image(phantom.pet, phantom.pet_affine), pet)
            yield from _of_files(f"phantom-{seed}", t1w, pet, source.planes, source.every)


def _of_files(
    name: str, t1w: Path, pet: Path, planes: Sequence[Plane], every: int
) -> Iterator[SlicePair]:
    """Conform a pair with its headers, and slice it."""
    conformed = conform(t1w, pet, ConformOptions(registration="header"))
    volumes = [np.clip(volume, 0, 1) for volume in (conformed.mri, conformed.pet)]
    for plane in planes:
        axis = PLANES.index(plane)
        mri, pet_volume = (np.moveaxis(volume, axis, 0) for volume in volumes)
        # Half a step in: the first slices show the least.
        for index in range(every // 2, len(mri), every):
            if np.mean(mri[index] > _DARK) >= _LEAST_HEAD and min(mri.shape[1:]) >= _LEAST_SIDE:
                yield SlicePair(
                    f"{name}_{plane}{index:03}",
                    np.ascontiguousarray(mri[index], dtype=np.float32),
                    np.ascontiguousarray(pet_volume[index], dtype=np.float32),
                )


_READERS = {
    "pictures": _of_pictures,
    "scans": _of_scans,
    "volumes": _of_volumes,
    "phantoms": _of_phantoms,
}


@dataclass(frozen=True)
class Batch:
    """Squares of both sources, (n, crop, crop) float32, and the balance wanted of each, (n,)."""

    mri: torch.Tensor
    pet: torch.Tensor
    balance: torch.Tensor

    def to(self, device: str) -> Batch:
        """Return the same on a device."""
        return Batch(self.mri.to(device), self.pet.to(device), self.balance.to(device))


def draw(slices: Sequence[SlicePair], config: TrainConfig, step: int) -> Batch:
    """Return the squares of a step.

    Balance is evenly spread over 0..1. A square is drawn where the MRI shows a head, if one of four
    places does.
    """
    rng = np.random.default_rng([config.seed, step])
    mri, pet = [], []
    for _ in range(config.batch):
        pair = slices[int(rng.integers(len(slices)))]
        both = _square(pair, config, rng)
        both = _varied(both, config.augmentation, rng)
        mri.append(both[0])
        pet.append(both[1])
    # One in each of `batch` equal parts, in any order: every step sees the whole knob.
    places = (rng.permutation(config.batch) + rng.random(config.batch)) / config.batch
    return Batch(
        torch.from_numpy(np.stack(mri)),
        torch.from_numpy(np.stack(pet)),
        torch.from_numpy(places.astype(np.float32)),
    )


def _square(pair: SlicePair, config: TrainConfig, rng: np.random.Generator) -> FloatArray:
    """Return a square of both sources, (2, crop, crop), enlarged or shrunk by some factor."""
    most = math.log(config.augmentation.zoom)
    side = round(config.crop / math.exp(rng.uniform(-most, most)))
    both = np.stack([pair.mri, pair.pet])
    short = [max(0, side - size) for size in both.shape[1:]]
    both = np.pad(both, ((0, 0), *((gap // 2, gap - gap // 2) for gap in short)))
    for _ in range(4):
        y, x = (int(rng.integers(size - side + 1)) for size in both.shape[1:])
        cut = both[:, y : y + side, x : x + side]
        if np.mean(cut[0] > _DARK) >= 2 * _LEAST_HEAD:
            break
    if side != config.crop:
        resized = functional.interpolate(
            torch.from_numpy(cut.copy())[None],
            size=(config.crop, config.crop),
            mode="bilinear",
            antialias=side > config.crop,
        )
        cut = resized[0].numpy()
    return np.ascontiguousarray(cut)


def _varied(both: FloatArray, how: Augmentation, rng: np.random.Generator) -> FloatArray:
    if how.flip:
        both = np.rot90(both, int(rng.integers(4)), axes=(1, 2))
        if rng.random() < 0.5:
            both = both[:, :, ::-1]
    mri, pet = both.copy()
    # What is drawn is drawn in any case, so that one option does not shift the others.
    sigmas, chances = rng.uniform(0, how.blur, 2), rng.random(4)
    if chances[0] < 0.25 and sigmas[0] > 0:
        mri = ndimage.gaussian_filter(mri, sigmas[0])
    if chances[1] < 0.5 and sigmas[1] > 0:
        pet = ndimage.gaussian_filter(pet, sigmas[1])
    curves = [_curve(rng) for _ in range(2)]
    if chances[2] < how.contrast:
        mri = curves[0](mri)
    if chances[3] < how.pseudo_colour:
        pet = curves[1](pet)
    varied = []
    for image in (mri, pet):
        most = math.log(how.gamma)
        image = np.clip(image, 0, None) ** math.exp(rng.uniform(-most, most))
        image = image * (1 + rng.uniform(-how.gain, how.gain))
        deviation = rng.uniform(0, how.noise)
        noisy = image + rng.normal(0, deviation, image.shape) * (image > 0)
        varied.append(np.clip(noisy, 0, 1.2))
    return np.stack(varied).astype(np.float32)


def _curve(rng: np.random.Generator) -> Callable[[FloatArray], FloatArray]:
    """Return new grey values for old ones: from black up, then up and down.

    So does the luminance of a colour scale between its hues, and the contrast of tissues from one
    weighting to the next.
    """
    places = np.r_[0, np.sort(rng.uniform(0.1, 1, int(rng.integers(2, 6)))), 1]
    brightness = np.r_[0, rng.uniform(0.25, 1, len(places) - 1)]
    return lambda image: np.interp(image, places, brightness).astype(np.float32)
