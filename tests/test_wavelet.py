"""The DWT of a stack is that of each of its slices, and it goes back without loss."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import pywt
from dask.sizeof import sizeof
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from strategies import MODES, WAVELETS, random_stack, seeds, stacks_and_wavelets

from fusionflow import wavelet as module
from fusionflow.config import Wavelet
from fusionflow.errors import InputError
from fusionflow.wavelet import check_levels, decompose, reconstruct


def slice_by_slice(stack, wavelet):
    """The DWT by `pywt.dwt2` of single slices, (band, level) -> coefficients."""
    bands = {}
    approximations = list(stack)
    for level in range(1, wavelet.levels + 1):
        pairs = [pywt.dwt2(one, wavelet.name, mode=wavelet.mode) for one in approximations]
        approximations = [approximation for approximation, _ in pairs]
        for index, band in enumerate("hvd"):
            bands[band, level] = np.stack([details[index] for _, details in pairs])
    bands["a", wavelet.levels] = np.stack(approximations)
    return bands


class TestReconstruction:
    @given(stacks_and_wavelets())
    def test_gives_back_the_slices(self, case):
        stack, wavelet = case
        assert_allclose(reconstruct(decompose(stack, wavelet), wavelet), stack, rtol=0, atol=1e-5)

    @given(st.integers(0, 2), st.sampled_from(pywt.Modes.modes), st.sampled_from(WAVELETS))
    def test_gives_back_the_slices_in_every_mode(self, levels, mode, name):
        stack = random_stack(0, (1, 41, 38))
        wavelet = Wavelet(name=name, levels=levels, mode=mode)
        assert_allclose(reconstruct(decompose(stack, wavelet), wavelet), stack, rtol=0, atol=1e-5)

    def test_gives_back_the_slices_with_every_wavelet_that_options_allow(self):
        stack = random_stack(1, (1, 301, 300))
        lossy = {}
        for name in pywt.wavelist(kind="discrete"):
            try:
                wavelet = Wavelet(name=name)
            except ValueError:
                continue
            error = np.abs(reconstruct(decompose(stack, wavelet), wavelet) - stack).max()
            if error > 1e-5:
                lossy[name] = float(error)
        assert lossy == {}

    @given(stacks_and_wavelets())
    def test_is_float32_of_the_same_size_in_rows(self, case):
        stack, wavelet = case
        back = reconstruct(decompose(stack, wavelet), wavelet)
        assert (back.shape, back.dtype) == (stack.shape, np.float32)
        assert back.flags.c_contiguous


class TestDecomposition:
    @given(stacks_and_wavelets())
    def test_agrees_with_pywavelets_slice_by_slice(self, case):
        stack, wavelet = case
        oracle = slice_by_slice(stack, wavelet)
        found = {(band, level): values for band, level, values in decompose(stack, wavelet).bands()}
        assert found.keys() == oracle.keys()
        for key, values in found.items():
            assert_allclose(values, oracle[key], rtol=0, atol=1e-6, err_msg=str(key))

    @given(stacks_and_wavelets())
    def test_of_a_slab_is_that_of_its_slices_to_the_last_bit(self, case):
        stack, wavelet = case
        whole = decompose(stack, wavelet)
        single = [decompose(one[None], wavelet) for one in stack]
        for together, *apart in zip(whole.bands(), *(s.bands() for s in single), strict=True):
            assert_array_equal(together[2], np.concatenate([band[2] for band in apart]))
        assert_array_equal(
            reconstruct(whole, wavelet),
            np.concatenate([reconstruct(one, wavelet) for one in single]),
        )

    @given(stacks_and_wavelets())
    def test_keeps_float32(self, case):
        stack, wavelet = case
        assert {band.dtype for _, _, band in decompose(stack, wavelet).bands()} == {np.dtype("f4")}

    def test_turns_other_dtypes_into_float32(self):
        whole = np.arange(2 * 8 * 9, dtype=np.int16).reshape(2, 8, 9)
        bands = decompose(whole, Wavelet())
        assert bands.approximation.dtype == np.float32
        assert_allclose(reconstruct(bands, Wavelet()), whole, atol=1e-4)

    @given(seeds)
    def test_leaves_its_input_alone(self, seed):
        stack = random_stack(seed, (2, 13, 12))
        before = stack.copy()
        reconstruct(decompose(stack, Wavelet(levels=0)), Wavelet(levels=0))
        decompose(stack, Wavelet())
        assert_array_equal(stack, before)

    @pytest.mark.parametrize("levels", [1, 2, 3])
    @pytest.mark.parametrize("name", WAVELETS)
    def test_each_level_doubles_a_constant(self, name, levels):
        bands = decompose(np.full((1, 80, 81), 3, np.float32), Wavelet(name=name, levels=levels))
        assert_allclose(bands.approximation, 3 * 2**levels, rtol=1e-5)
        for level in bands.details:
            assert_allclose(level, 0, atol=1e-5)

    @pytest.mark.parametrize(("axis", "band"), [(1, "h"), (2, "v")])
    def test_an_edge_shows_in_the_band_of_its_direction(self, axis, band):
        stack = np.zeros((1, 16, 16), np.float32)
        stack[(slice(None),) * axis + (slice(7, None),)] = 1
        energy = {
            name: float(np.square(values).sum())
            for name, _, values in decompose(stack, Wavelet(name="haar")).bands()
            if name != "a"
        }
        assert {name for name, value in energy.items() if value > 0} == {band}

    @pytest.mark.parametrize("mode", MODES)
    def test_no_slices_have_bands_without_slices(self, mode):
        bands = decompose(np.zeros((0, 12, 13), np.float32), Wavelet(mode=mode))
        assert reconstruct(bands, Wavelet(mode=mode)).shape == (0, 12, 13)


class TestSubbands:
    @given(stacks_and_wavelets())
    def test_bands_come_coarsest_first(self, case):
        stack, wavelet = case
        names = [(band, level) for band, level, _ in decompose(stack, wavelet).bands()]
        levels = range(wavelet.levels, 0, -1)
        assert names == [
            ("a", wavelet.levels),
            *((band, level) for level in levels for band in "hvd"),
        ]

    @given(stacks_and_wavelets())
    def test_are_put_together_again_from_their_bands(self, case):
        stack, wavelet = case
        bands = decompose(stack, wavelet)
        again = bands.with_bands([values for _, _, values in bands.bands()])
        assert (again.shape, again.levels) == (bands.shape, bands.levels)
        assert_array_equal(reconstruct(again, wavelet), reconstruct(bands, wavelet))

    @given(stacks_and_wavelets())
    def test_tell_dask_how_large_they_are(self, case):
        stack, wavelet = case
        bands = decompose(stack, wavelet)
        held = sum(values.nbytes for _, _, values in bands.bands())
        assert held <= sizeof(bands) <= held + 1000

    def test_without_levels_the_approximation_is_the_slices(self):
        stack = random_stack(0, (2, 5, 6))
        bands = decompose(stack, Wavelet(levels=0))
        assert bands.details == ()
        assert_array_equal(bands.approximation, stack)


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "wavelet"),
        [
            ((4, 40), Wavelet(name="db2")),
            ((40, 4), Wavelet(name="db2")),
            ((8, 70), Wavelet(name="bior4.4", levels=1)),
            ((31, 31), Wavelet(name="haar", levels=5)),
            ((64, 64), Wavelet(name="db2", levels=5)),
        ],
    )
    def test_too_many_levels_are_refused_with_size_and_wavelet(self, shape, wavelet):
        with pytest.raises(InputError) as error:
            decompose(np.zeros((1, *shape), np.float32), wavelet)
        assert f"{shape[0]} x {shape[1]}" in str(error.value)
        assert wavelet.name in str(error.value)
        with pytest.raises(InputError):
            check_levels(shape, wavelet)

    @given(st.tuples(st.integers(1, 100), st.integers(1, 100)), st.sampled_from(WAVELETS))
    def test_levels_are_refused_exactly_where_pywavelets_advises_against_them(self, shape, name):
        most = pywt.dwtn_max_level(shape, name)
        check_levels(shape, Wavelet(name=name, levels=most))
        with pytest.raises(InputError):
            check_levels(shape, Wavelet(name=name, levels=most + 1))

    @pytest.mark.parametrize("shape", [(16, 16), (2, 2, 16, 16), (16,)])
    def test_what_is_no_stack_is_refused(self, shape):
        with pytest.raises(InputError, match=r"\(z, y, x\)"):
            decompose(np.zeros(shape, np.float32), Wavelet())


def test_examples_in_docstrings_are_true():
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
