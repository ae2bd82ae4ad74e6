"""The pretrained networks: which exist, where their weights come from, how they are read.

A grey slice is three equal channels. So the first convolution and the normalisation before it
fold into one convolution of a single channel plus a bias map; at the border the map differs,
because the network pads after normalising. The folding is exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import nn
from torch.nn import functional

from fusionflow.errors import ChecksumError, ConfigurationError, InputError
from fusionflow.kept import Kept
from fusionflow.plugins import plugin, plugin_names
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

T = TypeVar("T")

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


#: Bytes of what a trunk keeps for images of some sizes.
_MOST_KEPT: Final = 1 << 28
#: Pixels of an image beyond which `fusionflow.device` lets all images go through one by one.
_LARGE: Final = 1 << 15


class Trunk(nn.Module):
    """A backbone cut after its last tap, for grey images.

    Parameters
    ----------
    layers : sequence of nn.Module
        ``features[:last tap + 1]`` with three-channel weights loaded.
    taps : sequence of int
        Indices of the layers to read.
    normalisation : Normalisation
        What the first layer expects.
    """

    def __init__(
        self, layers: Sequence[nn.Module], taps: Sequence[int], normalisation: Normalisation
    ) -> None:
        super().__init__()
        first, *rest = layers
        if not isinstance(first, nn.Conv2d) or first.in_channels != 3:
            raise TypeError("a trunk begins with a convolution of three channels")
        if first.padding_mode != "zeros" or first.dilation != (1, 1) or first.groups != 1:
            raise TypeError("a trunk begins with a plain convolution that pads with zeros")
        self._taps = frozenset(taps)
        #: What depends on the size of an image alone, for as long as no weight changes.
        self._maps: dict[tuple[int, int, bool, float | None], list[torch.Tensor]] = {}
        mean = torch.tensor(normalisation.mean).view(1, 3, 1, 1)
        std = torch.tensor(normalisation.std).view(1, 3, 1, 1)
        weight = first.weight.detach() / std
        self.stride, self.padding = first.stride, first.padding
        bias = first.weight.new_zeros(len(weight)) if first.bias is None else first.bias
        self.grey_weight = nn.Parameter(weight.sum(1, keepdim=True) * normalisation.scale)
        self.shift_weight = nn.Parameter(-(weight * mean).sum(1, keepdim=True))
        self.bias = nn.Parameter(bias.detach().clone())
        self.rest = nn.ModuleList(rest)
        for index, layer in enumerate(self.rest, start=1):
            if isinstance(layer, nn.ReLU):
                layer.inplace = index - 1 not in self._taps
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @property
    def tap_count(self) -> int:
        """How many layers are read."""
        return len(self._taps)

    def of_nothing(self, rows: int, columns: int, value: float) -> list[torch.Tensor]:
        """Return what `forward` reads from one image of that value everywhere.

        It is kept: all slices of a cohort have few sizes.
        """
        image = self.bias.new_full((1, 1, rows, columns), value)
        return self._kept(rows, columns, value, lambda: self(image))

    def bias_map(self, rows: int, columns: int) -> torch.Tensor:
        """Return what the first layer adds to an image of that size, (1, channels, y', x')."""
        ones = self.grey_weight.new_ones((1, 1, rows, columns))
        return functional.conv2d(ones, self.shift_weight, self.bias, self.stride, self.padding)

    def _kept(
        self, rows: int, columns: int, value: float | None, make: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return what is kept for a size, or make it."""
        if self.bias.is_meta or not torch.is_inference_mode_enabled():  # weights may change
            return make()
        key = (rows, columns, torch.is_autocast_enabled(self.bias.device.type), value)
        found = self._maps.get(key)
        if found is None:
            found = make()
            kept = [found, *list(self._maps.values())]
            if sum(item.nbytes for maps in kept for item in maps) > _MOST_KEPT:
                self._maps.clear()
            self._maps[key] = found
        return found

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Read the taps.

        Parameters
        ----------
        images : Tensor, (n, 1, y, x) float32
            Grey images, 0 black and 1 white.

        Returns
        -------
        list of Tensor
            (n, channels, y', x') for each tap, in the order of the layers.
        """
        return self.reduced(images, lambda _, features: features)

    def reduced(self, images: torch.Tensor, reduce: Callable[[int, torch.Tensor], T]) -> list[T]:
        """Read the taps one by one, so that only one holds memory at a time.

        Parameters
        ----------
        images : Tensor, (n, 1, y, x) float32
            As `forward` takes them.
        reduce : callable
            Takes the number of a tap and its features, (n, channels, y', x'), which it must leave
            as they are.

        Returns
        -------
        list
            What `reduce` makes of each tap, in the order of the layers.
        """
        count, (rows, columns) = len(images), images.shape[-2:]
        if count == 1 and rows * columns <= _LARGE and images.device.type == "cpu":
            # Convolutions of one small image take another path, with other last bits, than those
            # of several: then bits would depend on how slices fall into batches.
            images = images.expand(2, -1, -1, -1).contiguous()
        features = functional.conv2d(images, self.grey_weight, None, self.stride, self.padding)
        features += self._kept(rows, columns, None, lambda: [self.bias_map(rows, columns)])[0]
        read = [reduce(0, features[:count])] if 0 in self._taps else []
        for index, layer in enumerate(self.rest, start=1):
            features = layer(features)
            if index in self._taps:
                read.append(reduce(len(read), features[:count]))
        return read


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
_trunks: Kept[Trunk] = Kept()


def load_trunk(weights: Weights, taps: Sequence[str], device: str = "cpu") -> Trunk:
    """Return the trunk of this process, made at the first call and kept.

    Parameters
    ----------
    weights : Weights
        Which weights.
    taps : sequence of str
        Which layers.
    device : str
        Where it runs.
    """
    key = (f"{weights.backbone}:{weights.identity}", tuple(sorted(taps)), device)
    return _trunks.get(key, lambda: build_trunk(weights, taps).to(device))


def trunks_made() -> int:
    """Return how many trunks `load_trunk` has made in this process."""
    return _trunks.made
