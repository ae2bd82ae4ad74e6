"""What a run adds to its own arithmetic: `ff.run` over one volume, beside the same on bare arrays.

The bare process does DWT, network, inverse DWT and metrics of the same slabs on arrays in memory,
with one thread; the run has one worker of one thread, that was up before, makes the scan anew each
time into a new folder, and also reads, conforms, writes, publishes and summarises. And the forward
pass of the network beside bare calls of the convolutions in it.

    python workflows/benchmarks/overhead.py --volumes sub-spm sub-harvard
"""

from __future__ import annotations

import itertools
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Cell, Result, in_turn, options, ratios, seconds, shown, spread
from torch.utils._python_dispatch import TorchDispatchMode
from volumes import (
    AS_IN_HEADER,
    Bare,
    Pair,
    checksum,
    cohort_of,
    find_method,
    find_pair,
    one_thread_a_process,
)

import fusionflow as ff
from fusionflow import clusters
from fusionflow.config import ClusterOptions, Method, RunConfig
from fusionflow.conform import Conformed
from fusionflow.events import Event
from fusionflow.io.store import Layout
from fusionflow.stages import Recipe, decompose_slab, fuse_slab, torch_threads

#: Stages of a run that the bare process does as well, by the names that records use.
_ARITHMETIC = ("decompose", "fuse", "reconstruct")
_WITH_FILES = ("conform", "commit")
#: What a network calls for its convolutions, and what it is called with after the images.
_CONVOLUTIONS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten._nnpack_spatial_convolution.default,
)


class Convolutions(TorchDispatchMode):
    """Keeps every convolution, and what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Note a convolution, and do it."""
        if func in _CONVOLUTIONS:
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def one_slab(scan: Conformed, recipe: Recipe) -> tuple[float, float, int, float]:
    """Return seconds of a slab's fuse stage and of its convolutions alone, with how many these are.

    The images, strides and types of the bare calls are those of the stage; only their values are
    drawn, so that no cache is warmer than in the stage. The last figure is GFLOPs, counted by the
    definition of a convolution.
    """
    start, stop = Layout.of_shape(scan.mri.shape).slabs[:2][-1]
    bands = decompose_slab(scan.mri[start:stop], scan.pet[start:stop], recipe)
    fuse_slab(bands, recipe)  # warms up, and sees the empty bands
    with Convolutions() as seen:
        fuse_slab(bands, recipe)
    calls = [(func, (torch.rand_like(x), *rest)) for func, (x, *rest) in seen.calls]
    flops = 0.0
    stage, bare = [], []
    with torch.inference_mode(), torch_threads(recipe.method.threads):
        for turn in range(4):
            took = seconds(lambda: fuse_slab(bands, recipe))
            began, flops = time.perf_counter(), 0.0
            for func, given in calls:
                y = func(*given)
                flops += 2e-9 * y.numel() * given[1][0].numel()
            if turn:
                bare.append(time.perf_counter() - began)
                stage.append(took)
    return float(np.median(stage)), float(np.median(bare)), len(calls), flops


