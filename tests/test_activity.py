"""Activity: how much each place of a band has to tell, as a backbone sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import PRECISIONS
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from strategies import random_stack

from fusionflow.backbones import load_trunk, resolve_weights
from fusionflow.config import METHODS
from fusionflow.device import arithmetic
from fusionflow.fusion import activity
from fusionflow.trunk import Trunk

VGG19 = METHODS["dwt-vgg19-l1"]
RANDOM = resolve_weights("random:1", "vgg19")


class TestActivity:
    trunk = load_trunk(RANDOM, VGG19.taps)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize(("band", "level"), [("a", 0), ("a", 2), ("h", 1), ("v", 2), ("d", 3)])
    @pytest.mark.parametrize("shape", [(1, 24, 20), (3, 24, 20), (3, 4, 4)])
    def test_nothing_has_exactly_none_at_the_border_too(self, shape, band, level, precision):
        method = VGG19.model_copy(update={"precision": precision, "batch": 2})
        trunk = load_trunk(RANDOM, VGG19.taps, "cpu", precision)
        nothing = activity(np.zeros(shape, np.float32), band, level, trunk, method)
        assert_array_equal(nothing, np.zeros((3, *shape), np.float32))
        if min(shape[1:]) < 20:  # too small for the taps: `activity` shows no such image
            return
        empty = 0.0 if band == "a" else 0.5
        shown = torch.full((shape[0], 1, *shape[1:]), empty)
        with arithmetic("cpu", precision):
            for tap in trunk.activities(shown, empty, lambda _, found: found):
                assert not tap.any()

    @pytest.mark.parametrize("band", "ahvd")
    def test_nothing_has_none_beside_something_in_the_same_batch(self, band):
        stack = random_stack(0, (4, 24, 20))
        stack[2] = 0
        found = activity(stack, band, 1, self.trunk, VGG19)
        assert not found[:, 2].any()
        assert found[:, [0, 1, 3]].any(axis=(0, 2, 3)).all()

    @pytest.mark.parametrize("band", "ah")
    def test_places_far_from_anything_have_none_though_the_slice_is_shown(self, band):
        stack = np.zeros((3, 40, 90), np.float32)
        stack[:, 20, 10] = 1
        found = activity(stack, band, 1, self.trunk, VGG19)
        assert found[..., :30].any()
        # A tile of Winograd's convolutions rounds as a whole: 6 pixels of the last tap, 24 here.
        assert found[..., 50:].max() < 1e-6 * found.max()
        assert not found[..., 70:].any()

    def test_what_is_empty_is_not_shown(self, monkeypatch):
        """It changes no bit: of the slices around it, or of the fused band."""
        stack = random_stack(0, (5, 24, 20))
        whole = activity(stack, "h", 1, self.trunk, VGG19)
        with torch.inference_mode():
            self.trunk.of_nothing(24, 20, 0.5)  # read once and kept
        shown, read = [], Trunk.reduced

        def counted(self, images, reduce):
            shown.append(len(images))
            return read(self, images, reduce)

        stack[[0, 3]] = 0
        monkeypatch.setattr(Trunk, "reduced", counted)
        found = activity(stack, "h", 1, self.trunk, VGG19)
        assert sum(shown) == 3
        assert_array_equal(found[:, [1, 2, 4]], whole[:, [1, 2, 4]])
        assert not found[:, [0, 3]].any()

    @pytest.mark.parametrize("band", "ahvd")
    def test_is_not_negative_and_there_for_every_tap_at_band_size(self, band):
        stack = random_stack(0, (2, 24, 20))
        found = activity(stack, band, 1, self.trunk, VGG19)
        assert (found.shape, found.dtype) == ((3, 2, 24, 20), np.float32)
        assert (found >= 0).all()
        assert (found > 0).mean() > 0.99

    @pytest.mark.parametrize("band", "hv")
    def test_does_not_depend_on_the_level(self, band):
        """A level doubles the range of coefficients, and a power of two costs no bits."""
        stack = random_stack(0, (2, 24, 20))
        one = activity(stack, band, 1, self.trunk, VGG19)
        for level in (2, 3):
            again = activity(stack * np.float32(2 ** (level - 1)), band, level, self.trunk, VGG19)
            assert_array_equal(again, one)

    def test_is_where_the_coefficients_are(self):
        stack = np.zeros((1, 64, 64), np.float32)
        stack[0, 40:44, 10:14] = 1
        for tap in activity(stack, "h", 1, self.trunk, VGG19)[:, 0]:
            y, x = np.unravel_index(tap.argmax(), tap.shape)
            assert abs(y - 41.5) < 8
            assert abs(x - 11.5) < 8
            assert not tap[:16, 40:].any()

    def test_is_averaged_over_the_window(self):
        stack = random_stack(0, (1, 20, 24))
        trunk = load_trunk(RANDOM, ["relu1_1"])
        sharp, smooth = (
            activity(stack, "a", 1, trunk, VGG19.model_copy(update={"window": window}))
            for window in (1, 5)
        )
        inside = (..., slice(2, -2), slice(2, -2))
        wanted = ndimage.uniform_filter(sharp[0, 0].astype(np.float64), 5)
        assert_allclose(smooth[0, 0][inside], wanted[inside], rtol=1e-5)
