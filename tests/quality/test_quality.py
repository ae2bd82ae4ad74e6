"""What the figures of fusion quality promise together: names, order, invariances, ranges."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from slices import pictures

from fusionflow import correlations, fmi, gradients, multiscale, quality, vif
from fusionflow.correlations import correlation, sum_of_correlations
from fusionflow.errors import InputError
from fusionflow.fmi import feature_mutual_information
from fusionflow.gradients import average_gradient, edge_preservation, spatial_frequency
from fusionflow.grey_levels import standard_deviation
from fusionflow.metrics import PAIR_METRICS, slice_metrics
from fusionflow.quality import QUALITIES, TABLE_1, assess, table_1
from fusionflow.vif import visual_information_fidelity

BY_NAME = {figure.name: figure for figure in QUALITIES}
KEYS = [key for figure in QUALITIES for key in figure.keys]
MODULES = (correlations, fmi, gradients, multiscale, quality, vif)
SYMMETRIC = [figure.name for figure in QUALITIES if not figure.per_source]


class TestDeclarations:
    def test_names_and_keys_are_unique(self):
        assert len(BY_NAME) == len(QUALITIES)
        assert len(set(KEYS)) == len(KEYS)

    def test_every_figure_the_field_reports_is_there(self):
        assert set(KEYS) >= {
            *("qabf", "nabf", "scd", "vif_mri", "vif_pet", "ssim_mri", "ssim_pet"),
            *("ms_ssim_mri", "fmi_pixel", "fmi_gradient", "nmi", "mi", "cc", "cc_mri", "en"),
            *("sd", "sf", "ag", "mse_mri", "psnr_pet", "rmse_relative_mri", "mi_pet", "nmi_pet"),
            *("entropy_mri", "entropy_pet", "joint_entropy_mri", "joint_entropy_sources"),
        }

    @pytest.mark.parametrize("figure", QUALITIES, ids=lambda figure: figure.name)
    def test_each_is_frozen_pickles_and_says_what_it_is(self, figure):
        with pytest.raises(dataclasses.FrozenInstanceError):
            figure.name = "other"
        assert pickle.loads(pickle.dumps(figure)).keys == figure.keys
        assert figure.long_name
        assert figure.units in {"1", "dB", "bit", "level", "level2"}
        assert figure.better in {"higher", "lower", "neither"}
        assert figure.value_range[0] < figure.value_range[1]
        assert figure.overall is None or figure.per_source

    @pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
    def test_public_names_are_sorted_and_documented(self, module):
        assert module.__all__ == sorted(module.__all__, key=lambda n: (not n.isupper(), n))
        for name in module.__all__:
            assert hasattr(module, name)


class TestAssess:
    def test_gives_every_figure_in_the_order_of_the_table(self, images):
        figures = assess(*images)
        assert list(figures) == KEYS
        assert all(type(figure) is float for figure in figures.values())
        assert not any(map(math.isnan, figures.values()))

    def test_gives_what_the_single_functions_give(self, images):
        figures = assess(*images)
        mri, pet, fused = images
        assert figures["qabf"] == edge_preservation(mri, pet, fused)
        assert figures["vif_pet"] == visual_information_fidelity(pet, fused)
        assert figures["sd"] == standard_deviation(fused)

    def test_a_name_stands_for_all_its_figures_and_a_key_for_one(self, images):
        assert list(assess(*images, ["vif", "mi", "cc_pet"])) == [
            "vif_mri",
            "vif_pet",
            "mi",
            "cc_pet",
        ]
        everything = assess(*images)
        for key, figure in assess(*images, ["sf", "mi_pet", "ssim"]).items():
            assert figure == everything[key]

    def test_the_literature_s_totals(self, images):
        figures = assess(*images)
        assert figures["mi"] == figures["mi_mri"] + figures["mi_pet"]
        assert figures["nmi"] == figures["nmi_mri"] + figures["nmi_pet"]
        assert figures["cc"] == (figures["cc_mri"] + figures["cc_pet"]) / 2

    def test_agrees_with_the_slice_metrics(self, images):
        figures = assess(*images)
        metrics = slice_metrics(*(image[None] for image in images))
        names = [metric.name for metric in PAIR_METRICS]
        for index, source in enumerate(("mri", "pet")):
            pair = dict(zip(names, metrics.pair[0, index], strict=True))
            for name in ("psnr", "rmse_relative", "ssim", "mi", "nmi", "entropy", "joint_entropy"):
                assert_allclose(figures[f"{name}_{source}"], pair[name], rtol=1e-12)
            assert_allclose(figures[f"mse_{source}"], pair["mse"] * 65025, rtol=1e-12)
        assert_allclose([figures["en"], figures["joint_entropy_sources"]], metrics.image[0])

    def test_table_1_is_its_columns_of_one_source(self, images):
        figures = assess(*images)
        for source, image in zip(("mri", "pet"), images, strict=False):
            expected = {name: figures[f"{name}_{source}"] for name in TABLE_1}
            assert table_1(image, images[2]) == expected

    def test_refuses_an_unknown_name(self, images):
        with pytest.raises(InputError, match="qqq"):
            assess(*images, ["qqq"])

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda image: image[:-1],
            lambda image: image[None],
            lambda image: (255 * image).astype(np.uint8),
            lambda image: np.where(image == image.max(), np.nan, image),
        ],
        ids=["shape", "dimensions", "dtype", "nan"],
    )
    def test_refuses_what_is_not_a_slice(self, images, spoil):
        mri, pet, fused = images
        with pytest.raises(InputError):
            assess(mri, pet, spoil(fused))

    def test_an_image_of_no_pixels_has_no_figures(self):
        assert all(map(math.isnan, assess(*np.zeros((3, 0, 0))).values()))

    def test_takes_float32(self, images):
        single = assess(*(image.astype(np.float32) for image in images))
        for key, figure in assess(*images).items():
            assert_allclose(single[key], figure, rtol=1e-5, err_msg=key)


class TestInvariances:
    @pytest.mark.parametrize("name", SYMMETRIC)
    def test_the_sources_may_change_places(self, images, name):
        mri, pet, fused = images
        expected = assess(mri, pet, fused, [name])
        assert_allclose(assess(pet, mri, fused, [name])[name], expected[name], rtol=1e-12)

    def test_figures_per_source_follow_it(self, images):
        mri, pet, fused = images
        figures, swapped = assess(mri, pet, fused), assess(pet, mri, fused)
        for figure in QUALITIES:
            if figure.per_source:
                assert figures[f"{figure.name}_mri"] == swapped[f"{figure.name}_pet"]

    @pytest.mark.parametrize(
        "figure",
        [edge_preservation, sum_of_correlations, feature_mutual_information],
        ids=lambda figure: figure.__name__,
    )
    def test_the_intensity_scale_does_not_matter(self, images, figure):
        assert_allclose(figure(*(i / 8 for i in images)), figure(*images), rtol=1e-9)

    @pytest.mark.parametrize("shift", [0.25, -3.0])
    def test_nor_does_a_shift_where_only_differences_count(self, images, shift):
        mri, pet, fused = images
        moved = [image + shift for image in images]
        for figure in (sum_of_correlations, feature_mutual_information):
            assert_allclose(figure(*moved), figure(*images), rtol=1e-9)
        assert_allclose(correlation(mri + shift, 2 * fused), correlation(mri, fused), rtol=1e-9)
        assert_allclose(
            visual_information_fidelity(pet + shift, fused),
            visual_information_fidelity(pet, fused),
            rtol=1e-6,
        )
        for figure in (standard_deviation, spatial_frequency, average_gradient):
            assert_allclose(figure(moved[2]), figure(fused), rtol=1e-9)

    @pytest.mark.parametrize("name", [key for key in KEYS if not key.startswith(("fmi", "qabf"))])
    def test_the_slice_may_be_transposed(self, images, name):
        expected = assess(*images, [name])[name]
        transposed = assess(*(image.T for image in images), [name])[name]
        # No edge has one orientation, upright or not: that shows in the ninth digit of Nabf.
        assert_allclose(transposed, expected, rtol=1e-9, atol=1e-9)


class TestRanges:
    @settings(max_examples=60)
    @given(pictures, pictures, pictures)
    def test_every_figure_is_in_its_range_or_not_defined(self, mri, pet, fused):
        figures = assess(mri, pet, fused)
        for figure in QUALITIES:
            lowest, highest = figure.value_range
            for key in figure.keys:
                most = 2 * highest if key == figure.name and figure.overall == "sum" else highest
                slack = 0.02 if key.startswith("fmi") else 1e-9  # phi beyond 1
                value = figures[key]
                assert math.isnan(value) or lowest - slack <= value <= most + slack, key

    @settings(max_examples=30)
    @given(pictures, pictures)
    def test_nothing_preserves_edges_like_the_source_itself(self, source, other):
        own = edge_preservation(source, source, source)
        assume(not math.isnan(own))
        assert edge_preservation(source, source, other) <= own + 1e-12

    @settings(max_examples=30)
    @given(pictures, pictures, st.floats(0.1, 10))
    def test_correlation_ignores_scale(self, a, b, scale):
        assert_allclose(correlation(a, scale * b), correlation(a, b), atol=1e-9)
