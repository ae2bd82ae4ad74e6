"""Training of the learned rule, without labels: the fused slice is asked to keep both sources.

Squares of both sources go through the DWT, the net, and a differentiable inverse DWT; what comes
out is judged by the figures that methods are compared with (`fusionflow.losses`), the MRI's and the
PET's in the proportion that `balance` wants. Same configuration, same data, same versions and the
same number of threads give the same bits on one type of CPU, with or without breaks.
"""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

import fusionflow
from fusionflow import losses, torch_wavelet
from fusionflow.backbones import Trunk, build_trunk, resolve_weights
from fusionflow.errors import ConfigurationError, StoreError, WeightsError
from fusionflow.io.files import write_bytes
from fusionflow.learned import FusionNet, ModelCard, halved, make_net, write_model
from fusionflow.pictures import mosaic
from fusionflow.stages import torch_threads
from fusionflow.train_config import Loss, TrainConfig
from fusionflow.train_data import Batch, SlicePair, draw, read_slices
from fusionflow.untrusted import one_line

__all__ = ["Epoch", "Trained", "train"]

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.tsv"
#: Balances at which validation slices are fused.
BALANCES = (0.1, 0.5, 0.9)
_GRADIENT_NORM = 1.0
#: Below this a figure is as bad as it gets.
_LEAST_FIGURE = 0.01
_SHOWN = 4


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
class Trained:
    """A finished training.

    Attributes
    ----------
    model : Path
        The net of the best epoch.
    best : Epoch
        That epoch.
    epochs : list of Epoch
        All of them.
    """

    model: Path
    best: Epoch
    epochs: list[Epoch]


@dataclass
class _State:
    """What a checkpoint keeps."""

    net: FusionNet
    optimiser: torch.optim.Adam
    epochs: list[Epoch] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch of least objective."""
        return min(self.epochs, key=lambda epoch: epoch.objective, default=None)


def train(
    config: TrainConfig,
    out: Path,
    *,
    name: str | None = None,
    licence: str = "not stated",
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train a learned rule, or go on where the training in `out` was broken off.

    Parameters
    ----------
    config : TrainConfig
        All that decides the result.
    out : Path
        Folder for ``model.safetensors``, ``history.tsv``, ``checkpoint.safetensors`` and pictures.
    name : str, optional
        What the model is called; by default ``dwt-BACKBONE``.
    licence : str
        Of the model.
    device : str
        Where the net runs.
    tell : callable
        Called with a line of progress.

    Raises
    ------
    ConfigurationError
        If `out` holds a training with another configuration, or a parameter makes no sense.
    StoreError
        If `out` cannot be made.
    WeightsError
        If the checkpoint is damaged.
    WeightsNotFoundError
        If the weights of the backbone are not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"There is no device {device!r} here: {one_line(error, 200)}", "Take cpu"
        ) from error
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot make the folder {out}: {error.strerror}") from error
    net = _start(config, name, licence)
    trained = _trained_layers(net, config.unfreeze)
    net.to(device)
    groups = [
        {"params": list(net.head.parameters()), "lr": config.learning_rate},
        {"params": trained, "lr": config.backbone_learning_rate},
    ]
    state = _State(net, torch.optim.Adam([group for group in groups if group["params"]]))
    if (out / CHECKPOINT).is_file():
        _resume(state, config, out / CHECKPOINT)
        tell(f"going on after epoch {len(state.epochs)}")
    train_slices, validation = read_slices(config.train), read_slices(config.validation)
    tell(f"{len(train_slices)} slices to train on, {len(validation)} to validate with")
    card = net.card.model_copy(update={"training": _provenance(config, train_slices, validation)})
    net.card = card
    with torch_threads(config.threads):
        while not _ended(state, config):
            epoch = _one_epoch(state, config, train_slices, validation, device)
            if state.best_epoch is epoch:
                state.best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            tell(_line(epoch, best=state.best_epoch is epoch))
            _write_checkpoint(state, config, out / CHECKPOINT)
            _write_history(state.epochs, out / HISTORY)
            if epoch.number % config.pictures_every == 0:
                _picture(net, config, validation, device, out / f"epoch-{epoch.number:03}.png")
        best = state.best_epoch
        if best is None:
            raise ConfigurationError("A training has at least one epoch")
        # What the file holds is judged, rounded as it is.
        net.load_state_dict(halved(state.best))
        reached, of_file = validate(net, config, validation, device)
        figures = {"epoch": best.number, "objective": reached, **of_file}
        net.card = card.model_copy(update={"training": {**card.training, "validation": figures}})
        _write_history(state.epochs, out / HISTORY)
        write_model(net, out / MODEL)
        _picture(net, config, validation, device, out / "best.png")
    return Trained(out / MODEL, best, state.epochs)


def objective(batch: Batch, fused: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Return what training makes small, a number for each slice, (n,).

    Figures are better where they are higher, so they count negatively; and by their logarithm, for
    a share that is lost of one must weigh as much as the same share of another that is gained. Of
    their plain sum the unchanged MRI has more than any fused slice, and shows no PET.
    """
    of = losses.figures(batch.mri, batch.pet, fused)
    for_mri, for_pet = 2 * batch.balance, 2 * (1 - batch.balance)
    wanted = _wanted(batch.mri, batch.pet, batch.balance.view(-1, 1, 1))
    return (
        loss.intensity * (fused - wanted).abs().mean(dim=(1, 2))
        - loss.qabf * _log(of.qabf)
        - loss.scd * (for_mri * of.scd_mri + for_pet * of.scd_pet)
        - loss.ssim * (for_mri * _log(of.ssim_mri) + for_pet * _log(of.ssim_pet))
        - loss.vif * (for_mri * _log(of.vif_mri) + for_pet * _log(of.vif_pet))
    )


