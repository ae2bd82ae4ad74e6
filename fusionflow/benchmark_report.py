"""A benchmark as files: TSV, Markdown, and one HTML page with pictures."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from fusionflow.benchmark import PAPER, Benchmark
from fusionflow.benchmark_front import SIX, better_than, draw_front, is_setting
from fusionflow.io.files import write_bytes
from fusionflow.quality import QUALITIES
from fusionflow.subbands import FloatArray
from fusionflow.untrusted import printable

#: Columns that come first, in this order: the six that methods are judged on together.
LEADING = ("seconds", *SIX)
#: Pairs that the page shows.
SHOWN = 4
_PAPER_ROW = "paper (other images)"


def ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Put the leading columns first."""
    first = [column for column in LEADING if column in table.columns]
    return table[[*first, *(column for column in table.columns if column not in first)]]


def paper_table(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the figures that the paper reports, with its means in the last row.

    None where the table has none of them, as under another convention.
    """
    columns = [name for name in PAPER if name in table.columns]
    if not columns:
        return None
    paper = pd.DataFrame([{name: PAPER[name] for name in columns}], index=[_PAPER_ROW])
    return pd.concat([table[columns], paper])


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown, figures with four digits."""
    lines = [
        "| " + " | ".join(["method", *map(str, table.columns)]) + " |",
        "|" + "---|" * (len(table.columns) + 1),
    ]
    lines += [
        f"| {_plain(name)} | " + " | ".join(_figure(value) for value in row) + " |"
        for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(lines) + "\n"


def _plain(text: object) -> str:
    """Return names and reasons, which come from outside, as text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", printable(text))


def _figure(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"


def write_report(benchmark: Benchmark, folder: Path, title: str) -> list[Path]:
    """Write the benchmark's files.

    Parameters
    ----------
    benchmark : Benchmark
        What was measured.
    folder : Path
        Made if it is not there.
    title : str
        Of the page.

    Returns
    -------
    list of Path
        ``benchmark.tsv``, ``benchmark_images.tsv``, ``benchmark_better.tsv`` and
        ``benchmark_front.svg`` (both not under another convention), ``benchmark.md``,
        ``benchmark.html``.

    Raises
    ------
    StoreError
        If they cannot be written.
    """
    table = ordered(benchmark.table)
    paper = paper_table(table)
    better = better_table(table)
    text = f"# {_plain(title)}\n\n{markdown(table)}"
    if paper is not None:
        text += f"\n## The figures of the paper\n\n{_PAPER_NOTE}\n\n{markdown(paper)}"
    if better is not None:
        text += f"\n## What is better in all figures\n\n{_BETTER_NOTE}\n\n{_better_lines(better)}"
    if benchmark.not_run:
        text += "\n## Not run\n\n"
        text += "".join(
            f"- {_plain(name)}: {_plain(why)}\n" for name, why in benchmark.not_run.items()
        )
    contents = {
        "benchmark.tsv": table.to_csv(sep="\t", na_rep="n/a", float_format="%.6g"),
        "benchmark_images.tsv": benchmark.images.to_csv(
            sep="\t", index=False, na_rep="n/a", float_format="%.6g"
        ),
        "benchmark.md": text,
    }
    if better is not None:
        contents["benchmark_better.tsv"] = better.to_csv(sep="\t", index_label="method")
        contents["benchmark_front.svg"] = draw_front(table)
    contents["benchmark.html"] = _page(benchmark, title, table, paper, better)
    for name, content in contents.items():
        write_bytes(folder / name, content.encode())
    return [folder / name for name in contents]


_PAPER_NOTE = (
    "The last row holds the means that Panesar and Ganatra (2024) report for DWT + VGG19. They are "
    "of other images of the same atlas, so this is no verdict; and plain averaging wins most of "
    "these figures, since they measure closeness to both sources and not what a reader gains."
)

_BETTER_NOTE = (
    "A method is better than another only if it is at least as good in all six of Qabf, SCD, SSIM "
    "and VIF against each source. NAME@0.3 is NAME with its knob, `balance`, at 0.3: from 0, "
    "the PET, over both to 1, the MRI."
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: inherit }
tr { background: #fff } .best { font-weight: 700 }
svg { width: 100%; min-width: 60rem } .wide { overflow-x: auto }
figure { display: inline-block; margin: 0 .5rem 1rem 0 }
figcaption { font-size: 13px } img { display: block; width: 200px; image-rendering: auto }
@media (prefers-color-scheme: dark) { body, tr { color: #ddd; background: #181818 }
  th, td { border-color: #444 } }
"""


def better_table(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return what is better than what, see `better_than`; None under another convention."""
    return better_than(table) if set(SIX) <= set(table.columns) else None


def _better_lines(better: pd.DataFrame) -> str:
    """Return what is better than what as a table in Markdown."""
    lines = ["| method | better than it | in columns | so are |", "|---|---|---|---|"]
    for name, row in better.iterrows():
        cells = (_plain(row["by"]), row["columns"], row["also"]) if row["by"] else ("none", "", "")
        lines.append(f"| {_plain(name)} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _page(
    benchmark: Benchmark,
    title: str,
    table: pd.DataFrame,
    paper: pd.DataFrame | None,
    better: pd.DataFrame | None,
) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>Means over {len(benchmark.sources)} pairs; bold is the best of a column. No figure is "
        "a verdict alone: the unchanged MRI does well on several and shows no PET.</p>",
        _html_table(table, bold=True),
    ]
    if paper is not None:
        parts += ["<h2>The figures of the paper</h2>", f"<p>{escape(_PAPER_NOTE)}</p>"]
        parts.append(_html_table(paper, bold=False))
    if better is not None:
        parts += ["<h2>What is better in all figures</h2>", f"<p>{escape(_BETTER_NOTE)}</p>"]
        parts.append(f"<div class=wide tabindex=0>{_inline(draw_front(table))}</div>")
        parts.append("<table><tr><th>method<th>better than it<th>in columns<th>so are</tr>")
        parts += [
            f"<tr><th scope=row>{escape(str(name))}</th><td>{escape(row['by']) or 'none'}</td>"
            f"<td>{row['columns'] or ''}</td><td>{row['also'] if row['by'] else ''}</td></tr>"
            for name, row in better.iterrows()
        ]
        parts.append("</table>")
    for name, why in benchmark.not_run.items():
        parts.append(f"<p><b>{escape(name)}</b> was not run: {escape(why)}</p>")
    names = list(dict.fromkeys(name for name, _ in benchmark.fused if not is_setting(name)))
    step = max(1, len(benchmark.sources) // SHOWN)
    for pair in list(benchmark.sources)[::step][:SHOWN]:
        sources = benchmark.sources[pair]
        parts.append(f"<h2>{escape(pair)}</h2>")
        pictures = {"MRI": sources.mri, "PET": sources.pet}
        pictures |= {name: benchmark.fused[name, pair] for name in names}
        parts += [_figure_of(name, image) for name, image in pictures.items()]
    return "\n".join(parts) + "\n</html>\n"


def _inline(svg: str) -> str:
    """Return a drawing as part of a page, which needs no name space and names no address."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "")


def _html_table(table: pd.DataFrame, *, bold: bool) -> str:
    better = {key: quality.better for quality in QUALITIES for key in quality.keys} | {
        "seconds": "lower"
    }
    best = {}
    for column in map(str, table.columns):
        if bold and better.get(column) in ("higher", "lower"):
            values = table[column]
            best[column] = values.max() if better[column] == "higher" else values.min()
    head = "".join(f"<th scope=col>{escape(str(column))}</th>" for column in table.columns)
    rows = []
    for name, row in table.iterrows():
        cells = "".join(
            f"<td{' class=best' if best.get(column) == value else ''}>{_figure(value)}</td>"
            for column, value in zip(map(str, table.columns), row, strict=True)
        )
        rows.append(f"<tr><th scope=row>{escape(str(name))}</th>{cells}</tr>")
    return (
        "<div class=wide tabindex=0><table><thead><tr><th scope=col>method</th>"
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figure_of(name: str, image: FloatArray) -> str:
    levels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><img alt='{escape(name, quote=True)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )
