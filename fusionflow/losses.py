"""The figures of quality in torch, with gradients.

Each is the figure of that name in `fusionflow.ssim`, `fusionflow.gradients`, `fusionflow.vif` and
`fusionflow.correlations`, for batches, so that what is trained for is what is measured. The
references are there. Where a figure has a kink (a tie, an edge of no strength) a small constant
keeps gradients finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from fusionflow import gradients, ssim, vif

__all__ = [
    "Figures",
    "correlation_of_differences",
    "edge_preservation",
    "figures",
    "structural_similarity",
    "visual_information_fidelity",
]

_TINY = 1e-6


def structural_similarity(source: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
    """Return the mean SSIM of every slice, see `fusionflow.ssim.structural_similarity`.

    Parameters
    ----------
    source, fused : Tensor, (n, y, x) float32
        0..1 being the display window; at least 11 pixels along y and x.

    Returns
    -------
    Tensor, (n,)
    """
    reach = torch.arange(-ssim.RADIUS, ssim.RADIUS + 1, device=fused.device)
    window = torch.exp(-0.5 * (reach / ssim.SIGMA) ** 2)
    mean_s, mean_f, square, product = _smooth(
        torch.stack([source, fused, source**2 + fused**2, source * fused], dim=1),
        window / window.sum(),
    ).unbind(dim=1)
    squares = mean_s**2 + mean_f**2
    covariance = product - mean_s * mean_f
    likeness = (2 * mean_s * mean_f + ssim.C1) * (2 * covariance + ssim.C2)
    likeness = likeness / ((squares + ssim.C1) * (square - squares + ssim.C2))
    return likeness.mean(dim=(1, 2))


def visual_information_fidelity(source: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
    """Return the VIF of every slice, see `fusionflow.vif.visual_information_fidelity`.

    Parameters
    ----------
    source, fused : Tensor, (n, y, x) float32
        0..1 being the display window; at least 41 pixels along y and x.

    Returns
    -------
    Tensor, (n,)
    """
    images = torch.stack([source, fused], dim=1) * gradients.LEVELS
    told = there = images.new_zeros(len(images))
    for scale, width in enumerate(vif.SCALES):
        offsets = torch.arange(width, device=images.device) - (width - 1) / 2
        window = torch.exp(-0.5 * (offsets / (width / 5)) ** 2)
        window = window / window.sum()
        if scale:
            images = _smooth(images, window)[..., ::2, ::2]
        s, f = images.unbind(dim=1)
        mean_s, mean_f, square_s, square_f, product = _smooth(
            torch.stack([s, f, s * s, f * f, s * f], dim=1), window
        ).unbind(dim=1)
        variance_s = (square_s - mean_s**2).clamp(min=0)
        variance_f = (square_f - mean_f**2).clamp(min=0)
        covariance = (product - mean_s * mean_f).clamp(min=0)
        # Single precision knows variances of grey levels to about 0.01.
        gain = covariance / (variance_s + 1e-2)
        noise = (variance_f - gain * covariance).clamp(min=0) + vif.NOISE_VARIANCE
        told = told + torch.log1p(gain**2 * variance_s / noise).sum(dim=(1, 2))
        there = there + torch.log1p(variance_s / vif.NOISE_VARIANCE).sum(dim=(1, 2))
    return told / there.clamp(min=_TINY)


def edge_preservation(mri: torch.Tensor, pet: torch.Tensor, fused: torch.Tensor) -> torch.Tensor:
    """Return Qabf of every slice, see `fusionflow.gradients.edge_preservation`.

    Orientations are compared as lines here: as numbers, the difference jumps where one passes
    the vertical, which no gradient can follow.

    Parameters
    ----------
    mri, pet, fused : Tensor, (n, y, x) float32
        0..1 being the display window.

    Returns
    -------
    Tensor, (n,)
    """
    sobel = fused.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernel = torch.stack([sobel, sobel.T])[:, None]

    def edges(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slopes = functional.conv2d(image[:, None], kernel, padding=1)
        return slopes, (slopes.square().sum(1) + _TINY).sqrt()

    slopes_f, strength_f = edges(fused)
    kept = total = fused.new_zeros(len(fused))
    for source in (mri, pet):
        slopes, strength = edges(source)
        ratio = torch.minimum(strength, strength_f) / torch.maximum(strength, strength_f)
        cosine = (slopes * slopes_f).sum(1).abs() / (strength * strength_f)
        turn = torch.acos(cosine.clamp(max=1 - 1e-4))
        preserved = _sigmoid(ratio, gradients.STRENGTH) * _sigmoid(
            1 - turn / (math.pi / 2), gradients.ORIENTATION
        )
        kept = kept + (strength * preserved).sum(dim=(1, 2))
        total = total + strength.sum(dim=(1, 2))
    return kept / total


def correlation_of_differences(
    mri: torch.Tensor, pet: torch.Tensor, fused: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return SCD of every slice, see `fusionflow.correlations.sum_of_correlations`.

    Parameters
    ----------
    mri, pet, fused : Tensor, (n, y, x) float32
        0..1 being the display window.

    Returns
    -------
    tuple of Tensor, (n,)
        Its two parts: how what the fused slice has beyond the PET is like the MRI, and how what it
        has beyond the MRI is like the PET.
    """
    return _correlation(fused - pet, mri), _correlation(fused - mri, pet)


