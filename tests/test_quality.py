"""What the figures of fusion quality promise: closed forms, oracles written another way, ranges."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import pywt
import skimage.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import signal

from fusionflow import correlations, fmi, gradients, multiscale, quality, vif
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
from fusionflow.information import normalised_mutual_information
from fusionflow.metrics import PAIR_METRICS, mean_squared_error, slice_metrics
from fusionflow.multiscale import multiscale_ssim
from fusionflow.quality import (
    QUALITIES,
    TABLE_1,
    assess,
    eight_bit,
    mean_squared_levels,
    standard_deviation,
    table_1,
)
from fusionflow.vif import visual_information_fidelity

BY_NAME = {figure.name: figure for figure in QUALITIES}
KEYS = [key for figure in QUALITIES for key in figure.keys]
MODULES = (correlations, fmi, gradients, multiscale, quality, vif)
SYMMETRIC = [figure.name for figure in QUALITIES if not figure.per_source]
KINDS = ("noise", "levels", "sparse", "ramp", "blocks", "constant", "black")


def picture(kind, seed, shape=(48, 45)):
    """An 8-bit picture, of one of the kinds that break metrics."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    made = {
        "noise": lambda: rng.random(shape),
        "levels": lambda: rng.integers(0, 3, shape) / 2,
        "sparse": lambda: (rng.random(shape) > 0.98) * rng.random(),
        "ramp": lambda: (xs * rng.random() + ys * rng.random()) / sum(shape),
        "blocks": lambda: np.kron(rng.random((6, 5)), np.ones((8, 9)))[: shape[0], : shape[1]],
        "constant": lambda: np.full(shape, rng.random()),
        "black": lambda: np.zeros(shape),
    }
    return eight_bit(made[kind]())


pictures = st.builds(picture, st.sampled_from(KINDS), st.integers(0, 2**16))


@pytest.fixture(scope="module")
def images():
    """Two sources that share little and something between them, with smooth and busy parts."""
    rng = np.random.default_rng(7)
    ys, xs = np.mgrid[:192, :178] / 60
    mri = np.clip(np.sin(3 * xs) * np.cos(2 * ys) + 0.1 * rng.standard_normal(xs.shape), 0, 1)
    pet = np.clip(np.exp(-((xs - 1.5) ** 2) - (ys - 1.6) ** 2), 0, 1)
    return [eight_bit(image) for image in (mri, pet, 0.3 * mri + 0.7 * np.maximum(mri, pet))]


def oracle_sobel(image, mode):
    """Strength and orientation by two-dimensional convolution of whole grey levels."""
    padded = np.pad(np.rint(255 * image), 1, mode=mode)
    kernel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    x, y = (signal.convolve2d(padded, k, mode="valid") for k in (kernel, kernel.T))
    return np.sqrt(x**2 + y**2), np.array(
        [math.pi / 2 if a == 0 else math.atan(b / a) for a, b in zip(x.flat, y.flat, strict=True)]
    ).reshape(x.shape)


def oracle_edge_preservation(mri, pet, fused, *, lines=False):
    strength_f, orientation_f = oracle_sobel(fused, "constant")
    top = bottom = 0.0
    for source in (mri, pet):
        strength, orientation = oracle_sobel(source, "constant")
        for a, b, p, q in zip(
            strength.flat, strength_f.flat, orientation.flat, orientation_f.flat, strict=True
        ):
            g = 1.0 if a == b else (b / a if a > b else a / b)
            turn = 1 - abs(p - q) / (math.pi / 2)
            if lines:
                turn = abs(abs(p - q) - math.pi / 2) / (math.pi / 2)
            kept = 0.9994 / (1 + math.exp(-15 * (g - 0.5)))
            kept *= 0.9879 / (1 + math.exp(-22 * (turn - 0.8)))
            top += a * kept
            bottom += a
    return top / bottom


