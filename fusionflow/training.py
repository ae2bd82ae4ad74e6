"""Training of the learned rule, without labels: the fused slice is asked to keep both sources.

Squares of both sources go through the DWT, the net, and a differentiable inverse DWT; what comes
out is judged by the figures that methods are compared with (`fusionflow.objective`), the MRI's and
the PET's in the proportion that `balance` wants. Same configuration, same data, same versions and
the same number of threads give the same bits on one type of CPU, with or without breaks.
"""

from __future__ import annotations

import math
import platform
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pywt
import scipy
import torch
from torch import nn

import fusionflow
from fusionflow.backbones import build_trunk, check_size, resolve_weights
from fusionflow.checkpoint import Epoch, State, resume, write_checkpoint, write_history
from fusionflow.errors import ConfigurationError, StoreError, WeightsError
from fusionflow.fusion_net import FusionNet, ModelCard, make_net
from fusionflow.learned import halved, write_model
from fusionflow.objective import objective
from fusionflow.runlock import RunLock
from fusionflow.stages import torch_threads
from fusionflow.train_config import TrainConfig
from fusionflow.train_data import SlicePair, check_apart, checksum, draw, read_slices
from fusionflow.untrusted import one_line
from fusionflow.validation import bands_of, draw_picture, fuse, validate
from fusionflow.weights import Weights

__all__ = ["Trained", "train"]

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
HISTORY = "history.tsv"
LOCK = "train.lock"
#: Raised by one whenever the same configuration and data would give other bits.
TRAINING_VERSION = 1
_GRADIENT_NORM = 1.0


@dataclass
class Trained:
    """A finished training.

    Attributes
    ----------
    model : Path
        The net of the best epoch.
    name : str
        What it is called.
    best : Epoch
        That epoch.
    epochs : list of Epoch
        All of them.
    """

    model: Path
    name: str
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
        What the model is called; see `default_name`.
    licence : str
        Of the model.
    device : str
        Where the net runs.
    tell : callable
        Called with a line of progress.

    Raises
    ------
    ConfigurationError
        If `out` holds a training that differs (in configuration, data, weights, device or
        versions), a source has no slices, or a slice is there to train on and to validate with.
    InputError
        If an image cannot be used, or is too small for the taps or the figures.
    LockedError
        If another process trains in `out`.
    StoreError
        If `out` cannot be made or written.
    WeightsError
        If the checkpoint is damaged, or the backbone or the trained net gives no numbers.
    WeightsNotFoundError
        If the weights of the backbone are not there.
    """
    _check_device(device)
    weights = resolve_weights(config.weights, config.backbone) if config.reads_backbone else None
    net = _start(config, weights, name, licence)
    trained = _trained_layers(net, config.unfreeze)
    net.to(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot make the folder {out}: {error.strerror}") from error
    with RunLock(out / LOCK, uuid.uuid4().hex[:8]), torch_threads(config.threads):
        slices, validation = read_slices(config.train), read_slices(config.validation)
        check_apart(slices, validation)
        _check_sizes(config, validation)
        tell(f"{len(slices)} slices to train on, {len(validation)} to validate with")
        made_from = _made_from(config, weights, slices, validation, device)
        state = State(net, _optimiser(net, trained, config))
        if (out / CHECKPOINT).is_file():
            resume(state, made_from, out / CHECKPOINT)
            tell(f"going on after epoch {len(state.epochs)}")
        else:
            _calibrate(net, slices, config, device)
        while not _ended(state, config):
            epoch = _one_epoch(state, config, slices, validation, device)
            if state.best_epoch is epoch:
                state.best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            tell(_line(epoch, best=state.best_epoch is epoch))
            if epoch.number % config.pictures_every == 0:
                path = out / f"epoch-{epoch.number:03}.png"
                draw_picture(net, config, validation, device, path)
            write_history(state.epochs, out / HISTORY)
            write_checkpoint(state, made_from, out / CHECKPOINT)  # last: it says that all is there
        best = min(state.epochs, key=lambda epoch: epoch.objective)
        # What the file holds is judged, rounded as it is.
        net.load_state_dict(halved(state.best))
        reached, of_file = validate(net, config, validation, device)
        if not math.isfinite(reached):
            raise WeightsError(
                f"In half precision the net of epoch {best.number} gives no numbers",
                "Train with a lower rate",
            )
        figures = {"epoch": best.number, "objective": reached, **of_file}
        net.card = net.card.model_copy(update={"training": {**made_from, "validation": figures}})
        write_model(net, out / MODEL)
        draw_picture(net, config, validation, device, out / "best.png")
    return Trained(out / MODEL, net.card.name, best, state.epochs)


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device):
        raise ConfigurationError(f"There is no device {device!r} here", "Take cpu, cuda or cuda:1")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"There is no device {device!r} here: {one_line(error, 200)}", "Take cpu"
        ) from error


def _check_sizes(config: TrainConfig, validation: Sequence[SlicePair]) -> None:
    """Make sure that what is shown to the backbone is large enough for its taps.

    Raises
    ------
    InputError
        If it is not.
    """
    if config.reads_backbone:
        wavelet = config.transform
        length = pywt.Wavelet(wavelet.name).dec_len
        for sides in {(config.crop, config.crop), *(pair.mri.shape for pair in validation)}:
            rows, columns = (pywt.dwt_coeff_len(n, length, wavelet.mode) for n in sides)
            check_size(config.backbone, config.taps, (rows, columns))


def _start(
    config: TrainConfig, weights: Weights | None, name: str | None, licence: str
) -> FusionNet:
    """Return the net before training."""
    card = ModelCard(
        name=name or default_name(config, weights),
        backbone=config.backbone,
        taps=config.taps,
        transform=config.transform,
        reads_backbone=config.reads_backbone,
        width=config.width,
        seen=config.seen,
        start=weights.description if weights else "no backbone",
        licence=licence,
    )
    return make_net(card, build_trunk(weights, config.taps) if weights else None, config.seed)


def default_name(config: TrainConfig, weights: Weights | None) -> str:
    """Return what a model is called: the paper's names are for pretrained backbones alone."""
    if weights is None:
        return "dwt-no-cnn"
    if weights.is_random:
        return f"dwt-{config.backbone}-{'scratch' if config.unfreeze == 'all' else 'random'}"
    return f"dwt-{config.backbone}"


