"""The learned rule: a small head on the backbone's taps weighs the bands of both sources.

For each band of both sources the backbone reads the coefficients, shown to it as a picture. What
its taps see is reduced to a few channels and brought to the size of the band; a head of three
convolutions looks at that, at the coefficients of all four bands, and at the wanted `balance`, and
says for every coefficient of every band how much of the MRI's goes in; the rest is the PET's. So a
fused coefficient lies between those of its sources, and two equal sources give themselves. Before
it has learned anything the head chooses the coefficient of larger magnitude, softly.

A model is one ``.safetensors`` file: the trunk as it was trained, the head, and in its header what
they are and where they come from (`ModelCard`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from fusionflow.backbones import Trunk, empty_trunk
from fusionflow.config import Method, Options, Wavelet, explained
from fusionflow.errors import (
    ChecksumError,
    ConfigurationError,
    WeightsError,
    WeightsNotFoundError,
)
from fusionflow.io.files import file_sha256, write_bytes
from fusionflow.subbands import DWT_DETAILS, FloatArray, Subbands
from fusionflow.untrusted import one_line
from fusionflow.weights import SUMS_FILE, Weights, read_sums

__all__ = ["FusionNet", "Head", "ModelCard", "find_model", "load_model", "shipped", "weigh"]

BANDS: Final = ("a", *DWT_DETAILS)
MODELS: Final = Path(__file__).with_name("models")
#: What the header of a model file is kept under.
_CARD: Final = "fusionflow"
_MOST_CHANNELS: Final = 512
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: How an empty band is shown: black for ``a``, middle grey for those that have both signs.
_EMPTY: Final = (0.0, 0.5, 0.5, 0.5)


class ModelCard(Options):
    """What a model is, and where it comes from; the header of its file.

    Attributes
    ----------
    format : int
        Of the file.
    name : str
        What it is called.
    backbone, taps, transform
        As in `fusionflow.config.Method`; a method that uses the model must say the same.
    reads_backbone : bool
        False if the head sees the coefficients alone.
    width, seen : int
        Channels of the head.
    start : str
        What the weights of the backbone were before training.
    licence : str
        Of this file.
    training : dict
        Configuration, data, versions and figures of the training.
    """

    format: int = 1
    name: str
    backbone: str
    taps: tuple[str, ...]
    transform: Wavelet
    reads_backbone: bool = True
    width: int
    seen: int
    start: str = ""
    licence: str = "not stated"
    training: dict[str, Any] = Field(default_factory=dict)


class Head(nn.Module):
    """Weights of the MRI's coefficients, from the taps of both sources and their coefficients.

    Parameters
    ----------
    channels : sequence of int
        Of each tap; none for a head that sees the coefficients alone.
    seen : int
        Channels that each tap is reduced to.
    width : int
        Channels of its convolutions.
    """

    def __init__(self, channels: Sequence[int], seen: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(count, seen, 1) for count in channels)
        from_taps = 2 * len(BANDS) * seen if channels else 0
        coefficients = 3 * len(BANDS)  # of each source, and the difference of their magnitudes
        self.mix = nn.Sequential(
            nn.Conv2d(from_taps + coefficients + 1, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, len(BANDS), 1),
        )
        #: How firmly the larger magnitude is chosen, and how much `balance` moves that.
        self.firmness = nn.Parameter(torch.tensor([16.0, 32.0, 32.0, 32.0]))
        self.lean = nn.Parameter(torch.ones(len(BANDS)))

    def forward(
        self,
        taps: Sequence[torch.Tensor],
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the weights.

        Parameters
        ----------
        taps : sequence of Tensor, (n * 2 * 4, channels, y'', x'')
            Features of every band of both sources, slice by slice, the MRI's bands first.
        mri, pet : Tensor, (n, 4, y', x') float32
            Coefficients of bands a, h, v, d, those of a display window in 0..1 (a) and -1..1.
        balance : Tensor, (n,) float32
            0, PET-leaning, to 1, MRI-leaning.

        Returns
        -------
        Tensor, (n, 4, y', x')
            0..1.
        """
        count, _, rows, columns = mri.shape
        larger = mri.abs() - pet.abs()
        lean = (2 * balance - 1).view(-1, 1, 1, 1)
        inputs = [mri, pet, larger, lean.expand(-1, 1, rows, columns)]
        if self.reduce:
            seen: torch.Tensor | float = 0.0
            for layer, features in zip(self.reduce, taps, strict=True):
                seen = seen + functional.interpolate(
                    layer(features).float(), size=(rows, columns), mode="bilinear"
                )
            if isinstance(seen, torch.Tensor):
                inputs.append(seen.reshape(count, -1, rows, columns))
        logits = self.mix(torch.cat(inputs, dim=1))
        logits = logits + self.firmness.view(1, -1, 1, 1) * larger
        return torch.sigmoid(logits + self.lean.view(1, -1, 1, 1) * lean)


