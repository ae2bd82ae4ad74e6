"""What is kept of a training between its epochs: enough to go on to the same bits."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fusionflow.errors import ConfigurationError, WeightsError
from fusionflow.fusion_net import FusionNet
from fusionflow.io.files import write_bytes
from fusionflow.untrusted import one_line

__all__ = ["Epoch", "State", "resume", "write_checkpoint", "write_history"]


#: What is known of an epoch.
FIGURES = frozenset(
    {"qabf", "scd", "ssim_mri", "ssim_pet", "vif_mri", "vif_pet", "weight_low", "weight_high"}
)


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to.

    Attributes
    ----------
    number : int
        From 1.
    loss : float
        Mean over its steps.
    objective : float
        Of the validation slices, mean over `BALANCES`; lower is better.
    figures : dict
        `FIGURES`: the six of `fusionflow.losses.Figures` at balance 0.5, and the MRI's mean weight
        at balance 0.1 (``weight_low``) and 0.9 (``weight_high``).
    """

    number: int
    loss: float
    objective: float
    figures: dict[str, float]


_EPOCHS = TypeAdapter(list[Epoch])


@dataclass
class State:
    """A training at work: what a checkpoint keeps."""

    net: FusionNet
    optimiser: torch.optim.Adam
    epochs: list[Epoch] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch of least objective."""
        return min(self.epochs, key=lambda epoch: epoch.objective, default=None)


def write_history(epochs: Sequence[Epoch], path: Path) -> None:
    """Write a table with a line an epoch."""
    stream = StringIO()
    columns = ["epoch", "loss", "objective", *epochs[0].figures]
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for epoch in epochs:
        values = (epoch.loss, epoch.objective, *epoch.figures.values())
        writer.writerow([epoch.number, *(f"{value:.6f}" for value in values)])
    write_bytes(path, stream.getvalue().encode())


def write_checkpoint(state: State, made_from: Mapping[str, Any], path: Path) -> None:
    """Write all that going on needs, as plain tensors: nothing in it is ever executed."""
    tensors = {f"net.{name}": tensor for name, tensor in state.net.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    # Under one name: safetensors writes several in any order.
    kept = {
        "made_from": made_from,
        "epochs": [asdict(epoch) for epoch in state.epochs],
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={"fusionflow": json.dumps(kept)}))


def resume(state: State, made_from: Mapping[str, Any], path: Path) -> None:
    """Go on from a checkpoint.

    Parameters
    ----------
    state : State
        Gets what the checkpoint holds.
    made_from : mapping
        All that decides the bits: a training is only gone on with from the same.
    path : Path
        The checkpoint.

    Raises
    ------
    ConfigurationError
        If it is one of another training.
    WeightsError
        If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            kept = json.loads((stream.metadata() or {})["fusionflow"])
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        before = dict(kept["made_from"])
        epochs = _EPOCHS.validate_json(json.dumps(kept["epochs"]), strict=True)
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    if differing := sorted(_differing(before, json.loads(json.dumps(made_from)))):
        raise ConfigurationError(
            f"{path.parent} holds a training that differs in {', '.join(differing)}",
            "Give another folder, or remove it",
        )
    try:
        parts: dict[str, dict[str, torch.Tensor]] = {"net": {}, "best": {}, "adam": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in parts["adam"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        _check(state, epochs, parts, moments)
        state.net.load_state_dict(parts["net"])
        state.best, state.epochs = parts["best"], epochs
        state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _check(
    state: State,
    epochs: Sequence[Epoch],
    parts: Mapping[str, Mapping[str, torch.Tensor]],
    moments: Mapping[int, Mapping[str, torch.Tensor]],
) -> None:
    """Raise ValueError if a checkpoint lacks something, or has what does not fit."""
    if [epoch.number for epoch in epochs] != list(range(1, len(epochs) + 1)) or not epochs:
        raise ValueError("its epochs are not numbered from 1")
    if any(set(epoch.figures) != FIGURES for epoch in epochs):
        raise ValueError("its epochs lack figures")
    wanted = {name: tensor.shape for name, tensor in state.net.state_dict().items()}
    for part in ("net", "best"):
        if {name: tensor.shape for name, tensor in parts[part].items()} != wanted:
            raise ValueError(f"{part}: its tensors are not those of the net")
    optimised = [p for group in state.optimiser.param_groups for p in group["params"]]
    shapes = {
        index: {"step": torch.Size(), "exp_avg": p.shape, "exp_avg_sq": p.shape}
        for index, p in enumerate(optimised)
    }
    if {i: {name: t.shape for name, t in of.items()} for i, of in moments.items()} != shapes:
        raise ValueError("its moments are not those of what is trained")
    for tensor in (*parts["net"].values(), *parts["best"].values(), *parts["adam"].values()):
        if tensor.dtype != torch.float32 or not torch.isfinite(tensor).all():
            raise ValueError("it holds what is no number")
    if any((of["exp_avg_sq"] < 0).any() for of in moments.values()):
        raise ValueError("its moments are negative")


def _damaged(path: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"The checkpoint {path} cannot be gone on from: {one_line(error)}",
        "Remove it to begin anew",
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs, those inside of others after a dot."""
    found = []
    for name in one.keys() | other.keys():
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}.{inner}" for inner in _differing(a, b)]
        elif a != b:
            found.append(name)
    return found
