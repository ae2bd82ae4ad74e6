"""The README's table is what was measured."""

import csv
import importlib.util

import pytest
from snippets import ROOT


@pytest.fixture(scope="module")
def figures():
    """`workflows/make_figures.py`, as a module."""
    spec = importlib.util.spec_from_file_location(
        "make_figures", ROOT / "workflows/make_figures.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_what_is_stored(figures):
    text = figures.README.read_text()
    assert figures.with_table(text) == text, "python workflows/make_figures.py --only table"


def test_each_figure_is_in_the_table(figures):
    """Read by other code: every stored figure of a row that is shown, to three places."""
    with figures.BENCHMARK.open(newline="") as lines:
        stored = {row["method"]: row for row in csv.DictReader(lines, delimiter="\t")}
    shown = figures.benchmark_table().splitlines()[2:]
    assert len(shown) == len(figures.ROWS) >= 15
    for name, line in zip(figures.ROWS, shown, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        for cell, column in zip(cells, figures.SIX, strict=True):
            value = stored[name][column]
            assert (cell == "-") == (value == "n/a")
            assert cell == "-" or abs(float(cell) - float(value)) <= 0.0005


def test_a_readme_without_a_place_for_it_is_refused(figures):
    with pytest.raises(SystemExit, match="put them where it goes"):
        figures.with_table("no marks here")


def test_a_measured_row_that_is_lost_is_told(figures, tmp_path, monkeypatch):
    short = tmp_path / "benchmark.tsv"
    short.write_text("\n".join(figures.BENCHMARK.read_text().splitlines()[:3]))
    monkeypatch.setattr(figures, "BENCHMARK", short)
    with pytest.raises(SystemExit, match="measure it again"):
        figures.benchmark_table()
