"""What the metrics promise: independent oracles, identities, and rules for what is not defined."""

from __future__ import annotations

import dataclasses
import doctest
import math
import pickle

import numpy as np
import pytest
import scipy.stats
import skimage.measure
import skimage.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from fusionflow import information, metrics, pooling, ssim
from fusionflow.errors import InputError
from fusionflow.metrics import (
    IMAGE_METRICS,
    PAIR_METRICS,
    SOURCES,
    Metric,
    entropy,
    joint_entropy,
    mean_squared_error,
    mutual_information,
    normalised_mutual_information,
    pool_figures,
    pool_slices,
    psnr,
    relative_rmse,
    rmse,
    root_mean_square,
    slice_metrics,
    structural_similarity,
)

PAIR_NAMES = [metric.name for metric in PAIR_METRICS]
IMAGE_NAMES = [metric.name for metric in IMAGE_METRICS]
BY_NAME = {metric.name: metric for metric in (*PAIR_METRICS, *IMAGE_METRICS)}
MEANS = {name: metric for name, metric in BY_NAME.items() if metric.quotient is None}
MODULES = (information, metrics, pooling, ssim)
FROM_ELSEWHERE = {  # what is found in metrics, too
    *("entropy", "joint_entropy", "mutual_information", "normalised_mutual_information"),
    *("structural_similarity", "Metric", "pool_figures", "pool_slices"),
}
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
several_levels = st.tuples(arrays(0, 1, (9, 7)), arrays(0, 1, (9, 7)))
examples = settings(max_examples=60, deadline=None)


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


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nmi_and_scikit_images_ratio_tell_the_same(kind):
    a, b = (image.clip(0, 1) for image in kind((64, 64), seed=5))
    a[0, :2] = b[0, :2] = 0, 1  # so that its 256 bins are the grey levels
    ratio = skimage.metrics.normalized_mutual_information(
        oracle_levels(a), oracle_levels(b), bins=256
    )  # (H(a) + H(b)) / H(a, b)
    assert_allclose(normalised_mutual_information(a, b), 2 - 2 / ratio, rtol=0, atol=1e-9)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_figure_of_a_stack_is_that_of_its_oracle(region, dtype):
    mri, pet, fused, mask = scan(dtype=dtype)
    found = slice_metrics(mri, pet, fused, mask, region=region)

    assert found.pair.shape == (5, len(SOURCES), len(PAIR_METRICS))
    assert found.image.shape == (5, len(IMAGE_METRICS))
    assert found.pair.dtype == found.image.dtype == np.float64
    for z in range(5):
        inside = mask[z] == 1
        slices = [stack[z].astype(np.float64) for stack in (mri, pet, fused)]
        counted = [image[inside] if region == "mask" else image for image in slices]
        for s in range(len(SOURCES)):
            expected = {name: o(counted[s], counted[2]) for name, (_, o) in PIXELWISE.items()}
            expected["ssim"] = oracle_ssim(
                slices[s], slices[2], inside if region == "mask" else None
            )
            assert_allclose(found.pair[z, s], [expected[n] for n in PAIR_NAMES], rtol=0, atol=1e-9)
        expected = {
            "entropy_fused": oracle_entropy(counted[2]),
            "joint_entropy_sources": oracle_joint_entropy(counted[0], counted[1]),
        }
        assert_allclose(found.image[z], [expected[n] for n in IMAGE_NAMES], rtol=0, atol=1e-9)


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


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.7), (0.5, 0.5), (-0.5, 0.5), (3.0, 4.0)])
def test_ssim_of_constants_compares_luminance_alone(a, b):
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    source, fused = np.full((15, 12), a), np.full((15, 12), b)
    assert structural_similarity(source, fused) == pytest.approx(expected, abs=1e-9)


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


@given(st.tuples(arrays(-(2.0**100), 2.0**100), arrays(-(2.0**100), 2.0**100)))
@examples
def test_ssim_keeps_its_range_however_far_images_are_beyond_the_window(images):
    assert -1 - 1e-12 <= structural_similarity(*images) <= 1 + 1e-12


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


@given(pairs)
@examples
def test_psnr_rmse_and_mse_are_one_figure_in_three_units(images):
    mse = mean_squared_error(*images)
    assert rmse(*images) ** 2 == pytest.approx(mse)
    assert 10 ** (-psnr(*images) / 10) == pytest.approx(mse)


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


