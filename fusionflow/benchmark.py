"""Methods, baselines and images made elsewhere, measured by the same code in one table.

No single figure says which fused image is better: the unchanged MRI scores high on several and
shows no PET, and a plain average wins most of what the paper reports. So the table holds all of
them, against each source apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fusionflow import colour as colours
from fusionflow.cohort import open_cohort
from fusionflow.config import METHODS, Method
from fusionflow.conventions import convention as named_convention
from fusionflow.errors import ConfigurationError, FusionflowError, GridError, InputError
from fusionflow.graph import make_recipe
from fusionflow.grey_levels import eight_bit
from fusionflow.images import (
    Colour,
    Sources,
    find_pair_folders,
    fuse_slices,
    pictures_in,
    read_pair,
    read_rgb,
)
from fusionflow.quality import assess
from fusionflow.stages import Recipe
from fusionflow.subbands import FloatArray

#: Runs of every method that are timed, after one that is not.
REPEATS = 3

#: Means over the six figures of the paper (Panesar & Ganatra 2024, tables 1 and 2), of DWT + VGG19
#: on other images of the same atlas: beside ours they show the scale, and no verdict.
PAPER = {
    "mse_mri": 2246.0,
    "psnr_mri": 14.8,
    "rmse_relative_mri": 0.45,
    "ssim_mri": 0.78,
    "mse_pet": 3968.0,
    "psnr_pet": 12.2,
    "rmse_relative_pet": 0.72,
    "ssim_pet": 0.65,
    "entropy_mri": 3.93,
    "entropy_pet": 2.21,
    "en": 4.48,
}


@dataclass
class Benchmark:
    """Figures of every method on every pair.

    Attributes
    ----------
    images : DataFrame
        A row for each method and pair: ``method``, ``image``, then the figures.
    seconds : dict
        Median seconds for one pair, by method; nothing for images made elsewhere.
    not_run : dict
        Methods that could not run, and why.
    fused : dict
        (method, pair) -> fused picture (y, x), 0..1.
    sources : dict
        Pair -> its sources.
    """

    images: pd.DataFrame
    seconds: dict[str, float]
    not_run: dict[str, str]
    fused: dict[tuple[str, str], FloatArray] = field(repr=False)
    sources: dict[str, Sources] = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """Means over the pairs, a row a method, with seconds for a pair."""
        means = self.images.drop(columns="image").groupby("method", sort=False).mean()
        means.insert(0, "seconds", pd.Series(self.seconds, dtype=float))
        return means


def pairs_of_folder(folder: Path, colour: Colour | None = "luminance") -> dict[str, Sources]:
    """Read the pairs of a folder that holds one folder of MRI and one of PET pictures.

    Raises
    ------
    NoScansError
        If there are none.
    """
    return {pair.name: read_pair(pair, colour) for pair in find_pair_folders(folder)}


def pairs_of_cohort(folder: Path, slices: int = 5) -> dict[str, Sources]:
    """Take axial slices of every fused scan of an output folder, spread over its head.

    Raises
    ------
    StoreError
        If it holds no fused cohort.
    """
    from fusionflow.pictures import slices_to_show

    cohort, pairs = open_cohort(folder), {}
    for label in cohort:
        scan = cohort.scan(label)
        for z in slices_to_show(scan["mask"].values, slices):
            mri, pet = (
                np.clip(scan[name].isel(z=z).values[::-1], 0, 1).astype(np.float32)
                for name in ("mri", "pet")
            )
            grey = np.repeat(np.floor(pet * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
            pairs[f"{label}_z{z:03}"] = Sources(mri, pet, grey, "grey")
    return pairs


def run_benchmark(
    pairs: Mapping[str, Sources],
    methods: Sequence[Method] = tuple(METHODS.values()),
    scores_of: Mapping[str, Path] | None = None,
    *,
    convention: str | None = None,
    repeats: int = REPEATS,
    tell: Callable[[str], None] = lambda line: None,
) -> Benchmark:
    """Fuse every pair with every method, and assess the results as 8-bit pictures.

    Parameters
    ----------
    pairs : mapping of str to Sources
        Name -> sources.
    methods : sequence of Method
        What to run. One whose weights are not there, or that fails on a pair, is reported in
        `not_run`.
    scores_of : mapping of str to Path, optional
        Name -> folder of fused pictures made elsewhere, named as the pairs are.
    convention : str, optional
        Figures as another code base computes them, see `fusionflow.conventions`.
    repeats : int
        Timed runs; methods take turns, each run going over all pairs, after one that warms up.
    tell : callable
        Called with a line of progress.

    Raises
    ------
    InputError
        If a folder of fused pictures lacks one, or has one of another size, or if no method can
        run.
    ConfigurationError
        If a name is taken twice, or there is no such convention.
    """
    if not pairs:
        raise InputError("There are no pairs to compare methods on")
    figures_of = named_convention(convention) if convention else assess
    elsewhere = {
        name: _read_fused(name, folder, pairs) for name, folder in (scores_of or {}).items()
    }
    names = [*(method.name for method in methods), *elsewhere]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{', '.join(twice)}: a name stands for one method or folder")
    recipes: dict[str, Recipe] = {}
    not_run: dict[str, str] = {}
    for method in methods:
        try:
            recipes[method.name] = make_recipe(method)
        except FusionflowError as error:
            not_run[method.name] = str(error)
            tell(f"{method.name} does not run: {error}")
    fused: dict[tuple[str, str], FloatArray] = {}
    for name, recipe in list(recipes.items()):  # warms up, too
        tell(f"fusing with {name}")
        try:
            for pair, sources in pairs.items():
                fused[name, pair] = fuse_slices(sources.mri[None], sources.pet[None], recipe)[0]
        except FusionflowError as error:
            not_run[name] = f"{pair}: {error}"
            tell(f"{name} stops at {pair}: {error}")
            del recipes[name]
            fused = {key: image for key, image in fused.items() if key[0] != name}
    if not recipes and not elsewhere:
        why = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise InputError(f"No method can run: {why}")
    times: dict[str, list[float]] = {name: [] for name in recipes}
    for repeat in range(1, repeats + 1):
        tell(f"timed run {repeat} of {repeats}")
        for name, recipe in recipes.items():
            start = time.perf_counter()
            for sources in pairs.values():
                fuse_slices(sources.mri[None], sources.pet[None], recipe)
            times[name].append((time.perf_counter() - start) / len(pairs))
    fused |= {(name, pair): image for name in elsewhere for pair, image in elsewhere[name].items()}
    rows = []
    for (name, pair), image in fused.items():
        sources = pairs[pair]
        mri, pet, result = map(eight_bit, (sources.mri, sources.pet, image))
        figures = figures_of(mri, pet, result)
        rows.append({"method": name, "image": pair, **figures})
    return Benchmark(
        images=pd.DataFrame(rows),
        seconds={name: statistics.median(runs) for name, runs in times.items() if runs},
        not_run=not_run,
        fused=fused,
        sources=dict(pairs),
    )


def _read_fused(name: str, folder: Path, pairs: Mapping[str, Sources]) -> dict[str, FloatArray]:
    """Read fused pictures made elsewhere; colour ones as luminance."""
    there = pictures_in(folder)
    missing = [pair for pair in pairs if pair not in there]
    if missing:
        raise InputError(
            f"{folder} ({name}) has no picture for {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}",
            "A fused picture has the name of its pair",
        )
    images = {pair: colours.luminance(read_rgb(there[pair])) for pair in pairs}
    for pair, image in images.items():
        if image.shape != pairs[pair].mri.shape:
            raise GridError(
                f"{there[pair]} is {image.shape[1]} x {image.shape[0]} pixels, its pair "
                f"{pairs[pair].mri.shape[1]} x {pairs[pair].mri.shape[0]}"
            )
    return images
