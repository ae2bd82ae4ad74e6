"""What a person sees of a run: on real terminals of several widths, and where there is none."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from fusionflow.config import METHODS
from fusionflow.events import (
    Begun,
    Failed,
    Fused,
    Planned,
    Quarantined,
    Staffed,
    Stopping,
    Unchanged,
)
from fusionflow.progress import Display
from fusionflow.progress_live import lines_of, span
from fusionflow.progress_tally import Tally
from fusionflow.records import Attempt

METHOD = METHODS["average"]


class Clock:
    """Seconds that a test says."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tally(clock):
    tally = Tally(clock)
    tally.see(Planned(100, (), None, ()))
    return tally


@pytest.fixture
def record(fused):
    """What is published of a scan of 41 slices."""
    return fused[1].fused[0]


class TestTally:
    def test_counts(self, tally, record):
        for event in (
            Unchanged("sub-07"),
            Quarantined(Attempt("sub-08", "quarantined", "why", "ImageError")),
            Begun(record.label, 41),
            Begun("sub-09", 41),
            Begun("sub-10", 41),
            Fused(record, "new"),
            Failed(Attempt("sub-09", "failed", "why", "Kind")),
        ):
            tally.see(event)
        assert (tally.total, tally.fused, tally.failed, tally.untouched) == (100, 1, 1, 2)
        assert (tally.through, tally.in_flight) == (4, 1)

    def test_what_was_refused_before_it_was_read_is_not_among_the_scans(self, tally):
        for kind in (Failed, Quarantined):
            tally.see(kind(Attempt("sub-08", "quarantined", "why", "excluded")))
        assert tally.through == tally.failed == 0

    def test_says_nothing_of_rate_and_time_before_it_knows(self, tally, record, clock):
        assert tally.rate is None
        assert tally.seconds_left is None
        tally.see(Begun(record.label, 41))
        clock.now = 60
        assert tally.rate is None
        tally.see(Fused(record, "new"))
        assert tally.rate == pytest.approx(41 / 60)
        assert tally.seconds_left is None

    def test_the_rate_is_that_of_the_last_minutes(self, tally, record, clock):
        """An hour at a scan a minute, then twice as fast."""
        for pause, scans in ((60, 60), (30, 30)):
            for _ in range(scans):
                tally.see(Begun(record.label, 41))
                clock.now += pause
                tally.see(Fused(record, "new"))
        assert tally.rate == pytest.approx(41 / 30)

    def test_the_rate_does_not_fall_when_all_is_done(self, tally, record, clock):
        tally.see(Begun(record.label, 41))
        clock.now = 10
        tally.see(Fused(record, "new"))
        clock.now = 1000
        assert tally.rate == pytest.approx(4.1)

    def test_time_left_is_that_of_the_slices_left(self, tally, record, clock):
        """Two of 100 in flight are half done; 96 have as many slices as the four that began."""
        for number in range(2):
            tally.see(Begun(f"sub-9{number}", 41))
            clock.now = 10 * (number + 1)
            tally.see(Fused(replace(record, label=f"sub-9{number}"), "new"))
        tally.see(Begun("sub-01", 200))
        tally.see(Begun("sub-02", 118))
        left = (200 + 118) / 2 + 96 * (41 + 41 + 200 + 118) / 4
        assert tally.seconds_left == pytest.approx(left / (82 / 20))

    def test_of_what_nobody_looked_at_as_many_are_due_as_before(self, tally, record, clock):
        for number in range(38):
            tally.see(Unchanged(f"sub-{number}"))
        for number in range(2):
            tally.see(Begun(f"sub-9{number}", 41))
            clock.now = 10 * (number + 1)
            tally.see(Fused(replace(record, label=f"sub-9{number}"), "new"))
        due = 60 * 2 / 40
        assert tally.seconds_left == pytest.approx(due * 41 / 4.1)

    def test_once_it_is_to_end_only_what_is_in_flight_is_left(self, tally, record, clock):
        for number in range(2):
            tally.see(Begun(f"sub-9{number}", 41))
            clock.now = 10 * (number + 1)
            tally.see(Fused(replace(record, label=f"sub-9{number}"), "new"))
        tally.see(Begun("sub-01", 82))
        tally.see(Stopping(1))
        assert tally.seconds_left == pytest.approx(10)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3599, "1 h 0 min"),
        (5400, "1 h 30 min"), (200_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_times_as_people_say_them(seconds, said):
    assert span(seconds) == said


@given(st.lists(st.text("abc 0123", min_size=1, max_size=20), max_size=12), st.integers(20, 200))
def test_lines_hold_whole_items_and_fit(items, width):
    lines = list(lines_of(map(Text, items), width))
    assert "   ".join(line.plain for line in lines) == "   ".join(items)
    assert all(line.cell_len <= width for line in lines)


class Terminal:
    """A real terminal of this machine, and what was written to it."""

    def __init__(self, columns):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.stream = os.fdopen(theirs, "w")
        self._pieces = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                self._pieces.append(os.read(self._ours, 1 << 16))
            except OSError:  # nobody holds the other end any more
                os.close(self._ours)
                return

    def close(self):
        self.stream.close()
        self._reader.join()

    @property
    def written(self):
        return b"".join(self._pieces).decode()

    def last_frame(self):
        """Return the lines of the live display as it is left."""
        frame = re.split(r"\x1b\[2K", self.written)[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).split("\r\n")


@contextmanager
def shown(columns, *events, **environment):
    terminal = Terminal(columns)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", "xterm-256color")
        for name, value in environment.items():
            patch.setenv(name, value)
        # Of itself rich asks the terminal of this process for its width.
        console = Console(file=terminal.stream, width=columns, highlight=False, soft_wrap=True)
        with Display(METHOD, console) as display:
            for event in events:
                display.show(event)
        terminal.close()
        yield terminal


@pytest.fixture
def events(record):
    return (
        Planned(5000, (), None, ()),
        *(Unchanged(f"sub-{number}") for number in range(1200)),
        Begun(record.label, 41),
        Begun("sub-02", 41),
        Staffed(8, 21_400_000_000, 64_000_000_000),
        Fused(record, "new"),
        Failed(Attempt("sub-03", "failed", "its disk is full", "StoreError")),
    )


class TestOnATerminal:
    @pytest.mark.parametrize("columns", [30, 40, 60, 80, 100, 200])
    def test_tells_how_far_it_is_at_any_width(self, events, columns):
        with shown(columns, *events) as terminal:
            *frame, _ = terminal.last_frame()
        assert all(len(line) < columns for line in frame), frame
        assert frame[0].endswith("━ 1202/5000 scans")
        said = "   ".join(frame[1:])
        for item in (
            "1 fused", "1200 untouched", "1 failed", "1 in flight", "slices/s", " s gone",
            "memory 21.4 of 64 GB", "8 workers",
        ):  # fmt: skip
            assert item in said
        assert "left" not in said  # too little is known

    def test_lines_of_scans_stay_above_it(self, events):
        with shown(80, *events) as terminal:
            assert "sub-03  its disk is full" in terminal.written
            assert "sub-03" not in "".join(terminal.last_frame())

    def test_leaves_the_cursor_as_it_was(self, events):
        with shown(80, *events) as terminal:
            assert terminal.written.rfind("\x1b[?25h") > terminal.written.rfind("\x1b[?25l") >= 0

    def test_has_no_colours_where_nobody_wants_any(self, events):
        with shown(80, *events, NO_COLOR="1") as terminal:
            assert not re.search(r"\x1b\[[0-9;]*[34][0-9][;m]", terminal.written)
            assert "1202/5000 scans" in terminal.last_frame()[0]

    def test_has_lines_only_where_the_terminal_is_dumb(self, events):
        with shown(80, *events, TERM="dumb") as terminal:
            assert "\x1b" not in terminal.written
            assert "5000 scans with average" in terminal.written
            assert "scans\r\n" not in terminal.written


class TestElsewhere:
    def lines(self, events, monkeypatch, **environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        console = Console(file=io.StringIO(), width=80, highlight=False, soft_wrap=True)
        with Display(METHOD, console) as display:
            for event in events:
                display.show(event)
        return console.file.getvalue().splitlines()

    def test_there_is_a_line_a_scan(self, events, record, monkeypatch):
        lines = self.lines(events, monkeypatch)
        assert lines[0] == "5000 scans with average"
        assert len([line for line in lines if line.startswith("same ")]) == 1200
        (fused,) = [line for line in lines if line.startswith("fused ")]
        assert fused.startswith(f"fused  {record.label}  41 slices, ")
        assert lines[-1] == "failed sub-03  its disk is full"
        assert not any("\x1b" in line or "in flight" in line for line in lines)

    @pytest.mark.parametrize("name", ["a:x:b", "[red]a[/]", "[/]"])
    def test_names_are_shown_as_they_are(self, name, monkeypatch):
        attempt = Attempt(name, "failed", f"no {name}", "StoreError")
        assert self.lines([Failed(attempt)], monkeypatch) == [f"failed {name}  no {name}"]

    def test_forced_colours_force_no_live_display(self, events, monkeypatch):
        lines = self.lines(events, monkeypatch, FORCE_COLOR="1", TERM="xterm-256color")
        assert lines[-1] == "\x1b[31mfailed\x1b[0m sub-03  its disk is full"
        assert not any("\x1b[?25l" in line or "in flight" in line for line in lines)

    @pytest.mark.parametrize(
        ("in_flight", "said"),
        [
            (3, "Finishing 3 scans that are in flight; Ctrl-C again stops at once"),
            (1, "Finishing 1 scan that is in flight; Ctrl-C again stops at once"),
            (0, "Nothing is in flight; ending"),
        ],
    )
    def test_what_one_interrupt_brings(self, in_flight, said, monkeypatch):
        assert self.lines([Stopping(in_flight)], monkeypatch) == [said]
