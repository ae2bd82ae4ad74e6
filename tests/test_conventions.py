"""Conventions give what the code bases give: their formulas, written out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
from numpy.testing import assert_allclose
from scipy import ndimage, signal

from fusionflow import conventions
from fusionflow.conventions import CONVENTIONS, convention
from fusionflow.errors import InputError
from fusionflow.grey_levels import eight_bit
from fusionflow.quality import assess

NAMES = tuple(CONVENTIONS)


@pytest.fixture(scope="module")
def images():
    """Two sources and what was made of them, at the full precision of a program's result."""
    rng = np.random.default_rng(11)
    ys, xs = np.mgrid[:192, :176] / 60
    mri = np.clip(np.sin(3 * xs) * np.cos(2 * ys) + 0.1 * rng.standard_normal(xs.shape), 0, 1)
    pet = np.clip(np.exp(-((xs - 1.5) ** 2) - (ys - 1.6) ** 2), 0, 1)
    return [mri, pet, 0.3 * mri + 0.6 * np.maximum(mri, pet)]


@pytest.fixture(scope="module")
def levels(images):
    """The same as the whole numbers that a picture holds."""
    return [np.rint(255 * image) for image in images]


@pytest.fixture(scope="module")
def ours(images):
    return assess(*map(eight_bit, images))


def nats(a, b):
    """The divergence of a joint histogram from the product of its margins."""
    joint = np.histogram2d(a.ravel(), b.ravel(), bins=np.arange(257) - 0.5)[0]
    return scipy.stats.entropy(joint.ravel(), np.outer(joint.sum(1), joint.sum(0)).ravel())


def plain_ssim(a, b, data_range):
    return skimage.metrics.structural_similarity(
        a, b, data_range=data_range, gaussian_weights=True, use_sample_covariance=False
    )


def slopes(image):
    y, x = np.gradient(image)
    return np.sqrt((x**2 + y**2) / 2)


class TestAny:
    @pytest.mark.parametrize("name", NAMES)
    def test_gives_a_number_for_each_of_its_figures(self, images, name):
        figures = convention(name)(*images)
        assert list(figures) == list(CONVENTIONS[name])
        assert all(type(figure) is float for figure in figures.values())
        assert not any(map(math.isnan, figures.values()))

    @pytest.mark.parametrize("name", NAMES)
    def test_gives_those_wanted(self, images, name):
        everything = convention(name)(*images)
        wanted = list(everything)[2::-2]
        assert convention(name)(*images, wanted) == {key: everything[key] for key in wanted}

    @pytest.mark.parametrize("name", NAMES)
    def test_sees_the_images_as_8_bit_pictures(self, images, name):
        rounded = convention(name)(*map(eight_bit, images))
        assert convention(name)(*images) == rounded

    @pytest.mark.parametrize("name", NAMES)
    def test_the_sources_may_change_places(self, images, name):
        mri, pet, fused = images
        swapped = convention(name)(pet, mri, fused)
        for key, figure in convention(name)(mri, pet, fused).items():
            assert_allclose(swapped[key], figure, rtol=1e-12, err_msg=key)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("shape", [(0, 0), (1, 1), (2, 5), (48, 48)])
    def test_black_slices_of_any_size_warn_of_nothing(self, name, shape):
        figures = convention(name)(*np.zeros((3, *shape)))
        assert list(figures) == list(CONVENTIONS[name])

    def test_every_figure_has_a_line_of_documentation(self):
        text = conventions.__doc__
        for figures in CONVENTIONS.values():
            assert all(figure in text for figure in figures)

    def test_refuses_what_is_not_known(self, images):
        with pytest.raises(InputError, match="cddfuze"):
            convention("cddfuze")
        with pytest.raises(InputError, match="FMI"):
            convention("vifb")(*images, ["FMI"])


class TestCDDFuse:
    @pytest.fixture
    def figures(self, images):
        return convention("cddfuse")(*images)

    def test_what_is_ours(self, figures, ours):
        for theirs in ("EN", "SD", "SF", "AG", "CC", "SCD"):
            assert_allclose(figures[theirs], ours[theirs.lower()], rtol=1e-12, err_msg=theirs)

    def test_sums_and_means_over_the_sources(self, figures, ours):
        assert_allclose(figures["VIF"], ours["vif_mri"] + ours["vif_pet"], rtol=1e-12)
        assert_allclose(figures["MSE"], (ours["mse_mri"] + ours["mse_pet"]) / 2, rtol=1e-12)

    def test_mi_is_in_nats(self, figures, levels, ours):
        mri, pet, fused = levels
        assert_allclose(figures["MI"], nats(mri, fused) + nats(pet, fused), rtol=1e-9)
        assert_allclose(figures["MI"], math.log(2) * ours["mi"], rtol=1e-9)

    def test_psnr_takes_the_brightest_pixel_for_its_peak(self, figures, levels):
        mri, pet, fused = levels
        error = (np.mean((mri - fused) ** 2) + np.mean((pet - fused) ** 2)) / 2
        assert_allclose(figures["PSNR"], 10 * np.log10(fused.max() ** 2 / error), rtol=1e-12)
        assert fused.max() < 250

    def test_ssim_is_scikit_image_s_guess_of_a_float32_range(self, figures, levels):
        mri, pet, fused = (image.astype(np.float32) for image in levels)
        expected = sum(
            skimage.metrics.structural_similarity(fused, source, data_range=2)
            for source in (mri, pet)
        )
        # Products of float32 in another order differ in what is left of a variance.
        assert_allclose(figures["SSIM"], expected, rtol=2e-4)

    def test_edge_ties_count_by_their_strength(self, images, levels):
        mri, pet, _ = images
        flat_sources = convention("cddfuse")(mri, pet, mri, ["Qabf"])["Qabf"]
        ours = assess(eight_bit(mri), eight_bit(pet), eight_bit(mri), ["qabf"])["qabf"]
        assert 0 < flat_sources - ours < 0.0006
        # The edges of an image are all tied with themselves.
        kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        strength = np.hypot(
            *(signal.convolve2d(levels[0], k, mode="same") for k in (kernel, kernel.T))
        )
        kept = 0.9994 / (1 + np.exp(-15 * (strength - 0.5))) * 0.9879 / (1 + np.exp(-22 * 0.2))
        own = convention("cddfuse")(mri, mri, mri, ["Qabf"])["Qabf"]
        assert_allclose(own, (kept * strength).sum() / strength.sum(), rtol=1e-9)

    def test_a_source_without_contrast_is_told_in_full(self, images):
        mri, _, fused = images
        flat = np.full_like(mri, 0.4)
        with_flat = convention("cddfuse")(mri, flat, fused, ["VIF"])["VIF"]
        assert with_flat == 1 + assess(*map(eight_bit, (mri, flat, fused)), ["vif_mri"])["vif_mri"]


