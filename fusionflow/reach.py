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

__all__ = [
    "Around",
    "Felt",
    "Reach",
    "Span",
    "box_of",
    "pair_of",
    "reach_of",
    "spans",
    "where_felt",
]

#: Boxes of which it is remembered.
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

    @property
    def sees_padding_alone(self) -> bool:
        """Whether there are places for which it looks at nothing else."""
        return self.padding >= self.width

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
    """Where what lies in a box of an image is felt, layer by layer.

    Parameters
    ----------
    layers : tuple of tuple of Reach
        Of all layers, along y and along x.
    shape : tuple of int
        (y, x) of the image.
    box : tuple of Span
        Along y and along x.
    """

    def __init__(
        self,
        layers: tuple[tuple[Reach, ...], tuple[Reach, ...]],
        shape: tuple[int, int],
        box: tuple[Span, Span],
    ) -> None:
        (y, rows), (x, columns) = map(spans, layers, shape, box)
        self._boxes = list(zip(y, x, strict=True))
        self._shapes = list(zip(rows, columns, strict=True))
        # The first layer is given the whole image.
        given = [(Span(0, shape[0]), Span(0, shape[1])), *self._boxes]
        seen = (
            (of_y.seen(rows), of_x.seen(columns))
            for of_y, of_x, (rows, columns) in zip(*layers, self._boxes, strict=True)
        )
        #: What each layer looks at around what it is given: the part of the one before.
        self.around: list[Around] = [
            (left.start - right.start, right.stop - left.stop, up.start - down.start,
             down.stop - up.stop)
            for (up, left), (down, right) in zip(given, seen, strict=False)
        ]  # fmt: skip

    def part(self, index: int, features: torch.Tensor) -> torch.Tensor:
        """Return of all that layer `index` makes, (1, channels, y', x'), what is felt."""
        (top, bottom), (left, right) = self._boxes[index]
        if (bottom - top, right - left) == self._shapes[index]:
            return features
        return features[..., top:bottom, left:right]

    def whole(self, index: int, part: torch.Tensor) -> torch.Tensor:
        """Return that part of what layer `index` makes with zeros around, (1, m, y', x')."""
        if part.shape[-2:] == self._shapes[index]:
            return part
        found = part.new_zeros((*part.shape[:2], *self._shapes[index]))
        self.part(index, found).copy_(part)
        return found


#: `Felt`, once for each box: all bands of a slice have the same.
where_felt: Final = lru_cache(_REMEMBERED)(Felt)


def box_of(image: torch.Tensor) -> tuple[Span, Span]:
    """Return where an image (y, x) on a processor is not zero, along y and along x."""
    there = image.numpy() != 0
    return _extent(there.any(1)), _extent(there.any(0))


def _extent(there: np.ndarray) -> Span:
    """Return from where to where something is; of nothing, the first place."""
    found = np.flatnonzero(there)
    return Span(int(found[0]), int(found[-1]) + 1) if len(found) else Span(0, 1)
