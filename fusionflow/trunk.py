"""A backbone at work: cut after its last tap, and folded for grey images.

A grey slice is three equal channels. So the first convolution and the normalisation before it
fold into one convolution of a single channel plus a bias map; at the border the map differs,
because the network pads after normalising. The folding is exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final, Protocol, TypeAlias, TypeVar

import torch
from torch import nn
from torch.nn import functional

from fusionflow.cpu_layers import quickened
from fusionflow.weights import Normalisation

__all__ = ["ReduceTap", "SizeMaps", "TapReader", "Trunk"]

T = TypeVar("T")

#: Takes the number of a tap and its activity, (n, channels, y', x'), non-negative, and makes fewer
#: channels of it, (n, m, y', x'): place by place, and nothing of nothing. It may be called several
#: times for a tap, with some of the images and with those places alone that may have any activity.
ReduceTap: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]

#: Bytes of what a trunk keeps for images of some sizes.
_MOST_KEPT: Final = 1 << 28
#: Pixels of an image beyond which `fusionflow.device` lets all images go through one by one.
_LARGE: Final = 1 << 14


class TapReader(Protocol):
    """What tells how active the taps of a backbone are: a `Trunk`, or one in other arithmetic."""

    @property
    def tap_count(self) -> int:
        """How many layers are read."""
        ...

    def activities(
        self,
        images: torch.Tensor,
        empty: float,
        reduce: ReduceTap,
        *,
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """Read how far the taps are from what they see of an empty image, one tap after the other.

        Parameters
        ----------
        images : Tensor, (n, 1, y, x) float32
            Grey images, 0 black and 1 white; at least one.
        empty : float
            What an image of nothing has everywhere.
        reduce : ReduceTap
            Makes what is wanted of them.
        dtype : torch.dtype, optional
            In which differences are taken; by default that of the features.

        Returns
        -------
        list of Tensor, (n, m, y', x')
            What `reduce` makes of each tap, in the order of the layers.
        """
        ...


class SizeMaps:
    """What depends on the size of an image alone, for as long as no weight changes."""

    def __init__(self) -> None:
        self._maps: dict[Hashable, list[torch.Tensor]] = {}

    def get(self, key: Hashable, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        """Return what is kept under `key`, or make it; all is dropped where it becomes much."""
        found = self._maps.get(key)
        if found is None:
            found = make()
            kept = [found, *list(self._maps.values())]
            if sum(item.nbytes for maps in kept for item in maps) > _MOST_KEPT:
                self._maps.clear()
            self._maps[key] = found
        return found


class Trunk(nn.Module):
    """A backbone cut after its last tap, for grey images.

    Parameters
    ----------
    layers : sequence of nn.Module
        ``features[:last tap + 1]`` with three-channel weights loaded.
    taps : sequence of int
        Indices of the layers to read.
    normalisation : Normalisation
        What the first layer expects.
    """

    def __init__(
        self, layers: Sequence[nn.Module], taps: Sequence[int], normalisation: Normalisation
    ) -> None:
        super().__init__()
        first, *rest = layers
        if not isinstance(first, nn.Conv2d) or first.in_channels != 3:
            raise TypeError("a trunk begins with a convolution of three channels")
        if first.padding_mode != "zeros" or first.dilation != (1, 1) or first.groups != 1:
            raise TypeError("a trunk begins with a plain convolution that pads with zeros")
        self._taps = frozenset(taps)
        self._maps = SizeMaps()
        mean = torch.tensor(normalisation.mean).view(1, 3, 1, 1)
        std = torch.tensor(normalisation.std).view(1, 3, 1, 1)
        weight = first.weight.detach() / std
        self.stride, self.padding = first.stride, first.padding
        bias = first.weight.new_zeros(len(weight)) if first.bias is None else first.bias
        self.grey_weight = nn.Parameter(weight.sum(1, keepdim=True) * normalisation.scale)
        self.shift_weight = nn.Parameter(-(weight * mean).sum(1, keepdim=True))
        self.bias = nn.Parameter(bias.detach().clone())
        self.rest = nn.ModuleList(rest)
        quickened(self.rest)
        for index, layer in enumerate(self.rest, start=1):
            if isinstance(layer, nn.ReLU):
                layer.inplace = index - 1 not in self._taps
        self.requires_grad_(requires_grad=False)
        self.eval()
        self.to(memory_format=torch.channels_last)

    @property
    def taps(self) -> frozenset[int]:
        """Which layers are read."""
        return self._taps

    @property
    def tap_count(self) -> int:
        """How many layers are read."""
        return len(self._taps)

    def of_nothing(self, rows: int, columns: int, value: float) -> list[torch.Tensor]:
        """Return what `forward` reads from one image of that value everywhere.

        It is kept: all slices of a cohort have few sizes.
        """
        image = self.bias.new_full((1, 1, rows, columns), value)
        return self._kept(rows, columns, value, lambda: self(image))

    def bias_map(self, rows: int, columns: int) -> torch.Tensor:
        """Return what the first layer adds to an image of that size, (1, channels, y', x')."""
        ones = self.grey_weight.new_ones((1, 1, rows, columns))
        return functional.conv2d(ones, self.shift_weight, self.bias, self.stride, self.padding)

    def before_rest(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the first layer gives for grey images."""
        rows, columns = images.shape[-2:]
        features = functional.conv2d(images, self.grey_weight, None, self.stride, self.padding)
        features += self._kept(rows, columns, None, lambda: [self.bias_map(rows, columns)])[0]
        return features

    def _kept(
        self, rows: int, columns: int, value: float | None, make: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return what is kept for a size, or make it."""
        if self.bias.is_meta or not torch.is_inference_mode_enabled():  # weights may change
            return make()
        in_short = torch.is_autocast_enabled(self.bias.device.type)
        return self._maps.get((rows, columns, in_short, value), make)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Read the taps.

        Parameters
        ----------
        images : Tensor, (n, 1, y, x) float32
            Grey images, 0 black and 1 white.

        Returns
        -------
        list of Tensor
            (n, channels, y', x') for each tap, in the order of the layers.
        """
        return self.reduced(images, lambda _, features: features)

    def activities(
        self,
        images: torch.Tensor,
        empty: float,
        reduce: ReduceTap,
        *,
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """Read how far the taps are from what they see of an empty image, see `TapReader`."""
        rows, columns = images.shape[-2:]
        blank = self.of_nothing(rows, columns, empty)

        def of_tap(tap: int, features: torch.Tensor) -> torch.Tensor:
            kind = dtype or features.dtype
            return reduce(tap, (features.to(kind) - blank[tap].to(kind)).abs_())

        return self.reduced(images, of_tap)

    def reduced(self, images: torch.Tensor, reduce: Callable[[int, torch.Tensor], T]) -> list[T]:
        """Read the taps one by one, so that only one holds memory at a time.

        Parameters
        ----------
        images : Tensor, (n, 1, y, x) float32
            As `forward` takes them.
        reduce : callable
            Takes the number of a tap and its features, (n, channels, y', x'), which it must leave
            as they are.

        Returns
        -------
        list
            What `reduce` makes of each tap, in the order of the layers.
        """
        count, (rows, columns) = len(images), images.shape[-2:]
        if count == 1 and rows * columns <= _LARGE and images.device.type == "cpu":
            # Convolutions of one small image take another path, with other last bits, than those
            # of several: then bits would depend on how slices fall into batches.
            images = images.expand(2, -1, -1, -1).contiguous()
        features = self.before_rest(images)
        read = [reduce(0, features[:count])] if 0 in self._taps else []
        for index, layer in enumerate(self.rest, start=1):
            features = layer(features)
            if index in self._taps:
                read.append(reduce(len(read), features[:count]))
        return read