def oracle_artefacts(mri, pet, fused):
    (a, p), (b, q), (f, r) = (oracle_sobel(i, "reflect") for i in (mri, pet, fused))
    a, b, f = a / 8, b / 8, f / 8
    top = bottom = 0.0
    for strength, orientation in ((a, p), (b, q)):
        for index in np.ndindex(f.shape):
            s, t = strength[index], f[index]
            g = 0.0 if s == 0 or t == 0 else min(s, t) / max(s, t)
            o = abs(abs(orientation[index] - r[index]) - math.pi / 2) * 2 / math.pi
            kept = 0.9999 / (1 + math.exp(-19 * (g - 0.5)))
            kept *= 0.9995 / (1 + math.exp(-22 * (o - 0.5)))
            weight = s**1.5 if s >= 2 else 0.001
            bottom += weight
            if t > a[index] and t > b[index]:
                top += (1 - math.sqrt(kept)) * weight
    return top / bottom


def oracle_vif(source, fused):
    """As the authors' code goes about it: two-dimensional windows, one case after the other."""
    source, fused = 255 * source, 255 * fused
    told = there = 0.0
    for scale in (1, 2, 3, 4):
        width = 2 ** (5 - scale) + 1
        ys, xs = np.mgrid[:width, :width] - width // 2
        window = np.exp(-(xs**2 + ys**2) / (2 * (width / 5) ** 2))
        window /= window.sum()

        def local(image, window=window):
            return signal.convolve2d(image, window, mode="valid")

        if scale > 1:
            source, fused = local(source)[::2, ::2], local(fused)[::2, ::2]
        s = np.maximum(local(source**2) - local(source) ** 2, 0)
        f = np.maximum(local(fused**2) - local(fused) ** 2, 0)
        c = local(source * fused) - local(source) * local(fused)
        g = c / (s + 1e-10)
        v = f - g * c
        g[s < 1e-10], v[s < 1e-10], s[s < 1e-10] = 0, f[s < 1e-10], 0
        g[f < 1e-10], v[f < 1e-10] = 0, 0
        v[g < 0], g[g < 0] = f[g < 0], 0
        v[v <= 1e-10] = 1e-10
        told += np.log10(1 + g**2 * s / (v + 2)).sum()
        there += np.log10(1 + s / 2).sum()
    return told / there


def oracle_window_information(s, f):
    """One window, from distribution functions, with Frechet's lower bound as it is written."""
    s, f = s.T.ravel(), f.T.ravel()
    if (s == f).all():
        return 1.0
    if np.ptp(s) == 0 or np.ptp(f) == 0:
        return 0.0
    p, q = ((x - x.min()) / (x - x.min()).sum() for x in (s, f))
    c = np.corrcoef(p, q)[0, 1]
    above = np.add.outer(np.cumsum(p), np.cumsum(q))
    bound = np.maximum(above - 1, 0) if c < 0 else np.minimum.outer(np.cumsum(p), np.cumsum(q))
    excess = (bound - np.outer(np.cumsum(p), np.cumsum(q))).sum()
    places = np.arange(1, 10)
    spreads = [math.sqrt(max(places**2 @ x - (places @ x) ** 2, 0)) for x in (p, q)]
    phi = c * math.prod(spreads) / excess if abs(excess) > 1e-12 else 0.0
    cells = np.diff(np.diff(np.pad(bound, ((1, 0), (1, 0))), axis=0), axis=1)
    joint = phi * cells + (1 - phi) * np.outer(p, q)

    def bits(x):
        return -(x[x != 0] * np.log2(np.abs(x[x != 0]))).sum()

    both = bits(p) + bits(q)
    return 2 * (both - bits(joint)) / both if both > 0 else 0.0


def oracle_feature_information(mri, pet, fused):
    height, width = fused.shape
    places = [np.s_[y : y + 3, x : x + 3] for y in range(height - 2) for x in range(width - 2)]
    return np.mean([oracle_window_information(i[p], fused[p]) for p in places for i in (mri, pet)])


