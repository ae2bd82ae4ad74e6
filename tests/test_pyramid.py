"""The Laplacian pyramid gives back what it was made of, and its bands are what they should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import signal

from fusionflow import transform
from fusionflow.config import METHODS, LaplacianPyramid, Wavelet
from fusionflow.errors import InputError
from fusionflow.fusion import fuse_subbands


def stack(shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def of(levels):
    return LaplacianPyramid(kind="laplacian", levels=levels)


@given(
    rows=st.integers(16, 50), columns=st.integers(16, 50), levels=st.integers(1, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40)
def test_perfect_reconstruction(rows, columns, levels, seed):
    slices = stack((2, rows, columns), seed)
    bands = transform.decompose(slices, of(levels))
    assert [name for name, _, _ in bands.bands()] == ["a", *["l"] * levels]
    assert_allclose(transform.reconstruct(bands, of(levels)), slices, atol=1e-5)


def test_the_next_level_is_the_smoothed_and_halved_slice():
    """Against a full 2-D convolution with Burt and Adelson's kernel."""
    slices = stack((1, 21, 18))
    one = np.array([1, 4, 6, 4, 1]) / 16
    padded = np.pad(slices[0], 2, mode="reflect")
    expected = signal.convolve2d(padded, np.outer(one, one), mode="valid")[::2, ::2]
    bands = transform.decompose(slices, of(1))
    assert_allclose(bands.approximation[0], expected, atol=1e-6)


def test_a_constant_has_no_detail_and_keeps_its_value():
    bands = transform.decompose(np.full((2, 33, 20), 0.7, np.float32), of(3))
    assert_allclose(bands.approximation, 0.7, rtol=1e-6)
    for (detail,) in bands.details:
        assert_allclose(detail, 0, atol=1e-6)
    assert bands.gain == 1.0


def test_slices_one_by_one_are_the_same_bits():
    slices = stack((4, 37, 40))
    together = transform.decompose(slices, of(2))
    for z in range(4):
        alone = transform.decompose(slices[z : z + 1], of(2))
        for (_, _, one), (_, _, many) in zip(alone.bands(), together.bands(), strict=True):
            assert_array_equal(one[0], many[z])


def test_slices_that_are_too_small():
    with pytest.raises(InputError, match="20 x 40 pixels are too small for a pyramid of 4 levels"):
        transform.decompose(stack((1, 20, 40)), of(4))
    transform.check_levels((32, 40), of(4))


def test_the_method_fuses_between_the_sources_and_differs_from_the_wavelet():
    mri, pet = stack((2, 64, 64), 1), stack((2, 64, 64), 2)
    results = {}
    for name in ("laplacian", "dwt-max"):
        method = METHODS[name]
        bands = [transform.decompose(source, method.transform) for source in (mri, pet)]
        fused = transform.reconstruct(fuse_subbands(*bands, method), method.transform)
        assert np.corrcoef(fused.ravel(), mri.ravel())[0, 1] > 0.3
        assert np.corrcoef(fused.ravel(), pet.ravel())[0, 1] > 0.3
        results[name] = fused
    assert abs(results["laplacian"] - results["dwt-max"]).max() > 0.05


def test_no_levels_leave_the_pixels():
    slices = stack((2, 9, 7))
    bands = transform.decompose(slices, Wavelet(levels=0))
    assert_array_equal(transform.reconstruct(bands, Wavelet(levels=0)), slices)