@pytest.mark.parametrize("region", REGIONS)
def test_a_slices_figures_do_not_depend_on_its_slab_in_any_bit(region):
    mri, pet, fused, mask = scan((7, 29, 34))
    whole = slice_metrics(mri, pet, fused, mask, region=region)
    for slab in (slice(0, 1), slice(1, 4), slice(4, 7), slice(6, None, -2)):
        part = slice_metrics(mri[slab], pet[slab], fused[slab], mask[slab], region=region)
        assert_array_equal(part.pair, whole.pair[slab])
        assert_array_equal(part.image, whole.image[slab])


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda stack: np.repeat(stack, 2, axis=2)[:, :, ::2],
        lambda stack: stack.astype(stack.dtype.newbyteorder(">")),
        lambda stack: stack.astype(np.float64) if stack.dtype == np.float32 else stack,
        lambda stack: stack.astype(bool) if stack.dtype == np.uint8 else stack,
        lambda stack: stack * np.uint8(255) if stack.dtype == np.uint8 else stack,
    ],
    ids=["fortran", "strided", "big-endian", "float64", "bool-mask", "mask-of-255"],
)
def test_bits_do_not_depend_on_how_pixels_are_stored(layout, region):
    stacks = scan((3, 29, 34))
    plain = slice_metrics(*stacks, region=region)
    stored = slice_metrics(*map(layout, stacks), region=region)
    assert_array_equal(stored.pair, plain.pair)
    assert_array_equal(stored.image, plain.image)


@pytest.mark.parametrize("region", REGIONS)
def test_stack_and_single_figures_are_the_same_bits(region):
    mri, pet, fused, mask = scan((3, 29, 34))
    found = slice_metrics(mri, pet, fused, mask, region=region)
    functions = {name: ours for name, (ours, _) in PIXELWISE.items()}
    functions["ssim"] = structural_similarity
    for z in range(3):
        inside = mask[z] if region == "mask" else None
        for s, source in enumerate((mri, pet)):
            single = [functions[name](source[z], fused[z], inside) for name in PAIR_NAMES]
            assert_array_equal(found.pair[z, s], single)
        single = [entropy(fused[z], inside), joint_entropy(mri[z], pet[z], inside)]
        assert_array_equal(found.image[z], single)


def test_the_mask_region_of_a_full_mask_is_the_frame_but_for_ssims_border():
    mri, pet, fused, _ = scan()
    full = np.ones(fused.shape, bool)
    frame = slice_metrics(mri, pet, fused, full)
    inside = slice_metrics(mri, pet, fused, full, region="mask")
    pixelwise = [name != "ssim" for name in PAIR_NAMES]
    assert_allclose(inside.pair[..., pixelwise], frame.pair[..., pixelwise], rtol=1e-12)
    assert_array_equal(inside.image, frame.image)


def test_without_a_mask_every_slice_counts():
    mri, pet, fused, mask = scan()
    masked = slice_metrics(mri, pet, fused, mask)
    unmasked = slice_metrics(mri, pet, fused)
    assert_array_equal(unmasked.pair, masked.pair)
    assert_array_equal(unmasked.image, masked.image)
    assert np.isfinite(unmasked.pair).all()


@pytest.mark.parametrize("region", REGIONS)
def test_a_slice_with_an_empty_mask_counts_nowhere(region):
    mri, pet, fused, mask = scan()
    before = slice_metrics(mri, pet, fused, mask, region=region)
    mask = mask.copy()
    mask[[0, 3]] = 0
    after = slice_metrics(mri, pet, fused, mask, region=region)
    for figures, all_figures in ((after.pair, before.pair), (after.image, before.image)):
        assert np.isnan(figures[[0, 3]]).all()
        assert_array_equal(figures[[1, 2, 4]], all_figures[[1, 2, 4]])


def test_an_empty_slab_has_no_figures():
    none = np.zeros((0, 16, 16), np.float32)
    found = slice_metrics(none, none, none, none.astype(bool), region="mask")
    assert found.pair.shape == (0, len(SOURCES), len(PAIR_METRICS))
    assert found.image.shape == (0, len(IMAGE_METRICS))


