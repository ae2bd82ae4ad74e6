"""How cohorts and runs look in a notebook: HTML that takes the colours of the page around it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionflow.metrics import PAIR_METRICS
from fusionflow.records import Attempt, Published
from fusionflow.report.page import figure, render
from fusionflow.summary import metrics_dataset
from fusionflow.untrusted import printable

if TYPE_CHECKING:
    from fusionflow.cohort import Cohort
    from fusionflow.handle import Progress

__all__ = ["cohort_html", "progress_html"]

#: Scans whose records are read: a few thousand bytes and about a tenth of a millisecond each.
_READ = 500
#: Lines of a list.
_LINES = 5
#: What is said of the figures of scans.
_FIGURES = ("ssim", "psnr", "nmi")


def cohort_html(cohort: Cohort) -> str:
    """Return what a cohort holds, from its index alone.

    Of a large cohort some records are read, evenly spread, and that is said.

    Parameters
    ----------
    cohort : Cohort
        An opened one.

    Returns
    -------
    str
        HTML of bounded length.
    """
    places = np.linspace(0, max(0, len(cohort) - 1), min(_READ, len(cohort))).astype(int)
    records = [cohort.records[int(place)] for place in places]
    return render(
        "cohort_card.html.j2",
        root=printable(cohort.paths.root),
        counts={
            "fused": len(cohort),
            "not fused": len(cohort.failures),
            "gone from the input": len(cohort.removed),
        },
        looked_at="" if len(records) == len(cohort) else f"of {len(records)} scans, evenly spread",
        methods=_counted(str(record.method.get("name", "")) for record in records),
        grids=_counted(_grid(record) for record in records),
        figures=_figures(records),
        failures=_reasons(cohort.failures),
        more=max(0, len(cohort.failures) - _LINES),
    )


def progress_html(
    progress: Progress, failures: Sequence[Attempt] = (), error: BaseException | None = None
) -> str:
    """Return how far a run is, with a bar.

    Parameters
    ----------
    progress : Progress
        Of the run.
    failures : sequence of Attempt
        Scans that failed; some are shown.
    error : BaseException, optional
        What ended it.

    Returns
    -------
    str
        HTML.
    """
    left = progress.seconds_left
    link = progress.dashboard
    return render(
        "run_card.html.j2",
        progress=progress,
        share=100 * progress.done / progress.scans if progress.scans else 0,
        took=_duration(progress.seconds),
        left="" if left is None else f"about {_duration(left)} left",
        # Anything else, such as a script's address, is not followed.
        link=link if link.startswith(("http://", "https://", "/")) else "",
        failures=_reasons(failures),
        more=max(0, progress.failed - _LINES),
        error="" if error is None else printable(error),
    )


def _counted(words: Iterable[str]) -> list[tuple[str, int]]:
    return [(printable(word), count) for word, count in Counter(words).most_common(_LINES)]


def _grid(record: Published) -> str:
    z, y, x = record.shape
    size = np.linalg.norm(np.asarray(record.affine)[:3, :3], axis=0)
    return f"{x} × {y} × {z}, " + " × ".join(f"{step:.3g}" for step in size) + " mm"


def _figures(records: Sequence[Published]) -> list[dict[str, Any]]:
    """Return a row for each of some metrics and each source: quartiles over the scans."""
    if not records:
        return []
    table = metrics_dataset(records)
    specs = {metric.name: metric for metric in PAIR_METRICS}
    rows = []
    for name in _FIGURES:
        for source in table["source"].values:
            values = table[name].sel(source=source).values
            values = values[np.isfinite(values)]
            quartiles = np.quantile(values, (0.5, 0.25, 0.75)) if len(values) else [np.nan] * 3
            rows.append(
                {
                    "name": specs[name].long_name,
                    "source": str(source).upper(),
                    "values": [figure(value) for value in quartiles],
                }
            )
    return rows


def _reasons(failures: Sequence[Attempt]) -> list[dict[str, str]]:
    return [
        {
            "label": printable(failure.label),
            "state": failure.state,
            "reason": printable(failure.reason),
        }
        for failure in islice(failures, _LINES)
    ]


def _duration(seconds: float) -> str:
    """Return seconds as people say it.

    >>> _duration(4.2), _duration(300), _duration(7260)
    ('4 s', '5 min 0 s', '2 h 1 min')
    """
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, over = divmod(minutes, 60)
    if hours:
        return f"{hours} h {over} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
