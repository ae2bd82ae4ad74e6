"""The learned rule: a trained model, as a file and at work.

A model is one ``.safetensors`` file: the trunk as it was trained, the head, and in its header what
they are and where they come from (`fusionflow.fusion_net.ModelCard`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fusionflow.backbones import empty_trunk
from fusionflow.config import Method
from fusionflow.device import (
    Batch,
    arithmetic,
    arrived,
    host_buffer,
    memory_format,
    to_device,
)
from fusionflow.errors import (
    ChecksumError,
    ConfigurationError,
    WeightsError,
    WeightsNotFoundError,
)
from fusionflow.fusion_net import (
    BANDS,
    LEAST_SCALE,
    FusionNet,
    Head,
    ModelCard,
    tap_channels,
)
from fusionflow.int8 import Int8Trunk
from fusionflow.io.files import write_bytes
from fusionflow.kept import Kept
from fusionflow.options import explained
from fusionflow.subbands import FloatArray, Subbands
from fusionflow.untrusted import one_line
from fusionflow.weights import (
    SUMS_FILE,
    Weights,
    checked_tensor,
    identified,
    is_file,
    read_sums,
    unchanged,
)

__all__ = [
    "find_model",
    "load_model",
    "models_made",
    "read_card",
    "read_model",
    "shipped",
    "shipped_models",
    "weigh",
    "write_model",
]

MODELS: Final = Path(__file__).with_name("models")
#: What the header of a model file is kept under.
_CARD: Final = "fusionflow"
_MOST_CHANNELS: Final = 512
#: Of a slice: every band of both sources.
_IMAGES: Final = 2 * len(BANDS)
#: The models of this process.
_nets: Kept[FusionNet] = Kept()


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
    WeightsNotFoundError
        If it is not there.
    WeightsError
        If it is no model.
    """
    if not is_file(path):
        raise WeightsNotFoundError(
            f"{path} is no file", "Give the path of a model that `fusionflow train` wrote"
        )
    try:
        with safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(_CARD)
        if text is None:
            raise WeightsError(
                f"{path} holds no trained model", "`fusionflow train` writes such files"
            )
        card = ModelCard.model_validate(json.loads(text))
        card.model_dump(mode="json")  # nested too deeply, it can be read and never be shown
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
    return net.eval()


