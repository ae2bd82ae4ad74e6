"""What a backbone must pass: its declaration, what its taps see, and how its weights are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import torch
from torch import nn

from fusionflow.backbones import Backbone, brought_weights, build_trunk
from fusionflow.device import arithmetic, memory_format
from fusionflow.errors import FusionflowError
from fusionflow.stages import torch_threads
from fusionflow.testing.backbone_files import (
    check_folding,
    check_reads_files,
    check_refuses_wrong_files,
    layers_of,
)
from fusionflow.testing.demands import ROUNDING, demand, pickled
from fusionflow.trunk import Trunk
from fusionflow.weights import Weights, find_weights

__all__ = ["BACKBONE_CHECKS", "check_backbone", "weights_of"]

BackboneCheck: TypeAlias = Callable[[Backbone, Weights], None]

#: (y, x) of images: odd, even, not square, no multiple of any stride.
_SIZES: Final = ((71, 64), (65, 97), (130, 131))
_SIZE: Final = (71, 64)
#: Of the largest feature, how far bfloat16 may be from float32. Measured: 0.7 to 0.9 %.
_BFLOAT16: Final = 0.05
#: How far, in strides of a tap, an answer may lie from what it answers.
_OFF: Final = 1.5


def weights_of(backbone: Backbone, spec: str | Path | None = None) -> Weights:
    """Return the weights that checks use.

    Parameters
    ----------
    backbone : Backbone
        Which; it need not be found by its name.
    spec : str, Path or None
        Path of a file, or ``random:SEED``; by default the file that comes with the backbone, or
        ``random:0`` where none does.

    Raises
    ------
    WeightsError
        If they are not there, or are not what the ``SHA256SUMS`` beside them says.
    """
    if spec is None and backbone.file is not None:
        return brought_weights(backbone, backbone.file)
    return find_weights(str(spec or "random:0"), backbone.name, None)


def _of(backbone: Backbone) -> str:
    return f"Backbone {backbone.name!r}"


def _images(count: int, size: tuple[int, int] = _SIZE, seed: int = 0) -> torch.Tensor:
    """Return grey pictures (n, 1, y, x), a little beyond black and white too."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 1, *size), generator=generator) * 1.2 - 0.1


def _read(
    trunk: Trunk, images: torch.Tensor, precision: str = "float32", threads: int = 1
) -> list[torch.Tensor]:
    """Return the taps as a run reads them."""
    trunk.to(memory_format=memory_format("cpu", precision))
    with torch_threads(threads), arithmetic("cpu", precision):
        return trunk(images)


def _trunk(backbone: Backbone, weights: Weights, taps: Sequence[str] = ()) -> Trunk:
    return build_trunk(weights, tuple(taps or backbone.default_taps), backbone)