@torch.no_grad()
def _calibrate(
    net: FusionNet, slices: Sequence[SlicePair], config: TrainConfig, device: str
) -> None:
    """Fit the head to the size of the backbone's features, as the first step sees them."""
    batch = draw(slices, config, 0).to(device)
    net.head.calibrate(net.read(bands_of(batch.mri, config), bands_of(batch.pet, config)))


def _optimiser(
    net: FusionNet, trained: Sequence[nn.Parameter], config: TrainConfig
) -> torch.optim.Adam:
    groups = [
        {"params": list(net.head.parameters()), "lr": config.learning_rate},
        {"params": list(trained), "lr": config.backbone_learning_rate},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]])


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
    peaks = (config.learning_rate, config.backbone_learning_rate)
    for step in range((number - 1) * config.steps, number * config.steps):
        for group, peak in zip(state.optimiser.param_groups, peaks, strict=False):
            group["lr"] = peak * _share(step, config)
        batch = draw(slices, config, step).to(device)
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


def _share(step: int, config: TrainConfig) -> float:
    """Return how much of its highest the learning rate is: up in an epoch, down as a cosine."""
    rising = (step + 1) / config.steps
    falling = (1 + math.cos(math.pi * step / (config.steps * config.epochs))) / 2
    return min(rising, 1.0) * max(falling, 0.01)


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


def _made_from(
    config: TrainConfig,
    weights: Weights | None,
    train: Sequence[SlicePair],
    validation: Sequence[SlicePair],
    device: str,
) -> dict[str, Any]:
    """Return all that decides the bits of a training."""
    return {
        "config": config.described(),
        "weights": weights.identity if weights else None,
        "data": {
            name: {"slices": len(slices), "sha256": checksum(slices)}
            for name, slices in (("train", train), ("validation", validation))
        },
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": {
            "training": TRAINING_VERSION,
            "fusionflow": fusionflow.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "python": platform.python_version(),
        },
    }
