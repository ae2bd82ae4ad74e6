"""Slices to measure, and the figures of `fusionflow.metrics` got another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import skimage.measure
import skimage.metrics
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from fusionflow.metrics import (
    IMAGE_METRICS,
    PAIR_METRICS,
    entropy,
    joint_entropy,
    mean_squared_error,
    mutual_information,
    normalised_mutual_information,
    psnr,
    relative_rmse,
    rmse,
    root_mean_square,
)

PAIR_NAMES = [metric.name for metric in PAIR_METRICS]
IMAGE_NAMES = [metric.name for metric in IMAGE_METRICS]
BY_NAME = {metric.name: metric for metric in (*PAIR_METRICS, *IMAGE_METRICS)}
MEANS = {name: metric for name, metric in BY_NAME.items() if metric.quotient is None}
REGIONS = ("frame", "mask")


def oracle_levels(image):
    """The grey levels of an 8-bit picture, by the values between which it changes level."""
    return np.digitize(image, (np.arange(255) + 0.5) / 255)


def oracle_joint_counts(a, b):
    pairs = np.stack([oracle_levels(a).ravel(), oracle_levels(b).ravel()])
    return np.unique(pairs, axis=1, return_counts=True)


def oracle_entropy(image):
    return skimage.measure.shannon_entropy(oracle_levels(image), base=2)


def oracle_joint_entropy(a, b):
    return scipy.stats.entropy(oracle_joint_counts(a, b)[1], base=2)


def oracle_mutual_information(a, b):
    """The divergence of the joint distribution from the product of its marginals."""
    counts = np.histogram2d(
        oracle_levels(a).ravel(), oracle_levels(b).ravel(), bins=np.arange(257) - 0.5
    )[0]
    independent = np.outer(counts.sum(axis=1), counts.sum(axis=0))
    return scipy.stats.entropy(counts.ravel(), independent.ravel(), base=2)


def oracle_normalised_mutual_information(a, b):
    return 2 * oracle_mutual_information(a, b) / (oracle_entropy(a) + oracle_entropy(b))


def oracle_ssim(source, fused, mask=None):
    mean, at_pixels = skimage.metrics.structural_similarity(
        source,
        fused,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    return mean if mask is None else at_pixels[mask].mean()


# metric -> (ours, the oracle), both of (source, fused); SSIM alone is not a sum over pixels.
PIXELWISE = {
    "mse": (mean_squared_error, skimage.metrics.mean_squared_error),
    "psnr": (
        psnr,
        lambda s, f: skimage.metrics.peak_signal_noise_ratio(s, f, data_range=1.0),
    ),
    "rmse": (rmse, lambda s, f: np.linalg.norm(f - s) / math.sqrt(s.size)),
    "rmse_relative": (
        relative_rmse,
        lambda s, f: skimage.metrics.normalized_root_mse(s, f, normalization="euclidean"),
    ),
    "rms": (
        lambda s, f, mask=None: root_mean_square(s, mask),
        lambda s, f: np.linalg.norm(s) / math.sqrt(s.size),
    ),
    "mi": (mutual_information, oracle_mutual_information),
    "nmi": (normalised_mutual_information, oracle_normalised_mutual_information),
    "entropy": (lambda s, f, mask=None: entropy(s, mask), lambda s, f: oracle_entropy(s)),
    "joint_entropy": (joint_entropy, oracle_joint_entropy),
}


def noise(shape, seed):
    rng = np.random.default_rng(seed)
    return rng.random(shape), rng.random(shape)


def smooth(shape, seed):
    first, second = (ndimage.gaussian_filter(image, 3) for image in noise(shape, seed))
    return (first - first.min()) / np.ptp(first), (second - second.min()) / np.ptp(second)


def head(shape, seed):
    """An MRI with edges and noise on an empty background, a smooth PET with a hot lesion."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    brain = (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1
    ventricle = (y / 0.3) ** 2 + ((x - 0.1) / 0.2) ** 2 < 1
    mri = brain * (0.7 - 0.5 * ventricle + 0.05 * rng.standard_normal(shape))
    lesion = 2.5 * np.exp(-((y - 0.3) ** 2 + (x + 0.3) ** 2) / 0.02)
    pet = brain * ndimage.gaussian_filter(0.4 * brain - 0.3 * ventricle + lesion, 1.5)
    return mri, pet


KINDS = {"noise": noise, "smooth": smooth, "head": head}
SHAPES = [(64, 64), (37, 53), (11, 40), (11, 11)]
CASES = [
    pytest.param(kind, shape, id=f"{name}-{shape[0]}x{shape[1]}")
    for name, kind in KINDS.items()
    for shape in SHAPES
]


def disc(shape):
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (y - 0.2) ** 2 + x**2 < 0.5


def rim(shape):
    """Pixels at opposite corners, where windows reach beyond the frame."""
    mask = np.zeros(shape, bool)
    mask[:2, :3] = mask[-1:, -2:] = True
    return mask


def pixel(shape):
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, shape[1] // 3] = True
    return mask


MASKS = {"disc": disc, "rim": rim, "pixel": pixel, "all": lambda shape: np.ones(shape, bool)}


def scan(shape=(5, 29, 34), dtype=np.float32):
    """One scan: a slice of each kind, then heads; and the mask of all of them."""
    kinds = [noise, smooth, *[head] * (shape[0] - 2)]
    mri, pet = np.moveaxis([kind(shape[1:], seed) for seed, kind in enumerate(kinds)], 1, 0)
    fused = 0.6 * mri + 0.5 * pet
    mask = np.broadcast_to(disc(shape[1:]), shape).astype(np.uint8)
    return mri.astype(dtype), pet.astype(dtype), fused.astype(dtype), mask


def arrays(low=-1.0, high=2.0, shape=None):
    """Strategy: an image; constants and repeated values are likely."""
    elements = st.floats(low, high, width=32)
    return hnp.arrays(np.float32, shape or (13, 12), elements=elements)


pairs = st.tuples(arrays(), arrays())
examples = settings(max_examples=60, deadline=None)