@dataclass(frozen=True)
class Figures:
    """The six figures that methods are judged by, each (n,), one of them in two parts.

    Attributes
    ----------
    qabf : Tensor
        Edge preservation, 0..0.975.
    scd_mri, scd_pet : Tensor
        Correlations of differences, -1..1; `scd` is their sum.
    ssim_mri, ssim_pet : Tensor
        Structural similarity with each source, -1..1.
    vif_mri, vif_pet : Tensor
        Visual information fidelity with each source, 0 and more.
    """

    qabf: torch.Tensor
    scd_mri: torch.Tensor
    scd_pet: torch.Tensor
    ssim_mri: torch.Tensor
    ssim_pet: torch.Tensor
    vif_mri: torch.Tensor
    vif_pet: torch.Tensor

    def table(self) -> dict[str, torch.Tensor]:
        """Return the six by name, as the benchmark has them."""
        return {
            "qabf": self.qabf,
            "scd": self.scd_mri + self.scd_pet,
            "ssim_mri": self.ssim_mri,
            "ssim_pet": self.ssim_pet,
            "vif_mri": self.vif_mri,
            "vif_pet": self.vif_pet,
        }


def figures(mri: torch.Tensor, pet: torch.Tensor, fused: torch.Tensor) -> Figures:
    """Return the six figures of every slice.

    Parameters
    ----------
    mri, pet, fused : Tensor, (n, y, x) float32
        0..1 being the display window; at least 41 pixels along y and x.
    """
    scd_mri, scd_pet = correlation_of_differences(mri, pet, fused)
    return Figures(
        qabf=edge_preservation(mri, pet, fused),
        scd_mri=scd_mri,
        scd_pet=scd_pet,
        ssim_mri=structural_similarity(mri, fused),
        ssim_pet=structural_similarity(pet, fused),
        vif_mri=visual_information_fidelity(mri, fused),
        vif_pet=visual_information_fidelity(pet, fused),
    )


def _sigmoid(agreement: torch.Tensor, shape: gradients.Sigmoid) -> torch.Tensor:
    return shape.ceiling * torch.sigmoid(shape.slope * (agreement - shape.middle))


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a = a - a.mean(dim=(1, 2), keepdim=True)
    b = b - b.mean(dim=(1, 2), keepdim=True)
    spread = a.square().sum(dim=(1, 2)) * b.square().sum(dim=(1, 2))
    return (a * b).sum(dim=(1, 2)) / (spread + _TINY).sqrt()


def _smooth(images: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Return weighted means (n, channels, y', x') where the whole window fits."""
    channels = images.shape[1]
    for view in ((1, 1, -1, 1), (1, 1, 1, -1)):
        kernel = window.to(images.dtype).view(view).expand(channels, -1, -1, -1)
        images = functional.conv2d(images, kernel, groups=channels)
    return images