def oracle_multiscale_ssim(a, b):
    window = np.outer(*[np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)] * 2)
    window /= window.sum()

    def local(image):
        return signal.fftconvolve(image, window, mode="valid")

    result = 1.0
    for weight in (0.0448, 0.2856, 0.3001, 0.2363, 0.1333):
        variances = local(a * a + b * b) - local(a) ** 2 - local(b) ** 2
        covariance = local(a * b) - local(a) * local(b)
        contrast = (2 * covariance + 9e-4) / (variances + 9e-4)
        means = (2 * local(a) * local(b) + 1e-4) / (local(a) ** 2 + local(b) ** 2 + 1e-4)
        result *= (contrast if weight != 0.1333 else contrast * means).mean() ** weight
        a, b = (
            signal.convolve2d(i, np.full((2, 2), 0.25), boundary="symm")[1::2, 1::2] for i in (a, b)
        )
    return result


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


class TestOracles:
    @pytest.mark.parametrize("lines", [False, True])
    def test_edge_preservation(self, images, lines):
        crop = [image[20:80, 30:95] for image in images]
        expected = oracle_edge_preservation(*crop, lines=lines)
        assert_allclose(edge_preservation(*crop, opposite_is_same=lines), expected, atol=1e-12)

    def test_fusion_artefacts(self, images):
        mri, pet, fused = (image[20:80, 30:95] for image in images)
        fused = eight_bit(1.3 * fused)
        assert_allclose(
            fusion_artefacts(mri, pet, fused), oracle_artefacts(mri, pet, fused), atol=1e-10
        )

    def test_visual_information_fidelity(self, images):
        for source in images[:2]:
            expected = oracle_vif(source, images[2])
            assert_allclose(visual_information_fidelity(source, images[2]), expected, rtol=1e-7)

    @pytest.mark.parametrize("kind", KINDS)
    def test_feature_mutual_information(self, kind):
        mri, pet, fused = (picture(k, 3, (21, 19)) for k in (kind, "levels", "noise"))
        fused[4:12] = mri[4:12]
        expected = oracle_feature_information(mri, pet, fused)
        assert_allclose(feature_mutual_information(mri, pet, fused), expected, atol=1e-9)

    def test_feature_mutual_information_of_gradients(self, images):
        crop = [image[60:90, 50:85] for image in images]
        levels = (np.rint(255 * image) for image in crop)
        along_y, along_x = zip(*map(np.gradient, levels), strict=True)
        expected = oracle_feature_information(*np.hypot(along_x, along_y))
        assert_allclose(feature_mutual_information(*crop, "gradient"), expected, atol=1e-9)
        expected = oracle_feature_information(*along_x)
        assert_allclose(feature_mutual_information(*crop, "gradient-x"), expected, atol=1e-9)

    @pytest.mark.parametrize("crop", [np.s_[:176, :176], np.s_[:191, :177]], ids=["even", "odd"])
    def test_multiscale_ssim(self, images, crop):
        mri, _, fused = (image[crop] for image in images)
        assert_allclose(multiscale_ssim(mri, fused), oracle_multiscale_ssim(mri, fused), rtol=1e-9)

    def test_ssim_is_scikit_image_s(self, images):
        expected = skimage.metrics.structural_similarity(
            images[0], images[2], data_range=1, gaussian_weights=True, use_sample_covariance=False
        )
        assert_allclose(assess(*images, ["ssim"])["ssim_mri"], expected, rtol=1e-10)

    def test_normalised_information_is_near_scikit_image_s(self, images):
        # Studholme's (H + H) / H_joint is another function of the same entropies.
        studholme = skimage.metrics.normalized_mutual_information(
            *(np.rint(255 * image).astype(int) for image in images[::2]),
            bins=[np.arange(257) - 0.5] * 2,
        )
        ours = normalised_mutual_information(*images[::2])
        assert_allclose(ours, 2 - 2 / studholme, rtol=1e-9)

    def test_correlations(self, images):
        m, p, f = (image.ravel() for image in images)
        assert_allclose(correlation(*images[::2]), np.corrcoef(m, f)[0, 1], rtol=1e-10)
        expected = np.corrcoef(f - p, m)[0, 1] + np.corrcoef(f - m, p)[0, 1]
        assert_allclose(sum_of_correlations(*images), expected, rtol=1e-10)

    def test_contrast(self, images):
        fused = images[2]
        levels = np.rint(255 * fused).astype(int).tolist()
        height, width = fused.shape
        across = [(row[x] - row[x - 1]) ** 2 for row in levels for x in range(1, width)]
        down = [
            (levels[y][x] - levels[y - 1][x]) ** 2 for y in range(1, height) for x in range(width)
        ]
        expected = math.sqrt(np.mean(across) + np.mean(down))
        assert_allclose(spatial_frequency(fused), expected, rtol=1e-12)
        assert_allclose(standard_deviation(fused), np.std(levels), rtol=1e-12)
        y, x = np.gradient(np.array(levels, dtype=float))
        assert_allclose(average_gradient(fused), np.mean(np.sqrt((x**2 + y**2) / 2)), rtol=1e-12)


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


