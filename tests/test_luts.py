"""The known tables of colours are what they should be, and others are read from files."""

from __future__ import annotations

import numpy as np
import pytest
from colours import lightness, painted
from numpy.testing import assert_allclose

from fusionflow.colour import HEAT, TABLES, ColourTable, luminance, read_table
from fusionflow.errors import InputError


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
