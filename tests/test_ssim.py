"""Structural similarity is scikit-image's, in a frame and in a mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_oracles import CASES, MASKS, arrays, disc, examples, oracle_ssim, pairs, smooth
from numpy.testing import assert_allclose

from fusionflow.errors import InputError
from fusionflow.metrics import mean_squared_error, structural_similarity


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_ssim_is_that_of_scikit_image(kind, shape):
    source, fused = kind(shape, seed=3)
    ours = structural_similarity(source, fused)
    assert_allclose(ours, oracle_ssim(source, fused), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_ssim_is_the_mean_of_scikit_images_map(mask, kind, shape):
    source, fused = kind(shape, seed=4)
    inside = mask(shape)
    ours = structural_similarity(source, fused, inside)
    assert_allclose(ours, oracle_ssim(source, fused, inside), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.7), (0.5, 0.5), (-0.5, 0.5), (3.0, 4.0)])
def test_ssim_of_constants_compares_luminance_alone(a, b):
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    source, fused = np.full((15, 12), a), np.full((15, 12), b)
    assert structural_similarity(source, fused) == pytest.approx(expected, abs=1e-9)


@given(st.tuples(arrays(-(2.0**100), 2.0**100), arrays(-(2.0**100), 2.0**100)))
@examples
def test_ssim_keeps_its_range_however_far_images_are_beyond_the_window(images):
    assert -1 - 1e-12 <= structural_similarity(*images) <= 1 + 1e-12


@given(pairs)
@examples
def test_ssim_does_not_change_with_the_orientation_of_the_slice(images):
    expected = structural_similarity(*images)
    for turn in (np.transpose, np.flipud, np.fliplr):
        assert structural_similarity(*map(turn, images)) == pytest.approx(expected, abs=1e-9)


def test_masked_ssim_sees_beyond_the_mask_and_pixelwise_figures_do_not():
    source, fused = smooth((30, 30), seed=9)
    mask = disc((30, 30))
    edited = np.where(mask, fused, 1 - fused)
    assert mean_squared_error(source, edited, mask) == mean_squared_error(source, fused, mask)
    assert structural_similarity(source, edited, mask) != structural_similarity(source, fused, mask)


def test_a_value_that_would_overflow_is_refused():
    image = np.zeros((12, 12))
    huge = np.full((12, 12), 1e200)
    with pytest.raises(InputError, match=r"fused .*beyond the range of float32"):
        structural_similarity(image, huge)
    largest = np.full((12, 12), np.finfo(np.float32).max)
    assert -1 <= structural_similarity(largest, -largest) <= 1


def test_ssim_is_of_one_slice():
    stack = np.zeros((3, 12, 12))
    with pytest.raises(InputError, match="3 dimensions, not 2"):
        structural_similarity(stack, stack)
