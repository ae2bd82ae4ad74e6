"""What is kept of a training between its epochs: enough to go on to the same bits."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fusionflow.errors import ConfigurationError, WeightsError
from fusionflow.fusion_net import FusionNet
from fusionflow.io.files import write_bytes
from fusionflow.train_config import TrainConfig
from fusionflow.untrusted import one_line

__all__ = ["Epoch", "State", "resume", "write_checkpoint", "write_history"]


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
        ``qabf``, ``scd``, ``ssim_mri``, ``ssim_pet``, ``vif_mri``, ``vif_pet`` at balance 0.5, and
        ``weight_low``, ``weight_high``: the MRI's mean weight at the ends of the knob.
    """

    number: int
    loss: float
    objective: float
    figures: dict[str, float]


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


def write_checkpoint(state: State, config: TrainConfig, path: Path) -> None:
    """Write all that going on needs, as plain tensors: nothing in it is ever executed."""
    tensors = {f"net.{name}": tensor for name, tensor in state.net.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    # Under one name: safetensors writes several in any order.
    kept = {
        "fingerprint": config.fingerprint(),
        "epochs": [asdict(epoch) for epoch in state.epochs],
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, metadata={"fusionflow": json.dumps(kept)}))


def resume(state: State, config: TrainConfig, path: Path) -> None:
    """Go on from a checkpoint.

    Raises
    ------
    ConfigurationError
        If it is one of another configuration.
    WeightsError
        If it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            kept = json.loads((stream.metadata() or {})["fusionflow"])
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        fingerprint = kept["fingerprint"]
        epochs = [Epoch(**epoch) for epoch in kept["epochs"]]
        parts: dict[str, dict[str, torch.Tensor]] = {"net": {}, "best": {}, "adam": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in parts["adam"].items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = tensor
        if fingerprint == config.fingerprint():
            state.net.load_state_dict(parts["net"])
            state.best, state.epochs = parts["best"], epochs
            state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The checkpoint {path} cannot be gone on from: {one_line(error)}",
            "Remove it to begin anew",
        ) from error
    if fingerprint != config.fingerprint():
        raise ConfigurationError(
            f"{path.parent} holds a training with another configuration",
            "Give another folder, or remove it",
        )
