"""The pretrained networks: which exist, where their weights come from, how they are read.

A grey slice is three equal channels. So the first convolution and the normalisation before it
fold into one convolution of a single channel plus a bias map; at the border the map differs,
because the network pads after normalising. The folding is exact up to rounding.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from fusionflow.errors import ChecksumError, ConfigurationError, WeightsError, WeightsNotFoundError

logger = logging.getLogger(__name__)

WEIGHTS_DIR_VARIABLE = "FUSIONFLOW_WEIGHTS_DIR"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision whose layers form one sequence.

    Attributes
    ----------
    name : str
        The architecture.
    build : callable
        Makes the module, without weights.
    taps : mapping of str to int
        Layers that can be read, by index into ``features``.
    pretrained : torchvision.models.WeightsEnum
        Its ImageNet weights.
    """

    name: str
    build: Callable[[], nn.Module]
    taps: Mapping[str, int]
    pretrained: Any


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


#: The networks by name.
BACKBONES: dict[str, Backbone] = {
    "vgg19": Backbone(
        name="vgg19",
        build=torchvision.models.vgg19,
        taps=_vgg_taps((2, 2, 4, 4, 4)),
        pretrained=torchvision.models.VGG19_Weights.IMAGENET1K_V1,
    ),
}


def named_backbone(name: str, taps: Sequence[str]) -> Backbone:
    """Return the backbone called `name`, having checked the taps.

    Raises
    ------
    ConfigurationError
        If there is no such backbone, or it has no such tap, or no tap is given.
    """
    if name not in BACKBONES:
        raise ConfigurationError(
            f"No backbone is called {name!r}", f"Known are: {', '.join(sorted(BACKBONES))}"
        )
    backbone = BACKBONES[name]
    unknown = [tap for tap in taps if tap not in backbone.taps]
    if unknown or not taps:
        what = f"has no tap {', '.join(unknown)}" if unknown else "needs at least one tap"
        raise ConfigurationError(
            f"Backbone {name} {what}", f"Its taps are: {', '.join(backbone.taps)}"
        )
    return backbone


@dataclass(frozen=True)
class Weights:
    """Which weights, in a form that travels to workers: a path and a checksum.

    Attributes
    ----------
    backbone : str
        The architecture that they are for.
    identity : str
        SHA-256 of the file, or ``random:SEED``.
    path : Path or None
        The file; None for random weights.
    """

    backbone: str
    identity: str
    path: Path | None = None

    @property
    def is_random(self) -> bool:
        """Whether nothing was learned: the user asked for this by name."""
        return self.path is None

    @property
    def description(self) -> str:
        """One line for screens, sidecars and reports."""
        if self.path is None:
            return f"{self.identity} (RANDOM weights, not pretrained: for trying out only)"
        return f"{self.path.name} (sha256 {self.identity[:12]})"


def resolve_weights(spec: str, backbone_name: str) -> Weights:
    """Find the weights that `spec` names. Nothing is ever replaced by something else.

    Parameters
    ----------
    spec : str
        - ``auto``: the folder ``FUSIONFLOW_WEIGHTS_DIR`` if that is set, otherwise as
          ``torchvision``;
        - ``torchvision``: torchvision's ImageNet weights, from its cache or its server;
        - ``random:SEED``: random weights, for trying out;
        - otherwise the path of a ``.safetensors`` or ``.pth`` file.
    backbone_name : str
        The architecture.

    Raises
    ------
    WeightsNotFoundError
        If they are not there, or there is no network to fetch them through.
    ConfigurationError
        If the seed is not a whole number.
    """
    if spec.startswith("random:"):
        seed = spec.removeprefix("random:")
        if not seed.isdecimal() or int(seed) >= 2**63:
            raise ConfigurationError(
                f"The seed in weights {spec!r} is not a whole number", "Write random:0"
            )
        return Weights(backbone_name, f"random:{int(seed)}")
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if spec == "auto" and folder:
        path = _find_in_folder(Path(folder), backbone_name)
    elif spec in ("auto", "torchvision"):
        path = _fetch_torchvision(BACKBONES[backbone_name])
    else:
        path = Path(spec)
        if not path.is_file():
            raise WeightsNotFoundError(
                f"No weights file {path}",
                "Give the path of a .safetensors or .pth file, `torchvision`, or random:SEED",
            )
    weights = Weights(backbone_name, file_sha256(path), path.resolve())
    logger.info("weights of %s: %s", backbone_name, path)
    return weights


def _find_in_folder(folder: Path, backbone_name: str) -> Path:
    """Return the weights of a backbone in a folder: the shortest name that begins with it."""
    found = [
        path
        for pattern in ("*.safetensors", "*.pth")
        for path in folder.glob(f"{backbone_name}{pattern}")
        if not path.name.removeprefix(backbone_name)[0].isalnum()
    ]
    if not found:
        raise WeightsNotFoundError(
            f"No weights of {backbone_name} in {folder} ({WEIGHTS_DIR_VARIABLE})",
            f"Put {backbone_name}*.safetensors or {backbone_name}*.pth there",
        )
    return min(found, key=lambda path: (len(path.name), path.name))


