"""Pseudo-colours give back the uptake they stand for, and what is fused is coloured by it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from colours import ALL, NAMES, lightness, painted, photograph, smooth
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage

from fusionflow.colour import (
    HEAT,
    TABLES,
    _coloured,
    colourise,
    fit_table,
    is_grey,
    luminance,
    read_table,
    recognise,
    uptake,
    with_chroma,
)
from fusionflow.errors import ImageError, InputError

each_table = pytest.mark.parametrize("table", ALL, ids=NAMES)


def jpeg(picture, quality):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


class TestUptake:
    @each_table
    def test_a_colour_of_the_table_gives_its_level(self, table):
        count = len(table.colours)
        levels = np.arange(count)
        image = painted(table, levels / (count - 1))[None]
        off = np.abs(uptake(image, table)[0] * (count - 1) - levels)
        _, first, times = np.unique(image[0], axis=0, return_index=True, return_counts=True)
        # A colour that stands for several levels, such as pure blue in jet, gives one of them.
        assert_allclose(off[first[times == 1]], 0, atol=1e-4)
        assert off.max() <= (4 if table.name == "jet" else 1) + 1e-4

    @each_table
    @pytest.mark.parametrize(
        ("quality", "mean", "nearly_all"),
        [(None, 0.0015, 0.015), (95, 0.003, 0.02), (75, 0.004, 0.03)],
    )
    def test_an_enlarged_image_gives_what_enlarged_uptake_would(
        self, table, quality, mean, nearly_all
    ):
        levels = smooth()
        picture = Image.fromarray(painted(table, levels)).resize((256, 256), Image.BILINEAR)
        wanted = np.asarray(
            Image.fromarray(levels.astype(np.float32)).resize((256, 256), Image.BILINEAR)
        )
        image = np.asarray(picture) if quality is None else jpeg(picture, quality)
        off = np.abs(uptake(image, table) - wanted)
        assert off.mean() < mean
        assert np.quantile(off, 0.99) < nearly_all

    @given(arrays(np.uint8, (3, 4, 3)), st.sampled_from(ALL))
    def test_any_image_gives_levels(self, image, table):
        levels = uptake(image, table)
        assert levels.dtype == np.float32
        assert levels.shape == (3, 4)
        assert levels.min() >= 0
        assert levels.max() <= 1

    @given(arrays(np.uint8, (2, 2, 3)), st.sampled_from(ALL))
    def test_no_colour_of_the_table_is_nearer(self, image, table):
        found = table.colour_at(uptake(image, table)) * 255
        nearest = np.linalg.norm(image[:, :, None] - table.colours * 255, axis=-1).min(axis=-1)
        assert (np.linalg.norm(image - found, axis=-1) <= nearest + 1e-3).all()

    @pytest.mark.parametrize(
        "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
    )
    def test_what_is_no_colour_image_is_refused(self, image):
        with pytest.raises(ImageError, match="no 8-bit colour image"):
            uptake(image, HEAT)


class TestRecognise:
    @each_table
    @pytest.mark.parametrize("quality", [None, 75])
    def test_finds_the_table(self, table, quality):
        picture = Image.fromarray(painted(table, smooth()))
        image = np.asarray(picture) if quality is None else jpeg(picture, quality)
        found = recognise(image, ALL)
        assert found.table is table
        assert found.share > 0.9
        assert found.residual < (1 if quality is None else 12)

    def test_names_the_other_tables_that_fit(self):
        faint = painted(TABLES["hot-iron"], smooth() * 0.3)
        found = recognise(faint, [TABLES["hot-iron"], TABLES["hot"], TABLES["viridis"]])
        assert {found.table.name, *found.also} == {"hot-iron", "hot"}

    @given(arrays(np.uint8, (5, 6)))
    def test_grey_is_grey(self, grey):
        image = np.repeat(grey[..., None], 3, axis=-1)
        assert is_grey(image)
        assert recognise(image).table is TABLES["grey"]
        assert_allclose(uptake(image, TABLES["grey"]), luminance(image), atol=1e-4)

    @pytest.mark.parametrize("name", [name for name in NAMES if name != "grey"])
    def test_colour_is_not_grey(self, name):
        assert not is_grey(painted({**TABLES, "heat": HEAT}[name], smooth()))

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("make", ["photograph", "noise"])
    def test_an_image_without_a_table_is_refused_with_the_distance_and_the_mend(self, make, seed):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)
        image = photograph(seed) if make == "photograph" else noise
        with pytest.raises(InputError, match=r"is nearest, with \d+% .* within 24 of 255") as error:
            recognise(image)
        assert "--colour luminance" in error.value.mend
        assert "--lut FILE" in error.value.mend

    def test_no_tables_is_an_error(self):
        with pytest.raises(InputError, match="No colour tables"):
            recognise(photograph(0), [])


class TestPublishedConvention:
    @given(arrays(np.uint8, (4, 5, 3)))
    def test_luminance_is_bt601(self, image):
        assert_allclose(luminance(image) * 255, image @ [0.299, 0.587, 0.114], atol=0.51)

    @given(arrays(np.uint8, (4, 5, 3)))
    def test_its_own_luminance_gives_the_image_back(self, image):
        again = with_chroma(luminance(image), image).astype(int)
        assert np.abs(again - image).max() <= 3

    def test_a_grey_image_takes_the_fused_luminance(self):
        fused = np.linspace(0, 1, 12).reshape(3, 4)
        rgb = with_chroma(fused, np.full((3, 4, 3), 77, np.uint8))
        assert_array_equal(rgb, np.repeat(np.floor(fused * 255 + 0.5)[..., None], 3, axis=-1))

    def test_other_shapes_are_refused(self):
        with pytest.raises(InputError, match="fused has shape"):
            with_chroma(np.zeros((3, 4)), np.zeros((4, 3, 3), np.uint8))
        with pytest.raises(ImageError):
            luminance(np.zeros((4, 3), np.uint8))


unit_images = arrays(np.float64, (4, 5), elements=st.floats(0, 1))


class TestColourise:
    @given(unit_images, unit_images, st.sampled_from(ALL), st.floats(0, 1))
    def test_every_colour_can_be_shown(self, fused, level, table, lift):
        colours = _coloured(fused, level, table, lift)
        assert colours.min() > -0.01
        assert colours.max() < 1.01

    @each_table
    def test_without_uptake_it_is_the_fused_image_in_grey(self, table):
        grey = np.arange(256).reshape(16, 16)
        rgb = colourise(grey / 255, np.zeros(grey.shape), table)
        assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=-1))

    @given(st.floats(0, 1), st.sampled_from(ALL))
    def test_lightness_grows_with_uptake_and_with_the_fused_image(self, still, table):
        ramp = np.linspace(0, 1, 40)[None]
        flat = np.full_like(ramp, still)
        for fused, level in ((flat, ramp), (ramp, flat)):
            # CIE L* is not the lightness it is made by, and bytes are round.
            steps = np.diff(lightness(colourise(fused, level, table, lift=0.5))[0])
            assert steps.min() > -2.5

    def test_hue_tells_uptake_apart_at_one_lightness(self):
        color = pytest.importorskip("skimage.color")
        level = np.linspace(0, 1, 21)[None]
        for grey in (0.4, 0.6, 0.8):
            lab = color.rgb2lab(colourise(np.full_like(level, grey), level))[0]
            apart = np.linalg.norm(np.diff(lab[:, 1:], axis=0), axis=-1)
            assert np.median(apart) > 5

    def test_anatomy_shows_within_the_hottest_uptake(self):
        fused = np.tile([0.4, 0.7], 8)[None].astype(np.float32)
        rgb = colourise(fused, np.ones_like(fused))
        assert np.abs(np.diff(lightness(rgb)[0])).min() > 15

    def test_beyond_the_scale_is_cut(self):
        beyond = np.array([[-1.0, 2.0]])
        assert_array_equal(
            colourise(beyond, beyond), colourise(beyond.clip(0, 1), beyond.clip(0, 1))
        )

    @pytest.mark.parametrize(
        ("fused", "level", "reason"),
        [
            (np.zeros((3, 4)), np.zeros((4, 3)), "uptake has shape"),
            (np.full((3, 4), np.nan), np.zeros((3, 4)), "not finite"),
            (np.zeros(4), np.zeros(4), "no .* image"),
        ],
    )
    def test_what_is_no_pair_is_refused(self, fused, level, reason):
        with pytest.raises(InputError, match=reason):
            colourise(fused, level)

    @pytest.mark.parametrize("lift", [-0.1, 1.1, np.nan])
    def test_a_lift_beyond_the_scale_is_refused(self, lift):
        with pytest.raises(InputError, match="lift"):
            colourise(np.zeros((2, 2)), np.zeros((2, 2)), lift=lift)


FUSIONS = {"maximum": np.maximum, "average": lambda mri, pet: (mri + pet) / 2}


def hot_and_around(level):
    """Return where uptake is hottest, and the warm tissue around."""
    hot = level >= np.quantile(level[level > 0.3], 0.95)
    near = ndimage.binary_dilation(hot, iterations=8) & ~ndimage.binary_dilation(hot, iterations=2)
    return hot, near & (level > 0.3)


@pytest.mark.parametrize("fusion", FUSIONS.values(), ids=FUSIONS)
class TestTheHottestUptake:
    def test_is_dark_by_convention_and_is_not_when_coloured_by_uptake(self, fusion):
        y, x = np.mgrid[-1:1:128j, -1:1:128j]
        brain = ndimage.gaussian_filter((x**2 + y**2 < 0.7).astype(float), 1)
        focus = np.exp(-((x - 0.2) ** 2 + y**2) / 0.01)
        level = brain * (0.5 + 0.5 * focus)
        mri = brain * (0.5 + 0.05 * np.sin(40 * x))
        rgb = painted(TABLES["harvard-pet"], level)
        found = uptake(rgb, recognise(rgb).table)
        hot, around = hot_and_around(found)
        conventional = lightness(with_chroma(fusion(mri, luminance(rgb)), rgb))
        ours = lightness(colourise(fusion(mri, found), found))
        assert conventional[hot].mean() < conventional[around].mean() - 10
        assert ours[hot].mean() > ours[around].mean() + 5

    @pytest.mark.shared
    def test_is_not_darker_than_around_it_in_real_slices(self, shared, fusion):
        pairs = [(f"val/MRI/{n}.png", f"val/PET/{n}.png") for n in (12, 16, 19, 22, 26, 29)]
        names = ("25061", "30064", "41040", "41056", "41066", "41085")
        pairs += [(f"train/PET-MRI/MRI/{n}.png", f"train/PET-MRI/PET/{n}.png") for n in names]
        darker = 0
        for first, second in pairs:
            mri = np.asarray(Image.open(shared / "data/harvard" / first).convert("L")) / 255
            rgb = np.asarray(Image.open(shared / "data/harvard" / second).convert("RGB"))
            level = uptake(rgb, recognise(rgb).table)
            hot, around = hot_and_around(level)
            ours = lightness(colourise(fusion(mri, level), level))
            assert ours[hot].mean() > ours[around].mean(), second
            conventional = lightness(with_chroma(fusion(mri, luminance(rgb)), rgb))
            darker += conventional[hot].mean() < conventional[around].mean()
        assert darker > 0.8 * len(pairs)


def folder(shared, name):
    paths = sorted((shared / "data/harvard" / name).glob("*.png"))
    assert paths
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


@pytest.mark.shared
class TestRealSlices:
    def test_the_pet_table_is_the_one_measured(self, shared):
        measured = read_table(shared / "data/harvard/pet_lut_rgb.csv")
        assert_allclose(TABLES["harvard-pet"].colours, measured.colours, atol=1e-12)

    def test_levels_of_published_pet_are_exact(self, shared):
        table = read_table(shared / "data/harvard/pet_lut_rgb.csv")
        colours = np.round(table.colours * 255).astype(int)
        level_of = np.full(1 << 24, -1)
        level_of[colours @ [65536, 256, 1]] = np.arange(128)
        for image in folder(shared, "train/PET-MRI/PET"):
            wanted = level_of[image.astype(int) @ [65536, 256, 1]]
            assert wanted.min() >= 0
            found = uptake(image, TABLES["harvard-pet"]).astype(np.float64) * 127
            assert_allclose(found, wanted, atol=1e-4)

    def test_the_table_is_found_from_the_images_alone(self, shared):
        found = fit_table(folder(shared, "train/PET-MRI/PET"))
        assert_allclose(found.colours, TABLES["harvard-pet"].colours, atol=1e-9)

    @pytest.mark.slow
    def test_resampled_pet_is_recognised_and_recoloured_alike(self, shared):
        for image in folder(shared, "val/PET"):
            found = recognise(image)
            assert found.table.name == "harvard-pet"
            assert found.share > 0.99
            level = uptake(image, found.table)
            off = np.abs(found.table.colour_at(level) * 255 - image)[image.any(axis=-1)]
            assert off.mean() < 1
            assert np.quantile(off, 0.95) < 6
            # Smooth images give smooth uptake: next to no pixel stands out of its neighbours.
            apart = np.abs(level - ndimage.median_filter(level, 3)) > 0.05
            assert apart.mean() < 1e-4

    def test_published_spect_uses_another_table(self, shared):
        for image in folder(shared, "train/SPECT-MRI/SPECT"):
            found = recognise(image)
            assert found.table.name == "harvard-spect"
            off = np.abs(found.table.colour_at(uptake(image, found.table)) * 255 - image)
            assert off.max() <= 3
