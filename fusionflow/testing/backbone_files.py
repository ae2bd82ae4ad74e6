"""What a backbone must pass where its weights are read: files, and the folding for grey images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import nn

from fusionflow.backbones import Backbone, build_trunk
from fusionflow.errors import ChecksumError, WeightsError
from fusionflow.stages import torch_threads
from fusionflow.testing.demands import demand
from fusionflow.weights import Normalisation, Weights, identified

__all__ = ["check_folding", "check_reads_files", "check_refuses_wrong_files", "layers_of"]

#: Of the largest feature: three channels are summed in another order.
_FOLDING = 1e-4
_SIZE = (71, 64)


def lively_layers(backbone: Backbone, seed: int = 3) -> nn.Sequential:
    """Return the layers in evaluation mode, with weights and statistics of every kind.

    Convolutions that keep features of order one, biases, and normalisation that changes its
    input: what is forgotten somewhere shows.
    """
    layers = layers_of(backbone).eval()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in layers.state_dict().items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            drawn = torch.zeros(tensor.shape, dtype=tensor.dtype)
        elif tensor.ndim > 1:
            drawn *= (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("weight", "running_var")):
            drawn = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            drawn *= 0.2
        state[name] = drawn
    layers.load_state_dict(state, strict=False, assign=True)  # `state` names what it has
    for layer in layers.modules():
        if isinstance(getattr(layer, "inplace", None), bool):  # it would write over a tap
            setattr(layer, "inplace", False)  # noqa: B010 - torch types no such attribute
    return layers


def layers_of(backbone: Backbone) -> nn.Sequential:
    """Return the layers on the meta device: shapes without values, as a run builds them.

    Raises
    ------
    AssertionError
        If they are no sequence.
    """
    with torch.device("meta"):
        layers = backbone.build().features
    if not isinstance(layers, nn.Sequential):
        raise AssertionError(  # noqa: TRY004 - a check, as the others are
            f"Backbone {backbone.name!r}: features is a {type(layers).__name__}. Put the layers "
            "into an nn.Sequential"
        )
    return layers


def _state(layers: nn.Sequential) -> dict[str, torch.Tensor]:
    return {f"features.{key}": value.contiguous() for key, value in layers.state_dict().items()}


def _written(backbone: Backbone, state: dict[str, torch.Tensor], folder: str) -> Path:
    path = Path(folder) / f"{backbone.name}.safetensors"
    try:
        save_file(state, path)
    except (RuntimeError, ValueError) as error:
        raise AssertionError(
            f"Backbone {backbone.name!r}: its weights cannot be written to a safetensors file: "
            f"{error}. Let no two layers share a tensor"
        ) from error
    return path


def check_folding(backbone: Backbone, weights: Weights) -> None:
    """Demand of every tap what the whole module reads from three equal channels, borders included.

    A grey image goes through the first convolution once, with the normalisation folded into its
    weights and a map of biases. That is exact up to rounding: 1e-4 of the largest feature, for a
    convolution that pads with zeros. The module is asked as it is built, in float32, on
    ``(image - mean) / std``.
    """
    del weights  # those here have biases and statistics of every kind
    of, taps = f"Backbone {backbone.name!r}", sorted(backbone.taps, key=lambda k: backbone.taps[k])
    layers = lively_layers(backbone)
    images = torch.rand((2, 1, *_SIZE), generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (Normalisation.mean, Normalisation.std))
    with TemporaryDirectory() as folder, torch_threads(1), torch.inference_mode():
        path = _written(backbone, _state(layers), folder)
        try:
            trunk = build_trunk(identified(backbone.name, path), taps, backbone)
        except TypeError as error:
            raise AssertionError(f"{of}: {error}. Begin with a plain nn.Conv2d(3, ...)") from error
        found = dict(zip(taps, trunk(images), strict=True))
        features = (images.expand(-1, 3, -1, -1) - mean) / std
        wanted = {}
        for index, layer in enumerate(layers[: max(backbone.taps.values()) + 1]):
            features = layer(features)
            wanted[index] = features
    for tap in taps:
        expected = wanted[backbone.taps[tap]]
        demand(
            found[tap].shape == expected.shape, of,
            f"tap {tap} has {tuple(found[tap].shape)}, the module {tuple(expected.shape)}",
            "Begin with a plain convolution",
        )  # fmt: skip
        off = float((found[tap] - expected).abs().max() / expected.abs().max())
        demand(
            off <= _FOLDING, of,
            f"tap {tap} is off by {off:.1e} of what the module reads from three equal channels",
            "Begin with a plain nn.Conv2d, whose output is its weight's convolution and its bias",
        )  # fmt: skip


def check_reads_files(backbone: Backbone, weights: Weights) -> None:
    """Demand that a safetensors file of its weights makes the same network as those weights.

    Workers read that file, and nothing in it is executed. The names are ``features.*``, values
    are floating-point numbers.
    """
    del weights
    layers = lively_layers(backbone)[: _last(backbone) + 1]
    images = torch.rand((2, 1, *_SIZE), generator=torch.Generator().manual_seed(1))
    with TemporaryDirectory() as folder:
        path = _written(backbone, _state(layers), folder)
        try:
            trunks = [
                build_trunk(identified(backbone.name, path), backbone.default_taps, backbone)
                for _ in range(2)
            ]
        except WeightsError as error:
            raise AssertionError(
                f"Backbone {backbone.name!r}: its own weights are refused: {error}. Keep "
                "floating-point numbers only; compute others where they are needed"
            ) from error
    with torch_threads(1), torch.inference_mode():
        first, second = (trunk(images) for trunk in trunks)
    demand(
        all(torch.equal(a, b) for a, b in zip(first, second, strict=True)),
        f"Backbone {backbone.name!r}", "one file makes two networks",
        "Put all that is drawn or learned into its state",
    )  # fmt: skip


def check_refuses_wrong_files(backbone: Backbone, weights: Weights) -> None:
    """Demand a named error for a file that is damaged, changed, or of another network.

    Each of these has happened to a cohort: a download cut short, a file replaced while workers
    start, weights of the network's larger sister.
    """
    del weights
    of = f"Backbone {backbone.name!r}"
    layers = lively_layers(backbone)[: _last(backbone) + 1]
    state, first = _state(layers), f"features.{next(name for name, _ in layers.named_children())}."
    key = next((name for name in state if name.startswith(first)), "")
    demand(
        key, of, "keeps no weights of its first layer in its state",
        "Let files hold all that a network computes with, fixed filters too",
    )  # fmt: skip
    wrong: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
        "that lacks its first layer": lambda: {k: v for k, v in state.items() if k != key},
        "of another shape": lambda: {**state, key: state[key][1:].contiguous()},
        "with NaN": lambda: {**state, key: torch.full_like(state[key], torch.nan)},
    }

    def refused(path: Path, what: str, kind: type[WeightsError], named: str = "") -> None:
        try:
            build_trunk(found, backbone.default_taps, backbone)
        except kind as error:
            demand(
                path.name in str(error) and re.search(re.escape(named), str(error)), of,
                f"refuses a file {what} without saying which, or what: {error}", "Name both",
            )  # fmt: skip
            return
        raise AssertionError(
            f"{of}: takes a file {what}. Let every layer that is read keep its weights in its "
            "state, under its own name"
        )

    for what, make in wrong.items():
        with TemporaryDirectory() as folder:
            path = _written(backbone, make(), folder)
            found = identified(backbone.name, path)
            refused(path, what, WeightsError, key)
    with TemporaryDirectory() as folder:
        path = _written(backbone, state, folder)
        found = identified(backbone.name, path)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        refused(path, "that changed after it was found", ChecksumError)
        path.write_bytes(content[: len(content) // 2])
        found = identified(backbone.name, path)
        refused(path, "that was cut short", WeightsError)


def _last(backbone: Backbone) -> int:
    return max(backbone.taps[tap] for tap in backbone.default_taps)