def _checked(
    net: nn.Module, state: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return the tensors of a net in float32, having checked that they are all there and fit."""
    wanted = net.state_dict()
    if differing := sorted(set(wanted) ^ set(state)):
        raise WeightsError(
            f"The model {path} lacks, or has beyond its card, {differing[0]}", "Train it anew"
        )
    found = {
        name: checked_tensor(tensor, wanted[name].shape, name, path)
        for name, tensor in state.items()
    }
    for name, tensor in found.items():
        if name.startswith("head.scale") and not (tensor >= LEAST_SCALE / 2).all():
            raise WeightsError(
                f"The model {path}: {name} holds sizes of features that are not positive",
                "Train it anew",
            )
    return found


def shipped_models() -> list[Path]:
    """Return the models that come with fusionflow."""
    return sorted(MODELS.glob("*.safetensors"))


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
    if not is_file(path):
        raise WeightsNotFoundError(
            f"No model {path}: a learned rule has no weights but trained ones",
            "Give the path of a .safetensors file that `fusionflow train` wrote",
        )
    weights = identified(backbone, path)
    if method.weights == "auto" and path.name not in read_sums(path.parent):
        raise ChecksumError(
            f"Nothing says what the model {path} should be: {SUMS_FILE} beside it does not name it",
            "Install fusionflow anew",
        )
    card = read_card(path)
    for name in ("backbone", "taps", "transform"):
        if getattr(card, name) != getattr(method, name):
            raise WeightsError(
                f"The model {path} was trained with {name} {getattr(card, name)}, but the method "
                f"{method.name} says {getattr(method, name)}",
                "Say the same in the method",
            )
    return weights


def load_model(weights: Weights, device: str = "cpu", precision: str = "float32") -> FusionNet:
    """Return the model of this process, read at the first call and kept.

    A model that comes with fusionflow may lie elsewhere on a worker than where it was found.

    Parameters
    ----------
    weights : Weights
        Which model.
    device, precision : str
        Where and in which arithmetic it runs.

    Raises
    ------
    ChecksumError
        If the file is no longer the one that was found.
    WeightsError
        If it cannot be read.
    ConfigurationError
        If its network, or the device, has no such arithmetic.
    PlacementError
        If this processor has none.
    """
    if weights.is_random:
        raise ConfigurationError("A learned rule has no random weights", "Train it")

    layout = memory_format(device, precision)

    def read() -> FusionNet:
        path, found = weights.path, weights
        if path is not None and not path.exists() and (MODELS / path.name).is_file():
            found = replace(weights, path=MODELS / path.name)
        net = read_model(unchanged(found)).to(device).to(memory_format=layout)
        if precision == "int8" and net.trunk is not None:
            net.int8 = Int8Trunk(net.trunk)
        return net

    return _nets.get((weights.identity, device, layout, precision == "int8"), read)


def models_made() -> int:
    """Return how many models `load_model` has read in this process."""
    return _nets.made


def weigh(
    mri: Subbands, pet: Subbands, method: Method, weights: Weights, batch: Batch | None = None
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
    batch : Batch, optional
        Where it runs, and how many images go at a time there; on the processor by default.

    Returns
    -------
    list of ndarray, (z, y', x') float32
        0..1, for bands a, h, v, d; one half in slices without coefficients, which no model sees.
    """
    batch = batch or Batch(method)
    net = load_model(weights, batch.device, method.precision)
    sources = [np.stack([band for _, _, band in bands.bands()], axis=1) for bands in (mri, pet)]
    shape = sources[0].shape
    # Which images hold anything, (z, 2, 4).
    nonzero = np.stack([source.any(axis=(2, 3)) for source in sources], axis=1)
    shown = np.flatnonzero(nonzero.any(axis=(1, 2)))
    found = np.full(shape, 0.5, np.float32)
    if len(shown):
        if len(shown) < len(found):
            sources = [source[shown] for source in sources]
        found[shown] = _weights(net, sources, nonzero[shown], method, batch)
    return [np.ascontiguousarray(found[:, index]) for index in range(len(BANDS))]


def _weights(
    net: FusionNet,
    sources: Sequence[FloatArray],
    nonzero: npt.NDArray[np.bool_],
    method: Method,
    batch: Batch,
) -> FloatArray:
    """Return the weights for slices (z, 4, y', x') of both sources that are not empty."""
    buffer = host_buffer(sources[0].shape, batch.device)
    with arithmetic(batch.device, method.precision):
        sent = [to_device(source, batch.device) for source in sources]

        def forward(part: slice) -> None:
            of_mri, of_pet = (source[part] for source in sent)
            seen = net.look(of_mri, of_pet, np.flatnonzero(nonzero[part]).tolist(), batch)
            # On a processor one by one: torch makes convolutions of one slice another way, with
            # other last bits, than those of several, and slices would depend on their neighbours.
            step = 1 if of_mri.device.type == "cpu" else len(of_mri)
            for first in range(0, len(of_mri), step):
                of = slice(first, first + step)
                images = slice(_IMAGES * of.start, _IMAGES * of.stop)
                balance = of_mri.new_full((len(of_mri[of]),), method.balance)
                with torch.autocast(of_mri.device.type, enabled=False):
                    found = net.weigh_seen(
                        [tap[images] for tap in seen], of_mri[of], of_pet[of], balance
                    )
                buffer[part][of].copy_(found, non_blocking=True)

        batch.each(len(nonzero), sources[0].shape[-2:], forward, images=_IMAGES)
    return arrived(buffer, batch.device)