class FusionNet(nn.Module):
    """Trunk and head of a learned rule.

    Parameters
    ----------
    trunk : Trunk or None
        The backbone; None if the head sees the coefficients alone.
    head : Head
    card : ModelCard
    """

    def __init__(self, trunk: Trunk | None, head: Head, card: ModelCard) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.card = card

    def forward(
        self,
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
        *,
        bfloat16: bool = False,
        trained_trunk: bool = False,
    ) -> torch.Tensor:
        """Return the MRI's weight for every coefficient.

        Parameters
        ----------
        mri, pet : Tensor, (n, 4, y', x') float32
            Coefficients of bands a, h, v, d of one level, as the transform gives them.
        balance : Tensor, (n,) float32
            0..1.
        bfloat16 : bool
            Arithmetic of the trunk.
        trained_trunk : bool
            Whether gradients reach the trunk.

        Returns
        -------
        Tensor, (n, 4, y', x') float32
            0..1; the PET gets the rest.
        """
        mri, pet = mri / 2, pet / 2  # a level doubles the range
        taps: Sequence[torch.Tensor] = ()
        if self.trunk is not None:
            empty = mri.new_tensor(_EMPTY).view(1, 1, -1, 1, 1)
            images = (torch.stack([mri, pet], dim=1) + empty).flatten(0, 2)[:, None]
            with (
                torch.set_grad_enabled(trained_trunk),
                torch.autocast(mri.device.type, torch.bfloat16, enabled=bfloat16),
            ):
                taps = self.trunk(images)
            taps = [tap.float() for tap in taps]
        weights: torch.Tensor = self.head(taps, mri, pet, balance)
        return weights


def tap_channels(trunk: Trunk) -> list[int]:
    """Return the number of channels of every tap."""
    with torch.device("meta"):
        shape = trunk.to("meta") if trunk.bias.is_meta else trunk
    image = shape.bias.new_zeros((2, 1, 64, 64))
    with torch.inference_mode():
        return [tap.shape[1] for tap in shape(image)]


def make_net(card: ModelCard, trunk: Trunk | None, seed: int) -> FusionNet:
    """Return a net whose head has learned nothing: it chooses by magnitude alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(tap_channels(trunk) if trunk else (), card.seen, card.width)
    for tensor in head.mix[-1].parameters():
        nn.init.zeros_(tensor)
    return FusionNet(trunk, head, card)


def halved(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in half precision.

    Raises
    ------
    WeightsError
        If one has a value that half precision does not reach.
    """
    halves = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in state.items()
    }
    for name, tensor in halves.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{name} has grown beyond what half precision holds", "Train with a lower rate"
            )
    return halves


def model_bytes(net: FusionNet) -> bytes:
    """Return a net as a model file, in half precision; the same net gives the same bytes."""
    state = halved(net.state_dict())
    card = json.dumps(net.card.model_dump(mode="json"), sort_keys=True)
    return save(state, metadata={_CARD: card})


def write_model(net: FusionNet, path: Path) -> None:
    """Write a model file, whole or not at all."""
    write_bytes(path, model_bytes(net))


def read_card(path: Path) -> ModelCard:
    """Return what a model file says of itself.

    Raises
    ------
    WeightsError
        If it is no model.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_CARD)
        if text is None:
            raise WeightsError(
                f"{path} holds no trained model", "`fusionflow train` writes such files"
            )
        card = ModelCard.model_validate(json.loads(text))
    except (SafetensorError, OSError, RuntimeError, ValueError, RecursionError) as error:
        said = explained(error) if isinstance(error, ValidationError) else one_line(error)
        raise WeightsError(f"{path} is not a trained model: {said}") from error
    if (
        card.format != 1
        or not 0 < card.width <= _MOST_CHANNELS
        or not 0 < card.seen <= _MOST_CHANNELS
    ):
        raise WeightsError(
            f"{path} is a model of format {card.format}, width {card.width}, {card.seen} seen",
            "Use the version of fusionflow that wrote it",
        )
    return card


def read_model(path: Path) -> FusionNet:
    """Read a model file, having checked every tensor in it.

    Raises
    ------
    WeightsError
        If it is no model, or its tensors are not what its card says.
    """
    card = read_card(path)
    try:
        trunk = empty_trunk(card.backbone, card.taps) if card.reads_backbone else None
    except ConfigurationError as error:
        raise WeightsError(f"The model {path}: {one_line(error)}") from error
    with torch.device("meta"):
        net = FusionNet(
            trunk, Head(tap_channels(trunk) if trunk else (), card.seen, card.width), card
        )
    try:
        with safe_open(path, framework="pt") as stream:
            state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"Cannot read the model {path}: {one_line(error)}") from error
    net.load_state_dict(_checked(net, state, path), assign=True)
    net.requires_grad_(requires_grad=False)
    if net.trunk is not None:
        net.trunk.to(memory_format=torch.channels_last)
    return net.eval()


def _checked(
    net: nn.Module, state: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return the tensors of a net in float32, having checked that they are all there and fit."""
    wanted = net.state_dict()
    if differing := sorted(set(wanted) ^ set(state)):
        raise WeightsError(f"The model {path} lacks, or has beyond its card, {differing[0]}")
    checked = {}
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape or tensor.dtype not in _FLOATS:
            raise WeightsError(
                f"The model {path} has {name} as {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"not floats of {tuple(wanted[name].shape)}"
            )
        # A copy, which nobody changes who writes to the file.
        checked[name] = tensor.to(torch.float32, copy=True)
        if not torch.isfinite(checked[name]).all():
            raise WeightsError(f"The model {path} has NaN or infinity in {name}", "Train it anew")
    return checked


