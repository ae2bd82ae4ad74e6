"""How much longer a plain script of the same method takes than fusionflow does, for a volume.

The script goes slice by slice, source by source and band by band: `pywt.dwt2`, the band as three
equal channels through torchvision's VGG19 in float32, stopped at the last tap, the rule, `idwt2`;
with as many torch threads as the machine has cores. Both begin with the same files. The run works
in float32, and in fewer digits, which count where they agree with the script to 50 dB.

    python workflows/benchmarks/naive.py --data ../shared/data --weights ../shared/weights
"""

from __future__ import annotations

import itertools
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pywt
import torch
import torchvision
from measure import Cell, Result, in_turn, options, ratios, seconds, shown, spread
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from volumes import (
    AS_IN_HEADER,
    Pair,
    bare_stages,
    cohort_of,
    find_method,
    find_pair,
    in_memory,
    precisions,
    thinned,
)

import fusionflow as ff
from fusionflow import clusters
from fusionflow.backbones import BACKBONES
from fusionflow.config import ClusterOptions, Method, RunConfig
from fusionflow.conform import Conformed
from fusionflow.cpu_layers import quickened
from fusionflow.graph import make_recipe
from fusionflow.stages import Recipe
from fusionflow.weights import read_state

Array = npt.NDArray[np.float32]
#: PSNR in dB from which on a run in fewer digits counts as the same.
_LEAST_AGREEMENT: Final = 50


