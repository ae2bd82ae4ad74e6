"""Pictures show a slice as a reader expects it: front up, left on the left, in true proportions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fusionflow.pictures import mosaic, shown, slices_to_show


def block_means(picture, rows, columns):
    """Return the mean shown of each of rows x columns equal parts of a picture."""
    levels = np.asarray(picture, float)
    parts = [np.array_split(row, columns, axis=1) for row in np.array_split(levels, rows)]
    return np.array([[part.mean() for part in row] for row in parts])


class TestGrey:
    @pytest.mark.parametrize(
        ("pixel", "place"),
        [((-1, 0), (0, 0)), ((-1, -1), (0, -1)), ((0, 0), (-1, 0)), ((0, -1), (-1, -1))],
        ids=["front left", "front right", "back left", "back right"],
    )
    def test_front_is_up_and_left_is_left(self, pixel, place):
        image = np.zeros((8, 8))
        image[pixel] = 1
        seen = block_means(shown(image, height=80), 8, 8)
        wanted = np.zeros((8, 8), bool)
        wanted[place] = True
        assert_array_equal(seen > 127, wanted)

    @pytest.mark.parametrize(
        ("shape", "pixel_size", "ratio"),
        [
            ((10, 10), (1.0, 1.0), 1.0),
            ((10, 20), (1.0, 1.0), 2.0),
            ((10, 20), (2.0, 1.0), 1.0),
            ((10, 10), (1.0, 3.0), 3.0),
            ((109, 91), (2.0, 2.0), 91 / 109),
            ((256, 170), (0.9, 1.2), 170 * 1.2 / (256 * 0.9)),
        ],
    )
    def test_millimetres_are_as_long_across_as_up(self, shape, pixel_size, ratio):
        picture = shown(np.zeros(shape), pixel_size, height=300)
        assert picture.height == 300
        assert abs(picture.width - 300 * ratio) <= 0.5

    @pytest.mark.parametrize(
        ("value", "level"), [(0, 0), (1, 255), (0.5, 128), (-3, 0), (7, 255), (0.2, 51)]
    )
    def test_0_is_black_and_1_white_and_beyond_is_cut(self, value, level):
        assert_array_equal(np.asarray(shown(np.full((5, 6), value, np.float32))), level)

    def test_is_an_8_bit_grey_picture(self):
        assert shown(np.zeros((5, 6))).mode == "L"

    def test_a_line_of_voxels_is_still_a_picture(self):
        assert shown(np.zeros((500, 1)), height=20).size == (1, 20)

    def test_does_not_change_the_image(self):
        image = np.linspace(-1, 2, 30).reshape(5, 6)
        before = image.copy()
        shown(image)
        assert_array_equal(image, before)


class TestSlicesToShow:
    @given(st.integers(0, 40), st.integers(1, 60), st.integers(0, 40), st.integers(1, 9))
    def test_lie_inside_the_head_in_order_and_are_no_more_than_asked(
        self, below, inside, above, count
    ):
        mask = np.zeros((below + inside + above, 2, 2), np.uint8)
        mask[below : below + inside, 1, 0] = 1
        chosen = slices_to_show(mask, count)
        assert 1 <= len(chosen) <= count
        assert chosen == sorted(set(chosen))
        assert all(mask[z].any() for z in chosen)
        assert chosen == slices_to_show(mask.copy(), count)
        if inside >= 3 * count:
            assert len(chosen) == count

    def test_are_spread_evenly(self):
        mask = np.zeros((100, 2, 2), bool)
        mask[10:81] = True
        assert slices_to_show(mask, 6) == [20, 30, 40, 50, 60, 70]

    def test_of_no_head_are_those_of_the_volume(self):
        assert slices_to_show(np.zeros((71, 2, 2), bool), 6) == [10, 20, 30, 40, 50, 60]

    def test_are_plain_numbers(self):
        assert {type(z) for z in slices_to_show(np.ones((20, 2, 2)))} == {int}


class TestMosaic:
    ROWS, SLICES = ("mri", "pet", "fused"), (2, 5, 7)

    @pytest.fixture
    def volumes(self):
        """Random volumes; nothing in them is as black as the paper."""
        rng = np.random.default_rng(0)
        return {name: rng.uniform(0.3, 1, (9, 12, 10)) for name in self.ROWS}

    @staticmethod
    def place(canvas, tile):
        """Return (top, left) of every place where a tile lies on a canvas, labels aside."""
        canvas, tile = np.asarray(canvas), np.asarray(tile)
        # Letters lie on the first tile, so its middle is what is looked for.
        rows, columns = tile.shape[0], tile.shape[1]
        middle = tile[10:40, columns // 2 - 15 : columns // 2 + 15]
        windows = np.lib.stride_tricks.sliding_window_view(canvas[:, :], middle.shape)
        first = np.argwhere(windows[:, :, 0, 0] == middle[0, 0])
        hits = [tuple(at) for at in first if np.array_equal(windows[tuple(at)], middle)]
        return [(y - 10, x - columns // 2 + 15) for y, x in hits], (rows, columns)

    def test_is_a_row_a_volume_and_a_column_a_slice(self, volumes):
        canvas = mosaic(volumes, self.SLICES, "sub-01", (3.0, 1.0, 1.0))[..., 0]
        places = []
        for name in self.ROWS:
            for z in self.SLICES:
                found, (rows, columns) = self.place(canvas, shown(volumes[name][z]))
                assert len(found) == 1, (name, z)
                places.append(found[0])
                assert found[0][0] + rows <= len(canvas)
                assert found[0][1] + columns <= canvas.shape[1]
        grid = np.array(places).reshape(3, 3, 2)
        assert (np.diff(grid[..., 0], axis=1) == 0).all()
        assert (np.diff(grid[..., 1], axis=0) == 0).all()
        assert (np.diff(grid[..., 0], axis=0) >= 220).all()
        assert (np.diff(grid[..., 1], axis=1) >= columns).all()

    def test_left_and_right_are_marked_on_the_first_slice(self, volumes):
        canvas = mosaic(volumes, self.SLICES, "sub-01")[..., 0]
        tile = shown(volumes["mri"][2])
        ((top, left),), (rows, columns) = self.place(canvas, tile)
        changed = canvas[top : top + rows, left : left + columns] != np.asarray(tile)
        where = np.flatnonzero(changed.any(axis=0))
        assert where.min() < 10
        assert columns - 10 < where.max() < columns - 1  # whole letters
        assert not changed[:, 20:-20].any()
        second = canvas[top : top + rows, left + columns :]
        other = shown(volumes["mri"][5])
        ((_, next_left),), _ = self.place(canvas, other)
        assert_array_equal(second[:, next_left - left - columns :][:, :columns], np.asarray(other))

    def test_colours_are_kept_beside_grey(self, volumes):
        volumes["colours"] = np.random.default_rng(1).integers(0, 256, (9, 12, 10, 3), np.uint8)
        for rows in (volumes, {name: volumes[name] for name in reversed(volumes)}):
            canvas = mosaic(rows, self.SLICES, "")
            colours = np.asarray(shown(volumes["colours"][7]))
            for channel in range(3):
                found, _ = self.place(canvas[..., channel], colours[..., channel])
                assert len(found) == 1
            letters = mosaic({"": rows[next(iter(rows))]}, self.SLICES[:1], "")[:, :20]
            assert (letters == 235).all(axis=2).any()

    def test_is_the_same_each_time(self, volumes):
        one, two = (mosaic(volumes, self.SLICES, "sub-01 dwt-vgg19") for _ in range(2))
        assert one.tobytes() == two.tobytes()

    def test_the_title_and_the_names_are_written(self, volumes):
        titled, untitled = (mosaic(volumes, self.SLICES, title) for title in ("sub-01", ""))
        changed = np.argwhere(titled != untitled)
        assert len(changed) > 0
        assert changed[:, 0].max() < 30
        wide = mosaic(volumes, self.SLICES, "W" * 200)
        assert wide[:30, -100:].any()
        for name in self.ROWS:
            named = mosaic({name: volumes["mri"], "unlike others": volumes["pet"]}, [2], "")
            other = mosaic({"": volumes["mri"], "unlike others": volumes["pet"]}, [2], "")
            assert named.shape == other.shape
            changed = np.argwhere((named != other).any(axis=2))
            assert len(changed) > 0
            assert changed[:, 1].max() < 110
        renamed = {name.replace("fused", "fusen"): volume for name, volume in volumes.items()}
        assert not np.array_equal(mosaic(renamed, self.SLICES, ""), untitled)

    def test_voxels_that_are_not_cubes_keep_their_proportions(self, volumes):
        wide = mosaic(volumes, self.SLICES, "", (1.0, 1.0, 2.0))
        cube = mosaic(volumes, self.SLICES, "", (1.0, 1.0, 1.0))
        tile = shown(volumes["mri"][2]).width
        assert len(wide) == len(cube)
        assert wide.shape[1] - cube.shape[1] == pytest.approx(3 * tile, abs=3)
