"""The figures of fusion quality where they are known, and where they are not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
from numpy.testing import assert_allclose, assert_array_equal
from slices import picture

from fusionflow.correlations import correlation, sum_of_correlations
from fusionflow.errors import InputError
from fusionflow.fmi import feature_mutual_information
from fusionflow.gradients import (
    MOST_PRESERVED,
    average_gradient,
    edge_preservation,
    fusion_artefacts,
    spatial_frequency,
)
from fusionflow.grey_levels import eight_bit, mean_squared_levels, standard_deviation
from fusionflow.metrics import mean_squared_error
from fusionflow.multiscale import multiscale_ssim
from fusionflow.quality import assess
from fusionflow.vif import visual_information_fidelity


class TestClosedForms:
    def test_a_source_handed_back(self, images):
        mri, pet, _ = images
        figures = assess(mri, pet, mri)
        for name in ("ssim", "ms_ssim", "vif", "nmi", "cc"):
            assert_allclose(figures[f"{name}_mri"], 1.0, rtol=1e-9, err_msg=name)
        assert figures["mi_mri"] == figures["entropy_mri"] == figures["en"]
        assert figures["mse_mri"] == figures["rmse_relative_mri"] == figures["nabf"] == 0
        assert figures["psnr_mri"] == math.inf
        assert math.isnan(figures["scd"])

    def test_one_image_for_all_three(self, images):
        mri = images[0]
        assert_allclose(edge_preservation(mri, mri, mri), MOST_PRESERVED, rtol=1e-12)
        assert pytest.approx(0.97479, abs=1e-5) == MOST_PRESERVED
        for feature in ("pixel", "gradient", "gradient-x"):
            assert feature_mutual_information(mri, mri, mri, feature) == 1.0

    def test_ties_at_strength_preserve_a_little_more(self, images):
        mri = images[0]
        most = 0.9994 * 0.9879 / (1 + math.exp(-4.4))
        preserved = edge_preservation(mri, mri, mri, ties="strength")
        assert MOST_PRESERVED < preserved == pytest.approx(most, rel=1e-5)

    def test_the_sum_of_the_sources_has_all_correlations(self, images):
        mri, pet, _ = images
        assert_allclose(sum_of_correlations(mri, pet, mri + pet), 2.0, rtol=1e-12)
        assert_allclose(sum_of_correlations(mri, pet, -mri - pet / 2), -1.0, atol=1.0)

    @pytest.mark.parametrize("slopes", [(1, 0), (0, 2), (3, 4)])
    def test_a_plane(self, slopes):
        ys, xs = np.mgrid[:20, :30]
        plane = (slopes[0] * xs + slopes[1] * ys) / 255
        assert_allclose(spatial_frequency(plane), math.hypot(*slopes), rtol=1e-9)
        assert_allclose(average_gradient(plane), math.hypot(*slopes) / math.sqrt(2), rtol=1e-9)

    def test_half_black_half_white(self):
        halves = np.repeat([[0.0, 1.0]], 4, axis=0)
        assert standard_deviation(halves) == 127.5
        assert spatial_frequency(halves) == 255
        assert_allclose(average_gradient(halves), 255 / math.sqrt(2), rtol=1e-12)

    def test_vif_of_a_gain_and_of_noise(self):
        source = picture("noise", 0, (64, 64))
        # Gain g and no noise: each window tells log(1 + g2 s / n) of log(1 + s / n).
        fidelity = [visual_information_fidelity(source, g * source) for g in (0.5, 1.0, 1.5)]
        assert fidelity[0] < fidelity[1] < fidelity[2]
        assert fidelity[1] == pytest.approx(1, abs=1e-9)
        assert visual_information_fidelity(source, 1 - source) == 0
        assert visual_information_fidelity(source, np.full_like(source, 0.3)) == 0
        assert visual_information_fidelity(source, picture("noise", 1, (64, 64))) < 0.1

    def test_new_edges_are_artefacts_and_lost_ones_are_not(self):
        mri, pet = picture("blocks", 0), picture("black", 0)
        assert fusion_artefacts(mri, pet, pet) == 0
        assert fusion_artefacts(mri, pet, mri / 2) == 0
        assert fusion_artefacts(mri / 2, pet, mri) > 0
        assert fusion_artefacts(pet, pet, picture("noise", 0)) > 0.9

    def test_orientation_across_the_vertical_is_nearly_the_same(self):
        # The two gradients are 1 degree to either side of the y axis.
        ys, xs = np.mgrid[:40, :40]
        left, right = ((100 + ys + turn * math.tan(math.radians(1)) * xs) / 255 for turn in (-1, 1))
        crop = [left, left, right]
        assert edge_preservation(*crop, opposite_is_same=True) > 0.97
        assert edge_preservation(*crop) < 0.9

    def test_eight_bit(self):
        image = np.array([-0.1, 0.0, 0.4, 0.5 / 255, 1.5 / 255, 100.4 / 255, 1.0, 7.0])
        expected = np.array([0, 0, 102, 0, 2, 100, 255, 255]) / 255
        assert_array_equal(eight_bit(image), expected)
        assert_array_equal(eight_bit(expected), expected)

    def test_mean_squared_levels(self, images):
        assert mean_squared_levels(np.zeros((3, 3)), np.full((3, 3), 2 / 255)) == pytest.approx(4)
        assert mean_squared_levels(*images[:2]) == 65025 * mean_squared_error(*images[:2])


class TestNotDefined:
    def test_flat_images(self):
        flat = np.full((48, 48), 0.3)
        busy = picture("noise", 0, (48, 48))
        assert math.isnan(visual_information_fidelity(flat, busy))
        assert visual_information_fidelity(busy, flat) == 0
        assert math.isnan(correlation(flat, busy))
        assert math.isnan(sum_of_correlations(flat, busy, busy))
        assert math.isnan(edge_preservation(*np.zeros((3, 48, 48))))
        assert fusion_artefacts(flat, flat, flat) == 0
        assert math.isnan(fusion_artefacts(flat, flat, flat, faint_weight=0.0))
        assert standard_deviation(flat) == pytest.approx(0, abs=1e-9)
        assert spatial_frequency(flat) == average_gradient(flat) == 0
        assert feature_mutual_information(busy, busy, flat) == 0
        assert feature_mutual_information(flat, flat, flat) == 1

    def test_a_difference_that_is_only_rounding_has_no_correlation(self, images):
        mri, pet, _ = images
        almost = pywt.idwt2(pywt.dwt2(mri, "db2"), "db2")
        assert 0 < np.abs(almost - mri).max() < 1e-14
        assert math.isnan(sum_of_correlations(mri, pet, almost))
        assert math.isnan(correlation(mri, np.full_like(mri, 0.1) + 1e-17 * mri))

    @pytest.mark.parametrize(("side", "defined"), [(40, False), (41, True)])
    def test_vif_needs_four_scales(self, side, defined):
        image = picture("noise", 0, (side, 64))
        assert math.isnan(visual_information_fidelity(image, image)) is not defined

    @pytest.mark.parametrize(("side", "defined"), [(175, False), (176, True)])
    def test_multiscale_ssim_needs_five(self, side, defined):
        image = picture("noise", 0, (side, 180))
        assert math.isnan(multiscale_ssim(image, image)) is not defined

    def test_multiscale_ssim_of_opposites_is_0(self):
        image = picture("noise", 0, (176, 176))
        assert multiscale_ssim(image, 1 - image) == 0

    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2)])
    def test_tiny_slices(self, shape):
        figures = assess(*np.random.default_rng(0).random((3, *shape)))
        assert all(math.isnan(figures[key]) for key in ("fmi_pixel", "ssim_mri", "vif_mri"))
        assert math.isnan(figures["sf"]) == math.isnan(figures["ag"]) == (min(shape) < 2)

    def test_an_unknown_feature(self, images):
        with pytest.raises(InputError, match="dct"):
            feature_mutual_information(*images, "dct")