class Script:
    """The plain script, and what can be changed about it one thing at a time.

    Parameters
    ----------
    method : Method
        A zero-shot method on VGG19 and one level of a wavelet.
    channels : {3, 1}
        Three equal channels, or the first convolution folded to one.
    batch : int
        Bands in a forward pass.
    whole : bool
        Whether the network runs to its end; what comes after the last tap has random weights, for
        nothing reads it.
    """

    def __init__(
        self, method: Method, *, channels: int = 3, batch: int = 1, whole: bool = False
    ) -> None:
        recipe = make_recipe(method)
        if recipe.weights is None:
            raise ValueError(f"{method.name} reads no network")
        state, self.norm = read_state(recipe.weights)
        self.method, self.channels, self.batch = method, channels, batch
        self.taps = sorted(BACKBONES["vgg19"].taps[tap] for tap in method.taps)
        with torch.device("meta"):  # drawing 140 million random weights takes seconds
            features = torchvision.models.vgg19().features
        self.layers = features[: -1 if whole else self.taps[-1] + 1].to_empty(device="cpu").eval()
        for name, tensor in self.layers.state_dict().items():
            known = state.get(f"features.{name}")
            tensor.copy_(torch.randn(tensor.shape) / 100 if known is None else known)
        self.mean = torch.tensor(self.norm.mean).view(1, 3, 1, 1)
        self.std = torch.tensor(self.norm.std).view(1, 3, 1, 1)
        self._empty: dict[tuple[float, torch.Size], list[torch.Tensor]] = {}

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the taps of grey images (n, 1, y, x)."""
        if self.channels == 3:
            x = (images.repeat(1, 3, 1, 1) * self.norm.scale - self.mean) / self.std
            x = self.layers[0](x)
        else:
            first = self.layers[0]
            weight = first.weight / self.std
            grey = weight.sum(1, keepdim=True) * self.norm.scale
            shift = -(weight * self.mean).sum(1, keepdim=True)
            x = functional.conv2d(images, grey, padding=1) + functional.conv2d(
                torch.ones_like(images[:1]), shift, first.bias, padding=1
            )
        read = []
        for index, layer in enumerate(self.layers[1:], start=1):
            x = layer(x)
            if index in self.taps:
                read.append(x)
        return read

    def activities(self, bands: Array, empty: float) -> list[torch.Tensor]:
        """Return the activity of bands (n, y, x) at each tap, by the definition of the method."""
        images = torch.from_numpy(bands / np.float32(2))[:, None] + empty
        key = (empty, images.shape[-2:])
        if key not in self._empty:  # once for a shape: a plain script would see to that, too
            self._empty[key] = self.features(torch.full((1, 1, *key[1]), empty))
        found = []
        for read, nothing in zip(self.features(images), self._empty[key], strict=True):
            l1 = (read - nothing).abs().mean(1, keepdim=True)
            half = self.method.window // 2
            local = functional.avg_pool2d(
                l1, self.method.window, stride=1, padding=half, count_include_pad=False
            )
            found.append(functional.interpolate(local, size=key[1], mode="bilinear")[:, 0])
        return found

    def merged(self, mri: Array, pet: Array, empty: float) -> Array:
        """Return fused bands (n, y, x)."""
        weight = torch.zeros(mri.shape)
        power = 1 / self.method.temperature
        of_mri, of_pet = self.activities(mri, empty), self.activities(pet, empty)
        for a, b in zip(of_mri, of_pet, strict=True):
            largest = torch.maximum(a, b)
            a, b = a / largest.clamp_min(1e-30), b / largest.clamp_min(1e-30)
            a, b = a**power, b**power
            share = a / (a + b).clamp_min(1e-30)
            weight += torch.where(largest > 0, share, torch.tensor(0.5))
        weight = weight.numpy() / np.float32(len(self.taps))
        return weight * mri + (1 - weight) * pet

    @torch.inference_mode()
    def fuse(self, mri: Array, pet: Array) -> Array:
        """Return a fused volume (z, y, x)."""
        wavelet, mode = self.method.transform.name, self.method.transform.mode
        fused = np.empty_like(mri)
        for start in range(0, len(mri), self.batch):
            rows = slice(start, start + self.batch)
            a, (h, v, d) = pywt.dwt2(mri[rows], wavelet, mode)
            b, details = pywt.dwt2(pet[rows], wavelet, mode)
            out = [self.merged(a, b, 0.0)]
            out += [self.merged(x, y, 0.5) for x, y in zip((h, v, d), details, strict=True)]
            back = pywt.idwt2((out[0], tuple(out[1:])), wavelet, mode)
            fused[rows] = back[:, : mri.shape[1], : mri.shape[2]]
        return fused


def psnr(one: Array, other: Array) -> float:
    """Return the PSNR in dB; 1 is the white of the display window."""
    mse = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 10 * float(np.log10(1 / max(mse, 1e-20)))


def with_threads(threads: int, script: Script, scan: Conformed) -> float:
    """Return the seconds of a script with so many torch threads."""
    torch.set_num_threads(threads)
    return seconds(lambda: script.fuse(scan.mri, scan.pet))


def compare(pair: Pair, method: Method, given: Namespace, work: Path, result: Result) -> None:
    """Compare script and run on a whole volume, in every arithmetic that this processor has."""
    scan, recipe, script = in_memory(pair), make_recipe(method), Script(method)
    cores = clusters.available_cores()
    bids = cohort_of(pair, work / "bids")
    configs = {
        precision: RunConfig(
            method=method.model_copy(update={"precision": precision}), conform=AS_IN_HEADER
        )
        for precision in precisions()
    }
    outs: Iterator[Path] = (work / f"out{number}" for number in itertools.count())
    latest: dict[str, Path] = {}

    def run(precision: str) -> float:
        latest[precision] = next(outs)
        return seconds(lambda: ff.run(bids, latest[precision], configs[precision], client=client))

    with clusters.connect(ClusterOptions(n_workers=cores)) as client:
        client.run(make_recipe, method)  # imports what tasks need
        found = in_turn(
            {
                "script": lambda: with_threads(cores, script, scan),
                **{name: lambda name=name: run(name) for name in configs},
                "stages": lambda: seconds(lambda: bare_stages(scan, recipe)),
            },
            given.repeats,
        )
    plain = script.fuse(scan.mri, scan.pet)
    name = f"{pair.name} {'x'.join(map(str, scan.mri.shape))}"
    rows: list[list[Cell]] = [[f"the script, {cores} threads", spread(found["script"]), 1.0, None]]
    gains: dict[str, dict[str, float]] = {}
    for precision, out in latest.items():
        gain = spread(ratios(found["script"], found[precision]))
        agreement = psnr(plain, ff.open_cohort(out).scan("sub-01").fused.values)
        result.figures[f"{name}: script / run in {precision}"] = gain
        what = f"{name}: PSNR of script and run in {precision}, dB"
        result.goal(what, agreement, _LEAST_AGREEMENT, at_most=False)
        if agreement >= _LEAST_AGREEMENT:
            gains[precision] = gain
        ours = f"`ff.run`, {cores} workers of one thread, {precision}"
        rows.append([ours, spread(found[precision]), gain, agreement])
    best = max(gains.values(), key=lambda gain: gain["median"], default=float("nan"))
    result.goal(f"{name}: script / fastest run that agrees", best, 3, at_most=False)
    of_stages = spread(ratios(found["script"], found["stages"]))
    result.figures[f"{name}: script / stages on one thread"] = of_stages
    rows.append(["its bare stages, one thread, float32", spread(found["stages"]), of_stages, None])
    result.table(f"{name}: seconds", ["", "seconds", "script / this", "agreement, dB"], rows)


def network_share(scan: Conformed, recipe: Recipe, script: Script) -> float:
    """Return how much of the convolutions' work on the whole frame the stages do."""
    torch.set_num_threads(1)
    counted = {torch.ops.aten._nnpack_spatial_convolution: _as_direct}
    for _ in range(2):  # the second time neither has to look at an empty picture
        with FlopCounterMode(display=False) as theirs:
            script.fuse(scan.mri[:1], scan.pet[:1])
        with FlopCounterMode(display=False, custom_mapping=counted) as ours:
            bare_stages(scan, recipe)
    return ours.get_total_flops() / (theirs.get_total_flops() * len(scan.mri))


