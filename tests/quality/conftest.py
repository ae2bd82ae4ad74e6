"""Images to assess."""

from __future__ import annotations

import numpy as np
import pytest

from fusionflow.grey_levels import eight_bit


@pytest.fixture(scope="module")
def images():
    """Two sources that share little and something between them, with smooth and busy parts."""
    rng = np.random.default_rng(7)
    ys, xs = np.mgrid[:192, :178] / 60
    mri = np.clip(np.sin(3 * xs) * np.cos(2 * ys) + 0.1 * rng.standard_normal(xs.shape), 0, 1)
    pet = np.clip(np.exp(-((xs - 1.5) ** 2) - (ys - 1.6) ** 2), 0, 1)
    return [eight_bit(image) for image in (mri, pet, 0.3 * mri + 0.7 * np.maximum(mri, pet))]