class Clock:
    """When a run said what."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {"begin": time.perf_counter()}

    def __call__(self, event: Event) -> None:
        """Keep the time of the first event of its kind."""
        self.at.setdefault(type(event).__name__, time.perf_counter())


def measure(pair: Pair, method: Method, given: Namespace, work: Path, result: Result) -> None:
    """Measure one method on one volume."""
    bids, config = cohort_of(pair, work / "bids"), RunConfig(method=method, conform=AS_IN_HEADER)
    bare, outs = Bare(pair, method), (work / f"out{number}" for number in itertools.count())
    parts: list[dict[str, float]] = []
    convolutions: list[tuple[float, float, int, float]] = []
    sums: set[str] = set()

    def run_once() -> float:
        clock, out = Clock(), next(outs)
        report = ff.run(bids, out, config, client=client, on_event=clock)
        end = time.perf_counter()
        parts.append(
            {
                **report.fused[0].timings,
                "looking, before the first task": clock.at["Started"] - clock.at["begin"],
                "index and summary, after the last": end - clock.at["Fused"],
                "run": end - clock.at["begin"],
            }
        )
        sums.add(checksum(ff.open_cohort(out).scan("sub-01").fused.values))
        return parts[-1]["run"]

    def bare_once() -> float:
        took, spent, found = bare.passes(1)[0]
        parts[-1] |= {"bare": took, "bare metrics": took - sum(spent.values())}
        parts[-1] |= {f"bare {stage}": value for stage, value in spent.items()}
        sums.add(found)
        return took

    def slab_once() -> float:
        if method.backbone is not None:
            convolutions.append(bare.call(one_slab))
        return 0.0

    with clusters.connect(ClusterOptions(n_workers=1)) as client:
        in_turn({"run": run_once, "bare": bare_once, "slab": slab_once}, given.repeats)
    bare.close()
    del parts[0], convolutions[:1]  # they warmed up
    told = f"{method.name} on {pair.name}"
    _tell_run(told, parts, result)
    if convolutions:
        _tell_convolutions(told, convolutions, result)
    if len(sums) > 1:
        result.notes.append(f"{told}: run and bare stages gave OTHER BITS")


def _tell_run(told: str, parts: list[dict[str, float]], result: Result) -> None:
    def column(name: str) -> list[float]:
        return [part.get(name, 0.0) for part in parts]

    run, bare = column("run"), column("bare")
    files = [sum(part[name] for name in _WITH_FILES) for part in parts]
    without = [whole - part for whole, part in zip(run, files, strict=True)]
    result.goal(f"{told}: run / bare, all in", spread(ratios(run, bare)), 1.10)
    what = f"{told}: run less conform and commit / bare"
    result.goal(what, spread(ratios(without, bare)), 1.10)
    names = ["looking, before the first task", "conform", *_ARITHMETIC, "commit"]
    named = [*names, "index and summary, after the last"]
    rest = [
        whole - sum(part[name] for name in named) for whole, part in zip(run, parts, strict=True)
    ]
    metrics = [
        part["bare reconstruct and metrics"] - part.get("reconstruct", 0.0) for part in parts
    ]
    rest = [value - metric for value, metric in zip(rest, metrics, strict=True)]
    twin = {"decompose": "bare decompose", "fuse": "bare fuse"}
    rows: list[list[Cell]] = []
    for name in named:
        own = spread(column(twin[name])) if name in twin else None
        share = spread(ratios(column(name), run))["median"]
        rows.append([name, spread(column(name)), own, f"{100 * share:.1f} %"])
    rows.insert(
        5, ["metrics (as in the bare process)", spread(metrics), None, _percent(metrics, run)]
    )
    words = "reading and writing slabs, publishing, Dask"
    rows.append([words, spread(rest), None, _percent(rest, run)])
    rows.append(["all", spread(run), spread(bare), "100 %"])
    result.table(f"{told}: seconds", ["", "in the run", "in the bare process", "share"], rows)
    result.figures[f"{told}: {words}, seconds"] = spread(rest)


def _percent(these: list[float], those: list[float]) -> str:
    return f"{100 * spread(ratios(these, those))['median']:.1f} %"


def _tell_convolutions(
    told: str, found: list[tuple[float, float, int, float]], result: Result
) -> None:
    stage, bare = [item[0] for item in found], [item[1] for item in found]
    calls, flops = found[0][2:]
    ratio = spread(ratios(stage, bare))
    result.figures[f"{told}: fuse stage / bare convolutions"] = ratio
    speed = shown(flops / spread(bare)["median"])
    result.table(
        f"{told}: a slab",
        ["", "seconds"],
        [
            ["the fuse stage: features, activity, weights, merging", spread(stage)],
            [f"its {calls} convolutions alone, {speed} GFLOP/s of direct ones", spread(bare)],
            ["ratio", ratio],
        ],
    )


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        5,
        volumes={"nargs": "+", "default": ["sub-spm", "sub-harvard"]},
        methods={"nargs": "+", "default": ["dwt-vgg19-l1", "dwt-vgg19"]},
    )
    if given.quick:
        given.volumes, given.methods = given.volumes[:1], given.methods[:1]
    one_thread_a_process()
    result = Result("overhead", __doc__ or "", given)
    result.notes.append("conform: read, scale, write the sources; commit: NIfTI, PNG, JSON, fsync")
    with tempfile.TemporaryDirectory() as folder:
        for volume in given.volumes:
            pair = find_pair(volume, given, Path(folder), result)
            for name in given.methods:
                method = find_method(name, given, Path(folder), result)
                measure(pair, method, given, Path(folder) / f"{volume}-{name}", result)
    result.write()


if __name__ == "__main__":
    main()
