"""How long every method takes for a pair of slices, beside how good its result is.

Every built-in method that runs with the weights at hand, some in fewer digits, and the pictures
that published networks made of the same pairs, on one thread; the figures are those of `fusionflow
benchmark`.

    python workflows/benchmarks/peers.py --data ../shared/data --weights ../shared/weights
"""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from measure import Cell, Result, in_turn, options, ratios, seconds, spread
from volumes import AS_IN_HEADER, phantom_pair, precisions

from fusionflow.benchmark import pairs_of_folder, run_benchmark
from fusionflow.benchmark_front import SIX
from fusionflow.config import METHODS
from fusionflow.conform import conform
from fusionflow.graph import make_recipe
from fusionflow.images import Sources, fuse_slices
from fusionflow.stages import Recipe
from fusionflow.weights import OFFLINE_VARIABLE, WEIGHTS_DIR_VARIABLE

REFERENCE = "dwt-max"
_IN_FEWER_DIGITS = ("dwt-vgg19", "dwt-vgg19-l1")


def find_pairs(given: Namespace, result: Result) -> dict[str, Sources]:
    """Return pairs of the Whole Brain Atlas, or slices of a phantom in their stead, loudly."""
    place = given.data / "harvard" / "val"
    if place.is_dir():
        return dict(list(pairs_of_folder(place).items())[: given.pairs])
    result.skip(f"no pairs at {place}; slices of a phantom stand in their place")
    with tempfile.TemporaryDirectory() as folder:
        pair = phantom_pair(Path(folder), 48 if given.quick else 256)
        scan = conform(pair.t1w, pair.pet, AS_IN_HEADER)
    pairs = {}
    count = given.pairs or 21
    for z in np.linspace(0.4, 0.7, count) * len(scan.mri):
        mri, pet = (np.clip(volume[int(z)][::-1], 0, 1) for volume in (scan.mri, scan.pet))
        grey = np.repeat(np.uint8(pet * 255)[..., None], 3, axis=-1)
        pairs[f"z{int(z):03}"] = Sources(mri, pet, grey, "grey")
    return pairs


def over_all(pairs: Mapping[str, Sources], recipe: Recipe) -> float:
    """Return the seconds of a pair."""
    took = sum(
        seconds(lambda of=sources: fuse_slices(of.mri[None], of.pet[None], recipe))
        for sources in pairs.values()
    )
    return took / len(pairs)


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        3,
        pairs={"type": int, "help": "The first so many alone."},
        methods={"nargs": "+", "default": list(METHODS)},
    )
    given.pairs = given.pairs or (1 if given.quick else None)
    os.environ[WEIGHTS_DIR_VARIABLE] = str(given.weights)
    os.environ[OFFLINE_VARIABLE] = "1"
    result = Result("peers", __doc__ or "", given)
    pairs = find_pairs(given, result)
    peers = {
        folder.name: folder
        for folder in sorted((given.data / "harvard" / "peers").glob("*"))
        if folder.is_dir()
    }
    methods = [METHODS[name] for name in given.methods]
    methods += [
        method.model_copy(update={"name": f"{method.name} {precision}", "precision": precision})
        for method in methods
        if method.name in _IN_FEWER_DIGITS
        for precision in precisions()[1:]
    ]
    table = run_benchmark(pairs, methods, peers, repeats=0, tell=print)
    for name, why in table.not_run.items():
        result.skip(f"{name}: {why}")
    recipes = {item.name: make_recipe(item) for item in methods if item.name not in table.not_run}
    took = in_turn(
        {name: lambda recipe=recipe: over_all(pairs, recipe) for name, recipe in recipes.items()},
        given.repeats,
    )
    fastest = min(took, key=lambda name: min(took[name]))
    rows: list[list[Cell]] = []
    for name, figures in table.table.iterrows():
        times = took.get(str(name))
        cells: list[Cell] = [float(figures[column]) for column in SIX]
        if times is None:
            rows.append([str(name), *cells, None, None, None])
            continue
        to_fastest = spread(ratios(times, took[fastest]))
        to_reference = spread(ratios(times, took[REFERENCE])) if REFERENCE in took else None
        rows.append([str(name), *cells, spread(times), to_reference, to_fastest])
        result.figures[f"{name}: seconds a pair"] = spread(times)
        result.figures[f"{name}: times {REFERENCE}"] = to_reference
    shape = "x".join(map(str, next(iter(pairs.values())).mri.shape))
    result.table(
        f"{len(pairs)} pairs of {shape}",
        ["method", *SIX, "seconds a pair", f"times `{REFERENCE}`", f"times `{fastest}`"],
        rows,
    )
    result.notes.append("Means of the figures; higher is better in all six. No seconds for peers.")
    result.write()


if __name__ == "__main__":
    main()
