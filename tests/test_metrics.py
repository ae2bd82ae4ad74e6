"""What the metrics promise: independent oracles, identities, and rules for what is not defined."""

from __future__ import annotations

import dataclasses
import doctest
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_oracles import (
    BY_NAME,
    CASES,
    IMAGE_NAMES,
    KINDS,
    MASKS,
    MEANS,
    PAIR_NAMES,
    PIXELWISE,
    arrays,
    disc,
    examples,
    head,
    noise,
    pairs,
    scan,
)
from numpy.testing import assert_allclose, assert_array_equal

from fusionflow import information, metrics, pooling, ssim
from fusionflow.errors import InputError
from fusionflow.metrics import (
    IMAGE_METRICS,
    PAIR_METRICS,
    SOURCES,
    entropy,
    joint_entropy,
    mean_squared_error,
    mutual_information,
    normalised_mutual_information,
    psnr,
    relative_rmse,
    rmse,
    slice_metrics,
    structural_similarity,
)

MODULES = (information, metrics, pooling, ssim)
FROM_ELSEWHERE = {  # what is found in metrics, too
    *("entropy", "joint_entropy", "mutual_information", "normalised_mutual_information"),
    *("structural_similarity", "Metric", "pool_figures", "pool_slices"),
}


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("name", PIXELWISE)
def test_figure_is_that_of_the_oracle(name, kind, shape):
    ours, oracle = PIXELWISE[name]
    source, fused = kind(shape, seed=1)
    assert_allclose(ours(source, fused), oracle(source, fused), rtol=0, atol=1e-9)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", PIXELWISE)
def test_masked_figure_is_that_of_the_mask_pixels_alone(name, kind, mask):
    ours, oracle = PIXELWISE[name]
    source, fused = kind((37, 53), seed=2)
    inside = mask((37, 53))
    if name == "nmi" and inside.sum() == 1:
        expected = math.nan
    else:
        with np.errstate(all="ignore"):  # the oracles of norms of a single, empty pixel
            expected = oracle(source[inside], fused[inside])
    assert_allclose(ours(source, fused, inside), expected, rtol=0, atol=1e-9)


def test_an_error_of_a_tenth_everywhere():
    source = noise((20, 20), seed=6)[0]
    fused = source + 0.1
    assert mean_squared_error(source, fused) == pytest.approx(0.01)
    assert rmse(source, fused) == pytest.approx(0.1)
    assert psnr(source, fused) == pytest.approx(20.0)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 3.0])
def test_relative_rmse_of_a_scaled_source(scale):
    source = head((20, 30), seed=7)[0]
    assert relative_rmse(source, scale * source) == pytest.approx(abs(scale - 1))


def test_values_beyond_the_window_count_in_full_but_for_entropies():
    source = np.zeros((12, 12))
    assert mean_squared_error(source, np.full((12, 12), 3.0)) == 9
    assert mean_squared_error(source, np.full((12, 12), -2.0)) == 4
    assert structural_similarity(source + 1, source + 3) < structural_similarity(
        source + 1, source + 2
    )
    assert joint_entropy(source, np.linspace(-5, 0, 144).reshape(12, 12)) == 0


@given(pairs)
@examples
def test_every_figure_lies_in_its_declared_range(images):
    source, fused = images
    found = slice_metrics(source[None], fused[None], fused[None])
    for row in found.pair[0]:
        for metric, figure in zip(PAIR_METRICS, row, strict=True):
            low, high = metric.value_range
            assert math.isnan(figure) or low - 1e-12 <= figure <= high + 1e-12, metric.name
    for metric, figure in zip(IMAGE_METRICS, found.image[0], strict=True):
        assert metric.value_range[0] <= figure <= metric.value_range[1], metric.name


@given(arrays(), st.booleans())
@examples
def test_an_image_compared_with_itself(image, masked):
    mask = disc(image.shape) if masked else None
    counted = image if mask is None else image[mask]
    assert mean_squared_error(image, image, mask) == 0
    assert rmse(image, image, mask) == 0
    assert psnr(image, image, mask) == math.inf
    assert structural_similarity(image, image, mask) == 1
    assert joint_entropy(image, image, mask) == entropy(image, mask)
    assert mutual_information(image, image, mask) == entropy(image, mask)
    assert_array_equal(
        normalised_mutual_information(image, image, mask),
        1.0 if entropy(image, mask) else math.nan,
    )
    assert_array_equal(relative_rmse(image, image, mask), 0.0 if counted.any() else math.nan)


@given(pairs)
@examples
def test_symmetric_figures_are_symmetric(images):
    a, b = images
    for exact in (mean_squared_error, psnr, rmse, structural_similarity):
        assert exact(a, b) == exact(b, a)
    for close in (joint_entropy, mutual_information, normalised_mutual_information):
        assert_allclose(close(a, b), close(b, a), rtol=0, atol=1e-12)


