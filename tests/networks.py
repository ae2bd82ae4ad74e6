"""VGG19 as torchvision runs it, on three channels, for tests to compare with."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fusionflow.int8 import has_int8

needs_int8 = pytest.mark.skipif(not has_int8(), reason="no convolutions of 8 bits here")
#: Every arithmetic of a network.
PRECISIONS = ("float32", "bfloat16", pytest.param("int8", marks=needs_int8))
#: Of ``features``: the convolutions up to conv3_1, which the real weights hold too.
LAST_LAYER = 11


def vgg19_layers() -> nn.Sequential:
    """Return torchvision's layers up to relu3_1, without weights."""
    with torch.device("meta"):
        return torchvision.models.vgg19().features[: LAST_LAYER + 1]


def random_state(seed: int) -> dict[str, torch.Tensor]:
    """Return weights and biases that keep features of order one, by torchvision's names."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in vgg19_layers().state_dict().items():
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.3
        state[f"features.{name}"] = torch.randn(tensor.shape, generator=generator) * scale
    return state


def three_channel_features(
    state: dict[str, torch.Tensor], images: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return what every layer makes of (n, 3, y, x) images, in float64, by index."""
    layers = vgg19_layers()
    layers.load_state_dict(
        {key.removeprefix("features."): value.double() for key, value in state.items()},
        assign=True,
    )
    features, read = images.double(), {}
    with torch.inference_mode():
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.ReLU):
                layer.inplace = False
            features = layer(features)
            read[index] = features
    return read
