"""The table of colours is found from the images that use it."""

from __future__ import annotations

import numpy as np
import pytest
from colours import painted, photograph, smooth
from PIL import Image

from fusionflow.colour import TABLES, fit_table, uptake
from fusionflow.errors import InputError


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