def test_inputs_may_be_read_only_and_are_left_alone():
    stacks = scan((2, 20, 20))
    copies = [stack.copy() for stack in stacks]
    for stack in stacks:
        stack.flags.writeable = False
    slice_metrics(*stacks, region="mask")
    for stack, copy in zip(stacks, copies, strict=True):
        assert_array_equal(stack, copy)


@pytest.mark.parametrize("shape", [(10, 40), (40, 10), (1, 1)])
@pytest.mark.parametrize("region", REGIONS)
def test_only_ssim_needs_a_frame_of_11_pixels(shape, region):
    source, fused = noise((1, *shape), seed=10)
    found = slice_metrics(source, source, fused, np.ones_like(source, bool), region=region)
    undefined = {"ssim"} | ({"nmi"} if shape == (1, 1) else set())
    for row in found.pair[0]:
        assert {n for n, v in zip(PAIR_NAMES, row, strict=True) if math.isnan(v)} == undefined
    assert not np.isnan(found.image).any()
    assert math.isnan(structural_similarity(source[0], fused[0]))


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


def test_nmi_needs_something_to_tell():
    constant, varied = np.full((12, 12), 0.3), noise((12, 12), seed=12)[0]
    assert math.isnan(normalised_mutual_information(constant, constant))
    assert normalised_mutual_information(constant, varied) == 0
    assert normalised_mutual_information(varied, constant) == 0


def test_zero_is_not_minus_zero():
    constant = np.full((12, 12), 0.3)
    assert math.copysign(1, entropy(constant)) == 1
    assert math.copysign(1, joint_entropy(constant, constant)) == 1
    assert entropy(constant) == joint_entropy(constant, constant) == 0
    assert math.copysign(1, psnr(np.zeros(4), np.ones(4))) == 1
    assert psnr(np.zeros(4), np.ones(4)) == 0


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


def test_a_metric_pools_to_the_mean_unless_it_says_otherwise():
    metric = Metric("volume", "volume", "1", (0.0, 1.0), "neither")
    assert pool_slices(metric, np.array([0.25, 0.75])) == 0.5


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mri", "pet", "fused"])
@pytest.mark.parametrize("region", REGIONS)
def test_a_value_that_is_not_finite_is_refused_with_its_slice(region, name, bad):
    stacks = dict(zip(("mri", "pet", "fused", "mask"), scan(), strict=True))
    stacks[name][3, 0, 0] = bad  # outside the mask
    with pytest.raises(InputError, match=f"slice 3 of {name} .*not finite"):
        slice_metrics(**stacks, region=region)


def test_a_value_that_would_overflow_is_refused():
    image = np.zeros((12, 12))
    huge = np.full((12, 12), 1e200)
    with pytest.raises(InputError, match=r"fused .*beyond the range of float32"):
        structural_similarity(image, huge)
    largest = np.full((12, 12), np.finfo(np.float32).max)
    assert -1 <= structural_similarity(largest, -largest) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mri": np.zeros((2, 12, 13), np.float32)}, r"\(2, 12, 12\), but mri has \(2, 12, 13\)"),
        ({"fused": np.zeros((3, 12, 12), np.float32)}, r"fused has shape \(3, 12, 12\)"),
        ({"pet": np.zeros((12, 12), np.float32)}, "pet has 2 dimensions, not 3"),
        ({"mri": np.zeros((2, 12, 12), np.uint8)}, "mri is uint8, .*display window"),
        ({"pet": np.zeros((2, 12, 12), np.float16)}, "pet is float16"),
        ({"fused": np.zeros((2, 12, 12), complex)}, "fused is complex128"),
        ({"mask": np.ones((2, 12, 11), bool)}, r"mask has shape \(2, 12, 11\)"),
        ({"mask": np.ones((2, 12, 12))}, "mask is float64"),
        ({"region": "brain"}, "region 'brain' is not known"),
        ({"region": "mask"}, "region 'mask' needs a mask"),
    ],
)
def test_stacks_that_do_not_fit_are_refused_with_the_reason(change, message):
    given = {name: np.zeros((2, 12, 12), np.float32) for name in ("mri", "pet", "fused")}
    with pytest.raises(InputError, match=message):
        slice_metrics(**(given | change))


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


def test_ssim_is_of_one_slice():
    stack = np.zeros((3, 12, 12))
    with pytest.raises(InputError, match="3 dimensions, not 2"):
        structural_similarity(stack, stack)
