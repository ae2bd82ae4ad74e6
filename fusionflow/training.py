"""Training of the learned rule, without labels: the fused slice is asked to keep both sources.

Squares of both sources go through the DWT, the net, and a differentiable inverse DWT; what comes
out is judged by the figures that methods are compared with (`fusionflow.objective`), the MRI's and
the PET's in the proportion that `balance` wants. Same configuration, same data, same versions and
the same number of threads give the same bits on one type of CPU, with or without breaks.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fusionflow
from fusionflow import losses, torch_wavelet
from fusionflow.backbones import Trunk, build_trunk, resolve_weights
from fusionflow.checkpoint import Epoch, State, resume, write_checkpoint, write_history
from fusionflow.errors import ConfigurationError, StoreError
from fusionflow.fusion_net import FusionNet, ModelCard, make_net
from fusionflow.io.files import write_bytes
from fusionflow.learned import halved, write_model
from fusionflow.objective import objective
from fusionflow.pictures import mosaic
from fusionflow.stages import torch_threads
from fusionflow.train_config import TrainConfig
from fusionflow.train_data import Batch, SlicePair, draw, read_slices
from fusionflow.untrusted import one_line

__all__ = ["Trained", "train"]

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.tsv"
#: Balances at which validation slices are fused.
BALANCES = (0.1, 0.5, 0.9)
_GRADIENT_NORM = 1.0
_SHOWN = 4


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
    state = State(net, torch.optim.Adam([group for group in groups if group["params"]]))
    if (out / CHECKPOINT).is_file():
        resume(state, config, out / CHECKPOINT)
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
            write_checkpoint(state, config, out / CHECKPOINT)
            write_history(state.epochs, out / HISTORY)
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
        write_history(state.epochs, out / HISTORY)
        write_model(net, out / MODEL)
        _picture(net, config, validation, device, out / "best.png")
    return Trained(out / MODEL, best, state.epochs)


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
    state: State,
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


def _ended(state: State, config: TrainConfig) -> bool:
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
