"""Pictures are what other programs read of them."""

import io

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

from fusionflow.png import png_bytes


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**32 - 1))
@example(64, 3, 0)
@example(65, 3, 0)
@example(128, 3, 0)
def test_any_picture_comes_back(rows, columns, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    with Image.open(io.BytesIO(png_bytes(picture))) as image:
        image.verify()  # checksums
    with Image.open(io.BytesIO(png_bytes(picture))) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert_array_equal(np.asarray(image), picture)


def test_a_view_is_no_other_picture():
    picture = np.arange(60 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 40, 3)
    assert png_bytes(picture[::-1, ::2]) == png_bytes(np.ascontiguousarray(picture[::-1, ::2]))


def test_smooth_pictures_become_small():
    slope = np.linspace(0, 255, 400).astype(np.uint8)
    picture = np.broadcast_to(slope[:, None, None], (400, 600, 3))
    assert len(png_bytes(picture)) < picture.size / 50
