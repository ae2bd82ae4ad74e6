"""What training asks for, against the figures that methods are judged by."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from fusionflow import losses
from fusionflow.correlations import sum_of_correlations
from fusionflow.gradients import edge_preservation
from fusionflow.ssim import structural_similarity
from fusionflow.vif import visual_information_fidelity


@pytest.fixture(scope="module")
def slices():
    """Three slices of both sources, and fused ones between them, (3, 64, 72)."""
    rng = np.random.default_rng(0)
    mri, pet = (
        np.stack([gaussian_filter(rng.random((64, 72)), sigma) for _ in range(3)])
        for sigma in (1, 3)
    )
    mri, pet = (np.clip((image - 0.3) / 0.4, 0, 1) for image in (mri, pet))
    fused = np.maximum(mri, pet) + 0.02 * rng.random(mri.shape)
    return tuple(np.float32(image) for image in (mri, pet, fused))


def test_each_is_the_figure_of_its_name(slices):
    found = losses.figures(*map(torch.from_numpy, slices)).table()
    for index, (mri, pet, fused) in enumerate(zip(*slices, strict=True)):
        expected = {
            "qabf": edge_preservation(mri, pet, fused, opposite_is_same=True),
            "scd": sum_of_correlations(mri, pet, fused),
            "ssim_mri": structural_similarity(mri, fused),
            "ssim_pet": structural_similarity(pet, fused),
            "vif_mri": visual_information_fidelity(mri, fused),
            "vif_pet": visual_information_fidelity(pet, fused),
        }
        for name, value in expected.items():
            assert found[name][index] == pytest.approx(value, abs=0.003), name


@pytest.mark.parametrize("name", [field.name for field in fields(losses.Figures)])
def test_following_its_gradient_makes_it_better(name, slices):
    mri, pet, fused = map(torch.from_numpy, slices)
    fused = fused.clone().requires_grad_()
    before = getattr(losses.figures(mri, pet, fused), name).sum()
    before.backward()
    assert torch.isfinite(fused.grad).all()
    step = 0.02 * fused.grad / fused.grad.abs().max()
    after = getattr(losses.figures(mri, pet, (fused + step).detach()), name).sum()
    assert after > before


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_gradients_of_nothing_are_finite(value):
    mri, pet = (torch.full((2, 48, 48), value) for _ in range(2))
    fused = torch.full((2, 48, 48), value, requires_grad=True)
    sum(figure.sum() for figure in vars(losses.figures(mri, pet, fused)).values()).backward()
    assert torch.isfinite(fused.grad).all()
