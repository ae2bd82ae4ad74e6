"""Entropies and what images tell of one another: closed forms, bounds, grey levels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.measure
import skimage.metrics
from hypothesis import given
from hypothesis import strategies as st
from metric_oracles import KINDS, arrays, examples, noise, oracle_levels
from numpy.testing import assert_allclose

from fusionflow.metrics import (
    entropy,
    joint_entropy,
    mutual_information,
    normalised_mutual_information,
)

several_levels = st.tuples(arrays(0, 1, (9, 7)), arrays(0, 1, (9, 7)))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nmi_and_scikit_images_ratio_tell_the_same(kind):
    a, b = (image.clip(0, 1) for image in kind((64, 64), seed=5))
    a[0, :2] = b[0, :2] = 0, 1  # so that its 256 bins are the grey levels
    ratio = skimage.metrics.normalized_mutual_information(
        oracle_levels(a), oracle_levels(b), bins=256
    )  # (H(a) + H(b)) / H(a, b)
    assert_allclose(normalised_mutual_information(a, b), 2 - 2 / ratio, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bits", range(9))
def test_equally_frequent_levels_are_worth_the_log_of_their_number(bits):
    ramp = np.repeat(np.arange(2**bits) / 255, 4)
    assert entropy(ramp) == bits


def test_independent_images_share_no_information():
    a, b = np.meshgrid(np.arange(16) / 255, np.arange(16) / 255)
    assert joint_entropy(a, b) == 8
    assert mutual_information(a, b) == 0
    assert normalised_mutual_information(a, b) == 0


def test_a_picture_of_8_bits_survives_as_float32():
    picture = np.arange(256) / 255
    assert entropy(picture.astype(np.float32)) == 8
    assert joint_entropy(picture.astype(np.float32), picture) == 8


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (0.5 / 255, 1.0 / 255, True),  # half rounds up
        (0.499 / 255, 0.5 / 255, False),
        (1.499 / 255, 1.0 / 255, True),
        (254.5 / 255, 1.0, True),
        (-0.0, 0.0, True),
        (-7.0, 0.0, True),  # below the window
        (1.0, 300.0, True),  # above it
        (0.9, 300.0, False),
    ],
)
def test_which_values_share_a_grey_level(one, other, same):
    assert entropy(np.array([one, other])) == (0 if same else 1)


@given(several_levels)
@examples
def test_entropies_bound_one_another(images):
    a, b = images
    h_a, h_b, h_ab = entropy(a), entropy(b), joint_entropy(a, b)
    assert max(h_a, h_b) <= h_ab + 1e-12
    assert h_ab <= h_a + h_b + 1e-12
    information = mutual_information(a, b)
    assert 0 <= information <= min(h_a, h_b)
    assert information == pytest.approx(h_a + h_b - h_ab, abs=1e-12)


@given(several_levels, st.permutations(range(63)))
@examples
def test_entropies_do_not_depend_on_where_pixels_are(images, order):
    a, b = images
    shuffled_a, shuffled_b = a.ravel()[order], b.ravel()[order]
    assert joint_entropy(shuffled_a, shuffled_b) == joint_entropy(a.ravel(), b.ravel())
    assert entropy(shuffled_a.reshape(9, 7)) == entropy(a)


def test_nmi_needs_something_to_tell():
    constant, varied = np.full((12, 12), 0.3), noise((12, 12), seed=12)[0]
    assert math.isnan(normalised_mutual_information(constant, constant))
    assert normalised_mutual_information(constant, varied) == 0
    assert normalised_mutual_information(varied, constant) == 0
