"""What training makes small: what a fused slice loses of its sources, as `balance` weighs them."""

from __future__ import annotations

import torch

from fusionflow import losses
from fusionflow.train_config import Loss
from fusionflow.train_data import Batch

__all__ = ["objective"]

#: Below this a figure is as bad as it gets.
_LEAST_FIGURE = 0.01


def objective(batch: Batch, fused: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Return what training makes small, a number for each slice, (n,).

    Each figure counts by what it lacks of that of the pixel maximum (the larger value at each
    place), which is hard to beat in all of them: what it lacks weighs `Loss.lack` times as much as
    what it is ahead. Otherwise it would pay to give up one source where the other is noisy, and
    what noise looks like is what a network tells data sets apart by.

    Figures are compared by their logarithms, for a share that is lost of one must weigh as much as
    the same share of another that is gained. Of their plain sum the unchanged MRI has more than any
    fused slice, and shows no PET. Correlations of differences ask for the sum of both sources, so
    they have no say at the ends of the knob.
    """
    of = losses.figures(batch.mri, batch.pet, fused)
    with torch.no_grad():
        larger = losses.figures(batch.mri, batch.pet, torch.maximum(batch.mri, batch.pet))

    def behind(name: str) -> torch.Tensor:
        lacks = _log(getattr(larger, name)) - _log(getattr(of, name))
        return lacks + (loss.lack - 1) * lacks.clamp(min=0)

    scd = larger.scd_mri + larger.scd_pet - of.scd_mri - of.scd_pet
    scd = scd + (loss.lack - 1) * scd.clamp(min=0)
    for_mri, for_pet = 2 * batch.balance, 2 * loss.pet * (1 - batch.balance)
    for_both = 4 * batch.balance * (1 - batch.balance)
    wanted = _wanted(batch.mri, batch.pet, batch.balance.view(-1, 1, 1))
    return (
        loss.intensity * (fused - wanted).abs().mean(dim=(1, 2))
        + loss.qabf * behind("qabf")
        + loss.scd * for_both * scd
        + loss.ssim * (for_mri * behind("ssim_mri") + for_pet * behind("ssim_pet"))
        + loss.vif * (for_mri * behind("vif_mri") + for_pet * behind("vif_pet"))
    )


def _wanted(mri: torch.Tensor, pet: torch.Tensor, balance: torch.Tensor) -> torch.Tensor:
    """Return the brighter of both at a balance of a half, and a source itself at its end."""
    brighter = torch.maximum(mri, pet)
    nearer = torch.where(balance >= 0.5, mri, pet)
    return nearer + (1 - (2 * balance - 1).abs()) * (brighter - nearer)


def _log(figure: torch.Tensor) -> torch.Tensor:
    return figure.clamp(min=_LEAST_FIGURE).log()
