"""The figures of fusion quality, written another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.metrics
from numpy.testing import assert_allclose
from scipy import signal
from slices import KINDS, picture

from fusionflow.correlations import correlation, sum_of_correlations
from fusionflow.fmi import feature_mutual_information
from fusionflow.gradients import (
    average_gradient,
    edge_preservation,
    fusion_artefacts,
    spatial_frequency,
)
from fusionflow.grey_levels import eight_bit, standard_deviation
from fusionflow.information import normalised_mutual_information
from fusionflow.multiscale import multiscale_ssim
from fusionflow.quality import assess
from fusionflow.vif import visual_information_fidelity


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
