"""The pretrained networks: which exist, where their weights come from, how they are built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from fusionflow.device import memory_format
from fusionflow.errors import ChecksumError, ConfigurationError, InputError
from fusionflow.int8 import Int8Trunk, check_layers
from fusionflow.kept import Kept
from fusionflow.plugins import plugin, plugin_names
from fusionflow.trunk import TapReader, Trunk
from fusionflow.weights import (
    SUMS_FILE,
    Normalisation,
    Weights,
    checked_state,
    find_weights,
    identified,
    read_state,
    read_sums,
)

#: Entry points of other packages: objects of `Backbone`.
_GROUP = "fusionflow.backbones"


@dataclass(frozen=True)
class Backbone:
    """A network whose first layers, ``features``, form one sequence, as torchvision's do.

    Attributes
    ----------
    name : str
        The architecture.
    build : callable
        Makes the module, without weights. ``features`` begins with a convolution of three
        channels; its weights are looked up as ``features.*``.
    taps : mapping of str to int
        Layers that can be read, by index into ``features``.
    default_taps : tuple of str
        What a method reads unless it says otherwise: early layers, which see detail.
    url : str or None
        Where its ImageNet weights are; the name ends in the beginning of their SHA-256.
    size_mb : float
        Of that file.
    licence : str
        Of those weights, as far as it is stated.
    file : Path or None
        A ``.safetensors`` file of weights that a package brings with it, which ``auto`` then
        means; the ``SHA256SUMS`` beside it names it.
    """

    name: str
    build: Callable[[], nn.Module]
    taps: Mapping[str, int]
    default_taps: tuple[str, ...]
    url: str | None = None
    size_mb: float = 0.0
    licence: str = "not stated"
    file: Path | None = None


def _vgg_taps(blocks: Sequence[int]) -> dict[str, int]:
    """Return the layers of a VGG net by name: ``conv{block}_{i}`` and ``relu{block}_{i}``."""
    taps: dict[str, int] = {}
    index = 0
    for block, convolutions in enumerate(blocks, start=1):
        for i in range(1, convolutions + 1):
            taps[f"conv{block}_{i}"] = index
            taps[f"relu{block}_{i}"] = index + 1
            index += 2
        index += 1  # the pooling layer
    return taps


_ALEXNET_TAPS = {
    f"{kind}{i}": index + (kind == "relu")
    for i, index in enumerate((0, 3, 6, 8, 10), start=1)
    for kind in ("conv", "relu")
}
_DENSENET_TAPS = {
    "conv0": 0,
    "relu0": 2,
    **{f"denseblock{i}": 2 + 2 * i for i in (1, 2, 3, 4)},
    **{f"transition{i}": 3 + 2 * i for i in (1, 2, 3)},
}


def _of_torchvision(
    name: str,
    taps: Mapping[str, int],
    default_taps: tuple[str, ...],
    checksum: str,
    size_mb: float,
    file: str = "",
) -> Backbone:
    """Describe a network of torchvision, and its file of ImageNet weights as torchvision does.

    What torchvision says of that is repeated, for importing it takes a worker 160 MB and more than
    a second, and methods without a network have no need of it.
    """
    return Backbone(
        name=name,
        build=partial(_build_by_torchvision, name),
        taps=taps,
        default_taps=default_taps,
        url=f"https://download.pytorch.org/models/{file or name}-{checksum}.pth",
        size_mb=size_mb,
        licence=_TORCHVISION,
    )


def _build_by_torchvision(name: str) -> nn.Module:
    import torchvision

    net: nn.Module = torchvision.models.get_model(name)
    return net


_TORCHVISION = "none stated for the weights; torchvision is BSD-3-Clause, ImageNet for research"
_VGG_DEFAULT = ("relu1_1", "relu2_1", "relu3_1")
_ALEXNET_DEFAULT = ("relu1", "relu2", "relu3")
_DENSENET_DEFAULT = ("relu0", "denseblock1", "denseblock2")

#: The networks that come with fusionflow, by name.
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        _of_torchvision("vgg19", _vgg_taps((2, 2, 4, 4, 4)), _VGG_DEFAULT, "dcbb9e9d", 548.051),
        _of_torchvision("vgg16", _vgg_taps((2, 2, 3, 3, 3)), _VGG_DEFAULT, "397923af", 527.796),
        _of_torchvision(
            "alexnet", _ALEXNET_TAPS, _ALEXNET_DEFAULT, "7be5be79", 233.087, file="alexnet-owt"
        ),
        _of_torchvision("densenet121", _DENSENET_TAPS, _DENSENET_DEFAULT, "a639ec97", 30.845),
    )
}


def known_backbone(name: str) -> Backbone:
    """Return the backbone called `name`.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    backbone = BACKBONES.get(name) or plugin(_GROUP, name, Backbone)
    if backbone is None:
        known = sorted({*BACKBONES, *plugin_names(_GROUP)})
        raise ConfigurationError(
            f"No backbone is called {name!r}", f"Known are: {', '.join(known)}"
        )
    return backbone


def named_backbone(name: str, taps: Sequence[str]) -> Backbone:
    """Return the backbone called `name`, having checked the taps.

    Raises
    ------
    ConfigurationError
        If there is no such backbone, or it has no such tap, or no tap is given.
    """
    backbone = known_backbone(name)
    unknown = [tap for tap in taps if tap not in backbone.taps]
    if unknown or not taps:
        what = f"has no tap {', '.join(unknown)}" if unknown else "needs at least one tap"
        raise ConfigurationError(
            f"Backbone {name} {what}", f"Its taps are: {', '.join(backbone.taps)}"
        )
    return backbone