def test_relative_rmse_is_not_symmetric():
    source = noise((12, 12), seed=8)[0]
    assert relative_rmse(source, 3 * source) == pytest.approx(2)
    assert relative_rmse(3 * source, source) == pytest.approx(2 / 3)


@given(pairs)
@examples
def test_psnr_rmse_and_mse_are_one_figure_in_three_units(images):
    mse = mean_squared_error(*images)
    assert rmse(*images) ** 2 == pytest.approx(mse)
    assert 10 ** (-psnr(*images) / 10) == pytest.approx(mse)


@pytest.mark.parametrize(
    "figure",
    [
        *[ours for ours, _ in PIXELWISE.values()],
        structural_similarity,
    ],
    ids=[*PIXELWISE, "ssim"],
)
def test_no_pixels_no_figure(figure):
    source, fused = noise((16, 16), seed=11)
    assert math.isnan(figure(source, fused, np.zeros((16, 16), bool)))
    assert math.isnan(figure(source[:0], fused[:0]))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_relative_rmse_of_an_empty_source_is_not_defined(level):
    assert math.isnan(relative_rmse(np.zeros((12, 12)), np.full((12, 12), level)))


def test_zero_is_not_minus_zero():
    constant = np.full((12, 12), 0.3)
    assert math.copysign(1, entropy(constant)) == 1
    assert math.copysign(1, joint_entropy(constant, constant)) == 1
    assert entropy(constant) == joint_entropy(constant, constant) == 0
    assert math.copysign(1, psnr(np.zeros(4), np.ones(4))) == 1
    assert psnr(np.zeros(4), np.ones(4)) == 0


def test_metrics_and_their_order():
    assert SOURCES == ("mri", "pet")
    errors, others = PAIR_NAMES[:5], PAIR_NAMES[5:]
    assert errors == ["mse", "psnr", "rmse", "rmse_relative", "rms"]
    assert others == ["ssim", "mi", "nmi", "entropy", "joint_entropy"]
    assert IMAGE_NAMES == ["entropy_fused", "joint_entropy_sources"]


@pytest.mark.parametrize("metric", BY_NAME.values(), ids=BY_NAME)
def test_metric_crosses_process_borders(metric):
    assert pickle.loads(pickle.dumps(metric)) == metric


@pytest.mark.parametrize("metric", BY_NAME.values(), ids=BY_NAME)
def test_metric_is_declared_in_full(metric):
    assert metric.long_name
    assert metric.units in {"1", "dB", "bit"}
    assert metric.better in {"higher", "lower", "neither"}
    assert metric.value_range[0] < metric.value_range[1]
    assert (metric.units == "bit") == ("entropy" in metric.name or metric.name == "mi")
    assert set(metric.quotient or ()) <= set(MEANS)


@pytest.mark.parametrize("metric", PAIR_METRICS, ids=PAIR_NAMES)
def test_better_points_from_noise_to_the_source_itself(metric):
    source = head((40, 40), seed=14)[0].astype(np.float32)
    noisy = source + 0.2 * np.random.default_rng(15).standard_normal(source.shape)
    fused = np.stack([source, noisy.astype(np.float32)])
    found = slice_metrics(np.stack([source] * 2), np.stack([source] * 2), fused)
    same, worse = found.pair[:, 0, PAIR_NAMES.index(metric.name)]
    if metric.better == "higher":
        assert same > worse
    elif metric.better == "lower":
        assert same < worse
    else:
        assert same <= worse  # noise only ever raises these, and they are no praise


def test_metrics_and_results_are_frozen():
    found = slice_metrics(*scan((2, 12, 12)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.pair = found.image
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIR_METRICS[0].name = "other"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_that_is_defined_here_for_others_is_public(module):
    defined = {
        n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
    }
    public = {name for name in defined if not name.startswith("_")}
    constants = {name for name in module.__all__ if name.isupper()}
    elsewhere = FROM_ELSEWHERE if module is metrics else set()
    assert set(module.__all__) == public | constants | elsewhere


@pytest.mark.parametrize("module", [information, metrics, pooling], ids=lambda m: m.__name__)
def test_the_examples_in_the_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    "figure",
    [
        *[ours for name, (ours, _) in PIXELWISE.items() if name not in ("entropy", "rms")],
        structural_similarity,
    ],
)
def test_single_figures_refuse_what_does_not_fit(figure):
    image = np.zeros((12, 12))
    with pytest.raises(InputError, match="has shape"):
        figure(image, image[:, :11])
    with pytest.raises(InputError, match="mask has shape"):
        figure(image, image, np.ones(12, bool))
    with pytest.raises(InputError, match="is int64"):
        figure(image, image.astype(np.int64))
    with pytest.raises(InputError, match="not finite"):
        figure(image, np.full((12, 12), np.nan))
