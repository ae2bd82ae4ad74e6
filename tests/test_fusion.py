"""Activities, weights and fused bands: what every rule keeps to, and the same bits each time."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PRECISIONS
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from strategies import (
    MODES,
    WAVELETS,
    band_pairs,
    random_stack,
    seeds,
    stacks_and_wavelets,
)

from fusionflow.backbones import BACKBONES, resolve_weights
from fusionflow.config import METHODS, Method, Wavelet
from fusionflow.errors import ConfigurationError, InputError
from fusionflow.fusion import (
    RULES,
    BandPair,
    fuse_subbands,
    named_rule,
    reads_backbone,
)
from fusionflow.phantom import make_phantom
from fusionflow.wavelet import decompose, reconstruct

VGG19 = METHODS["dwt-vgg19-l1"]
RANDOM = resolve_weights("random:1", "vgg19")


def fuse_slices(mri, pet, method, weights=None):
    """The whole way: decompose both, fuse, reconstruct."""
    bands = [decompose(source, method.transform) for source in (mri, pet)]
    return reconstruct(fuse_subbands(*bands, method, weights), method.transform)


def swapped(pair: BandPair) -> BandPair:
    return replace(
        pair,
        mri=pair.pet,
        pet=pair.mri,
        mri_activity=pair.pet_activity,
        pet_activity=pair.mri_activity,
    )


def pair_of(mri_activity, pet_activity, temperature=1.0):
    """A pair of zero bands with these activities, (tap, z, y, x)."""
    mri, pet = (np.asarray(a, np.float32) for a in (mri_activity, pet_activity))
    zeros = np.zeros(mri.shape[1:], np.float32)
    return BandPair("a", 1, zeros, zeros, mri, pet, temperature)


@pytest.fixture(scope="module")
def sources():
    """Three slices of odd size of two sources that have nothing in common."""
    return random_stack(1, (3, 45, 38)), random_stack(2, (3, 45, 38))


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestEveryRule:
    @pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].is_learned])
    @given(pair=band_pairs())
    def test_gives_weights_between_0_and_1(self, name, pair):
        w = RULES[name].weigh(pair)
        assert (w.shape, w.dtype) == (pair.mri.shape, np.float32)
        assert ((w >= 0) & (w <= 1)).all()

    @pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].reads_backbone])
    @given(case=stacks_and_wavelets(), seed=seeds)
    @settings(max_examples=25)
    def test_fuses_to_between_the_sources(self, name, case, seed):
        mri, wavelet = case
        bands = [decompose(stack, wavelet) for stack in (mri, random_stack(seed, mri.shape))]
        fused = fuse_subbands(*bands, Method(name="m", rule=name, transform=wavelet))
        for (_, _, low), (_, _, high), (_, _, both) in zip(
            *(item.bands() for item in (*bands, fused)), strict=True
        ):
            assert (both >= np.minimum(low, high) - 1e-6).all()
            assert (both <= np.maximum(low, high) + 1e-6).all()

    @pytest.mark.parametrize("name", RULES)
    def test_is_found_by_its_name(self, name):
        assert named_rule(name).name == name


class TestForcedRules:
    @pytest.mark.parametrize(("rule", "index"), [("mri", 0), ("pet", 1)])
    @given(case=stacks_and_wavelets(), seed=seeds)
    @settings(max_examples=25)
    def test_bands_are_those_of_the_source_to_the_last_bit(self, rule, index, case, seed):
        mri, wavelet = case
        bands = [decompose(stack, wavelet) for stack in (mri, random_stack(seed, mri.shape))]
        fused = fuse_subbands(*bands, METHODS[rule])
        for (*_, wanted), (*_, found) in zip(bands[index].bands(), fused.bands(), strict=True):
            assert_array_equal(found, wanted)
            assert found.dtype == np.float32

    @pytest.mark.parametrize("shape", [(45, 38), (38, 45), (41, 43), (64, 64)])
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("name", WAVELETS)
    def test_all_mri_gives_back_the_mri_and_all_pet_the_pet(self, name, mode, shape):
        sources = {"mri": random_stack(3, (2, *shape)), "pet": random_stack(4, (2, *shape))}
        wavelet = Wavelet(name=name, levels=2, mode=mode)
        for rule, source in sources.items():
            fused = fuse_slices(*sources.values(), Method(name="m", rule=rule, transform=wavelet))
            assert_allclose(fused, source, rtol=0, atol=1e-5)


class TestMaxAbs:
    @given(pair=band_pairs())
    def test_takes_the_coefficient_of_larger_magnitude(self, pair):
        w = RULES["max-abs"].weigh(pair)
        fused = w * pair.mri + (1 - w) * pair.pet
        assert_array_equal(np.abs(fused), np.maximum(np.abs(pair.mri), np.abs(pair.pet)))

    def test_takes_the_mri_where_they_are_equal(self):
        pair = replace(pair_of(np.zeros((0, 1, 1, 2)), np.zeros((0, 1, 1, 2))))
        ones = np.ones((1, 1, 2), np.float32)
        assert_array_equal(RULES["max-abs"].weigh(replace(pair, mri=ones, pet=-ones)), ones)


class TestL1Soft:
    weigh = staticmethod(RULES["l1-soft"].weigh)

    @given(pair=band_pairs())
    def test_swapping_the_sources_gives_one_minus_the_weight(self, pair):
        assert_allclose(self.weigh(swapped(pair)), 1 - self.weigh(pair), rtol=0, atol=1e-6)

    @given(temperature=st.floats(1e-3, 100), taps=st.integers(1, 3))
    def test_no_activity_means_one_half(self, temperature, taps):
        nothing = np.zeros((taps, 1, 2, 3))
        assert_array_equal(self.weigh(pair_of(nothing, nothing, temperature)), 0.5)

    @given(pair=band_pairs())
    def test_a_source_without_a_rival_gets_everything(self, pair):
        alone = replace(pair, pet_activity=np.zeros_like(pair.pet_activity))
        active = (pair.mri_activity > 0).all(axis=0)
        assert_array_equal(self.weigh(alone)[active], 1)

    @pytest.mark.parametrize("temperature", [0.25, 0.5, 1, 2, 100])
    def test_shares_by_powers_of_activity_averaged_over_taps(self, temperature):
        mri, pet = np.random.default_rng(0).uniform(0.01, 4, (2, 3, 2, 4, 5))
        power = 1 / temperature
        wanted = (mri**power / (mri**power + pet**power)).mean(axis=0)
        assert_allclose(self.weigh(pair_of(mri, pet, temperature)), wanted, rtol=1e-5)

    @given(ratio=st.floats(1.1, 1e6), activity=st.floats(1e-20, 1e20))
    def test_cold_weights_are_a_choice(self, ratio, activity):
        more, less = np.full((1, 1, 1, 1), activity * ratio), np.full((1, 1, 1, 1), activity)
        assert_allclose(self.weigh(pair_of(more, less, 1e-3)), 1, rtol=0, atol=1e-6)
        assert_allclose(self.weigh(pair_of(less, more, 1e-3)), 0, rtol=0, atol=1e-6)

    @given(ratio=st.floats(1, 10))
    def test_hot_weights_are_a_mean(self, ratio):
        more, less = np.full((1, 1, 1, 1), ratio), np.ones((1, 1, 1, 1))
        assert_allclose(self.weigh(pair_of(more, less, 100)), 0.5, rtol=0, atol=0.006)

    @given(ratios=st.lists(st.floats(0.01, 100), min_size=2, max_size=20))
    def test_more_activity_never_means_less_weight(self, ratios):
        mri = np.sort(ratios)[None, None, None]
        w = self.weigh(pair_of(mri, np.ones_like(mri), 0.5))
        assert (np.diff(w) >= 0).all()

    @given(pair=band_pairs(), exponent=st.integers(-20, 20))
    def test_the_scale_of_activity_does_not_matter(self, pair, exponent):
        ones = replace(
            pair,
            mri_activity=np.clip(pair.mri_activity, 1e-6, 1e6),
            pet_activity=np.clip(pair.pet_activity, 1e-6, 1e6),
        )
        scaled = replace(
            ones,
            mri_activity=ones.mri_activity * np.float32(2.0**exponent),
            pet_activity=ones.pet_activity * np.float32(2.0**exponent),
        )
        assert_array_equal(self.weigh(scaled), self.weigh(ones))


class TestSameBits:
    """Of VGG19 they depend on the method and the slice alone."""

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_whatever_the_batch(self, sources, precision):
        fused = [
            fuse_slices(
                *sources,
                VGG19.model_copy(update={"batch": batch, "precision": precision}),
                RANDOM,
            )
            for batch in (16, 5, 1)  # 6 images; 5 + 1; one by one
        ]
        for other in fused[1:]:
            assert_array_equal(other, fused[0])

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_whatever_the_threads_of_torch(self, sources, precision, torch_threads):
        fused = []
        for threads in (1, 2):
            torch_threads(threads)
            method = VGG19.model_copy(update={"precision": precision})
            fused.append(fuse_slices(*sources, method, RANDOM))
        assert_array_equal(fused[1], fused[0])

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_whatever_the_slab(self, sources, precision):
        method = VGG19.model_copy(update={"precision": precision})
        whole = fuse_slices(*sources, method, RANDOM)
        for z in range(len(whole)):
            alone = fuse_slices(*(source[z : z + 1] for source in sources), method, RANDOM)
            assert_array_equal(alone[0], whole[z])

    def test_in_every_run(self, sources):
        assert_array_equal(
            fuse_slices(*sources, VGG19, RANDOM), fuse_slices(*sources, VGG19, RANDOM)
        )


class TestVgg19:
    def test_swapping_the_sources_fuses_to_the_same(self, sources):
        mri, pet = sources
        assert_allclose(
            fuse_slices(pet, mri, VGG19, RANDOM), fuse_slices(mri, pet, VGG19, RANDOM), atol=1e-5
        )

    def test_a_source_with_itself_fuses_to_itself(self, sources):
        mri, _ = sources
        assert_allclose(fuse_slices(mri, mri, VGG19, RANDOM), mri, rtol=0, atol=1e-5)

    def test_nothing_with_nothing_fuses_to_nothing(self):
        zeros = np.zeros((2, 33, 40), np.float32)
        assert_array_equal(fuse_slices(zeros, zeros, VGG19, RANDOM), zeros)

    def test_each_source_counts_where_it_alone_has_something(self):
        mri, pet = np.zeros((2, 1, 96, 96), np.float32)
        mri[0, 20:28, 20:28] = pet[0, 68:76, 68:76] = 1
        fused = fuse_slices(mri, pet, VGG19, RANDOM)
        assert_allclose(fused, mri + pet, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("levels", [0, 1, 2])
    def test_every_number_of_levels_can_be_fused(self, sources, levels):
        method = VGG19.model_copy(update={"transform": Wavelet(levels=levels)})
        fused = fuse_slices(*sources, method, RANDOM)
        assert fused.shape == sources[0].shape
        assert np.isfinite(fused).all()

    def test_slices_too_small_for_the_taps_are_refused_like_those_too_small_for_the_wavelet(self):
        small = random_stack(0, (1, 6, 6))
        method = VGG19.model_copy(update={"transform": Wavelet(name="haar")})
        with pytest.raises(InputError, match=r"3 x 3|6 x 6"):
            fuse_slices(small, small, method, RANDOM)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
class TestFewerDigits:
    @staticmethod
    def assert_close(mri, pet, weights, precision):
        exact, fast = (
            fuse_slices(mri, pet, VGG19.model_copy(update={"precision": each}), weights)
            for each in ("float32", precision)
        )
        mse = float(np.square(exact - fast, dtype=np.float64).mean())
        assert mse > 0
        assert 10 * np.log10(1 / mse) >= 50

    def test_fuse_a_phantom_to_50_db_of_float32(self, precision):
        phantom = make_phantom(0, shape=(96, 112, 96))
        z = phantom.t1w.shape[2] // 2
        mri = phantom.t1w[:, :, z].T
        pet = phantom.pet[:, :, phantom.pet.shape[2] // 2].T
        pet = ndimage.zoom(pet, np.divide(mri.shape, pet.shape), order=1)
        mri, pet = (image / np.percentile(image, 99.5) for image in (mri, pet))
        slices = (image[None].astype(np.float32) for image in (mri, pet))
        self.assert_close(*slices, RANDOM, precision)

    @pytest.mark.shared
    def test_fuse_a_real_pair_with_real_weights_to_50_db_of_float32(
        self, shared, vgg19_weights, precision
    ):
        folder = shared / "data" / "bids" / "sub-harvard"
        images = []
        for path in (
            folder / "anat" / "sub-harvard_T1w.nii.gz",
            folder / "pet" / "sub-harvard_trc-FDG_pet.nii.gz",
        ):
            image = np.asarray(nibabel.load(path).dataobj[..., 47], np.float32).squeeze().T
            images.append((image / np.percentile(image[image > 0], 99.5))[None])
        assert images[0].shape == images[1].shape
        weights = resolve_weights(str(vgg19_weights), "vgg19")
        self.assert_close(*images, weights, precision)


class TestRefusals:
    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
    def test_methods_with_a_name_are_not_refused(self, method):
        assert reads_backbone(method) == (method.backbone is not None)

    def test_an_unknown_rule_is_named_with_those_that_exist(self):
        with pytest.raises(ConfigurationError, match="'l1-sotf'") as error:
            reads_backbone(VGG19.model_copy(update={"rule": "l1-sotf"}))
        assert all(name in error.value.mend for name in RULES)

    def test_a_rule_that_reads_a_backbone_needs_one(self):
        with pytest.raises(ConfigurationError, match="l1-soft needs a backbone") as error:
            reads_backbone(VGG19.model_copy(update={"backbone": None}))
        assert "dwt-vgg19" in error.value.message
        assert "vgg19" in error.value.mend

    def test_an_unknown_backbone_is_named_with_those_that_exist(self):
        with pytest.raises(ConfigurationError, match="'vgg91'") as error:
            reads_backbone(VGG19.model_copy(update={"backbone": "vgg91"}))
        assert all(name in error.value.mend for name in BACKBONES)

    def test_an_unknown_tap_is_named_with_those_that_exist(self):
        with pytest.raises(ConfigurationError, match="relu9_9") as error:
            reads_backbone(VGG19.model_copy(update={"taps": ("relu1_1", "relu9_9")}))
        assert all(tap in error.value.mend for tap in BACKBONES["vgg19"].taps)

    def test_no_tap_is_refused(self):
        with pytest.raises(ConfigurationError, match="at least one tap"):
            reads_backbone(VGG19.model_copy(update={"taps": ()}))

    def test_a_rule_without_a_network_asks_for_none(self):
        assert not reads_backbone(Method(name="m", rule="average", backbone="vgg91"))

    def test_no_weights_are_refused_with_method_and_backbone(self, sources):
        with pytest.raises(ConfigurationError, match="dwt-vgg19-l1 needs the weights of vgg19"):
            fuse_slices(*sources, VGG19)

    @pytest.mark.parametrize("shape", [(3, 45, 40), (2, 45, 38), (3, 45, 37)])
    def test_sources_of_different_shape_are_refused(self, sources, shape):
        with pytest.raises(InputError, match="do not match"):
            fuse_slices(sources[0], np.zeros(shape, np.float32), METHODS["average"])
