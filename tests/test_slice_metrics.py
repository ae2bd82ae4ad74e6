"""Metrics of a stack are those of each slice alone, however the stack is cut and stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from metric_oracles import (
    IMAGE_NAMES,
    PAIR_NAMES,
    PIXELWISE,
    REGIONS,
    noise,
    oracle_entropy,
    oracle_joint_entropy,
    oracle_ssim,
    scan,
)
from numpy.testing import assert_allclose, assert_array_equal

from fusionflow.errors import InputError
from fusionflow.metrics import (
    IMAGE_METRICS,
    PAIR_METRICS,
    SOURCES,
    entropy,
    joint_entropy,
    slice_metrics,
    structural_similarity,
)


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mri", "pet", "fused"])
@pytest.mark.parametrize("region", REGIONS)
def test_a_value_that_is_not_finite_is_refused_with_its_slice(region, name, bad):
    stacks = dict(zip(("mri", "pet", "fused", "mask"), scan(), strict=True))
    stacks[name][3, 0, 0] = bad  # outside the mask
    with pytest.raises(InputError, match=f"slice 3 of {name} .*not finite"):
        slice_metrics(**stacks, region=region)


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
