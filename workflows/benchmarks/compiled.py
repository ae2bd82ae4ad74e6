"""What `torch.compile` brings to the network of `dwt-vgg19-l1` on a processor, and what it costs.

As it is, and with what is read from the taps compiled (subtract, magnitude, mean over the channels,
window, enlarge). Layers stay as they are: torch cannot trace Winograd's convolutions. It needs a
C++ compiler.

    python workflows/benchmarks/compiled.py
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import Cell, Result, in_turn, options, ratios, seconds, spread
from volumes import find_method

from fusionflow import fusion
from fusionflow.backbones import load_trunk
from fusionflow.config import Method
from fusionflow.device import Batch, arithmetic
from fusionflow.graph import make_recipe
from fusionflow.trunk import Trunk

#: (y, x) of bands: of 256 x 256, and of 109 x 91.
_BANDS = ((129, 129), (56, 47))


def local(
    features: torch.Tensor, blank: torch.Tensor, window: int, shape: tuple[int, int]
) -> torch.Tensor:
    """Return what a rule reads of a tap, beginning with its features."""
    l1 = fusion.over_channels(0, (features - blank).abs_())
    return fusion.over_window(l1, window, shape)


def activities(
    trunk: Trunk, images: torch.Tensor, window: int, read: Callable[..., torch.Tensor]
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return what makes activities at all taps of images of that size."""
    shape = images.shape[-2:]
    blank = trunk.of_nothing(*shape, 0.5)

    def active(images: torch.Tensor) -> list[torch.Tensor]:
        return trunk.reduced(images, lambda tap, x: read(x, blank[tap], window, shape))

    return active


def measure(method: Method, shape: tuple[int, int], given: Namespace, result: Result) -> None:
    """Measure bands of one size."""
    count = Batch(method).at_once(shape[0] * shape[1])
    images = torch.rand((count, 1, *shape), generator=torch.Generator().manual_seed(0))
    weights = make_recipe(method).weights
    if weights is None:
        raise ValueError(f"{method.name} reads no network")
    trunk = load_trunk(weights, method.taps, "cpu", method.precision)
    compiled = torch.compile(local, dynamic=False, fullgraph=True)
    with arithmetic("cpu", method.precision):
        calls = {
            "as it is": activities(trunk, images, method.window, local),
            "taps compiled": activities(trunk, images, method.window, compiled),
        }
        found: dict[str, list[torch.Tensor]] = {}
        first: dict[str, float] = {}
        for name, call in calls.items():
            began = time.perf_counter()
            found[name] = call(images)
            first[name] = time.perf_counter() - began
        timed = {name: partial(seconds, partial(call, images)) for name, call in calls.items()}
        times = in_turn(timed, given.repeats)
    rows: list[list[Cell]] = []
    told = f"{count} bands of {shape[0]} x {shape[1]}, {method.precision}"
    for name, took in times.items():
        gain = spread(ratios(times["as it is"], took))
        off = max(
            float((one - other).abs().max() / other.abs().max())
            for one, other in zip(found[name], found["as it is"], strict=True)
        )
        rows.append([name, spread(took), gain, first[name], off])
        result.figures[f"{told}: as it is / {name}"] = gain
    columns = ["", "seconds", "as it is / this", "the first call, s", "largest difference"]
    result.table(told, columns, rows)


def main() -> None:
    """Measure."""
    given = options(__doc__, 9)
    result = Result("compiled", __doc__ or "", given)
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        result.skip("torch.compile needs a C++ compiler: apt-get install g++")
        result.write()
        return
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64  # one for each tap, size and precision
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # else a first call finds what was compiled
        method = find_method("dwt-vgg19-l1", given, Path(folder), result)
        for precision in ("float32", "bfloat16"):
            for shape in _BANDS[given.quick :]:
                some = method.model_copy(update={"precision": precision})
                measure(some, shape, given, result)
    result.write()


if __name__ == "__main__":
    main()
