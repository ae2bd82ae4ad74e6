"""What a person sees while a run goes on: a live display on a terminal, a line a scan anywhere."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Protocol, Self

import xarray as xr
from rich.console import Console
from rich.live import Live as LiveArea
from rich.markup import escape
from rich.table import Table

from fusionflow import logs, progress_json
from fusionflow.config import Method
from fusionflow.events import Event, Planned, RunReport
from fusionflow.progress_lines import lines_of
from fusionflow.progress_live import Live
from fusionflow.progress_tally import Tally
from fusionflow.summary import cohort_table
from fusionflow.untrusted import printable

#: Times a second that the live display is drawn anew.
_REFRESH = 4


class Shown(Protocol):
    """Who is told of a run as it goes on."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""

    def show(self, event: Event) -> None:
        """Show an event."""

    def end(self, report: RunReport) -> None:
        """Show that the run came to its end."""


def display(method: Method, *, bar: bool = True) -> Shown:
    """Return what shows a run that fuses with a method: JSON lines if the logs are JSON."""
    return JsonLines(method) if logs.are_json() else Display(method, bar=bar)


class Display:
    """Shows the events of a run to a person.

    Parameters
    ----------
    method : Method
        What the run fuses with.
    console : Console, optional
        Where; by default the standard error stream, so that results can be piped.
    bar : bool
        Whether a terminal gets a live display. Without one, on a dumb one (``TERM=dumb``), or into
        a file, even if colours are forced, there are lines only.
    """

    def __init__(self, method: Method, console: Console | None = None, *, bar: bool = True) -> None:
        self.method = method
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.tally = Tally()
        self.live: LiveArea | None = None
        if bar and self.console.is_interactive and self.console.file.isatty():
            self.live = LiveArea(
                Live(self.tally),
                console=self.console,
                refresh_per_second=_REFRESH,
                redirect_stdout=False,  # it may be piped
            )

    def __enter__(self) -> Self:
        """Wait for the plan: before it there is nothing to show."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the display as it is."""
        if self.live is not None:
            self.live.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        for line in lines_of(event, self.method):
            # Names and reasons come from files.
            self.console.print(printable(line), emoji=False)
        self.tally.see(event)
        if isinstance(event, Planned) and self.live is not None:
            self.live.start()

    def end(self, report: RunReport) -> None:
        """Say nothing: the command says what came of it, where results go."""


class JsonLines:
    """Shows the events of a run to machines; see `fusionflow.progress_json`."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self._others = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Make libraries write JSON, too."""
        self._others.enter_context(logs.others_as_json())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave libraries as they were."""
        self._others.close()

    def show(self, event: Event) -> None:
        """Write the lines of an event."""
        for name, fields in progress_json.fields_of(event, self.method):
            progress_json.say(name, **fields)

    def end(self, report: RunReport) -> None:
        """Write how the run ended."""
        progress_json.say(
            "ended",
            run=report.run,
            state=report.state,
            exit_code=report.exit_code,
            counts=report.counts,
        )


def print_summary(summary: xr.DataTree) -> None:
    """Print the cohort figures as a table on the standard output."""
    table = Table(
        title=f"Cohort of {summary.attrs['subjects']} subjects, {escape(summary.attrs['method'])}"
    )
    for name in ("metric", "against", "unit", "mean", "sd", "median"):
        table.add_column(name, justify="left" if name in ("metric", "against", "unit") else "right")
    for row in cohort_table(summary).to_dict("records"):
        figures = [f"{row[name]:.4g}" for name in ("mean", "sd", "median")]
        table.add_row(row["metric"], row["source"], row["units"], *figures)
    Console().print(table)
