"""Damaged and made-up pictures, and tables of colours."""

from __future__ import annotations

import csv
import io
import struct
import zlib

import numpy as np
from fuzzing import MB, cases, damaged, edits, memory_below, refused_at_most, said_in_little_memory
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionflow import images
from fusionflow.luts import read_table


def picture(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [
    picture("PNG"), picture("PNG", "P", transparency=b"\0\1\2"), picture("PNG", "RGBA"),
    picture("PNG", "L"), picture("PNG", "I;16"), picture("PNG", "1"), picture("JPEG"),
    picture("JPEG", "CMYK"), picture("JPEG", "L", progressive=True), picture("TIFF"),
    picture("TIFF", compression="tiff_lzw"), picture("TIFF", compression="jpeg"),
    picture("TIFF", "L", compression="tiff_adobe_deflate"), picture("TIFF", "F"), picture("BMP"),
    picture("BMP", "P"), picture("GIF", "P"), picture("EPS"), picture("PDF"), picture("PPM"),
    picture("TGA"), picture("PCX"), picture("SGI"), picture("JPEG2000"), picture("WEBP"),
]  # fmt: skip
PNG_SIGNATURE = PICTURES[0][:8]


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


@st.composite
def pngs(draw):
    """Return a PNG of chunks that are whole by their checksums and say anything."""
    width, height = (
        draw(st.sampled_from([0, 1, 7, 7, 7, 9, 4097, 2**16, 2**31 - 1])) for _ in range(2)
    )
    depth, colour, interlaced = (
        draw(st.sampled_from(values))
        for values in ([1, 4, 8, 8, 16, 3], [0, 2, 3, 4, 6, 7], [0, 1])
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(draw(st.binary(max_size=40)) + bytes(300), 9)
    other = st.tuples(
        st.sampled_from(
            b"PLTE tRNS gAMA cHRM sRGB iCCP zTXt iTXt tEXt eXIf acTL fcTL fdAT pHYs IDAT".split()
        ),
        st.binary(max_size=24)
        | st.sampled_from([zlib.compress(bytes(1 << 20)), bytes(768), b"a\0\0" + pixels]),
    )
    between = b"".join(chunk(*item) for item in draw(st.lists(other, max_size=3)))
    after = b"".join(chunk(*item) for item in draw(st.lists(other, max_size=2)))
    body = chunk(b"IDAT", pixels if draw(st.booleans()) else damaged(pixels, draw(edits)))
    return PNG_SIGNATURE + chunk(b"IHDR", head) + between + body + after + chunk(b"IEND", b"")


LUT = "level,red,green\nred,green,blue\n0,0,0\n10,20,30.5\n\n# x\n255,255,255\n"
csv_numbers = st.tuples(*[st.integers(0, 255) | st.floats(0, 255)] * 3).map(
    lambda row: ",".join(map(str, row))
)
csv_words = st.lists(
    st.sampled_from(["0", "255", "256", "-1", "nan", "inf", "1e999", "0x1", "1_0", "٣", '"', ""])
    | st.text(max_size=4),
    min_size=1,
    max_size=4,
).map(",".join)
csv_texts = (st.lists(csv_numbers, max_size=6) | st.lists(csv_numbers | csv_words, max_size=6)).map(
    "\n".join
)


class TestPictures:
    @given(
        content=st.tuples(st.sampled_from(PICTURES), edits).map(lambda both: damaged(*both))
        | pngs(),
        suffix=st.sampled_from(images.SUFFIXES),
        colour=st.sampled_from([None, "uptake", "luminance", "grey"]),
    )
    @cases(600)
    def test_any_content(self, folder, content, suffix, colour):
        mri, pet = folder / "mri.png", folder / f"pet{suffix}"
        mri.write_bytes(PICTURES[0])
        pet.write_bytes(content)
        with refused_at_most(pet):
            rgb = images.read_rgb(pet)
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3
            assert rgb.size
            sources = images.read_pair(images.PicturePair("a", mri, pet), colour)
            for image in (sources.mri, sources.pet):
                assert image.dtype == np.float32
                assert image.shape == rgb.shape[:2]
                assert (image >= 0).all()
                assert (image <= 1).all()

    @given(
        content=csv_texts.map(lambda text: text.encode(errors="surrogatepass"))
        | edits.map(lambda edits: damaged(LUT.encode(), edits))
    )
    @cases(250)
    def test_tables(self, folder, content):
        path = folder / "table.csv"
        path.write_bytes(content)
        with refused_at_most(path):
            table = read_table(path)
            assert table.colours.dtype == np.float64
            assert len(table.colours) >= 2
            assert (table.colours >= 0).all()
            assert (table.colours <= 1).all()

    def test_a_table_without_end(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_bytes(b"1," * csv.field_size_limit() * 10)
        with memory_below(16 * MB), refused_at_most(path):
            read_table(path)


def test_a_picture_that_would_be_huge_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    head = struct.pack(">IIBBBBB", 10000, 10000, 8, 6, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10000 * 4 * 200), 9))
    path.write_bytes(PNG_SIGNATURE + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b""))
    said = said_in_little_memory("images", "read_rgb", path, 128 * MB)
    assert f"{path} has 10000 x 10000 pixels" in said
