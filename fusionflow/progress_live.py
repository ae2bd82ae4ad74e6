"""The live part of the terminal: a bar, and what is known of the run, in as many lines as fit."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fusionflow.progress_tally import Tally

#: Between two items of a line.
_GAP = "   "
#: Columns of the bar at most.
_WIDEST = 60


class Live:
    """What rich shows at the bottom of a terminal while a run goes on."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.began = tally.clock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the bar, and lines that hold whole items each."""
        tally, width = self.tally, options.max_width - 1
        done = f" {tally.through}/{tally.total} scans"
        bar = ProgressBar(
            total=max(tally.total, 1),
            completed=tally.through,
            width=max(min(width - cell_len(done), _WIDEST), 4),
            complete_style="cyan",  # of itself it is red, as if something had failed
            finished_style="green",
        )
        row = Table.grid()
        row.add_row(bar, Text(done, no_wrap=True, overflow="ellipsis"))
        yield row
        yield from lines_of(self._items(), width)

    def _items(self) -> Iterator[Text]:
        """Yield what is known, what matters most first."""
        tally = self.tally
        if tally.is_stopping:
            yield Text("stopping", "bold yellow")
        yield Text(f"{tally.fused} fused", "green" if tally.fused else "")
        if tally.untouched:
            yield Text(f"{tally.untouched} untouched")
        yield Text(f"{tally.failed} failed", "red" if tally.failed else "")
        yield Text(f"{tally.in_flight} in flight")
        if (rate := tally.rate) is not None:
            yield Text(f"{rate:.3g} slices/s")
        yield Text(f"{span(tally.clock() - self.began)} gone")
        if (left := tally.seconds_left) is not None:
            yield Text(f"about {span(left)} left")
        if tally.staff is not None:
            staff = tally.staff
            of = f" of {_gigabytes(staff.limit)}" if staff.limit else ""
            yield Text(f"memory {_gigabytes(staff.memory)}{of} GB")
            yield Text(f"{staff.workers} worker{'s' * (staff.workers != 1)}")


def lines_of(items: Iterator[Text], width: int) -> Iterator[Text]:
    """Yield lines of a width at most, each of whole items; what is wider alone is cut."""
    line = Text(no_wrap=True, overflow="ellipsis")
    for item in items:
        if line and line.cell_len + len(_GAP) + item.cell_len > width:
            yield line
            line = Text(no_wrap=True, overflow="ellipsis")
        if line:
            line.append(_GAP)
        line.append_text(item)
    if line:
        yield line


def span(seconds: float) -> str:
    """Return a time as people say it: ``45 s``, ``12 min``, ``1 h 30 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g}"
