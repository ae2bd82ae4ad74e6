"""Pictures in, a fused picture out, and colour that reads as uptake."""

import os
import struct
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fusionflow import images
from fusionflow.cli import main
from fusionflow.config import METHODS
from fusionflow.errors import GridError, ImageError, InputError, NoScansError
from fusionflow.graph import make_recipe
from fusionflow.luts import TABLES

TABLE = TABLES["harvard-pet"]
SIZE = 64


def head():
    """A grey anatomy and uptake with a hot focus in a warm surrounding, (y, x) each."""
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    inside = (x**2 + y**2) < 0.12
    mri = np.where(inside, 0.45 + 0.25 * np.sin(30 * x) * np.cos(26 * y), 0)
    uptake = np.where(inside, 0.5, 0)
    focus = ((x - 0.1) ** 2 + (y + 0.05) ** 2) < 0.006
    return mri, np.where(focus, 0.95, uptake), focus, inside


def coloured(uptake):
    levels = np.rint(uptake * (len(TABLE.colours) - 1)).astype(int)
    return np.rint(TABLE.colours[levels] * 255).astype(np.uint8)


@pytest.fixture
def pair(tmp_path):
    mri, uptake, _, _ = head()
    (tmp_path / "MRI").mkdir()
    (tmp_path / "PET").mkdir()
    for name in ("7", "12"):
        Image.fromarray((mri * 255).astype(np.uint8)).save(tmp_path / "MRI" / f"{name}.png")
        Image.fromarray(coloured(uptake)).save(tmp_path / "PET" / f"{name}.png")
    return tmp_path


def luma(rgb):
    return np.asarray(Image.fromarray(rgb).convert("L"), float)


class TestColour:
    def test_uptake_is_recovered_and_fused(self, pair):
        _, uptake, _, _ = head()
        (found, _) = images.find_pair_folders(pair)
        assert found.name == "7"
        sources = images.read_pair(found)
        assert (sources.colour, sources.table) == ("uptake", "harvard-pet")
        np.testing.assert_allclose(sources.pet, uptake, atol=0.5 / 127)

    @pytest.mark.parametrize("method", ["maximum", "average", "dwt-max"])
    def test_the_hottest_place_is_not_darker_than_its_surroundings(self, pair, method):
        _, _, focus, inside = head()
        around = inside & ~focus
        (found, _) = images.find_pair_folders(pair)
        means = {}
        for colour in ("uptake", "luminance"):
            sources = images.read_pair(found, colour)
            recipe = make_recipe(METHODS[method])
            fused = images.fuse_slices(sources.mri[None], sources.pet[None], recipe)[0]
            picture = luma(images.coloured(fused, sources))
            means[colour] = picture[focus].mean(), picture[around].mean()
        assert means["uptake"][0] >= means["uptake"][1]
        # The published way fails this: that is why there is another.
        assert means["luminance"][0] < means["luminance"][1]

    def test_a_grey_pet_gives_a_grey_picture(self, pair):
        _, uptake, _, _ = head()
        path = pair / "grey.png"
        Image.fromarray((uptake * 255).astype(np.uint8)).save(path)
        sources = images.read_pair(images.PicturePair("g", pair / "MRI" / "7.png", path))
        assert sources.colour == "grey"
        picture = images.coloured(sources.pet, sources)
        assert (picture == picture[..., :1]).all()
        np.testing.assert_allclose(picture[..., 0] / 255, uptake, atol=1 / 255)


class TestPairs:
    def test_names_in_natural_order(self, pair):
        assert [item.name for item in images.find_pair_folders(pair)] == ["7", "12"]

    def test_a_picture_and_a_folder(self, pair):
        with pytest.raises(InputError, match="not both pictures or both folders"):
            images.find_pairs(pair / "MRI", pair / "PET" / "7.png")

    def test_no_common_name(self, pair):
        for path in (pair / "PET").iterdir():
            path.rename(path.with_name(f"other-{path.name}"))
        with pytest.raises(NoScansError, match="They hold 2 and 2 pictures"):
            images.find_pair_folders(pair)

    def test_no_folders(self, tmp_path):
        with pytest.raises(NoScansError, match="it holds no folder"):
            images.find_pair_folders(tmp_path)

    def test_sizes_that_differ(self, pair):
        path = pair / "MRI" / "7.png"
        Image.open(path).resize((32, 40)).save(path)
        with pytest.raises(GridError, match=r"7\.png is 32 x 40 pixels"):
            images.read_pair(images.find_pair_folders(pair)[0])

    @pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\x00\x00"])
    def test_what_is_no_picture(self, tmp_path, content):
        path = tmp_path / "x.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"Cannot read the picture .*x\.png"):
            images.read_rgb(path)

    @pytest.mark.parametrize("kind", ["EPS", "PPM", "GIF", "WEBP"])
    def test_other_formats_are_not_decoded_whatever_they_are_called(self, tmp_path, kind):
        # Of EPS Pillow makes a picture by running Ghostscript.
        path = tmp_path / "x.png"
        Image.new("RGB", (9, 9)).save(path, kind)
        with pytest.raises(ImageError, match=r"Cannot read the picture .*x\.png"):
            images.read_rgb(path)

    def test_what_pillow_only_warns_of_is_read(self, tmp_path):
        path = tmp_path / "x.png"
        Image.new("RGB", (9, 9), (1, 2, 3)).save(path)
        chunk = b"acTL" + bytes(8)  # an animation of no frames
        chunk = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
        content = path.read_bytes()
        path.write_bytes(content[:33] + chunk + content[33:])
        assert (images.read_rgb(path) == (1, 2, 3)).all()

    def test_a_huge_picture_is_refused(self, tmp_path):
        path = tmp_path / "x.png"
        Image.new("1", (4097, 4097)).save(path)
        with pytest.raises(ImageError, match=r"x\.png has 4097 x 4097 pixels"):
            images.read_rgb(path)

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "x.png")
        with pytest.raises(ImageError, match="Not a regular file"):
            images.read_rgb(tmp_path / "x.png")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="none cannot be listed"):
            images.find_pair_folders(tmp_path / "none")

    def test_what_is_transparent_is_black(self, tmp_path):
        rgba = np.full((9, 9, 4), 255, np.uint8)
        rgba[:4, :, 3] = 0  # white, but not to be seen
        path = tmp_path / "x.png"
        Image.fromarray(rgba).save(path)
        rgb = images.read_rgb(path)
        assert (rgb[:4] == 0).all()
        assert (rgb[4:] == 255).all()

    def test_two_pictures_of_one_name(self, pair):
        (pair / "MRI" / "7.jpg").write_bytes((pair / "MRI" / "7.png").read_bytes())
        with pytest.raises(InputError, match=r"7\.jpg and .*7\.png have one name"):
            images.find_pair_folders(pair)

    def test_sixteen_bits_are_not_cut(self, tmp_path):
        path = tmp_path / "x.png"
        Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(path)
        with pytest.raises(ImageError, match="not 8 bits") as error:
            images.read_rgb(path)
        assert "Cannot read" not in str(error.value)