class TestVIFB:
    @pytest.fixture
    def figures(self, images):
        return convention("vifb")(*images)

    def test_what_is_ours(self, figures, ours):
        assert_allclose([figures["EN"], figures["SD"]], [ours["en"], ours["sd"]], rtol=1e-12)
        assert_allclose(figures["SSIM"], ours["ssim_mri"] + ours["ssim_pet"], rtol=1e-12)

    def test_mi_of_stretched_images_in_nats(self, figures, levels):
        mri, pet, fused = (
            np.floor(255 * (i - i.min()) / (i.max() - i.min()) + 0.5) for i in levels
        )
        assert_allclose(figures["MI"], nats(mri, fused) + nats(pet, fused), rtol=1e-9)

    def test_errors_are_norms_over_the_number_of_pixels(self, figures, levels):
        mri, pet, fused = levels
        error = np.mean([np.linalg.norm(source - fused) / fused.size for source in (mri, pet)])
        assert_allclose(figures["RMSE"], error, rtol=1e-12)
        assert_allclose(figures["PSNR"], 20 * np.log10(255 / np.sqrt(error)), rtol=1e-12)

    def test_gradients_are_divided_by_other_counts(self, figures, levels):
        fused = levels[2]
        height, width = fused.shape
        squares = sum((np.diff(fused, axis=axis) ** 2).sum() for axis in (0, 1))
        assert_allclose(figures["SF"], np.sqrt(squares / (height * width)), rtol=1e-12)
        expected = slopes(fused).sum() / ((height - 1) * (width - 1))
        assert_allclose(figures["AG"], expected, rtol=1e-12)

    def test_edge_intensity(self, figures, levels):
        kernel = np.outer([1, 0, -1], [1, 2, 1])
        x, y = (ndimage.convolve(levels[2], k, mode="nearest") for k in (kernel, kernel.T))
        assert_allclose(figures["EI"], np.sqrt(x**2 + y**2).mean(), rtol=1e-12)

    def test_cross_entropy_is_a_divergence_of_what_both_have(self, figures, levels):
        shares = [np.histogram(image, np.arange(257) - 0.5)[0] / image.size for image in levels]
        total = 0.0
        for source in shares[:2]:
            for p, q in zip(source, shares[2], strict=True):
                total += p * math.log2(p / q) if p and q else 0.0
        assert_allclose(figures["CE"], total / 2, rtol=1e-9)


class TestTang:
    @pytest.fixture
    def figures(self, images):
        return convention("tang")(*images)

    def test_what_is_ours(self, figures, ours):
        for theirs in ("SF", "SD", "CC", "SCD", "MI"):
            assert_allclose(figures[theirs], ours[theirs.lower()], rtol=1e-12, err_msg=theirs)
        assert_allclose(figures["VIF"], ours["vif_mri"] + ours["vif_pet"], rtol=1e-12)

    def test_psnr_mixes_its_scales(self, figures, levels):
        mri, pet, fused = (image / 255 for image in levels)
        error = (np.mean((mri - fused) ** 2) + np.mean((pet - fused) ** 2)) / 2
        assert_allclose(figures["MSE"], error, rtol=1e-12)
        honest = -10 * np.log10(error)
        assert_allclose(figures["PSNR"], honest + 20 * np.log10(255), rtol=1e-12)
        assert_allclose(figures["PSNR"] - honest, 48.13, atol=0.001)

    def test_ssim_of_values_beyond_their_range(self, figures, levels):
        mri, pet, fused = (255 * image for image in levels)
        expected = plain_ssim(mri, fused, 255) + plain_ssim(pet, fused, 255)
        assert_allclose(figures["SSIM"], expected, rtol=1e-9)
        honest = plain_ssim(mri / 255, fused / 255, 255) + plain_ssim(pet / 255, fused / 255, 255)
        assert abs(figures["SSIM"] - honest) > 0.05

    def test_entropy_and_average_gradient(self, figures, levels, ours):
        assert_allclose(figures["EN"], ours["en"], atol=1e-4)
        height, width = levels[2].shape
        expected = slopes(levels[2]).sum() / ((height - 1) * (width - 1))
        assert_allclose(figures["AG"], expected, rtol=1e-12)

    def test_faint_edges_weigh_nothing(self, images, ours):
        mri, pet, fused = images
        assert convention("tang")(mri, pet, fused, ["Nabf"])["Nabf"] != ours["nabf"]
        assert math.isnan(convention("tang")(mri / 400, pet / 400, mri / 400, ["Nabf"])["Nabf"])
