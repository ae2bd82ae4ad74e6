"""How far what an image holds is felt in the layers of a network.

A slice of a head is empty around it. What layers make of nothing is known, so they have to work
only where something is, and a little further with each layer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import nn

__all__ = ["Around", "Felt", "Reach", "Span", "pair_of", "reach_of", "spans"]

#: How many ways of lying in an image are remembered.
_REMEMBERED: Final = 1 << 12


class Span(NamedTuple):
    """From where to where something lies on an axis, the end left out."""

    start: int
    stop: int


class Reach(NamedTuple):
    """Of a layer, along one axis.

    Attributes
    ----------
    width : int
        Places that it looks at for one.
    step : int
        From one to the next.
    padding : int
        Places of nothing before the first.
    pads : bool
        Whether more of them do no harm: the layer makes nothing of nothing.
    """

    width: int = 1
    step: int = 1
    padding: int = 0
    pads: bool = False

    def size(self, size: int) -> int:
        """Return how many places it gives for so many."""
        return (size + 2 * self.padding - self.width) // self.step + 1

    def felt(self, span: Span, size: int) -> Span:
        """Return where what lies in `span` is felt, of the `size` places it gives; at least one."""
        start = -((self.width - 1 - self.padding - span.start) // self.step)
        stop = (span.stop - 1 + self.padding) // self.step + 1
        start = min(max(start, 0), size - 1)
        return Span(start, max(min(stop, size), start + 1))

    def seen(self, span: Span) -> Span:
        """Return what it looks at for `span`, which may lie beyond what there is."""
        first = span.start * self.step - self.padding
        return Span(first, (span.stop - 1) * self.step - self.padding + self.width)


def reach_of(layer: nn.Module) -> tuple[Reach, Reach]:
    """Return the reach of a convolution, a pooling or an activation, along y and x.

    Paddings are numbers, less than the layer is wide, and poolings have none.
    """
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return Reach(), Reach()
    convolves = isinstance(layer, nn.Conv2d)
    layout = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    y, x = (
        Reach((width - 1) * dilation + 1, step, padding, convolves)
        for width, step, padding, dilation in zip(*map(pair_of, layout), strict=True)
    )
    return y, x


def pair_of(setting: object) -> tuple[int, int]:
    """Return a setting of a layer along y and x, which is a number if both are the same."""
    y, x = setting if isinstance(setting, tuple) else (setting, setting)
    return int(y), int(x)


@lru_cache(_REMEMBERED)
def spans(
    layers: tuple[Reach, ...], size: int, span: Span
) -> tuple[tuple[Span, ...], tuple[int, ...]]:
    """Return where what lies in `span` of `size` places is felt after each layer, and of how many.

    It is a little more where a layer does not pad: all that this looks at lies in the span before.
    """
    found, sizes = [], []
    for layer in layers:
        size = layer.size(size)
        span = layer.felt(span, size)
        found.append(span)
        sizes.append(size)
    for index in range(len(layers) - 1, 0, -1):
        needed, before = layers[index].seen(found[index]), found[index - 1]
        # At least they meet: else there would be nothing to cut or to pad.
        start = min(before.start, max(0, needed.stop - 1))
        stop = max(before.stop, min(sizes[index - 1], needed.start + 1))
        if not layers[index].pads:
            start, stop = min(start, needed.start), max(stop, needed.stop)
        found[index - 1] = Span(start, stop)
    return tuple(found), tuple(sizes)


#: Places to add before and after along x, and along y, as `torch.nn.functional.pad` takes them;
#: less than none are left out.
Around: TypeAlias = tuple[int, int, int, int]


class Felt:
    """Where an image is felt, layer by layer.

    Parameters
    ----------
    layers : tuple of tuple of Reach
        Of all layers, along y and along x.
    image : Tensor, (1, 1, y, x)
        On a processor; zero where nothing is.
    everywhere : bool
        Whether it counts as felt in the whole frame.
    """

    def __init__(
        self,
        layers: tuple[tuple[Reach, ...], ...],
        image: torch.Tensor,
        *,
        everywhere: bool = False,
    ) -> None:
        there = (image[0, 0].numpy() != 0) | everywhere
        self._layers = layers
        self._given = [Span(0, size) for size in there.shape]
        felt = [
            spans(reaches, size, _extent(there.any(1 - axis)))
            for axis, (reaches, size) in enumerate(zip(layers, there.shape, strict=True))
        ]
        self._spans, self._sizes = zip(*felt, strict=True)

    def around(self, index: int) -> Around:
        """Return what layer `index` looks at around what it is given: the part of the one before.

        The first is given the whole image.
        """
        found: list[int] = []
        for axis in (1, 0):
            given = self._spans[axis][index - 1] if index else self._given[axis]
            seen = self._layers[axis][index].seen(self._spans[axis][index])
            found += [given.start - seen.start, seen.stop - given.stop]
        return found[0], found[1], found[2], found[3]

    def part(self, index: int, features: torch.Tensor) -> torch.Tensor:
        """Return of all that layer `index` makes, (1, channels, y', x'), what is felt."""
        (top, bottom), (left, right) = (of_axis[index] for of_axis in self._spans)
        return features[..., top:bottom, left:right]

    def whole(self, index: int, part: torch.Tensor) -> torch.Tensor:
        """Return that part of what layer `index` makes with zeros around, (1, m, y', x')."""
        shape = *part.shape[:2], *(sizes[index] for sizes in self._sizes)
        if part.shape == shape:
            return part
        found = part.new_zeros(shape)
        self.part(index, found).copy_(part)
        return found


def _extent(there: np.ndarray) -> Span:
    """Return from where to where something is; of nothing, the first place."""
    found = np.flatnonzero(there)
    return Span(int(found[0]), int(found[-1]) + 1) if len(found) else Span(0, 1)