def _wanted(mri: torch.Tensor, pet: torch.Tensor, balance: torch.Tensor) -> torch.Tensor:
    """Return the brighter of both at a balance of a half, and a source itself at its end."""
    brighter = torch.maximum(mri, pet)
    nearer = torch.where(balance >= 0.5, mri, pet)
    return nearer + (1 - (2 * balance - 1).abs()) * (brighter - nearer)


def _log(figure: torch.Tensor) -> torch.Tensor:
    return figure.clamp(min=_LEAST_FIGURE).log()


def fuse(net: FusionNet, batch: Batch, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fused slices, (n, y, x), and the MRI's weights, (n, 4, y', x')."""
    (of_mri,), (of_pet,) = (
        torch_wavelet.decompose(images, config.transform) for images in (batch.mri, batch.pet)
    )
    weights = net(
        of_mri,
        of_pet,
        batch.balance,
        bfloat16=config.precision == "bfloat16",
        trained_trunk=config.unfreeze != 0,
    )
    bands = weights * of_mri + (1 - weights) * of_pet
    shape = (batch.mri.shape[1], batch.mri.shape[2])
    return torch_wavelet.reconstruct([bands], shape, config.transform), weights


def _start(config: TrainConfig, name: str | None, licence: str) -> FusionNet:
    """Return the net before training."""
    trunk: Trunk | None = None
    start = "no backbone"
    if config.reads_backbone:
        weights = resolve_weights(config.weights, config.backbone)
        trunk, start = build_trunk(weights, config.taps), weights.description
    card = ModelCard(
        name=name or f"dwt-{config.backbone}",
        backbone=config.backbone,
        taps=config.taps,
        transform=config.transform,
        reads_backbone=config.reads_backbone,
        width=config.width,
        seen=config.seen,
        start=start,
        licence=licence,
    )
    return make_net(card, trunk, config.seed)


def _trained_layers(net: FusionNet, unfreeze: int | str) -> list[nn.Parameter]:
    """Let the last layers of the trunk be trained, and return their parameters.

    Raises
    ------
    ConfigurationError
        If it has fewer.
    """
    if unfreeze == 0 or net.trunk is None:
        return []
    layers = [layer for layer in net.trunk.rest.modules() if isinstance(layer, nn.Conv2d)]
    if unfreeze == "all":
        chosen = [*net.trunk.parameters()]
    elif int(unfreeze) > len(layers):
        raise ConfigurationError(
            f"{net.card.backbone} has {len(layers)} convolutions after its first up to "
            f"{net.card.taps[-1]}, not {unfreeze}",
            "Unfreeze fewer, or `all`",
        )
    else:
        chosen = [p for layer in layers[-int(unfreeze) :] for p in layer.parameters()]
    for parameter in chosen:
        parameter.requires_grad_()
    return chosen


def _one_epoch(
    state: _State,
    config: TrainConfig,
    slices: Sequence[SlicePair],
    validation: Sequence[SlicePair],
    device: str,
) -> Epoch:
    number = len(state.epochs) + 1
    net, total = state.net, 0.0
    peaks = [group["initial_lr"] for group in _with_peaks(state.optimiser, config)]
    for step in range((number - 1) * config.steps, number * config.steps):
        for group, peak in zip(state.optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * _share(step, config)
        batch = _to(draw(slices, config, step), device)
        fused, _ = fuse(net, batch, config)
        loss = objective(batch, fused, config.loss).mean()
        if not torch.isfinite(loss):
            raise ConfigurationError(
                f"The loss is {loss.item()} in step {step}", "Take a lower learning rate"
            )
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), _GRADIENT_NORM)
        state.optimiser.step()
        total += loss.item()
    reached, figures = validate(net, config, validation, device)
    epoch = Epoch(number, total / config.steps, reached, figures)
    state.epochs.append(epoch)
    return epoch


