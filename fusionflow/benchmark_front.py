"""Which methods do better than others by all figures at once, and the front that the knob spans.

A single figure is easy to fool: the unchanged MRI scores high on several and shows no PET. So a
method counts as better than another only if none of the six figures is worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

import pandas as pd

from fusionflow.config import Method
from fusionflow.errors import ConfigurationError
from fusionflow.fusion import named_rule

__all__ = ["SIX", "along_the_knob", "better_than", "draw_front", "is_setting"]

#: The figures that methods are judged on together; all are better where they are higher.
SIX: Final = ("qabf", "scd", "ssim_mri", "ssim_pet", "vif_mri", "vif_pet")
_AT: Final = "@"
_PANELS: Final = (("scd", "qabf"), ("ssim_pet", "ssim_mri"), ("vif_pet", "vif_mri"))
_TITLES: Final = {
    "qabf": "Qabf", "scd": "SCD", "ssim_mri": "SSIM, MRI", "ssim_pet": "SSIM, PET",
    "vif_mri": "VIF, MRI", "vif_pet": "VIF, PET",
}  # fmt: skip


def along_the_knob(methods: Sequence[Method], balances: Sequence[float]) -> list[Method]:
    """Return methods, those with a learned rule once more for every balance, as ``NAME@BALANCE``.

    Raises
    ------
    ConfigurationError
        If a balance is not in 0..1, or no method has a learned rule.
    """
    balances = [float(text) for text in dict.fromkeys(f"{balance:g}" for balance in balances)]
    for balance in balances:
        if not 0 <= balance <= 1:
            raise ConfigurationError(f"A balance of {balance:g} is not in 0..1")
    if balances and not any(named_rule(method.rule).is_learned for method in methods):
        raise ConfigurationError(
            "No method that is compared has a learned rule, so none has a balance",
            "Leave the balances out, or add dwt-vgg19",
        )
    chosen: list[Method] = []
    for method in methods:
        chosen.append(method)
        if named_rule(method.rule).is_learned:
            chosen += [
                method.model_copy(
                    update={"name": f"{method.name}{_AT}{balance:g}", "balance": balance}
                )
                for balance in balances
            ]
    return chosen


def is_setting(name: str) -> bool:
    """Whether a row of a table is a setting of the knob that `along_the_knob` added."""
    return _AT in name


def better_than(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is at least as good as each method in every figure, and better in some.

    Parameters
    ----------
    table : DataFrame
        A row a method, with the columns `SIX`.

    Returns
    -------
    DataFrame
        For each method that is no setting of the knob: ``by`` (the method that is better than it
        in most figures, and among these by most; empty if there is none), ``columns`` (in how many
        of the six it is), ``also`` (how many others are, too). A figure that a method does not
        have is not compared.
    """
    figures = table[list(SIX)]
    rows = {}
    for name, row in figures.iterrows():
        if is_setting(str(name)):
            continue
        gains = (figures.drop(index=name) - row).loc[:, row.notna()]
        found = gains[(gains >= 0).all(axis=1) & (gains > 0).any(axis=1)]
        counts = (found > 0).sum(axis=1)
        if found.empty:
            rows[str(name)] = {"by": "", "columns": 0, "also": 0}
            continue
        most = found[counts == counts.max()].div(row.abs(), axis="columns").mean(axis=1).idxmax()
        rows[str(name)] = {
            "by": str(most), "columns": int(counts[most]), "also": len(found) - 1,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index", columns=["by", "columns", "also"])


_WIDTH, _HEIGHT, _LEFT, _TOP = 330, 300, 58, 24
_LETTER = 5.6
_LONGEST = 24
_LINE = 12


def draw_front(table: pd.DataFrame) -> str:
    """Draw methods as points, pairs of figures as axes, and the settings of each knob as a line.

    Parameters
    ----------
    table : DataFrame
        A row a method, with the columns `SIX`.

    Returns
    -------
    str
        SVG: Qabf over SCD, and SSIM and VIF with the MRI over those with the PET. Up and to the
        right is better.
    """
    whole = _WIDTH + _LEFT + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole * len(_PANELS)} '
        f'{_HEIGHT + _TOP + 52}" role="img" font-family="system-ui, sans-serif" font-size="11">'
        "<title>Figures of each method; a line joins the settings of a knob</title>"
        "<style>text { fill: #222 } .grid { stroke: #ddd } .axis { stroke: #888; fill: none }"
        ".knob { stroke: #b3560d; fill: none; stroke-width: 2 } .setting { fill: #b3560d }"
        ".other { fill: #33658a } .small { font-size: 10px }"
        "@media (prefers-color-scheme: dark) { text { fill: #ddd } .grid { stroke: #333 }"
        ".other { fill: #86bbd8 } .knob { stroke: #f6ae2d } .setting { fill: #f6ae2d } }</style>"
    ]
    for index, (across, up) in enumerate(_PANELS):
        parts.append(f'<g transform="translate({index * whole + _LEFT} {_TOP})">')
        parts += _panel(table, across, up)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(table: pd.DataFrame, across: str, up: str) -> list[str]:
    """Draw one pair of figures."""
    there = table[[across, up]].dropna()
    xs, ys = _Scale(there[across], _WIDTH), _Scale(there[up], _HEIGHT, down=True)
    parts = [f'<rect class="axis" width="{_WIDTH}" height="{_HEIGHT}"/>']
    for value in xs.ticks:
        x = xs(value)
        parts.append(f'<path class="grid" d="M{x:.1f} 0V{_HEIGHT}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT + 15}" text-anchor="middle">{value:.3g}</text>'
        )
    for value in ys.ticks:
        y = ys(value)
        parts.append(f'<path class="grid" d="M0 {y:.1f}H{_WIDTH}"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 34}" text-anchor="middle">{_TITLES[across]}</text>'
        f'<text transform="translate(-42 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{_TITLES[up]}</text>"
    )
    places = {str(name): (xs(row[across]), ys(row[up])) for name, row in there.iterrows()}
    labels: list[tuple[str, float, float]] = []
    for knob in dict.fromkeys(name.partition(_AT)[0] for name in places if is_setting(name)):
        settings = sorted(
            (float(name.partition(_AT)[2]), place)
            for name, place in places.items()
            if is_setting(name) and name.partition(_AT)[0] == knob
        )
        points = " ".join(f"{x:.1f},{y:.1f}" for _, (x, y) in settings)
        parts.append(f'<polyline class="knob" points="{points}"/>')
        for balance, (x, y) in settings:
            parts.append(
                f'<circle class="setting" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
                f"<title>{escape(knob)} at balance {balance:g}</title></circle>"
            )
        labels += [(f"{balance:g}", *settings[i][1]) for i, balance in _ends(settings)]
    for name, (x, y) in places.items():
        if is_setting(name):
            continue
        parts.append(
            f'<circle class="other" cx="{x:.1f}" cy="{y:.1f}" r="3.5">'
            f"<title>{escape(name)}</title></circle>"
        )
        labels.append((name, x, y))
    return parts + _labelled(labels, [*places.values()])


