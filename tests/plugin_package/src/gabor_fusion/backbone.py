"""The backbone: a bank of Gabor filters, rectified, and smoothed at half the size."""

from __future__ import annotations

from torch import nn

from fusionflow.backbones import Backbone
from gabor_fusion.filters import FILE, FILTERS, SIDE


class GaborNet(nn.Module):
    """Layers in one sequence, ``features``, that begin with a convolution of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, FILTERS, SIDE, padding=SIDE // 2, bias=False),
            nn.ReLU(),
            nn.Conv2d(FILTERS, FILTERS, 3, stride=2, padding=1, groups=FILTERS, bias=False),
        )


GABOR = Backbone(
    name="gabor",
    build=GaborNet,
    taps={"filters": 0, "edges": 1, "texture": 2},
    default_taps=("edges", "texture"),
    size_mb=0.01,
    licence="BSD-3-Clause",
    file=FILE,
)
