"""A backbone's trunk whose convolutions run in integers of 8 bits, on a processor.

What is rounded to 8 bits are not features but how far they lie from those of an empty picture,
which is all that a rule reads: the convolution of a difference is the difference of convolutions.
So nothing is rounded where an image has nothing, and a band of small coefficients keeps as many
digits as one of large ones. A step is 1/127 of an image's largest difference, whatever other images
there are; weights have a step for each output channel. Products are summed exactly, in 32 bits.
The first convolution, ReLU, pooling and what taps give are float32.

Nothing is clipped, and beside a lesion that is a hundred times as bright as white all else would be
less than a step. So where an image is more than twice as bright as white, differences are cut in
two: what lies within bounds, with steps of its own, and what is beyond. Convolutions then take
twice as long for this image.

Differences are nothing around what an image holds, and around a head there is nothing. So layers
work only where the image is felt (`fusionflow.reach`), which changes no bit.

The convolutions are oneDNN's, as torch calls them for networks that were quantised for its
compiler. With VNNI, or AMX, they take a quarter of the time of float32's by the definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Final, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from fusionflow.cpu_layers import Convolution3x3, MaxPool, is_untouched
from fusionflow.device import says_no_memory
from fusionflow.errors import ConfigurationError, PlacementError
from fusionflow.reach import Around, Reach, Span, box_of, pair_of, reach_of, where_felt
from fusionflow.trunk import ReduceTap, SizeMaps, Trunk

__all__ = ["Int8Trunk", "check_layers", "has_int8"]

#: Steps from nothing to the largest difference, or weight.
_STEPS: Final = 127
#: Contrast of an image, 1 from black to white, from which on its differences are cut in two.
_BRIGHT: Final = 2.0
#: What no difference at all is stored as, for oneDNN takes images without a sign.
_MIDDLE: Final = 128
#: Contrast from which on features may become infinite.
_MOST: Final = 1e30
#: Of an image's largest difference, below which there is none: dividing by it gives infinity.
_LEAST: Final = 1e-30
#: Layers that the trunk may have; not what derives from them, which may do something else.
_KNOWN: Final = (nn.Conv2d, Convolution3x3, nn.ReLU, nn.MaxPool2d, MaxPool)


@cache
def has_int8() -> bool:
    """Whether torch has such convolutions, and they are right on this processor.

    Without VNNI pairs of products are summed in 16 bits, which large ones overflow.

    Raises
    ------
    RuntimeError
        If there was no memory to try it.
    """
    layer = nn.Conv2d(64, 16, 3, padding=1, bias=False)
    layer.requires_grad_(requires_grad=False).weight.fill_(1.0)
    images = torch.ones((1, 64, 8, 8)).contiguous(memory_format=torch.channels_last)
    images[:, :, 4:] = -1.0
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        wanted = layer(images)
        try:
            found = _Convolution(layer)(images.clone(), 1.0)
        except (AttributeError, RuntimeError, TypeError) as error:
            if says_no_memory(error):
                raise
            return False  # a torch that has them not, or otherwise
        return bool(torch.allclose(found, wanted, atol=1e-2))


def check_layers(layers: Iterable[nn.Module], name: str) -> None:
    """Refuse layers that are not known here.

    Raises
    ------
    ConfigurationError
        If there is one.
    """
    for layer in layers:
        if (
            type(layer) not in _KNOWN
            or not is_untouched(layer)
            or (
                isinstance(layer, nn.Conv2d)
                and (
                    layer.padding_mode != "zeros"
                    or isinstance(layer.padding, str)
                    or any(of_axis.sees_padding_alone for of_axis in reach_of(layer))
                )
            )
            or (
                isinstance(layer, nn.MaxPool2d)
                and (layer.padding not in (0, (0, 0)) or layer.ceil_mode or layer.return_indices)
            )
        ):
            raise ConfigurationError(
                "precision int8 is for sequences of convolutions that pad with so many zeros, "
                "fewer than they are wide, ReLU and max-poolings that do not pad, with nothing "
                f"beyond; {name} has another layer, {layer}",
                "Take precision float32 or bfloat16",
            )


class Int8Trunk:
    """A trunk in 8 bits, see `fusionflow.trunk.TapReader`.

    It is for processors and inference. An image's activities depend on nothing but the image.

    Parameters
    ----------
    trunk : Trunk
        Whose weights it takes, on a processor.

    Raises
    ------
    ConfigurationError
        If the trunk has other layers than convolutions, ReLU and max-poolings, or is not on a
        processor.
    PlacementError
        If the processor multiplies no such integers.
    """

    def __init__(self, trunk: Trunk) -> None:
        if trunk.bias.device.type != "cpu":
            raise ConfigurationError(
                f"precision int8 is for processors, not for {trunk.bias.device.type}",
                "Take precision bfloat16 there, or --gpu never",
            )
        check_layers(trunk.rest, "the network")
        if isinstance(trunk.padding, str):
            raise ConfigurationError(
                "precision int8: the first layer says in words how it pads", "Say it in numbers"
            )
        if not has_int8():
            raise PlacementError(
                "precision int8: this processor, or torch on it, has no convolutions of 8 bits",
                "Take precision float32, or processors with VNNI",
            )
        self._trunk = trunk
        first = tuple(
            Reach(*of_axis, pads=True)
            for of_axis in zip(
                trunk.grey_weight.shape[-2:], trunk.stride, trunk.padding, strict=True
            )
        )
        if any(of_axis.sees_padding_alone for of_axis in first):
            raise ConfigurationError(
                "precision int8: the first layer does not pad with less than it is wide",
                "Take precision float32 or bfloat16",
            )
        self._reaches = tuple(zip(first, *map(reach_of, trunk.rest), strict=True))
        self._maps = SizeMaps()
        with torch.inference_mode():
            self._first_weight = trunk.grey_weight.flatten(1).t().contiguous()
            self._convolutions = {
                index: _Convolution(layer)
                for index, layer in enumerate(trunk.rest, start=1)
                if isinstance(layer, nn.Conv2d)
            }
        self._steps = list(_plan(list(trunk.rest), trunk.taps))

    @property
    def tap_count(self) -> int:
        """How many layers are read."""
        return self._trunk.tap_count

    def activities(
        self,
        images: torch.Tensor,
        empty: float,
        reduce: ReduceTap,
        *,
        dtype: torch.dtype | None = None,
    ) -> list[torch.Tensor]:
        """Read how far the taps are from what they see of an empty image; at least one image."""
        with torch.autocast("cpu", enabled=False):
            each = [self._read(image[None], empty, reduce) for image in images]
        return [torch.cat(found) for found in zip(*each, strict=True)]

    def _read(self, image: torch.Tensor, empty: float, reduce: ReduceTap) -> list[torch.Tensor]:
        """Return what is wanted of every tap."""
        rows, columns = image.shape[-2:]
        maps = iter(self._maps.get((rows, columns, empty), lambda: self._made(image, empty)))
        x = image - empty
        contrast = float(x.abs().amax())
        # What floats do not hold, now or later, is to be seen everywhere.
        box = box_of(x[0, 0]) if contrast < _MOST else (Span(0, rows), Span(0, columns))
        felt = where_felt(self._reaches, (rows, columns), box)
        share = min(1.0, _BRIGHT / max(contrast, _LEAST))
        x, sizes = self._first(functional.pad(x, felt.around[0])), None
        read: list[torch.Tensor] = []
        for step, index in self._steps:
            if step == "tap":
                sizes = x.abs()
                largest = float(_in_memory(sizes).amax())
                read.append(felt.whole(index, reduce(len(read), sizes)))
                continue
            if step == "convolve":
                if sizes is None:
                    largest = float(_in_memory(x).abs().amax())
                around = felt.around[index]
                x = self._convolutions[index](x, largest, share * largest, around=around)
            elif step == "rectify":
                x = torch.maximum(x, felt.part(index, next(maps)), out=x)
                x = x.add_(felt.part(index, next(maps)))
            elif step == "add":
                x = x.add_(felt.part(index, next(maps)))
            elif step == "subtract":
                x = x.sub_(felt.part(index, next(maps)))
            else:
                around = felt.around[index]
                x = self._trunk.rest[index - 1](functional.pad(x, around) if any(around) else x)
            sizes = None
        return read

    @torch.inference_mode()
    def _made(self, image: torch.Tensor, empty: float) -> list[torch.Tensor]:
        """Return what the steps need of an empty image of that size, in their order."""
        with torch.autocast("cpu", enabled=False):
            features = [self._trunk.before_rest(torch.full_like(image, empty))]
            for layer in self._trunk.rest:
                features.append((nn.ReLU() if isinstance(layer, nn.ReLU) else layer)(features[-1]))
        features = [item.contiguous(memory_format=torch.channels_last) for item in features]
        found = []
        for step, index in self._steps:
            if step == "rectify":
                found += [-features[index - 1], features[index - 1].clamp_max(0)]
            elif step in ("add", "subtract"):
                found.append(features[index])
        return found

    def _first(self, difference: torch.Tensor) -> torch.Tensor:
        """Return what the first layer makes of a padded difference, (1, channels, y', x')."""
        width, stride = self._trunk.grey_weight.shape[-2:], self._trunk.stride
        patches = functional.unfold(difference, width, stride=stride)
        rows, columns = (
            (side - wide) // step + 1
            for side, wide, step in zip(difference.shape[-2:], width, stride, strict=True)
        )
        features = torch.mm(patches[0].t(), self._first_weight)
        return features.view(1, rows, columns, -1).movedim(-1, 1)


Step: TypeAlias = Literal["convolve", "rectify", "apply", "add", "subtract", "tap"]


def _plan(layers: Sequence[nn.Module], taps: frozenset[int]) -> Iterator[tuple[Step, int]]:
    """Yield what is done for layers 1, 2, ..., having begun with the difference that layer 0 gives.

    Convolutions and taps want differences, poolings features. A ReLU makes of a difference d from a
    feature b that of the features after it, max(d, -b) + min(b, 0), or has features. One that a
    pooling follows comes after it: the largest of what is not negative is what is not negative of
    the largest, and fewer.
    """
    is_difference = True

    def turned(*, wanted: bool, index: int) -> Iterator[tuple[Step, int]]:
        nonlocal is_difference
        if is_difference != wanted:
            yield "subtract" if wanted else "add", index
        is_difference = wanted

    if 0 in taps:
        yield "tap", 0
    pooled_first = False
    for index, layer in enumerate(layers, start=1):
        if isinstance(layer, nn.Conv2d):
            yield from turned(wanted=True, index=index - 1)
            yield "convolve", index
        elif isinstance(layer, nn.ReLU):
            pooled_next = index < len(layers) and isinstance(layers[index], nn.MaxPool2d)
            if pooled_next and index not in taps:
                yield from turned(wanted=False, index=index - 1)
                pooled_first = True
                continue
            yield "rectify" if is_difference else "apply", index
        else:
            yield from turned(wanted=False, index=index - 1)
            yield "apply", index
            if pooled_first:
                yield "apply", index - 1
                pooled_first = False
        if index in taps:
            yield from turned(wanted=True, index=index)
            yield "tap", index


class _Convolution(nn.Module):
    """A convolution of differences."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        weight = layer.weight.float()
        self._step = weight.abs().amax((1, 2, 3)).clamp_min(_LEAST) / _STEPS
        steps = (weight / self._step[:, None, None, None]).round_().to(torch.int8)
        self._zero = torch.zeros(len(weight), dtype=torch.int32)
        y, x = pair_of(layer.padding)
        self._around = (x, x, y, y)
        self._how = [list(layer.stride), [0, 0], list(layer.dilation), layer.groups]
        self._weight = torch.ops.onednn.qconv_prepack(
            steps, self._step, 1.0, _MIDDLE, *self._how, None
        )

    def forward(
        self,
        difference: torch.Tensor,
        largest: float,
        bound: float | None = None,
        *,
        around: Around | None = None,
    ) -> torch.Tensor:
        """Return the difference that it makes, (1, channels, y', x') float32.

        Parameters
        ----------
        difference : Tensor, (1, channels, y, x) float32
            Of features from those of nothing; it is overwritten.
        largest : float
            The largest of them, without its sign.
        bound : float, optional
            If that is less, what is within it and what is beyond have steps of their own.
        around : tuple of int, optional
            Places without any difference that are looked at, too; by default the layer's padding.
        """
        if bound is not None and bound < largest:
            within = difference.clamp(-bound, bound)
            beyond = self(difference.sub_(within), largest - bound, around=around)
            return beyond.add_(self(within, bound, around=around))
        step = 1.0 if largest <= _LEAST else largest / _STEPS  # not a number stays none
        steps = _with_zeros(difference.mul_(1 / step).round_(), around or self._around)
        # -127 to 127 become 1 to 255 where the bit of the sign is turned.
        images = steps.view(torch.uint8).bitwise_xor_(_MIDDLE)
        found: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            images, step, _MIDDLE, self._weight, self._step, self._zero, None,
            *self._how, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return found


def _with_zeros(steps: torch.Tensor, around: Around) -> torch.Tensor:
    """Return whole numbers, (1, channels, y, x), in 8 bits and channels_last with zeros around."""
    if min(around) < 0:
        steps = functional.pad(steps, [min(0, places) for places in around])
    left, right, top, bottom = (max(0, places) for places in around)
    _, channels, rows, columns = steps.shape
    frame = (1, top + rows + bottom, left + columns + right, channels)
    found = torch.zeros(frame, dtype=torch.int8).movedim(-1, 1)
    found[..., top : top + rows, left : left + columns].copy_(steps)
    return found


def _in_memory(features: torch.Tensor) -> torch.Tensor:
    """Return features of one image as they lie in memory, (y * x, channels)."""
    return features.contiguous(memory_format=torch.channels_last)[0].movedim(0, -1).flatten(0, 1)
