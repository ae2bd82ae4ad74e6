"""A net of the learned rule at work on whole slices: fused, judged, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fusionflow import losses, torch_wavelet
from fusionflow.fusion_net import FusionNet
from fusionflow.io.files import write_bytes
from fusionflow.objective import objective
from fusionflow.pictures import mosaic
from fusionflow.png import png_bytes
from fusionflow.train_config import TrainConfig
from fusionflow.train_data import Batch, SlicePair

__all__ = ["BALANCES", "bands_of", "draw_picture", "fuse", "fuse_along", "validate"]

#: Balances at which slices are fused.
BALANCES = (0.1, 0.5, 0.9)
_SHOWN = 4


def fuse(net: FusionNet, batch: Batch, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return fused slices, (n, y, x), and the MRI's weights, (n, 4, y', x')."""
    of_mri, of_pet = bands_of(batch.mri, config), bands_of(batch.pet, config)
    bfloat16, trained = config.precision == "bfloat16", config.unfreeze != 0
    weights = net(of_mri, of_pet, batch.balance, bfloat16=bfloat16, trained_trunk=trained)
    return _merged(weights, of_mri, of_pet, batch.mri.shape, config), weights


@torch.no_grad()
def fuse_along(
    net: FusionNet, pair: SlicePair, config: TrainConfig, device: str
) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """Fuse a whole slice at every one of `BALANCES`; the backbone reads it once.

    Returns
    -------
    Batch
        The slice, once for every balance.
    Tensor, (balance, y, x)
        Fused.
    Tensor, (balance, 4, y', x')
        The MRI's weights.
    """
    mri, pet = (torch.from_numpy(image)[None].to(device) for image in (pair.mri, pair.pet))
    of_mri, of_pet = bands_of(mri, config), bands_of(pet, config)
    taps = net.read(of_mri, of_pet, bfloat16=config.precision == "bfloat16")
    balances = torch.tensor(BALANCES, device=device)
    weights = torch.cat([net.weigh(taps, of_mri, of_pet, balance[None]) for balance in balances])
    fused = _merged(weights, of_mri, of_pet, mri.shape, config)
    count = len(BALANCES)
    return Batch(mri.expand(count, -1, -1), pet.expand(count, -1, -1), balances), fused, weights


def bands_of(images: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the bands a, h, v, d of slices, (n, 4, y', x')."""
    (bands,) = torch_wavelet.decompose(images, config.transform)
    return bands


def _merged(
    weights: torch.Tensor,
    of_mri: torch.Tensor,
    of_pet: torch.Tensor,
    shape: torch.Size,
    config: TrainConfig,
) -> torch.Tensor:
    bands = weights * of_mri + (1 - weights) * of_pet
    return torch_wavelet.reconstruct([bands], (shape[1], shape[2]), config.transform)


@torch.no_grad()
def validate(
    net: FusionNet, config: TrainConfig, slices: Sequence[SlicePair], device: str = "cpu"
) -> tuple[float, dict[str, float]]:
    """Return the objective over whole slices, and the figures that an `Epoch` has."""
    reached: list[float] = []
    rows: list[dict[str, float]] = []
    middle = BALANCES.index(0.5)
    for pair in slices:
        batch, fused, weights = fuse_along(net, pair, config, device)
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


def draw_picture(
    net: FusionNet,
    config: TrainConfig,
    slices: Sequence[SlicePair],
    device: str,
    path: Path,
) -> None:
    """Draw some slices into a PNG: the sources, and what becomes of them along the knob."""
    shape = slices[0].mri.shape
    same = [pair for pair in slices if pair.mri.shape == shape]
    chosen = [same[i] for i in np.linspace(0, len(same) - 1, min(_SHOWN, len(same))).astype(int)]
    rows = {"MRI": [pair.mri for pair in chosen], "PET": [pair.pet for pair in chosen]}
    along = [fuse_along(net, pair, config, device)[1].cpu().numpy() for pair in chosen]
    for index, balance in enumerate(BALANCES):
        rows[f"balance {balance:g}"] = [images[index] for images in along]
    volumes = {title: np.stack(images)[:, ::-1] for title, images in rows.items()}
    picture = mosaic(volumes, range(len(chosen)), ", ".join(pair.name for pair in chosen))
    write_bytes(path, png_bytes(picture))
