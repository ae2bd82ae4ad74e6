"""Tables of methods, metrics, variables and events, from where the code declares them."""

from __future__ import annotations

import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from mathml import mathml

import fusionflow.events
from fusionflow import metrics as scan_metrics
from fusionflow import quality, schema, summary
from fusionflow.config import METHODS

_ROLE = re.compile(r":math:`(.+?)`", re.DOTALL)
#: A formula that needs no LaTeX, at the end of the summary.
_PLAIN = re.compile(r", ([^,]*H\(a\).*)\.$")
_DIRECTIVE = re.compile(r"\.\. math::\s+(.+?)(?:\n\s*\n|$)", re.DOTALL)
#: Functions behind the names of metrics, where these differ.
_FUNCTIONS: dict[str, str] = {
    "mse": "mean_squared_error", "rmse_relative": "relative_rmse", "rms": "root_mean_square",
    "ssim": "structural_similarity", "mi": "mutual_information",
    "nmi": "normalised_mutual_information", "entropy_fused": "entropy",
    "joint_entropy_sources": "joint_entropy",
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def formula_of(function: Callable[..., Any]) -> str:
    """Return the formula that a function's docstring begins with, as MathML; empty if none."""
    while isinstance(function, partial):
        names = [part for part in function.args if callable(part)]
        function = names[0] if names else function.func
    text = inspect.getdoc(function) or ""
    role, block = _ROLE.search(text.split("\n\n")[0]), _DIRECTIVE.search(text)
    found = block if block and not role else role
    if found:
        return mathml(found[1].replace("&", "").replace(r"\\", " "))
    plain = _PLAIN.search(text.split("\n\n")[0])
    return f"`{plain[1]}`" if plain else ""


def interval(bounds: tuple[float, float]) -> str:
    """Return a range in words."""
    low, high = bounds
    if math.isinf(high):
        return "any" if math.isinf(low) else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def metrics() -> str:
    """Return the metrics of every scan."""
    rows = []
    declared = (*scan_metrics.PAIR_METRICS, *scan_metrics.IMAGE_METRICS, summary.FUSION_TIME)
    for metric in declared:
        function = getattr(scan_metrics, _FUNCTIONS.get(metric.name, metric.name), None)
        formula = formula_of(function) if callable(function) else ""
        rows.append(
            (f"`{metric.name}`", metric.long_name, formula, interval(metric.value_range),
             metric.units, metric.better)
        )  # fmt: skip
    return table(("name", "what", "formula", "range", "unit", "better"), rows)


def qualities() -> str:
    """Return the figures of `fusionflow benchmark`."""
    rows = [
        (", ".join(f"`{key}`" for key in item.keys), item.long_name, formula_of(item.function),
         interval(item.value_range), item.units, item.better)
        for item in quality.QUALITIES
    ]  # fmt: skip
    return table(("name", "what", "formula", "range", "unit", "better"), rows)


def methods() -> str:
    """Return the methods that have a name."""
    rows = []
    for method in METHODS.values():
        transform = getattr(method.transform, "name", method.transform.kind)
        levels = method.transform.levels
        works = f"{transform}, {levels} level{'s' * (levels > 1)}" if levels else "pixels"
        network = f"{method.backbone}: {', '.join(method.taps)}" if method.backbone else "none"
        rows.append((f"`{method.name}`", works, f"`{method.rule}`", network, f"`{method.weights}`"))
    return table(("name", "works on", "rule", "network and taps", "weights"), rows)


def variables() -> str:
    """Return the variables of a scan's group."""
    rows = [
        (f"`{item.name}`", ", ".join(item.dims), item.dtype, item.units, item.doc)
        for item in schema.PUBLISHED
    ]
    return table(("variable", "dimensions", "dtype", "unit", "what"), rows)


def events() -> str:
    """Return what a run tells while it goes on."""
    kinds = typing.get_args(fusionflow.events.Event)
    rows = []
    for kind in kinds:
        names = ", ".join(f"`{name}`" for name in kind.__dataclass_fields__)
        rows.append((f"`{kind.__name__}`", names, (inspect.getdoc(kind) or "").split("\n\n")[0]))
    return table(
        ("event", "holds", "when"),
        [(name, holds, " ".join(said.split())) for name, holds, said in rows],
    )
