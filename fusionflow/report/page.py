"""What every page has: its style, and all that it shows inside one file."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fusionflow import __version__

#: A page may run what is in it and show what is in it, and reach nothing.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "script-src 'unsafe-inline' blob: 'wasm-unsafe-eval'; worker-src blob:; "
    "connect-src data: blob:; base-uri 'none'; form-action 'none'"
)

#: Says in every page what made it.
MADE_BY = Markup(f'<meta name="generator" content="fusionflow {__version__}">')


def render(template: str, **values: Any) -> str:  # noqa: ANN401
    """Return a page.

    Parameters
    ----------
    template : str
        A file of ``templates``; most extend ``base.html.j2``.
    **values
        What it shows. Texts are escaped; a name that the template asks for must be given.

    Returns
    -------
    str
        HTML.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fusionflow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"policy": POLICY, "static": static, "made_by": MADE_BY}
    environment.filters |= {"embedded": embedded, "figure": figure}
    return environment


@cache
def static(name: str) -> Markup:
    """Return a style sheet or script of ours, as it stands in a page."""
    return Markup((files("fusionflow.report") / "static" / name).read_text("utf-8"))


def embedded(value: Any) -> Markup:  # noqa: ANN401
    r"""Return a value as JSON for a ``<script type="application/json">``; NaN becomes null.

    Examples
    --------
    >>> print(embedded({"label": "</script>", "ssim": float("nan")}))
    {"label":"\u003c/script>","ssim":null}
    """
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(re.sub(r"[<\u2028\u2029]", lambda c: f"\\u{ord(c[0]):04x}", text))


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value made of what JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def data_uri(content: bytes, kind: Literal["image/png", "image/jpeg", "image/webp"]) -> str:
    """Return a picture as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure(value: float | None) -> str:
    """Return a number as people read it: four digits, a dash where there is none.

    Examples
    --------
    >>> figure(0.81234), figure(1234567.0), figure(float("nan"))
    ('0.8123', '1.235e+06', '–')
    """
    return "–" if value is None or not np.isfinite(value) else f"{value:.4g}"