def shipped(backbone: str) -> Path:
    """Return the model that comes with fusionflow for a backbone.

    Raises
    ------
    WeightsNotFoundError
        If none does.
    """
    path = MODELS / f"dwt-{backbone}.safetensors"
    if not path.is_file():
        raise WeightsNotFoundError(
            f"No trained model comes with fusionflow for {backbone}",
            "Train one (`fusionflow train`) and pass --weights FILE",
        )
    return path


def find_model(method: Method) -> Weights:
    """Find the model of a method that has the learned rule.

    Parameters
    ----------
    method : Method
        Its `weights` is ``auto``, the model that comes with fusionflow, or a path.

    Raises
    ------
    WeightsNotFoundError
        If it is not there.
    WeightsError
        If it is no model, or one for another backbone, other taps, or another transform.
    ChecksumError
        If it is not the file that the ``SHA256SUMS`` beside it names.
    """
    backbone = str(method.backbone)
    path = shipped(backbone) if method.weights == "auto" else Path(method.weights)
    if not path.is_file():
        raise WeightsNotFoundError(
            f"No model {path}: a learned rule has no weights but trained ones",
            "Give the path of a .safetensors file that `fusionflow train` wrote",
        )
    identity = file_sha256(path)
    known = read_sums(path.parent).get(path.name)
    if known not in (None, identity):
        raise ChecksumError(
            f"The model {path} has SHA-256 {identity[:12]}, but {SUMS_FILE} beside it says "
            f"{known[:12] if known else known}",
            "The file changed or is damaged: install fusionflow anew, or stage the file again",
        )
    card = read_card(path)
    for name in ("backbone", "taps", "transform"):
        if getattr(card, name) != getattr(method, name):
            raise WeightsError(
                f"The model {path} was trained with {name} {getattr(card, name)}, but the method "
                f"{method.name} says {getattr(method, name)}",
                "Say the same in the method",
            )
    return Weights(backbone, identity, path.resolve())


@dataclass
class _Cache:
    """The models of this process, each read once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    nets: dict[tuple[str, str], FusionNet] = field(default_factory=dict)


_cache = _Cache()


def load_model(weights: Weights, device: str = "cpu") -> FusionNet:
    """Return the model of this process, read at the first call and kept.

    Raises
    ------
    ChecksumError
        If the file is no longer the one that was found.
    WeightsError
        If it cannot be read.
    """
    path, key = weights.path, (weights.identity, device)
    if path is None:
        raise ConfigurationError("A learned rule has no random weights", "Train it")
    with _cache.lock:
        if key not in _cache.nets:
            try:
                found = file_sha256(path)
            except OSError as error:
                raise WeightsNotFoundError(
                    f"Cannot read the model {path} on this worker: {error}",
                    "Put it in a folder that every worker can read",
                ) from error
            if found != weights.identity:
                raise ChecksumError(
                    f"The model {path} has SHA-256 {found[:12]}, not {weights.identity[:12]}",
                    "The file changed or is damaged: stage it again",
                )
            _cache.nets[key] = read_model(path).to(device)
        return _cache.nets[key]


def weigh(
    mri: Subbands, pet: Subbands, method: Method, weights: Weights, device: str = "cpu"
) -> list[FloatArray]:
    """Return the MRI's weight for every coefficient of both sources' bands.

    Parameters
    ----------
    mri, pet : Subbands
        Of one level.
    method : Method
        Gives balance, batch and precision.
    weights : Weights
        The model.
    device : str
        Where it runs.

    Returns
    -------
    list of ndarray, (z, y', x') float32
        0..1, for bands a, h, v, d.
    """
    net = load_model(weights, device)
    sources = [
        torch.from_numpy(np.stack([band for _, _, band in bands.bands()], axis=1))
        for bands in (mri, pet)
    ]
    step = max(1, method.batch // (2 * len(BANDS)))
    found = []
    with torch.inference_mode():
        for start in range(0, len(sources[0]), step):
            of_mri, of_pet = (s[start : start + step].to(device) for s in sources)
            count = len(of_mri)
            if count == 1:  # one image takes another path in convolutions, with other last bits
                of_mri, of_pet = (s.expand(2, -1, -1, -1).contiguous() for s in (of_mri, of_pet))
            balance = of_mri.new_full((len(of_mri),), method.balance)
            bfloat16 = method.precision == "bfloat16"
            found.append(net(of_mri, of_pet, balance, bfloat16=bfloat16)[:count].cpu())
    together = torch.cat(found).numpy()
    return [np.ascontiguousarray(together[:, index]) for index in range(len(BANDS))]
