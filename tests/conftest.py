"""What many tests share. Clusters are made by the tests that need them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"

# How long an example takes says nothing here: the first one loads torch or compiles a filter.
settings.register_profile("fusionflow", deadline=None)
settings.load_profile("fusionflow")


@pytest.fixture(scope="session")
def shared():
    """The real data and weights beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data and weights at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def vgg19_weights(shared):
    """VGG19 as trained on ImageNet, up to conv3_1; input BGR, x * 255 - mean."""
    path = shared / "weights" / "vgg19-conv1_1-conv3_1.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path