def _ends(settings: Sequence[tuple[float, tuple[float, float]]]) -> list[tuple[int, float]]:
    return [(index, settings[index][0]) for index in sorted({0, len(settings) - 1})]


def _labelled(
    labels: Iterable[tuple[str, float, float]], points: Sequence[tuple[float, float]]
) -> list[str]:
    """Place labels beside their points, where no other label and the fewest points are."""
    taken: list[tuple[float, float, float, float]] = []
    parts = []
    for name, x, y in labels:
        text = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
        wide = _LETTER * len(text)
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for far in range(8):
            for left in (x + 6, x - 6 - wide, x - wide / 2):
                for top in (y - _LINE / 2 - far * _LINE, y - _LINE / 2 + far * _LINE):
                    box = (left, top, left + wide, top + _LINE)
                    if left < 2 or box[2] > _WIDTH - 2 or top < 2 or box[3] > _HEIGHT - 2:
                        continue
                    covered = sum(_LINE * 40 for other in taken if _overlap(box, other))
                    covered += sum(
                        20 for px, py in points if _overlap(box, (px - 3, py - 3, px + 3, py + 3))
                    )
                    cost = covered + far * _LINE + (3 if left < x else 0)
                    if best is None or cost < best[0]:
                        best = cost, box
        if best is None:
            continue
        box = best[1]
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        if abs(middle - y) > _LINE:
            near = min(max(x, box[0]), box[2])
            edge = box[1] if middle > y else box[3]
            parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}L{near:.1f} {edge:.1f}"/>')
        parts.append(
            f'<text class="small" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{escape(text)}</text>'
        )
    return parts


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


class _Scale:
    """Where a figure lies along an axis of some length."""

    def __init__(self, values: pd.Series, length: float, *, down: bool = False) -> None:
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        margin = 0.06 * (high - low) or 0.05
        self.low, self.high, self.length, self.down = low - margin, high + margin, length, down
        step = 10.0 ** math.floor(math.log10(self.high - self.low) - 1)
        step *= next(n for n in (1, 2, 5, 10, 20, 50) if (self.high - self.low) / (n * step) <= 6)
        first = int(self.low / step) + (self.low > 0)
        self.ticks = [
            index * step for index in range(first, first + 20) if index * step <= self.high
        ]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.length * (1 - share if self.down else share)
