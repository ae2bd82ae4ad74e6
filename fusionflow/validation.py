"""A net of the learned rule at work on whole slices: fused, judged, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from fusionflow import losses, torch_wavelet
from fusionflow.fusion_net import FusionNet
from fusionflow.io.files import write_bytes
from fusionflow.objective import objective
from fusionflow.pictures import mosaic
from fusionflow.train_config import TrainConfig
from fusionflow.train_data import Batch, SlicePair

__all__ = ["BALANCES", "draw_picture", "fuse", "validate"]

#: Balances at which slices are fused.
BALANCES = (0.1, 0.5, 0.9)
_SHOWN = 4


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


@torch.no_grad()
def validate(
    net: FusionNet, config: TrainConfig, slices: Sequence[SlicePair], device: str = "cpu"
) -> tuple[float, dict[str, float]]:
    """Return the objective over whole slices, and the figures that an `Epoch` has."""
    reached: list[float] = []
    rows: list[dict[str, float]] = []
    middle = BALANCES.index(0.5)
    for pair in slices:
        batch = _whole(pair).to(device)
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


@torch.no_grad()
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
    along = [fuse(net, _whole(pair).to(device), config)[0].cpu().numpy() for pair in chosen]
    for index, balance in enumerate(BALANCES):
        rows[f"balance {balance:g}"] = [images[index] for images in along]
    volumes = {title: np.stack(images)[:, ::-1] for title, images in rows.items()}
    picture = mosaic(volumes, range(len(chosen)), ", ".join(pair.name for pair in chosen))
    stream = BytesIO()
    picture.save(stream, "PNG")
    write_bytes(path, stream.getvalue())
