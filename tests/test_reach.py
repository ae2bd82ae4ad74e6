"""How far what an image holds is felt: nothing is left out, and no bit depends on it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import needs_int8
from torch import nn
from torch.testing import assert_close

from fusionflow import int8
from fusionflow.backbones import BACKBONES, build_trunk, resolve_weights
from fusionflow.int8 import Int8Trunk
from fusionflow.reach import Felt, Reach, Span, box_of, reach_of, spans
from fusionflow.trunk import Trunk
from fusionflow.weights import Normalisation

#: Width, step, padding.
CONVOLUTIONS = ((3, 1, 1), (3, 2, 0), (3, 2, 1), (1, 1, 0), (5, 1, 2), (11, 4, 2), (2, 3, 0))
POOLINGS = ((2, 2), (3, 2), (3, 1), (2, 3))


@st.composite
def chains(draw):
    """A convolution, and some layers after it."""
    layers = [nn.Conv2d(1, 1, *draw(st.sampled_from(CONVOLUTIONS)))]
    for kind in draw(st.lists(st.sampled_from("crp"), max_size=5)):
        if kind == "c":
            layers.append(nn.Conv2d(1, 1, *draw(st.sampled_from(CONVOLUTIONS))))
        elif kind == "p":
            layers.append(nn.MaxPool2d(*draw(st.sampled_from(POOLINGS))))
        else:
            layers.append(nn.ReLU())
    return layers


def sides(layers, size):
    """How many places each layer gives; None where one has too few."""
    found = []
    for layer in layers:
        along = reach_of(layer)[0]
        if size + 2 * along.padding < along.width:
            return None
        size = along.size(size)
        found.append(size)
    return found


@torch.no_grad()
def felt_at(layers, image):
    """Where each layer gives something else than for an image of nothing."""
    other = torch.zeros_like(image)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1.0)
            layer.bias.fill_(0.5)
        image, other = layer(image), layer(other)
        yield image != other


class TestSpans:
    @settings(deadline=None, max_examples=300)
    @given(layers=chains(), size=st.integers(4, 40), data=st.data())
    def test_hold_all_that_is_felt_and_what_layers_look_at(self, layers, size, data):
        if sides(layers, size) is None:
            return
        start = data.draw(st.integers(0, size - 1))
        stop = data.draw(st.integers(start + 1, size))
        image = torch.zeros((1, 1, size, size))
        image[..., start:stop, :] = 1.0
        reaches = tuple(reach_of(layer)[0] for layer in layers)
        found, sizes = spans(reaches, size, Span(start, stop))
        assert list(sizes) == sides(layers, size)
        for (first, last), places, there in zip(found, sizes, felt_at(layers, image), strict=True):
            assert 0 <= first < last <= places
            rows = torch.nonzero(there[0, 0].any(1))
            assert not len(rows) or (first <= rows[0] and rows[-1] < last)
        for layer, before, after in zip(reaches[1:], found, found[1:], strict=False):
            needed = layer.seen(after)
            if not layer.pads:
                assert before.start <= needed.start < needed.stop <= before.stop
            assert needed.start < before.stop
            assert before.start < needed.stop

    def test_are_no_wider_than_the_layers_ask_for(self):
        """A tenth of a frame is a quarter of it at the last tap of VGG19."""
        vgg19 = build_trunk(resolve_weights("random:1", "vgg19"), BACKBONES["vgg19"].default_taps)
        layers = (Reach(3, 1, 1, pads=True), *(reach_of(layer)[0] for layer in vgg19.rest))
        found, sizes = spans(layers, 128, Span(58, 70))
        assert found[:3] == (Span(57, 71), Span(57, 71), Span(56, 72))
        assert sizes[-1] == 32
        assert found[-1] == Span(12, 20)

    def test_of_the_layers_of_a_network(self):
        assert reach_of(nn.Conv2d(3, 8, 11, 4, 2)) == (Reach(11, 4, 2, pads=True),) * 2
        assert reach_of(nn.Conv2d(3, 8, 3, padding=(0, 2), dilation=2)) == (
            Reach(5, 1, 0, pads=True),
            Reach(5, 1, 2, pads=True),
        )
        assert reach_of(nn.MaxPool2d(3, 2)) == (Reach(3, 2, 0),) * 2
        assert reach_of(nn.ReLU()) == (Reach(1, 1, 0),) * 2


class TestFelt:
    def test_parts_lie_where_they_were(self):
        layers = (Reach(3, 1, 1, pads=True), Reach(), Reach(2, 2))
        image = torch.zeros((1, 1, 12, 20))
        image[..., 4:6, 9] = 1.0
        felt = Felt((layers, layers), (12, 20), box_of(image[0, 0]))
        features = torch.arange(12.0 * 20).view(1, 1, 12, 20)
        part = felt.part(0, features)
        assert part.shape[-2:] == (6, 4)  # 4 rows and 3 columns, and what the pooling looks at
        whole = felt.whole(0, part)
        assert whole.shape == features.shape
        assert torch.equal(felt.part(0, whole), part)
        assert whole.count_nonzero() == part.count_nonzero() == 24
        assert felt.around == [(-7, -7, -1, -3), (0, 0, 0, 0), (0, 0, 0, 0)]

    def test_all_of_it_is_what_it_was(self):
        layers = (Reach(3, 1, 1, pads=True),)
        felt = Felt((layers, layers), (5, 6), (Span(0, 5), Span(0, 6)))
        features = torch.zeros((1, 3, 5, 6))
        assert felt.part(0, features) is features
        assert felt.whole(0, features) is features
        assert felt.around == [(1, 1, 1, 1)]

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-30])
    def test_anything_but_zero_is_felt(self, value):
        image = torch.zeros((1, 1, 9, 9))
        image[..., 7, 1] = value
        assert box_of(image[0, 0]) == (Span(7, 8), Span(1, 2))

    def test_of_nothing_is_the_first_place(self):
        assert box_of(torch.zeros((3, 4))) == (Span(0, 1), Span(0, 1))


@needs_int8
class TestOfNetworks:
    """What a trunk in 8 bits leaves out changes nothing."""

    @settings(deadline=None, max_examples=60)
    @given(
        kinds=st.lists(st.sampled_from("crpq"), max_size=6).filter(lambda k: k.count("c") <= 3),
        taps=st.sets(st.integers(0, 6), min_size=1),
        first=st.sampled_from([(3, 1, 1), (5, 2, 2), (11, 4, 2)]),
        rows=st.tuples(st.integers(0, 59), st.integers(1, 60)),
        columns=st.tuples(st.integers(0, 63), st.integers(1, 64)),
    )
    def test_of_any_layers_around_anything(self, kinds, taps, first, rows, columns):
        torch.manual_seed(len(kinds))
        layers = [nn.Conv2d(3, 8, *first)]
        layers += [
            {
                "c": lambda: nn.Conv2d(8, 8, 3, padding=1),
                "r": nn.ReLU,
                "p": lambda: nn.MaxPool2d(2, 2),
                "q": lambda: nn.MaxPool2d(3, 1),
            }[kind]()
            for kind in kinds
        ]
        if None in (sides(layers, 60), sides(layers, 64)) or kinds.count("p") > 2:
            return
        taps = sorted({tap for tap in taps if tap < len(layers)} or {len(layers) - 1})
        trunk = Trunk(layers, taps, Normalisation())
        shown = torch.full((1, 1, 60, 64), 0.5)
        box = (..., slice(rows[0], rows[0] + rows[1]), slice(columns[0], columns[0] + columns[1]))
        shown[box] = torch.rand(shown[box].shape)
        self.assert_same_as_whole(trunk, shown)

    @pytest.mark.parametrize("backbone", ["vgg19", "alexnet"])
    @pytest.mark.parametrize("x", [(0, 121), (63, 64)])
    @pytest.mark.parametrize("y", [(0, 9), (40, 77), (100, 129)])
    def test_of_backbones(self, backbone, y, x):
        trunk = build_trunk(resolve_weights("random:1", backbone), BACKBONES[backbone].default_taps)
        shown = torch.zeros((1, 1, 129, 121))
        shown[..., slice(*y), slice(*x)] = torch.rand((1, 1, y[1] - y[0], x[1] - x[0]))
        self.assert_same_as_whole(trunk, shown, 0.0)

    @torch.inference_mode()
    def assert_same_as_whole(self, trunk, shown, empty=0.5):
        with pytest.MonkeyPatch.context() as patch:
            everywhere = tuple(Span(0, side) for side in shown.shape[-2:])
            patch.setattr(int8, "box_of", lambda image: everywhere)
            whole = self.activities(trunk, shown, empty)
        for one, other in zip(self.activities(trunk, shown, empty), whole, strict=True):
            assert one.shape == other.shape
            # The first layer is float32, and its last bits may follow the size of what it reads.
            assert_close(one, other, rtol=1e-5, atol=1e-4 * float(other.max()))

    def activities(self, trunk, shown, empty):
        return Int8Trunk(trunk).activities(shown, empty, lambda _, found: found.clone())
