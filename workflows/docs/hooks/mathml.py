"""Formulas as MathML, drawn without a script: ``$$...$$``, ``$...$``, and ``:math:``."""

from __future__ import annotations

import re

from latex2mathml.converter import convert

#: Code comes first, so that what looks like a formula in it is left alone.
_IN_MARKDOWN = re.compile(
    r"(?P<code>^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]+`)"
    r"|\$\$(?P<block>.+?)\$\$|(?<![\\\w$])\$(?P<inline>[^$\n ](?:[^$\n]*[^$\n ])?)\$(?!\w)",
    re.MULTILINE | re.DOTALL,
)
_IN_DOCSTRINGS = re.compile(r":math:<code>(.+?)</code>", re.DOTALL)


def mathml(formula: str, display: str = "inline") -> str:
    """Return a LaTeX formula as MathML."""
    return convert(" ".join(formula.split()), display=display).replace("\n", " ")


def _formula(found: re.Match[str]) -> str:
    if found["code"]:
        return found["code"]
    if found["block"]:
        return f'<div class="formula" tabindex="0">{mathml(found["block"], "block")}</div>'
    # Within a span, for Markdown takes math at the start of a line for a block.
    return f"<span>{mathml(found['inline'])}</span>"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turn the formulas of a page into MathML."""
    return _IN_MARKDOWN.sub(_formula, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Turn what docstrings hold as ``:math:`` into MathML."""
    return _IN_DOCSTRINGS.sub(lambda found: mathml(found[1]), html)
