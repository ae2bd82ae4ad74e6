"""Columns of a table of scans, packed for a page that holds thousands of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fusionflow.metrics import PAIR_METRICS
from fusionflow.pixels import FloatArray
from fusionflow.schema import SOURCES
from fusionflow.summary import SCAN_METRICS

#: A figure has so many digits in the page.
DIGITS = 5

#: A column of few different numbers tells kinds apart (a scanner's 1.5 and 3 T), as texts do.
_FEW_NUMBERS = 6

#: A number that can be shown as it was written: 0012 is a label, and so are 16 digits.
_NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]{0,14})(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def figure_columns() -> list[dict[str, str]]:
    """Return what is to know of each figure of a scan, by the columns of the table of scans."""
    columns = [
        {"key": f"{metric.name}_{source}", "metric": metric.name, "source": source.upper()}
        | {"name": metric.long_name, "units": metric.units, "better": metric.better}
        for metric in PAIR_METRICS
        for source in SOURCES
    ]
    return columns + [
        {"key": metric.name, "metric": metric.name, "source": ""}
        | {"name": metric.long_name, "units": metric.units, "better": metric.better}
        for metric in SCAN_METRICS
    ]


def rounded(values: FloatArray) -> FloatArray:
    """Return figures with as many digits as the page has.

    Examples
    --------
    >>> rounded(np.array([0.123456789, 12345.678, np.nan])).tolist()
    [0.12346, 12346.0, nan]
    """
    return np.array([float(f"{value:.{DIGITS}g}") for value in values.tolist()], np.float64)


def packed_figures(values: FloatArray) -> list[Any]:
    """Return figures as JSON has them: null for NaN, text for infinities, whole ones short."""
    return [value if np.isfinite(value) and value % 1 else _odd(value) for value in values.tolist()]


def _odd(value: float) -> Any:  # noqa: ANN401
    if np.isfinite(value):
        return int(value)
    return None if np.isnan(value) else ("inf" if value > 0 else "-inf")


def packed_texts(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return texts as the different ones, in order, and which of them each is.

    Examples
    --------
    >>> packed_texts(["b", "a", "b"])
    {'values': ['a', 'b'], 'codes': [1, 0, 1]}
    """
    values = sorted(set(texts))
    places = {text: place for place, text in enumerate(values)}
    return {"values": values, "codes": [places[text] for text in texts]}


def packed_column(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return a column of ``participants.tsv``: numbers if it holds many, otherwise texts.

    Parameters
    ----------
    name : str
        Of the column.
    texts : sequence of str
        Its cells, empty where nothing is known.
    """
    numbers = [_number(text) for text in texts]
    known = {number for text, number in zip(texts, numbers, strict=True) if text}
    if len(known) > _FEW_NUMBERS and None not in known:
        values = np.array([np.nan if item is None else item for item in numbers])
        return {"name": name, "kind": "number", "values": packed_figures(values)}
    return {"name": name, "kind": "text", **packed_texts([text or "n/a" for text in texts])}


def _number(text: str) -> float | None:
    """Return the finite number that a text is, if it is one and no label made of digits."""
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if np.isfinite(value) else None
