"""What a person sees while a run goes on: a bar on a terminal, otherwise a line a scan."""

from __future__ import annotations

import textwrap
from types import TracebackType
from typing import Self

import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from fusionflow.config import Method
from fusionflow.events import (
    Again,
    Event,
    Failed,
    Fused,
    LeftOut,
    Planned,
    Quarantined,
    Started,
    Unchanged,
    Waiting,
)
from fusionflow.preflight import Preflight
from fusionflow.summary import cohort_table
from fusionflow.untrusted import printable

#: Characters of a note that are shown while a run goes on; the sidecar and `status -v` hold it all.
_NOTE = 110


class Display:
    """Shows the events of a run.

    Parameters
    ----------
    method : Method
        What the run fuses with.
    console : Console, optional
        Where; by default the standard error stream, so that results can be piped.
    bar : bool
        Whether a terminal gets a bar.
    """

    def __init__(self, method: Method, console: Console | None = None, *, bar: bool = True) -> None:
        self.method = method
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not (bar and self.console.is_terminal),
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the bar as it is."""
        self.progress.stop()

    def show(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Planned):
            self._begin(event)
            return
        if isinstance(event, Started):
            self._say(f"dashboard {event.dashboard}")
            return
        if isinstance(event, Preflight):
            self._show_checks(event)
            return
        if isinstance(event, Fused):
            record = event.record
            again = f"; made again: {event.why}" if event.why != "new" else ""
            self._say(
                f"[green]fused[/]  {escape(record.label)}  {record.shape[0]} slices, "
                f"{record.seconds:.1f} s of fusion{escape(again)}"
            )
            for note in record.notes:
                if not note.startswith("The backbone has RANDOM weights"):  # said at the start
                    self._say(
                        f"       note: {escape(textwrap.shorten(note, _NOTE, placeholder=' ...'))}"
                    )
        elif isinstance(event, Unchanged):
            self._say(f"same   {escape(event.label)}  as it was made before")
        elif isinstance(event, Waiting):
            self._say(f"[yellow]wait[/]   {escape(event.label)}  {escape(event.why)}")
        elif isinstance(event, Quarantined):
            attempt = event.attempt
            self._say(f"[red]quarantined[/] {escape(attempt.label)}  {escape(attempt.reason)}")
            if attempt.kind == "excluded":
                return
        elif isinstance(event, Again):
            how = "alone" if event.alone else "again"
            self._say(f"[yellow]{how}[/]  {escape(event.label)}  {escape(event.reason)}")
            return
        elif isinstance(event, LeftOut):
            self._say(f"[yellow]not in the summary[/] {escape(event.label)}  {escape(event.why)}")
            return
        elif isinstance(event, Failed):
            failure = event.failure
            self._say(f"[red]failed[/] {escape(failure.label)}  {escape(failure.reason)}")
            if failure.kind == "excluded":
                return
        if self.task is not None:
            self.progress.advance(self.task)

    def _begin(self, event: Planned) -> None:
        self._say(f"{event.scans} scans with {escape(self.method.name)}")
        if event.weights is not None:
            warn = "[bold yellow]WARNING[/] " if event.weights.is_random else ""
            self._say(
                f"{warn}weights of {event.weights.backbone}: {escape(event.weights.description)}"
            )
        for note in event.notes:
            self._say(f"note: {escape(note)}")
        for item in event.excluded:
            if not item.broken:
                self._say(f"[yellow]skipped[/] {escape(item.label)}  {escape(item.reason)}")
        self.task = self.progress.add_task("fusing", total=event.scans)

    def _show_checks(self, event: Preflight) -> None:
        """Show the table of what was looked at before any work."""
        colours = {"ok": "green", "note": "bold yellow", "fails": "bold red"}
        width = max(len(check.name) for check in event.checks)
        for check in event.checks:
            mend = f". {check.mend}" if check.mend and check.state != "ok" else ""
            self._say(
                f"[{colours[check.state]}]{check.state:5}[/]  {check.name:{width}}  "
                f"{escape(check.found)}{escape(mend)}"
            )

    def _say(self, line: str) -> None:
        self.console.print(printable(line))  # names and reasons come from files


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
