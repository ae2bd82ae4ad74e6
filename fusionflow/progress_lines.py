"""What is said of each event: lines in rich's markup, for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.markup import escape

from fusionflow.config import Method
from fusionflow.events import (
    Again,
    Event,
    Failed,
    Fused,
    LeftOut,
    Planned,
    PutOff,
    Quarantined,
    Started,
    Stopping,
    Unchanged,
    Waiting,
)
from fusionflow.preflight import Preflight

#: Characters of a note that are shown while a run goes on; the sidecar and `status -v` hold it all.
_NOTE = 110
_COLOURS = {"ok": "green", "note": "bold yellow", "fails": "bold red"}


def lines_of(event: Event, method: Method) -> Iterator[str]:
    """Yield the lines that an event is worth; none for what only the live display shows.

    Parameters
    ----------
    event : Event
        What happened.
    method : Method
        What the run fuses with.
    """
    match event:
        case Planned():
            yield from _plan(event, method)
        case Started(dashboard):
            yield f"dashboard {escape(dashboard)}"
        case Preflight():
            yield from _checks(event)
        case Fused():
            yield from _fused(event)
        case Unchanged(label):
            yield f"same   {escape(label)}  as it was made before"
        case Waiting(label, why):
            yield f"[yellow]wait[/]   {escape(label)}  {escape(why)}"
        case Quarantined(attempt):
            yield f"[red]quarantined[/] {escape(attempt.label)}  {escape(attempt.reason)}"
        case Again(label, reason, alone):
            how = "alone" if alone else "again"
            yield f"[yellow]{how}[/]  {escape(label)}  {escape(reason)}"
        case PutOff(label, reason):
            yield f"[yellow]later[/]  {escape(label)}  {escape(reason)}"
        case LeftOut(label, why):
            yield f"[yellow]not in the summary[/] {escape(label)}  {escape(why)}"
        case Failed(failure):
            yield f"[red]failed[/] {escape(failure.label)}  {escape(failure.reason)}"
        case Stopping(in_flight):
            scans = "1 scan that is" if in_flight == 1 else f"{in_flight} scans that are"
            what = f"Finishing {scans} in flight; Ctrl-C again stops at once"
            yield f"[bold yellow]{what if in_flight else 'Nothing is in flight; ending'}[/]"


def _plan(event: Planned, method: Method) -> Iterator[str]:
    yield f"{event.scans} scans with {escape(method.name)}"
    if event.weights is not None:
        warn = "[bold yellow]WARNING[/] " if event.weights.is_random else ""
        yield f"{warn}weights of {event.weights.backbone}: {escape(event.weights.description)}"
    for note in event.notes:
        yield f"note: {escape(note)}"
    for item in event.excluded:
        if not item.broken:
            yield f"[yellow]skipped[/] {escape(item.label)}  {escape(item.reason)}"


def _checks(event: Preflight) -> Iterator[str]:
    """Yield the table of what was looked at before any work."""
    width = max(len(check.name) for check in event.checks)
    for check in event.checks:
        mend = f". {check.mend}" if check.mend and check.state != "ok" else ""
        yield (
            f"[{_COLOURS[check.state]}]{check.state:5}[/]  {check.name:{width}}  "
            f"{escape(check.found)}{escape(mend)}"
        )


def _fused(event: Fused) -> Iterator[str]:
    record = event.record
    again = f"; made again: {event.why}" if event.why != "new" else ""
    yield (
        f"[green]fused[/]  {escape(record.label)}  {record.shape[0]} slices, "
        f"{record.seconds:.1f} s of fusion{escape(again)}"
    )
    for note in record.notes:
        if not note.startswith("The backbone has RANDOM weights"):  # said at the start
            yield f"       note: {escape(textwrap.shorten(note, _NOTE, placeholder=' ...'))}"