def grey(path):
    return np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 255


def dwt_max(mri, pet):
    """One level of db2; of each coefficient, approximation included, that of greater magnitude."""
    a, b = (pywt.dwt2(image, "db2", mode="symmetric") for image in (mri, pet))
    bands = [
        np.where(np.abs(x) >= np.abs(y), x, y)
        for x, y in zip((a[0], *a[1]), (b[0], *b[1]), strict=True)
    ]
    return pywt.idwt2((bands[0], tuple(bands[1:])), "db2", mode="symmetric")


METHODS = {
    "MRI": lambda mri, pet: mri,
    "average": lambda mri, pet: (mri + pet) / 2,
    "maximum": np.maximum,
    "DWT": dwt_max,
}
COLUMNS = ("qabf", "scd", "ssim_mri", "ssim_pet", "vif_mri", "vif_pet")


@pytest.fixture(scope="module")
def pairs(shared):
    """Slices of MRI and PET, the latter as luminance, by file name."""
    val = shared / "data" / "harvard" / "val"
    names = sorted(path.name for path in (val / "MRI").glob("*.png"))
    return {name: (grey(val / "MRI" / name), grey(val / "PET" / name)) for name in names}


@pytest.mark.shared
class TestMeasured:
    """What an independent program measured on 21 pairs of real slices, to three digits."""

    @pytest.mark.parametrize("rounded", [False, True])
    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("MRI", (0.752, math.nan, 1.000, 0.520, 1.000, 0.028)),
            ("average", (0.412, 1.109, 0.807, 0.669, 0.467, 0.231)),
            ("maximum", (0.768, 1.723, 0.827, 0.696, 0.575, 0.432)),
            ("DWT", (0.716, 1.728, 0.848, 0.673, 0.578, 0.297)),
            ("IFCNN-MAX", (0.586, 1.406, 0.817, 0.660, 0.265, 0.203)),
            ("MATR", (0.708, 0.159, 0.497, 0.051, 0.720, 0.029)),
            ("DATFuse", (0.698, 1.526, 0.336, 0.203, 0.421, 0.268)),
        ],
    )
    def test_the_table(self, shared, pairs, method, expected, rounded):
        rows = []
        for name, (mri, pet) in pairs.items():
            if method in METHODS:
                fused = METHODS[method](mri, pet)
            elif rounded:
                pytest.skip("published as pictures")
            else:
                fused = grey(shared / "data" / "harvard" / "peers" / method / name)
            fused = eight_bit(fused) if rounded else fused
            rows.append([*assess(mri, pet, fused, COLUMNS).values()])
        assert len(rows) == 21
        assert_allclose(np.mean(rows, axis=0), expected, atol=0.005)