def _fetch_torchvision(backbone: Backbone) -> Path:
    """Return torchvision's weights file, downloading it if it is not in torch's cache."""
    url: str = backbone.pretrained.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = path.stem.rsplit("-", 1)[-1]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=True)
        except (OSError, RuntimeError) as error:
            raise WeightsNotFoundError(
                f"The pretrained weights of {backbone.name} are not on this machine and could "
                f"not be downloaded ({error})",
                f"Put them at {path}, or set {WEIGHTS_DIR_VARIABLE} to a folder that holds "
                f"{backbone.name}*.safetensors or .pth, or pass --weights FILE; to try things "
                "out without pretrained weights ask for them by name: --weights random:0",
            ) from error
    return path


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Normalisation:
    """What a network expects of its input: ``(x * scale - mean) / std`` in each channel."""

    scale: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> Normalisation:
        """Read the header of a safetensors file; what it does not say is torchvision's."""
        metadata = metadata or {}
        default = cls()

        def numbers(name: str, fallback: tuple[float, ...]) -> tuple[float, ...]:
            if name not in metadata:
                return fallback
            return tuple(float(part) for part in metadata[name].split(","))

        return cls(
            scale=float(metadata.get("scale", default.scale)),
            mean=numbers("mean", default.mean),
            std=numbers("std", default.std),
        )


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
        if not isinstance(first, nn.Conv2d) or first.bias is None:
            raise TypeError("a trunk begins with a convolution that has a bias")
        self._taps = tuple(taps)
        mean = torch.tensor(normalisation.mean).view(1, 3, 1, 1)
        std = torch.tensor(normalisation.std).view(1, 3, 1, 1)
        weight = first.weight.detach() / std
        self.stride, self.padding = first.stride, first.padding
        self.register_buffer("grey_weight", weight.sum(1, keepdim=True) * normalisation.scale)
        self.register_buffer("shift_weight", -(weight * mean).sum(1, keepdim=True))
        self.register_buffer("bias", first.bias.detach().clone())
        self.rest = nn.ModuleList(rest)
        for index, layer in enumerate(self.rest, start=1):
            if isinstance(layer, nn.ReLU):
                layer.inplace = index - 1 not in self._taps
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    grey_weight: torch.Tensor
    shift_weight: torch.Tensor
    bias: torch.Tensor

    def bias_map(self, rows: int, columns: int) -> torch.Tensor:
        """Return what the first layer adds to an image of that size, (1, channels, y', x')."""
        ones = self.grey_weight.new_ones((1, 1, rows, columns))
        return functional.conv2d(ones, self.shift_weight, self.bias, self.stride, self.padding)

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
        features = functional.conv2d(
            images, self.grey_weight, None, self.stride, self.padding
        ) + self.bias_map(images.shape[-2], images.shape[-1])
        read = [features] if 0 in self._taps else []
        for index, layer in enumerate(self.rest, start=1):
            features = layer(features)
            if index in self._taps:
                read.append(features)
        return read


def build_trunk(weights: Weights, taps: Sequence[str]) -> Trunk:
    """Make a trunk from a weights file (or a seed), having checked it.

    Raises
    ------
    ChecksumError
        If the file is not the one that was resolved.
    WeightsError
        If it cannot be read, lacks a layer, or holds one of another shape; the message says
        which.
    """
    backbone = named_backbone(weights.backbone, taps)
    indices = sorted(backbone.taps[tap] for tap in taps)
    with torch.device("meta"):
        features = backbone.build().features
    if not isinstance(features, nn.Sequential):
        raise TypeError(f"the layers of {backbone.name} are no sequence")
    layers = features[: indices[-1] + 1]
    if weights.path is None:
        normalisation = Normalisation()
        layers.load_state_dict(_random_state(layers, int(weights.identity[7:])), assign=True)
    else:
        state, normalisation = _read_state(weights)
        layers.load_state_dict(_checked_state(layers, state, weights.path), assign=True)
    return Trunk(list(layers), indices, normalisation)


def _random_state(layers: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Return He-initialised weights (He et al. 2015) that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in layers.state_dict().items():
        if tensor.ndim > 1:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            state[name] = torch.zeros(tensor.shape)
    return state


def _read_state(weights: Weights) -> tuple[dict[str, torch.Tensor], Normalisation]:
    """Read ``features.*`` of a weights file; pickles are read as plain tensors only."""
    path = weights.path
    if path is None:
        raise WeightsError("random weights have no file")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise WeightsNotFoundError(
            f"Cannot read the weights {path} on this worker: {error}",
            "Put them in a folder that every worker can read",
        ) from error
    if found != weights.identity:
        raise ChecksumError(
            f"The weights {path} have SHA-256 {found[:12]}, not {weights.identity[:12]}",
            "The file changed or is damaged: fetch it again",
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
                normalisation = Normalisation.from_metadata(stream.metadata())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            normalisation = Normalisation()
    except (SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"Cannot read the weights {path}: {error}") from error
    except Exception as error:  # unpickling fails in many ways, all of them mean this
        raise WeightsError(f"{path} is not a file of weights: {error}") from error
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not weights by layer")
    return dict(state), normalisation


def _checked_state(
    layers: nn.Module, state: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return the weights of `layers` in float32, having checked that all of them fit."""
    checked = {}
    for name, wanted in layers.state_dict().items():
        key = f"features.{name}"
        if key not in state:
            raise WeightsError(
                f"The weights {path} have no {key}",
                "Choose taps that come before it, or a file that holds that layer",
            )
        tensor = state[key]
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"The weights {path} have {key} of shape {tuple(tensor.shape)}, "
                f"not {tuple(wanted.shape)}"
            )
        checked[name] = tensor.to(torch.float32).contiguous()
    return checked


@dataclass
class _TrunkCache:
    """The trunks of this process, each made once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    trunks: dict[tuple[str, tuple[str, ...], str], Trunk] = field(default_factory=dict)


_cache = _TrunkCache()


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
    with _cache.lock:
        if key not in _cache.trunks:
            _cache.trunks[key] = build_trunk(weights, taps).to(device)
        return _cache.trunks[key]
