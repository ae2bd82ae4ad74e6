"""Layers as torch's own, faster on a processor where nothing is learned.

Convolutions of 3 x 3 go by Winograd's minimal filtering (Lavin & Gray 2016,
doi:10.1109/CVPR.2016.435), which multiplies a fifth as often as the definition does. torch brings
that as NNPACK, and takes it by itself only where it has no oneDNN, whose convolutions are direct.
It is float32, and differs from the definition by about 1e-5 of the largest feature. It runs on the
thread that calls it, whatever torch is told (unless others in the process called it before us), and
its bits depend on nothing but the image.

Channels must lie one after the other for that, and torch pools such features value by value.
"""

from __future__ import annotations

import threading
from functools import cache, reduce
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Convolution3x3", "MaxPool", "has_winograd", "is_untouched", "quickened", "threads_lock"]

#: Rows and columns that a tile gives.
_TILE: Final = 6
#: Of an image, below which tiles at its border cost more than is gained.
_LEAST_SIDE: Final = 10
#: Channels below which there is too little between the transforms.
_LEAST_CHANNELS: Final = 32
#: Pixels of images that go together: each call transforms the weights anew.
_TOGETHER: Final = 1 << 12


#: Held by who changes the number of torch's threads, which is the process's.
threads_lock: Final = threading.Lock()


def has_winograd() -> bool:
    """Whether torch has Winograd's convolutions for this processor; it is tried once a process."""
    with threads_lock:
        return _has_winograd()


@cache
def _has_winograd() -> bool:
    if not torch.backends.nnpack.is_available():
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # NNPACK takes for good as many as there are at its first call
    try:
        return _is_right()
    finally:
        torch.set_num_threads(threads)


def _is_right() -> bool:
    """Whether the convolutions are what the definition says, of two images that differ."""
    where: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    images = torch.linspace(-1, 1, 2 * 2 * 20 * 16, **where).view(2, 2, 20, 16)
    weight = torch.linspace(1, -1, 3 * 2 * 9, **where).view(3, 2, 3, 3)
    bias = torch.ones(3, **where)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        wanted = functional.conv2d(images, weight, bias, padding=1)
        return bool(torch.allclose(_convolved(images, weight, bias), wanted, atol=1e-3))


class Convolution3x3(nn.Conv2d):
    """A convolution as `torch.nn.Conv2d`, by Winograd's filtering where nothing is learned.

    That is, in inference mode, on a processor that has it, in float32, for images that are not
    small. What it gives for an image does not depend on the others of a pass.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> Convolution3x3:
        """Return a convolution with the weights of `layer`."""
        with torch.device("meta"):
            made = cls(layer.in_channels, layer.out_channels, 3, padding=1)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (n, channels, y, x), as `torch.nn.Conv2d` does."""
        if not self._suits(input):
            return super().forward(input)
        count, _, rows, columns = input.shape
        step = max(1, _TOGETHER // (rows * columns))
        if count == 1:
            return _convolved(input, self.weight, self.bias)
        found = input.new_empty((count, self.out_channels, rows, columns))
        for first in range(0, count, step):
            part = slice(first, first + step)
            found[part] = _convolved(input[part], self.weight, self.bias)
        return found

    def _suits(self, images: torch.Tensor) -> bool:
        return (
            images.device.type == "cpu"
            and images.dtype == self.weight.dtype == torch.float32
            and images.ndim == 4
            and len(images) > 0
            and min(images.shape[-2:]) >= _LEAST_SIDE
            and torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and has_winograd()
        )


class MaxPool(nn.MaxPool2d):
    """A pooling as `torch.nn.MaxPool2d`, in rows and then in columns where channels are apart."""

    def __init__(self, side: int, stride: int) -> None:
        super().__init__(side, stride)
        self._side, self._step = side, stride

    @classmethod
    def of(cls, layer: nn.MaxPool2d) -> MaxPool:
        """Return a pooling as `layer` is."""
        side, stride = layer.kernel_size, layer.stride
        if not isinstance(side, int) or not isinstance(stride, int):
            raise TypeError("a pooling of squares")
        return cls(side, stride)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (n, channels, y', x'), as `torch.nn.MaxPool2d` does."""
        if not self._suits(input):
            return super().forward(input)
        features = input
        for axis in (2, 3):
            outputs = (features.shape[axis] - self._side) // self._step + 1
            span = (outputs - 1) * self._step + 1
            every = (slice(None),) * axis
            parts = [
                features[(*every, slice(first, first + span, self._step))]
                for first in range(self._side)
            ]
            features = reduce(torch.maximum, parts)
        return features

    def _suits(self, features: torch.Tensor) -> bool:
        return (
            features.device.type == "cpu"
            and features.ndim == 4
            and torch.is_inference_mode_enabled()
            and min(features.shape[-2:]) >= self._side
            # Where channels lie side by side torch takes many at a time.
            and not features.is_contiguous(memory_format=torch.channels_last)
        )


def quickened(module: nn.Module) -> None:
    """Put the layers above in the place of all those of a module that they can stand for.

    A layer that was given more than torch gives one, such as a hook or a weight that is computed,
    stays.
    """
    _exchange(module, {})


def _exchange(module: nn.Module, done: dict[nn.Module, nn.Module]) -> None:
    """Do that; `done` has what stands for what, for a layer can be in several places."""
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if child not in done:
            done[child] = child
            if type(child) is nn.Conv2d and _is_plain(child) and is_untouched(child):
                done[child] = Convolution3x3.of(child)
            elif type(child) is nn.MaxPool2d and _pools_plainly(child) and is_untouched(child):
                done[child] = MaxPool.of(child)
            else:
                _exchange(child, done)
        setattr(module, name, done[child])


def is_untouched(layer: nn.Module) -> bool:
    """Whether a layer has what its class gives it and nothing beyond that."""
    hooks = any(value for name, value in vars(layer).items() if name.endswith("_hooks"))
    parameters = {name for name, _ in layer.named_parameters()}
    more = parameters - {"weight", "bias"} or layer._buffers or layer._modules
    return not hooks and not more and "forward" not in vars(layer)


def _is_plain(layer: nn.Conv2d) -> bool:
    """Whether a layer is a 3 x 3 convolution with all that `Convolution3x3` takes for granted."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= _LEAST_CHANNELS
    )


def _pools_plainly(layer: nn.MaxPool2d) -> bool:
    """Whether a pooling has all that `MaxPool` takes for granted."""
    return (
        isinstance(layer.kernel_size, int)
        and layer.kernel_size > 1  # else it would give a view of what it was given
        and isinstance(layer.stride, int)
        and (layer.padding, layer.dilation) == (0, 1)
        and not layer.ceil_mode
        and not layer.return_indices
    )


def _convolved(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return the convolution of images, (n, channels, y, x), which go as one high picture.

    Rows of zeros between them pad each; as each begins with a tile, tiles are the same whatever
    the others are.
    """
    count, channels, rows, columns = images.shape
    if count > 1:
        pitch = -(-(rows + 1) // _TILE) * _TILE
        images = functional.pad(images.transpose(0, 1), (0, 0, 0, pitch - rows))
        images = images.view(1, channels, count * pitch, columns)
    found = torch._nnpack_spatial_convolution(images, weight, bias, [1, 1], [1, 1])
    if count > 1:
        found = found.view(-1, count, pitch, columns)[:, :, :rows].transpose(0, 1)
    return found