def resolve_weights(spec: str, backbone_name: str) -> Weights:
    """Find the weights of a backbone, see `fusionflow.weights.find_weights`.

    Raises
    ------
    WeightsNotFoundError
        If they are not there, or there is no network to fetch them through.
    ChecksumError
        If a file that comes with the backbone is not what the ``SHA256SUMS`` beside it says.
    ConfigurationError
        If `spec` makes no sense.
    """
    backbone = known_backbone(backbone_name)
    if spec == "auto" and backbone.file is not None:
        return brought_weights(backbone, backbone.file)
    return find_weights(spec, backbone_name, backbone.url)


def brought_weights(backbone: Backbone, file: Path) -> Weights:
    """Return the weights that come with a backbone, having checked them.

    Raises
    ------
    WeightsNotFoundError
        If the file cannot be read.
    ChecksumError
        If it is not what the ``SHA256SUMS`` beside it says, or that does not name it.
    """
    weights = identified(backbone.name, file)
    if file.name not in read_sums(file.parent):
        raise ChecksumError(
            f"Nothing says what the weights {file} should be: {SUMS_FILE} beside them does not "
            "name them",
            f"Write it there: sha256sum {file.name} > {SUMS_FILE}",
        )
    return weights


@cache
def check_size(backbone_name: str, taps: tuple[str, ...], shape: tuple[int, int]) -> None:
    """Refuse bands that the pooling before the last tap would leave nothing of.

    Raises
    ------
    InputError
        If they are too small.
    """
    try:
        with torch.device("meta"):
            _layers(named_backbone(backbone_name, taps), taps)(torch.empty(1, 3, *shape))
    except RuntimeError as error:
        raise InputError(
            f"Bands of {shape[0]} x {shape[1]} coefficients are too small for the taps "
            f"{', '.join(taps)} of {backbone_name}",
            "Read taps that come earlier, or take fewer levels",
        ) from error


def build_trunk(weights: Weights, taps: Sequence[str], backbone: Backbone | None = None) -> Trunk:
    """Make a trunk from a weights file (or a seed), having checked it.

    Parameters
    ----------
    weights : Weights
        Which weights. A file that comes with the backbone may lie elsewhere on a worker.
    taps : sequence of str
        Which layers.
    backbone : Backbone, optional
        One that is not found by its name.

    Raises
    ------
    ChecksumError
        If the file is not the one that was resolved.
    WeightsError
        If it cannot be read, lacks a layer, or holds one of another shape; the message says
        which.
    """
    backbone = backbone or named_backbone(weights.backbone, taps)
    indices = sorted(backbone.taps[tap] for tap in taps)
    layers = _layers(backbone, taps)
    if weights.path is not None and not weights.path.exists() and backbone.file is not None:
        weights = replace(weights, path=backbone.file)
    if weights.path is None:
        normalisation = Normalisation()
        layers.load_state_dict(_random_state(layers, int(weights.identity[7:])), assign=True)
    else:
        state, normalisation = read_state(weights)
        layers.load_state_dict(checked_state(layers, state, weights.path), assign=True)
    return Trunk(list(layers), indices, normalisation)


def empty_trunk(backbone_name: str, taps: Sequence[str]) -> Trunk:
    """Return a trunk on the meta device: shapes without values, to be filled from a file."""
    backbone = named_backbone(backbone_name, taps)
    indices = sorted(backbone.taps[tap] for tap in taps)
    with torch.device("meta"):
        return Trunk(list(_layers(backbone, taps)), indices, Normalisation())


def _layers(backbone: Backbone, taps: Sequence[str]) -> nn.Sequential:
    """Return a backbone up to its last tap, without weights."""
    with torch.device("meta"):
        features = backbone.build().features
    if not isinstance(features, nn.Sequential):
        raise TypeError(f"the layers of {backbone.name} are no sequence")
    return features[: max(backbone.taps[tap] for tap in taps) + 1]


def _random_state(layers: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return He-initialised weights (He et al. 2015) that depend on the seed alone.

    Normalisation layers leave their input as it is, and there are no biases.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in layers.state_dict().items():
        if tensor.ndim > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith(("weight", "running_var")):
            state[name] = torch.ones(tensor.shape)
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return state


#: The trunks of this process.
_trunks: Kept[TapReader] = Kept()


def load_trunk(
    weights: Weights, taps: Sequence[str], device: str = "cpu", precision: str = "float32"
) -> TapReader:
    """Return the trunk of this process, made at the first call and kept.

    Parameters
    ----------
    weights : Weights
        Which weights.
    taps : sequence of str
        Which layers.
    device, precision : str
        Where and in which arithmetic it runs.

    Raises
    ------
    ConfigurationError
        If the network, or the device, has no such arithmetic.
    PlacementError
        If this processor has none.
    """
    layout, in_int8 = memory_format(device, precision), precision == "int8"
    name = f"{weights.backbone}:{weights.identity}"
    key = (name, tuple(sorted(taps)), device, layout, in_int8)

    def make() -> TapReader:
        trunk = build_trunk(weights, taps).to(device).to(memory_format=layout)
        return Int8Trunk(trunk) if in_int8 else trunk

    return _trunks.get(key, make)


def check_int8(backbone_name: str, taps: Sequence[str]) -> None:
    """Refuse networks that have layers which `fusionflow.int8` does not know.

    Raises
    ------
    ConfigurationError
        If it has some.
    """
    check_layers(_layers(named_backbone(backbone_name, taps), taps), backbone_name)


def trunks_made() -> int:
    """Return how many trunks `load_trunk` has made in this process."""
    return _trunks.made
