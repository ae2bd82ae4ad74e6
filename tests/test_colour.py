"""Pseudo-colours give back the uptake they stand for, and what is fused is coloured by it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage

from fusionflow.colour import (
    HEAT,
    TABLES,
    ColourTable,
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

ALL = [*TABLES.values(), HEAT]
NAMES = [table.name for table in ALL]
each_table = pytest.mark.parametrize("table", ALL, ids=NAMES)


def painted(table, levels):
    """Return levels 0..1 as 8-bit colours of a table."""
    return np.round(table.colour_at(levels) * 255).astype(np.uint8)


def smooth(seed=0, size=128):
    """Return a smooth head of uptake on nothing, 0..1, that reaches both ends of the scale."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 8)
    noise = (noise - noise.min()) / np.ptp(noise)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    levels = noise * ndimage.gaussian_filter((x**2 + y**2 < 0.7).astype(float), 4)
    return levels / levels.max()


def jpeg(picture, quality):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def photograph(seed, size=96):
    """Return an image with the spectrum of a photograph, its three channels unlike."""
    spectrum = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.fftfreq(size)[None] ** 2
    spectrum[0, 0] = 1
    noise = np.random.default_rng(seed).normal(size=(3, size, size))
    channels = np.fft.ifft2(np.fft.fft2(noise) / np.sqrt(spectrum)).real
    ranks = channels.reshape(3, -1).argsort(axis=1).argsort(axis=1).reshape(3, size, size)
    return np.ascontiguousarray((ranks * 256 // size**2).astype(np.uint8).transpose(1, 2, 0))


def lightness(rgb):
    """Return CIE L* of an sRGB image."""
    color = pytest.importorskip("skimage.color")
    return color.rgb2lab(rgb)[..., 0]


class TestKnownTables:
    def test_the_pet_table_runs_black_blue_yellow_red_magenta(self):
        colours = TABLES["harvard-pet"].colours * 255
        assert_allclose(
            colours[[0, 15, 31, 63, 95, 127]],
            [[0, 0, 0], [0, 0, 123], [0, 85, 255], [255, 255, 0], [255, 0, 0], [255, 0, 255]],
        )

    def test_luminance_of_the_pet_table_peaks_at_yellow(self):
        brightness = luminance(painted(TABLES["harvard-pet"], np.linspace(0, 1, 128))[None])[0]
        assert brightness.argmax() == 63
        assert brightness[-1] < 0.5 * brightness[63]

    @pytest.mark.parametrize(
        ("name", "theirs", "bound"),
        [
            ("grey", "gray", 0.01),
            ("jet", "jet", 0.51),
            ("hot", "hot", 0.51),
            ("nipy-spectral", "nipy_spectral", 0.51),
            *((name, name, 1.5) for name in ("viridis", "plasma", "inferno", "magma")),
            *((name, name, 1.5) for name in ("cividis", "turbo")),
        ],
    )
    def test_are_those_of_matplotlib(self, name, theirs, bound):
        matplotlib = pytest.importorskip("matplotlib")
        wanted = matplotlib.colormaps[theirs](np.linspace(0, 1, 256))[:, :3]
        assert np.abs(TABLES[name].colours - wanted).max() * 255 <= bound

    @pytest.mark.parametrize("name", ["grey", "hot", "viridis", "inferno", "heat"])
    def test_ordered_ones_grow_lighter(self, name):
        table = {**TABLES, "heat": HEAT}[name]
        assert np.diff(lightness(table.colours[None])[0]).min() > -0.6

    @pytest.mark.parametrize(
        "colours", [np.zeros((1, 3)), np.zeros((4, 4)), np.full((3, 3), 1.1), [[np.nan] * 3] * 2]
    )
    def test_a_table_that_is_none_is_refused(self, colours):
        with pytest.raises(InputError, match="colour table odd"):
            ColourTable("odd", np.asarray(colours))


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


class TestFitTable:
    @pytest.mark.parametrize("name", ["harvard-pet", "harvard-spect", "hot", "viridis", "turbo"])
    def test_finds_the_table_of_images_that_use_all_of_it(self, name):
        table = TABLES[name]
        count = len(table.colours)
        levels = np.round(smooth(size=256) * (count - 1)) / (count - 1)
        levels[:8] = 0
        levels[8:10, :count] = np.linspace(0, 1, count)
        image = painted(table, levels)
        off = np.abs(uptake(image, fit_table([image])) - levels)
        assert off.max() < 4 / count  # viridis has three levels twice in 8 bits

    def test_finds_the_order_in_resampled_images(self):
        levels = smooth()
        small = Image.fromarray(painted(TABLES["harvard-pet"], levels))
        image = np.asarray(small.resize((256, 256), Image.BICUBIC))
        wanted = uptake(image, TABLES["harvard-pet"]).ravel()
        ranks = [
            part.argsort().argsort() for part in (wanted, uptake(image, fit_table([image])).ravel())
        ]
        assert np.corrcoef(ranks)[0, 1] > 0.99

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (photograph(0), "along"),
            (np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8), "curve|along"),
            (np.zeros((8, 8, 3), np.uint8), "too few"),
            (np.random.default_rng(0).integers(0, 4, (64, 64, 3), np.uint8), "apart from"),
        ],
        ids=["photograph", "noise", "blank", "nearly blank"],
    )
    def test_colours_on_no_curve_are_refused(self, image, reason):
        with pytest.raises(InputError, match=reason):
            fit_table([image])

    def test_no_image_is_an_error(self):
        with pytest.raises(InputError, match="No images"):
            fit_table([])


class TestReadTable:
    @pytest.mark.parametrize(
        "text",
        ["0,0,0\n255,0,51\n", "# mine\nred,green,blue\n0,0,0\n255,0,51\n", "0,0,0\n1,0,0.2\n"],
        ids=["bytes", "headed", "shares"],
    )
    def test_reads_rows_of_colours(self, tmp_path, text):
        path = tmp_path / "mine.csv"
        path.write_text(text)
        table = read_table(path)
        assert table.name == "mine"
        assert_allclose(table.colours, [[0, 0, 0], [1, 0, 0.2]])

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("0,0,0\n1,2\n", "line 2"),
            ("0,0,0\n1,2,x\n", "line 2"),
            ("a,b,c\nd,e,f\n", "line 2"),
            ("0,0,0\n1,2,256\n", "line 2"),
            ("0,0,0\n1,2,nan\n", "line 2"),
            ("0,0,0\n", "1 colours"),
            ("0,0,0\n" + "1" * 200_000, "cannot be read: field larger than"),
            ("0,0,0\n" * 200_000, "cannot be read: .*Larger than"),
            ("0,0,0\n" + "1," * 1000, r"line 2 is not numbers: [1,]{60} \.\.\."),
        ],
    )
    def test_says_what_is_wrong_and_where(self, tmp_path, text, reason):
        path = tmp_path / "mine.csv"
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            read_table(path)

    def test_a_missing_file_is_an_error(self, tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(tmp_path / "none.csv")


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