def _as_direct(
    image: Sequence[int],
    weight: Sequence[int],
    *rest: object,
    out_shape: Sequence[int],
    **options: object,
) -> int:
    """Return the work of a convolution by its definition, whatever Winograd saves of it."""
    return 2 * prod(out_shape) * prod(weight[1:])


def levers(pair: Pair, method: Method, given: Namespace, work: Path, result: Result) -> None:
    """Change the script into what fusionflow does, one thing after the other, on one thread."""
    scan = in_memory(thinned(pair, given.lever_slices, work))
    recipe = make_recipe(method)
    folded = Script(method, channels=1)
    batched = Script(method, channels=1, batch=method.batch)
    blocked = Script(method, channels=1, batch=method.batch)
    blocked.layers.to(memory_format=torch.channels_last)
    filtered = Script(method, channels=1)
    quickened(filtered.layers)
    rungs = {
        "the whole network, to its end": Script(method, whole=True),
        "the script: stopped at the last tap": Script(method),
        "one channel instead of three": folded,
        f"{method.batch} slices in a pass": batched,
        "weights in channels_last": blocked,
        "or one slice in a pass, by Winograd's filtering": filtered,
    }
    shorter = {
        precision: replace(recipe, method=method.model_copy(update={"precision": precision}))
        for precision in precisions()[1:]
    }
    variants = {
        **{name: lambda s=script: with_threads(1, s, scan) for name, script in rungs.items()},
        "the stages of fusionflow": lambda: seconds(lambda: bare_stages(scan, recipe)),
        **{
            f"the stages in {precision}": lambda r=other: seconds(lambda: bare_stages(scan, r))
            for precision, other in shorter.items()
        },
    }
    share = network_share(scan, recipe, folded)
    _, exact = bare_stages(scan, recipe)
    losses = {name: psnr(bare_stages(scan, other)[1], exact) for name, other in shorter.items()}
    for script in rungs.values():  # warms up: a whole turn of this would take minutes
        script.fuse(scan.mri[:1], scan.pet[:1])
    found = in_turn(variants, given.repeats, warm_up=False)
    plain, rows, before = found["the script: stopped at the last tap"], [], None
    for name, times in found.items():
        gain = None if before is None else spread(ratios(before, times))
        rows.append([name, spread(times), gain, spread(ratios(plain, times))])
        before = times
    title = f"{pair.name}, {len(scan.mri)} slices: levers one after the other, one thread"
    result.table(title, ["", "seconds", "the line before / this", "the script / this"], rows)
    for name, times in found.items():
        result.figures[f"levers: script / {name}"] = spread(ratios(plain, times))
    result.figures["levers: convolutions' work, stages / whole frame"] = share
    for precision, loss in losses.items():
        result.figures[f"levers: PSNR of {precision} and float32, dB"] = loss
    result.notes.append(
        f"The stages do {shown(100 * share)} % of the convolutions' work that the whole frame of "
        "every slice asks for: less than 100 % is cropping and leaving out empty slices, more is "
        "repeated work. They also compute all metrics, which the script does not."
    )
    result.notes.append(
        "bfloat16 pays most on CPUs with AMX, int8 with AMX or VNNI; this one has "
        f"{'AMX' if torch.cpu._is_amx_tile_supported() else 'no AMX'} and "
        f"{'VNNI' if torch.cpu._is_vnni_supported() else 'no VNNI'}."
    )


def main() -> None:
    """Measure."""
    given = options(
        __doc__,
        3,
        slices={"type": int, "help": "Slices of a volume, evenly spread; 0 for all."},
        lever_slices={"type": int, "help": "The same for the levers; 6 unless told."},
    )
    given.slices = (4 if given.quick else 0) if given.slices is None else given.slices
    given.lever_slices = given.lever_slices or (2 if given.quick else 6)
    result = Result("naive", __doc__ or "", given)
    result.notes = [
        "The run reads, conforms (PET as its header says), measures and writes; the script only "
        "fuses arrays in memory. The cluster was up beforehand.",
        "What the taps see of an empty band is computed once, in both.",
        "The learned method dwt-vgg19 is left out: its network has no form of three channels.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        method = find_method("dwt-vgg19-l1", given, work, result)
        pairs = [find_pair(name, given, work, result) for name in ("sub-harvard", "sub-spm")]
        for pair in dict(zip((pair.name for pair in pairs), pairs, strict=True)).values():
            place = work / pair.name
            compare(thinned(pair, given.slices, place), method, given, place, result)
        levers(pairs[0], method, given, work / "levers", result)
    result.write()


if __name__ == "__main__":
    main()