def _distance(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """Return the largest difference at any tap, of the largest feature there."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(one, other, strict=True)
    )


def check_declaration(backbone: Backbone, weights: Weights) -> None:
    """Demand what a method writes of a backbone: its name, its taps, and layers in one sequence.

    The trunk is cut after the last tap, and its first convolution is folded for grey images.
    """
    of = _of(backbone)
    demand(isinstance(backbone, Backbone), of, "is no Backbone", "fusionflow.backbones.Backbone")
    demand(
        backbone.name and backbone.name.replace("-", "").replace("_", "").isalnum(), of,
        "has a name that is not one word", "Take letters, digits and hyphens",
    )  # fmt: skip
    layers = layers_of(backbone)
    demand(layers is not layers_of(backbone), of, "build returns one module twice", "Make new ones")
    first = layers[0]
    demand(
        isinstance(first, nn.Conv2d) and first.in_channels == 3, of,
        "features does not begin with a convolution of three channels",
        "Begin with nn.Conv2d(3, ...); of a network for grey images give each channel a third",
    )  # fmt: skip
    for tap, index in backbone.taps.items():
        demand(
            0 <= index < len(layers), of, f"tap {tap} is layer {index} of {len(layers)}",
            "Taps are indices into features, from 0",
        )  # fmt: skip
    demand(
        len(set(backbone.taps.values())) == len(backbone.taps), of,
        "has two names for one layer", "Give each tap a layer of its own",
    )  # fmt: skip
    kept = layers.state_dict().keys()
    tensors = (*layers.named_parameters(), *layers.named_buffers())
    loose = sorted({name for name, _ in tensors} - kept)
    demand(
        not loose, of, f"keeps {', '.join(loose)} beside its state",
        "Every tensor is read from the file of weights: leave out persistent=False",
    )  # fmt: skip
    unknown = sorted(set(backbone.default_taps) - backbone.taps.keys())
    demand(
        backbone.default_taps and not unknown, of,
        f"default_taps has {', '.join(unknown) or 'none'}", "Name at least one of its taps",
    )  # fmt: skip
    demand(
        weights.backbone == backbone.name, of, f"has weights of {weights.backbone}", "Give its own"
    )


def check_pickles(backbone: Backbone, weights: Weights) -> None:
    """Demand that the declaration and what names its weights can be sent, and make the same.

    The network never travels: each worker builds it, and reads the weights from the file.
    """
    arrived = pickled(backbone, _of(backbone))
    sent = pickled(weights, _of(backbone))
    images = _images(2)
    demand(
        _distance(_read(_trunk(arrived, sent), images), _read(_trunk(backbone, weights), images))
        == 0,
        _of(backbone), "is another network once it was pickled",
        "Let build depend on its arguments alone",
    )  # fmt: skip


def check_tap_sizes(backbone: Backbone, weights: Weights) -> None:
    """Demand that a tap is the image in small: one stride, both ways, at every odd size.

    A tap is enlarged to the size of its band. One that has a fixed size, or another stride along
    rows than along columns, would answer for other places than it saw.
    """
    del weights  # sizes do not depend on them
    layers = layers_of(backbone).eval()

    def sizes(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
        found, features = {}, torch.empty(1, 3, rows, columns, device="meta")
        by_index = {index: tap for tap, index in backbone.taps.items()}
        for index, layer in enumerate(layers):
            features = layer(features)
            if index in by_index:
                found[by_index[index]] = tuple(features.shape)
            if index == max(by_index):
                break
        return found

    small, large = sizes(256, 256), sizes(512, 512)
    for tap in backbone.taps:
        of = f"{_of(backbone)}, tap {tap}"
        demand(
            len(small[tap]) == 4, of, f"gives {len(small[tap])} dimensions",
            "A tap gives (images, channels, rows, columns)",
        )  # fmt: skip
        grown = [b - a for a, b in zip(small[tap][2:], large[tap][2:], strict=True)]
        demand(
            grown[0] == grown[1] > 0 and 256 % grown[0] == 0, of,
            f"grows from {small[tap][2:]} to {large[tap][2:]} where the image grows from 256 to "
            "512", "Take the same whole stride for rows and columns, and no layer of a fixed size",
        )  # fmt: skip
        stride = 256 // grown[0]
        for rows, columns in _SIZES:
            shape = sizes(rows, columns)[tap]
            off = max(abs(shape[2] - rows / stride), abs(shape[3] - columns / stride))
            demand(
                shape[1] == small[tap][1] and off <= 2, of,
                f"gives {shape} for an image of {rows} x {columns}, at a stride of {stride}",
                "Pad convolutions by half of their kernel, so that borders are seen",
            )  # fmt: skip


def check_places(backbone: Backbone, weights: Weights) -> None:
    """Demand that the taps answer where something is.

    A dot in each quarter of an image changes features around it, and their middle must lie
    within 1.5 strides of it; otherwise weights belong to other places.
    """
    trunk, (rows, columns) = _trunk(backbone, weights), (129, 127)
    nothing = _read(trunk, torch.zeros(1, 1, rows, columns))
    for y, x in ((37, 40), (37, 86), (90, 40), (90, 86)):
        image = torch.zeros(1, 1, rows, columns)
        image[..., y - 2 : y + 3, x - 2 : x + 3] = 1
        for tap, (found, blank) in enumerate(zip(_read(trunk, image), nothing, strict=True)):
            seen = (found - blank).abs().mean(1)[0].double()
            of = f"{_of(backbone)}, default tap {tap}"
            demand(seen.sum() > 0, of, "does not see a dot", "Read a layer that does")
            strides = rows / seen.shape[0], columns / seen.shape[1]
            middle = [
                float((seen.sum(1 - axis) * (torch.arange(seen.shape[axis]) + 0.5)).sum())
                / float(seen.sum()) * strides[axis] - 0.5
                for axis in (0, 1)
            ]  # fmt: skip
            off = max(abs(a - b) / s for a, b, s in zip(middle, (y, x), strides, strict=True))
            demand(
                off <= _OFF, of,
                f"sees a dot at ({y}, {x}) around ({middle[0]:.0f}, {middle[1]:.0f})",
                "Pad convolutions by half of their kernel, and read earlier layers",
            )  # fmt: skip


def check_values(backbone: Backbone, weights: Weights) -> None:
    """Demand finite float32 features for black, grey, white, noise, and values far beyond.

    Nothing is clipped before it is shown, and one NaN would spread over the whole slice.
    """
    trunk = _trunk(backbone, weights)
    shown = {f"{value:g} everywhere": torch.full((2, 1, *_SIZE), value)
             for value in (0.0, 0.5, 1.0, -10.0, 100.0)}  # fmt: skip
    shown["noise"] = _images(2)
    for what, images in shown.items():
        for features in _read(trunk, images):
            demand(
                features.dtype == torch.float32, _of(backbone), f"gives {features.dtype}",
                "Keep layers in the dtype of their input",
            )  # fmt: skip
            demand(
                torch.isfinite(features).all(), _of(backbone),
                f"gives NaN or infinity for {what}", "Divide by nothing that can be zero",
            )  # fmt: skip


def check_bfloat16(backbone: Backbone, weights: Weights) -> None:
    """Demand that ``precision: bfloat16`` works, to 5 % of the largest feature.

    A person can ask it of every method that has a network.
    """
    trunk, images = _trunk(backbone, weights), _images(2)
    found = [features.float() for features in _read(trunk, images, "bfloat16")]
    demand(
        all(torch.isfinite(features).all() for features in found), _of(backbone),
        "gives NaN or infinity in bfloat16", "Divide by nothing that rounds to zero",
    )  # fmt: skip
    error = _distance(found, _read(trunk, images))
    demand(
        error <= _BFLOAT16, _of(backbone), f"is off by {error:.2g} in bfloat16",
        "Avoid differences of large numbers",
    )  # fmt: skip


def check_same_bits(backbone: Backbone, weights: Weights) -> None:
    """Demand the same bits for the same image, and from a network that was built anew.

    A task may run twice, on two workers. No dropout, no noise, no statistics of the batch.
    """
    trunk, images = _trunk(backbone, weights), _images(2)
    first = _read(trunk, images)
    for name, other in (("it", trunk), ("a second one", _trunk(backbone, weights))):
        demand(
            _distance(_read(other, images), first) == 0, _of(backbone),
            f"gives other bits when {name} reads the same image again",
            "Leave out what is random, and let build depend on its arguments alone",
        )  # fmt: skip


def check_batches(backbone: Backbone, weights: Weights) -> None:
    """Demand that images get the features that each would get alone, to rounding (5e-6).

    How slices fall into batches follows from memory.
    """
    trunk, images = _trunk(backbone, weights), _images(5)
    together = _read(trunk, images)
    for i in range(len(images)):
        error = _distance(_read(trunk, images[i : i + 1]), [tap[i : i + 1] for tap in together])
        demand(
            error <= ROUNDING, _of(backbone),
            f"gives an image other features in a batch than alone: off by {error:.1e}",
            "Let no layer look across images; normalise with kept statistics",
        )  # fmt: skip


def check_threads(backbone: Backbone, weights: Weights) -> None:
    """Demand the same features with one thread of torch and with two, to rounding (5e-6)."""
    trunk, images = _trunk(backbone, weights), _images(2)
    one, two = (_read(trunk, images, threads=threads) for threads in (1, 2))
    error = _distance(one, two)
    demand(
        error <= ROUNDING, _of(backbone), f"is off by {error:.1e} with two threads",
        "Avoid what depends on the order of threads",
    )  # fmt: skip


def check_input_is_left_alone(backbone: Backbone, weights: Weights) -> None:
    """Demand that images stay as they are, and that later layers do not write into a tap.

    Images are shown to the network in several bands and batches; all taps are read in one pass.
    """
    trunk, images = _trunk(backbone, weights), _images(2)
    before = images.clone()
    together = _read(trunk, images)
    demand(
        torch.equal(images, before), _of(backbone), "changes its input",
        "Begin with a layer that makes a new tensor",
    )  # fmt: skip
    taps = sorted(backbone.default_taps, key=lambda tap: backbone.taps[tap])
    for tap, features in zip(taps, together, strict=True):
        (alone,) = _read(_trunk(backbone, weights, (tap,)), images)
        demand(
            torch.equal(alone, features), f"{_of(backbone)}, tap {tap}",
            "is other features when later taps are read too", "Leave out inplace=True",
        )  # fmt: skip


def check_gradients(backbone: Backbone, weights: Weights) -> None:
    """Demand gradients, finite and not all nil, at the image and at every parameter.

    Training unfreezes layers, and compares fused images through the network.
    """
    trunk, of = _trunk(backbone, weights), _of(backbone)
    mend = "Use layers that torch can differentiate: no no_grad, detach, round or sign"
    trunk.requires_grad_(requires_grad=True)
    images = _images(2).requires_grad_()
    total = torch.zeros(())
    for tap, features in enumerate(trunk(images)):
        size = features.square().mean()
        demand(size.requires_grad, of, f"no gradient comes out of default tap {tap}", mend)
        (gradient,) = torch.autograd.grad(size, images, retain_graph=True, allow_unused=True)
        demand(
            gradient is not None and gradient.any(), of,
            f"no gradient reaches the image from default tap {tap}", mend,
        )  # fmt: skip
        total = total + size
    total.backward()
    for name, tensor in (("the image", images), *trunk.named_parameters()):
        demand(tensor.grad is not None, of, f"no gradient reaches {name}", mend)
        if tensor.grad is not None:
            demand(torch.isfinite(tensor.grad).all(), of, f"has NaN gradients at {name}", mend)


#: What every backbone must pass.
BACKBONE_CHECKS: Final[tuple[BackboneCheck, ...]] = (
    check_declaration,
    check_pickles,
    check_tap_sizes,
    check_places,
    check_values,
    check_bfloat16,
    check_same_bits,
    check_batches,
    check_threads,
    check_input_is_left_alone,
    check_gradients,
    check_folding,
    check_reads_files,
    check_refuses_wrong_files,
)


def check_backbone(backbone: Backbone, weights: str | Path | None = None) -> None:
    """Hold a backbone to everything that a run relies on.

    Parameters
    ----------
    backbone : Backbone
        Yours. It need not be installed to be found by its name.
    weights : str, Path or None
        Path of a file, or ``random:SEED``. By default the file that comes with the backbone, or
        random ones.

    Raises
    ------
    AssertionError
        At the first check that it fails: what is broken, and the mend.
    """
    try:
        found = weights_of(backbone, weights)
    except FusionflowError as error:
        raise AssertionError(f"{_of(backbone)}: {error}") from error
    for check in BACKBONE_CHECKS:
        check(backbone, found)
