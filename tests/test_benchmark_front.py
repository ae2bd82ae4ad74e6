"""What is better in all six figures, and the picture of the front."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from fusionflow.benchmark_front import (
    SIX,
    along_the_knob,
    better_than,
    draw_front,
    is_setting,
)
from fusionflow.config import METHODS, Method
from fusionflow.errors import ConfigurationError

LEARNED = Method(name="mine", rule="learned", backbone="vgg19", taps=("relu1_1",))


def table(**rows):
    return pd.DataFrame(list(rows.values()), columns=list(SIX), index=list(rows))


class TestAlongTheKnob:
    def test_only_learned_rules_have_settings(self):
        methods = along_the_knob([METHODS["maximum"], LEARNED], [0.0, 0.25, 1.0])
        assert [(m.name, m.balance) for m in methods] == [
            ("maximum", 0.5), ("mine", 0.5), ("mine@0", 0.0), ("mine@0.25", 0.25), ("mine@1", 1.0),
        ]  # fmt: skip
        assert [is_setting(method.name) for method in methods] == [False, False, True, True, True]

    def test_the_same_twice_is_one(self):
        assert len(along_the_knob([LEARNED], [0.1, 0.10000001, 0.1])) == 2

    def test_none_asked_for(self):
        assert along_the_knob([METHODS["maximum"]], []) == [METHODS["maximum"]]

    def test_what_makes_no_sense(self):
        with pytest.raises(ConfigurationError, match=r"balance of 1\.5 is not in 0\.\.1"):
            along_the_knob([LEARNED], [0.5, 1.5])
        with pytest.raises(ConfigurationError, match="learned rule"):
            along_the_knob([METHODS["maximum"]], [0.5])


class TestBetter:
    def test_one_worse_figure_is_enough_to_be_no_better(self):
        base = np.full(6, 0.5)
        for index in range(6):
            other = base + 0.1
            other[index] = 0.49
            assert better_than(table(a=base, b=other)).by["a"] == ""

    def test_equal_is_as_good_but_something_must_be_better(self):
        base = np.full(6, 0.5)
        assert better_than(table(a=base, b=base)).by.tolist() == ["", ""]
        one = base.copy()
        one[3] = 0.6
        found = better_than(table(a=base, b=one))
        assert found.loc["a"].tolist() == ["b", 1, 0]
        assert found.loc["b"].tolist() == ["", 0, 0]

    def test_the_one_better_in_most_figures_is_named(self):
        base = np.full(6, 0.5)
        few, many = base.copy(), base + 0.01
        few[0] = 0.9
        found = better_than(table(a=base, few=few, **{"knob@0.5": many}))
        assert found.loc["a"].tolist() == ["knob@0.5", 6, 1]
        assert "knob@0.5" not in found.index

    def test_a_figure_that_is_not_there_is_not_compared(self):
        base, other = np.full(6, 0.5), np.full(6, 0.6)
        base[1] = np.nan
        assert better_than(table(a=base, b=other)).loc["a"].tolist() == ["b", 5, 0]
        assert better_than(table(a=other - 0.2, b=base)).by["a"] == ""


class TestDrawing:
    def test_every_method_is_a_point_where_its_figures_are(self):
        rng = np.random.default_rng(0)
        rows = {f"method {i}": rng.random(6) for i in range(12)}
        rows |= {f"knob@{b:g}": rng.random(6) for b in (0, 0.5, 1)}
        drawn = ElementTree.fromstring(draw_front(table(**rows)))
        space = "{http://www.w3.org/2000/svg}"
        panels = drawn.findall(f"{space}g")
        assert len(panels) == 3
        frame = table(**rows)
        for panel, (across, up) in zip(
            panels, (("scd", "qabf"), ("ssim_pet", "ssim_mri"), ("vif_pet", "vif_mri")), strict=True
        ):
            spots = {
                circle.find(f"{space}title").text: (
                    float(circle.get("cx")),
                    float(circle.get("cy")),
                )
                for circle in panel.iter(f"{space}circle")
            }
            assert len(spots) == 15
            names = [f"method {i}" for i in range(12)]
            xs, ys = np.array([spots[name] for name in names]).T
            # Right is higher, and so is up.
            assert np.corrcoef(xs, frame.loc[names, across])[0, 1] == pytest.approx(1, abs=1e-5)
            assert np.corrcoef(ys, frame.loc[names, up])[0, 1] == pytest.approx(-1, abs=1e-5)
            assert len(panel.findall(f"{space}polyline")) == 1

    @pytest.mark.parametrize("reach", [1e-4, 0.3, 1.0, 1.7, 5.0])
    def test_axes_have_a_few_ticks_inside(self, reach):
        frame = table(a=np.full(6, 0.1), b=np.full(6, 0.1 + reach))
        panel = ElementTree.fromstring(draw_front(frame)).find("{http://www.w3.org/2000/svg}g")
        lines = [line.get("d") for line in panel.findall("{http://www.w3.org/2000/svg}path")]
        ups = [float(d[1:].split()[0]) for d in lines if "V" in d]
        assert 3 <= len(ups) <= 7
        assert (np.diff(ups) > 30).all()
        assert 0 <= min(ups) <= max(ups) <= 330

    def test_a_long_name_is_shortened_and_not_lost(self):
        drawn = draw_front(table(**{"n" * 80: np.full(6, 0.1), "b": np.full(6, 0.5)}))
        assert "n" * 23 + "…</text>" in drawn

    @pytest.mark.parametrize("name", ["<b>&", "a" * 200, "\u202e"])
    def test_any_name_and_figures_that_are_not_there(self, name):
        row = np.full(6, np.nan)
        ElementTree.fromstring(draw_front(table(**{name: row, "b": np.full(6, 0.5)})))
        ElementTree.fromstring(draw_front(table(**{name: row})))
