"""Files of weights of VGG19, as a run takes them."""

from __future__ import annotations

from pathlib import Path

from fusionflow.backbones import resolve_weights
from fusionflow.weights import Weights

TAPS = ("relu1_1", "conv2_1")


def resolved(path: Path) -> Weights:
    return resolve_weights(str(path), "vgg19")