class TestCommand:
    def test_a_pair(self, pair, tmp_path):
        out = tmp_path / "deep" / "fused.png"
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI/7.png"), str(pair / "PET/7.png"), "-o", str(out),
             "--method", "maximum"],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "uptake from harvard-pet" in result.output
        assert images.read_rgb(out).shape == (SIZE, SIZE, 3)

    def test_folders_with_one_that_fails(self, pair, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pair / "PET" / "12.png")
        out = tmp_path / "out"
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI"), str(pair / "PET"), "-o", str(out), "--compare",
             "--method", "dwt-vgg19-l1", "--weights", "random:1"],
        )  # fmt: skip
        assert result.exit_code == 3
        assert "WARNING weights of vgg19: random:1 (RANDOM" in result.output
        assert "failed 12" in result.output
        assert "--colour luminance" in result.output
        assert [path.name for path in out.iterdir()] == ["7.png"]
        # MRI, PET, our way and the published way.
        shown = images.read_rgb(out / "7.png")
        assert shown.shape == (SIZE, 4 * SIZE + 12, 3)
        ours, published = shown[:, -2 * SIZE - 4 : -SIZE - 4], shown[:, -SIZE:]
        assert abs(ours.astype(int) - published).max() > 50

    @pytest.mark.parametrize(
        ("output", "options", "message"),
        [
            ("x.xyz", [], "not the name of a PNG file"),
            (".", [], "not the name of a PNG file"),
            ("x.png", ["--colour", "grey", "--lut", "LUT"], "has no use"),
            ("x.png", ["--weights", "random:0"], "reads no network"),
        ],
    )
    def test_wrong_usage(self, pair, tmp_path, output, options, message):
        lut = tmp_path / "lut.csv"
        lut.write_text("0,0,0\n255,255,255\n")
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI/7.png"), str(pair / "PET/7.png"), "--method", "maximum",
             "-o", str(tmp_path / output), *(str(lut) if o == "LUT" else o for o in options)],
        )  # fmt: skip
        assert result.exit_code == 2
        assert message in result.output

    @pytest.mark.parametrize("content", ["", "0,0,0\n1,2\n", "red;green;blue"])
    def test_a_table_that_is_none_is_wrong_usage(self, pair, tmp_path, content):
        lut = tmp_path / "lut.csv"
        lut.write_text(content)
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI/7.png"), str(pair / "PET/7.png"), "--method", "maximum",
             "-o", str(tmp_path / "x.png"), "--lut", str(lut)],
        )  # fmt: skip
        assert result.exit_code == 2
        assert f"'--lut': {lut}" in result.output
        assert "Give red,green,blue on each line" in result.output

    def test_a_picture_and_a_folder_is_wrong_usage(self, pair, tmp_path):
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI/7.png"), str(pair / "PET"), "-o", str(tmp_path / "x.png")],
        )
        assert result.exit_code == 2
        assert "are not both pictures or both folders" in result.output

    def test_a_table_that_is_not_the_pictures(self, pair, tmp_path):
        lut = tmp_path / "lut.csv"
        lut.write_text("0,0,0\n0,255,0\n")
        result = CliRunner().invoke(
            main,
            ["image", str(pair / "MRI/7.png"), str(pair / "PET/7.png"), "--method", "maximum",
             "-o", str(tmp_path / "x.png"), "--lut", str(lut)],
        )  # fmt: skip
        assert result.exit_code == 4
        assert "No known colour table explains the image: lut is nearest" in result.output
        assert not (tmp_path / "x.png").exists()