def _with_peaks(optimiser: torch.optim.Adam, config: TrainConfig) -> list[dict[str, Any]]:
    rates = (config.learning_rate, config.backbone_learning_rate)
    for group, rate in zip(optimiser.param_groups, rates, strict=False):
        group["initial_lr"] = rate
    return optimiser.param_groups


def _share(step: int, config: TrainConfig) -> float:
    """Return how much of its highest the learning rate is: up in an epoch, down as a cosine."""
    rising = (step + 1) / config.steps
    falling = (1 + math.cos(math.pi * step / (config.steps * config.epochs))) / 2
    return min(rising, 1.0) * max(falling, 0.01)


@torch.no_grad()
def validate(
    net: FusionNet, config: TrainConfig, slices: Sequence[SlicePair], device: str = "cpu"
) -> tuple[float, dict[str, float]]:
    """Return the objective over whole slices, and the figures that an `Epoch` has."""
    reached: list[float] = []
    rows: list[dict[str, float]] = []
    middle = BALANCES.index(0.5)
    for pair in slices:
        batch = _to(_whole(pair), device)
        fused, weights = fuse(net, batch, config)
        fused = fused.clamp(0, 1)
        reached.append(float(objective(batch, fused, config.loss).mean()))
        figures = losses.figures(batch.mri, batch.pet, fused).table()
        shares = weights.mean(dim=(1, 2, 3))
        rows.append(
            {
                **{name: float(values[middle]) for name, values in figures.items()},
                "weight_low": float(shares[0]),
                "weight_high": float(shares[-1]),
            }
        )
    return float(np.mean(reached)), {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}


def _whole(pair: SlicePair) -> Batch:
    """Return a slice once for each balance that is looked at."""
    count = len(BALANCES)
    mri, pet = (torch.from_numpy(image).expand(count, -1, -1) for image in (pair.mri, pair.pet))
    return Batch(mri, pet, torch.tensor(BALANCES))


def _to(batch: Batch, device: str) -> Batch:
    return Batch(batch.mri.to(device), batch.pet.to(device), batch.balance.to(device))


def _ended(state: _State, config: TrainConfig) -> bool:
    best = state.best_epoch
    if best is None:
        return False
    return len(state.epochs) >= config.epochs or len(state.epochs) - best.number >= config.patience


def _line(epoch: Epoch, *, best: bool) -> str:
    f = epoch.figures
    return (
        f"epoch {epoch.number:3}  loss {epoch.loss:.4f}  validation {epoch.objective:.4f}"
        f"{'*' if best else ' '}  Qabf {f['qabf']:.3f}  SCD {f['scd']:.3f}  "
        f"SSIM {f['ssim_mri']:.3f} {f['ssim_pet']:.3f}  VIF {f['vif_mri']:.3f} "
        f"{f['vif_pet']:.3f}  MRI's share {f['weight_low']:.2f} to {f['weight_high']:.2f}"
    )


def _provenance(
    config: TrainConfig, train_slices: Sequence[SlicePair], validation: Sequence[SlicePair]
) -> dict[str, Any]:
    """Return what a model tells of how it was made; nothing that differs from run to run."""
    return {
        "config": config.model_dump(mode="json"),
        "train_slices": len(train_slices),
        "validation_slices": len(validation),
        "versions": {
            "fusionflow": fusionflow.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _write_history(epochs: Sequence[Epoch], path: Path) -> None:
    stream = StringIO()
    columns = ["epoch", "loss", "objective", *epochs[0].figures]
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for epoch in epochs:
        values = (epoch.loss, epoch.objective, *epoch.figures.values())
        writer.writerow([epoch.number, *(f"{value:.6f}" for value in values)])
    write_bytes(path, stream.getvalue().encode())


def _write_checkpoint(state: _State, config: TrainConfig, path: Path) -> None:
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


def _resume(state: _State, config: TrainConfig, path: Path) -> None:
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


@torch.no_grad()
def _picture(
    net: FusionNet,
    config: TrainConfig,
    slices: Sequence[SlicePair],
    device: str,
    path: Path,
) -> None:
    """Draw some validation slices: the sources, and what becomes of them along the knob."""
    shape = slices[0].mri.shape
    same = [pair for pair in slices if pair.mri.shape == shape]
    chosen = [same[i] for i in np.linspace(0, len(same) - 1, min(_SHOWN, len(same))).astype(int)]
    rows = {"MRI": [pair.mri for pair in chosen], "PET": [pair.pet for pair in chosen]}
    along = [fuse(net, _to(_whole(pair), device), config)[0].cpu().numpy() for pair in chosen]
    for index, balance in enumerate(BALANCES):
        rows[f"balance {balance:g}"] = [images[index] for images in along]
    volumes = {title: np.stack(images)[:, ::-1] for title, images in rows.items()}
    picture = mosaic(volumes, range(len(chosen)), ", ".join(pair.name for pair in chosen))
    stream = BytesIO()
    picture.save(stream, "PNG")
    write_bytes(path, stream.getvalue())
