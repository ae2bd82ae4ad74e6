"""How the figures of slices become those of a scan, and which do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from metric_oracles import BY_NAME, MEANS, PAIR_NAMES, PIXELWISE, examples, scan
from numpy.testing import assert_allclose, assert_array_equal

from fusionflow.errors import InputError
from fusionflow.metrics import (
    PAIR_METRICS,
    SOURCES,
    Metric,
    pool_figures,
    pool_slices,
    relative_rmse,
    slice_metrics,
)


def test_what_pools_how():
    figures = np.array([1.0, 2.0, 4.0])
    pooled = {name: float(pool_slices(metric, figures)) for name, metric in MEANS.items()}
    assert pooled.pop("rmse") == pooled.pop("rms") == pytest.approx(math.sqrt(7))
    mean_mse = np.mean([10**-0.1, 10**-0.2, 10**-0.4])
    assert pooled.pop("psnr") == pytest.approx(-10 * math.log10(mean_mse))
    assert set(pooled.values()) == {figures.mean()}


@given(hnp.arrays(np.float64, 6, elements=st.floats(1e-9, 1e3)))
@examples
def test_psnr_and_rmse_pool_as_mse_does(mse):
    pooled = float(pool_slices(BY_NAME["mse"], mse))
    pooled_psnr = float(pool_slices(BY_NAME["psnr"], -10 * np.log10(mse)))
    pooled_rmse = float(pool_slices(BY_NAME["rmse"], np.sqrt(mse)))
    assert pooled_psnr == pytest.approx(-10 * math.log10(pooled))
    assert pooled_rmse == pytest.approx(math.sqrt(pooled))


@pytest.mark.parametrize("name", ["mse", "psnr", "rmse", "rms", "rmse_relative"])
def test_pooled_over_a_frame_errors_are_those_of_the_volume(name):
    mri, pet, fused, _ = scan()
    pooled = pool_figures(PAIR_METRICS, slice_metrics(mri, pet, fused).pair)
    for source, image in enumerate((mri, pet)):
        expected = PIXELWISE[name][0](image, fused)
        assert pooled[source, PAIR_NAMES.index(name)] == pytest.approx(expected)


@given(st.data())
@examples
def test_figures_pool_one_metric_at_a_time_but_for_quotients(data):
    shape = (4, len(SOURCES), len(PAIR_METRICS))
    elements = st.floats(1e-3, 50) | st.just(math.nan)
    figures = data.draw(hnp.arrays(np.float64, shape, elements=elements))
    pooled = pool_figures(PAIR_METRICS, figures)
    for index, metric in enumerate(PAIR_METRICS):
        if metric.quotient is None:
            expected = pool_slices(metric, figures[..., index])
        else:
            part, whole = (pooled[:, PAIR_NAMES.index(name)] for name in metric.quotient)
            expected = part / whole
        assert_array_equal(pooled[:, index], expected)


@pytest.mark.parametrize("level", [0.0, 1e-4])
def test_slices_that_hold_almost_no_source_do_not_inflate_the_relative_rmse(level):
    mri, pet, fused, _ = scan()
    pet[[0, 4]] = level  # top and bottom: no uptake, or next to none
    found = slice_metrics(mri, pet, fused).pair
    each = found[:, SOURCES.index("pet"), PAIR_NAMES.index("rmse_relative")]
    assert np.isnan(each[[0, 4]]).all() if level == 0 else (each[[0, 4]] > 500).all()
    pooled = pool_figures(PAIR_METRICS, found)[:, PAIR_NAMES.index("rmse_relative")]
    # Their error counts, too.
    assert_allclose(pooled, [relative_rmse(mri, fused), relative_rmse(pet, fused)])


def test_a_quotient_takes_the_place_of_its_own_figures():
    numerator = Metric("error", "error", "1", (0.0, 1.0), "lower")
    ratio = Metric("ratio", "ratio", "1", (0.0, 1.0), "lower", quotient=("error", "whole"))
    denominator = Metric("whole", "whole", "1", (0.0, 1.0), "neither")
    figures = np.array([[9.0, 1.0, 1.0], [math.nan, 2.0, 3.0], [1e6, math.nan, math.nan]])
    assert_allclose(pool_figures((ratio, numerator, denominator), figures), [0.75, 1.5, 2.0])


@pytest.mark.parametrize("whole", [0.0, math.nan])
def test_a_quotient_without_a_denominator_is_not_defined(whole):
    figures = np.full((3, len(PAIR_METRICS)), 0.5)
    figures[:, PAIR_NAMES.index("rms")] = whole
    pooled = dict(zip(PAIR_NAMES, pool_figures(PAIR_METRICS, figures), strict=True))
    assert math.isnan(pooled["rmse_relative"])
    assert pooled["rmse"] == 0.5


@pytest.mark.parametrize(("axis", "shape"), [(0, (3, 10)), (1, (2, 10)), (-2, (2, 10))])
def test_figures_pool_over_any_axis_but_that_of_the_metrics(axis, shape):
    figures = np.random.default_rng(16).random((2, 3, 10))
    pooled = pool_figures(PAIR_METRICS, figures, axis)
    assert pooled.shape == shape
    assert_allclose(pooled[..., 0], figures.mean(axis)[..., 0])


@pytest.mark.parametrize(
    ("shape", "axis"), [((4, 9), 0), ((4, 10), 1), ((4, 10), -1), ((10,), 0), ((10, 4), 1)]
)
def test_figures_whose_last_axis_is_not_the_metrics_are_refused(shape, axis):
    with pytest.raises(InputError, match="Let the last axis run over the metrics"):
        pool_figures(PAIR_METRICS, np.ones(shape), axis)


def test_a_quotient_is_not_pooled_alone():
    metric = BY_NAME["rmse_relative"]
    with pytest.raises(InputError, match="with pool_figures"):
        pool_slices(metric, np.ones(3))
    with pytest.raises(InputError, match=r"rmse_relative cannot be pooled without rms$"):
        pool_figures((BY_NAME["rmse"], metric), np.ones((3, 2)))


@pytest.mark.parametrize("metric", MEANS.values(), ids=MEANS)
@given(figures=hnp.arrays(np.float64, 5, elements=st.floats(1e-3, 50)), data=st.data())
@examples
def test_pooling_ignores_order_and_slices_that_do_not_count(metric, figures, data):
    pooled = pool_slices(metric, figures)
    assert figures.min() * (1 - 1e-9) <= pooled <= figures.max() * (1 + 1e-9)
    mixed = data.draw(st.permutations([*figures, math.nan, math.nan]))
    assert_allclose(pool_slices(metric, np.array(mixed)), pooled, rtol=1e-9)


@pytest.mark.parametrize("metric", MEANS.values(), ids=MEANS)
def test_no_slices_pool_to_nan(metric):
    assert math.isnan(pool_slices(metric, np.full(3, np.nan)))
    assert math.isnan(pool_slices(metric, np.empty(0)))
    mixed = pool_slices(metric, np.array([[np.nan, 0.5], [np.nan, 0.5]]))
    assert_allclose(mixed, [np.nan, 0.5])


@pytest.mark.parametrize("slices", [0, 3])
def test_no_slices_pool_to_nan_for_all_metrics_at_once(slices):
    none = np.full((slices, len(SOURCES), len(PAIR_METRICS)), np.nan)
    pooled = pool_figures(PAIR_METRICS, none)
    assert pooled.shape == none.shape[1:]
    assert np.isnan(pooled).all()


def test_identical_slices_have_no_error_to_pool():
    metric = BY_NAME["psnr"]
    assert pool_slices(metric, np.array([math.inf, math.inf])) == math.inf
    one_of_two = float(pool_slices(metric, np.array([math.inf, 20.0])))
    assert one_of_two == pytest.approx(20 + 10 * math.log10(2))


@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (3, 4)), (1, (2, 4)), (-1, (2, 3)), ((0, 2), (3,)), (None, ())]
)
def test_pooling_takes_any_axes(axis, shape):
    figures = np.random.default_rng(13).random((2, 3, 4))
    pooled = pool_slices(BY_NAME["rmse"], figures, axis)
    assert isinstance(pooled, np.ndarray)
    assert pooled.shape == shape
    assert_allclose(pooled, np.sqrt(np.mean(figures**2, axis=axis)))


def test_a_metric_pools_to_the_mean_unless_it_says_otherwise():
    metric = Metric("volume", "volume", "1", (0.0, 1.0), "neither")
    assert pool_slices(metric, np.array([0.25, 0.75])) == 0.5
