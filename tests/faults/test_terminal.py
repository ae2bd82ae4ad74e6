"""A run at a real terminal of 40 columns: the display as it is left, and Ctrl-C typed there."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import psutil
import pytest
from made_scans import publish_scan
from runs import LABELS, leftovers
from scene import DWT_MAX

import fusionflow as ff
from fusionflow.events import EXIT_DONE, EXIT_INTERRUPTED
from fusionflow.index import write_index
from fusionflow.ledger import OutputPaths

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


def _sit_down_at_it():
    """Make the standard input the terminal of this session; hear of its end even under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class AtATerminal:
    """A command whose terminal is one of our own; it is the session's, so typing reaches all."""

    def __init__(self, columns, *words):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fusionflow", *map(str, words)],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
            preexec_fn=_sit_down_at_it,
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        self._lost = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while not self._lost.is_set():
            try:
                self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
            except OSError:
                return

    def wait_for(self, pattern, seconds=90):
        until = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            assert time.monotonic() < until, self.shown
            assert self.process.poll() is None, self.shown
            time.sleep(0.02)

    def type(self, keys):
        os.write(self._ours, keys)

    @contextlib.contextmanager
    def workers_frozen(self):
        """Let no other process of the run go on meanwhile."""
        others = psutil.Process(self.process.pid).children(recursive=True)
        for other in others:
            other.suspend()
        try:
            yield
        finally:
            for other in others:
                other.resume()

    def steady(self, pattern):
        """Return what a pattern finds in the last of the frames, the same for a second."""
        until = time.monotonic() + 90
        found, since = None, time.monotonic()
        while found is None or time.monotonic() < since + 1:
            assert time.monotonic() < until, self.shown
            *_, last = [match[1] for match in re.finditer(pattern, self.shown)] or [None]
            if last != found:
                found, since = last, time.monotonic()
            time.sleep(0.02)
        return found

    def hang_up(self):
        """Take the terminal away, as a connection that breaks does."""
        self._lost.set()
        self._reader.join()  # which it does at the next frame
        os.close(self._ours)

    def end(self):
        try:
            return self.process.wait(timeout=90)
        finally:
            self.process.kill()
            self._reader.join()
            os.close(self._ours)

    def last_frame(self):
        """Return the lines from the bar on, as they are left."""
        frame = re.split(r"\x1b\[2K", self.shown)[-1]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).split("\r\n")


@pytest.fixture
def run(bids, tmp_path):
    (tmp_path / "run.yaml").write_text("cluster: {window: 1, n_workers: 1}\n")
    words = ("run", bids, tmp_path / "out", *DWT_MAX, "--config", tmp_path / "run.yaml")
    return AtATerminal(40, *words)


def test_shows_all_that_is_known_in_40_columns(run):
    assert run.end() == EXIT_DONE, run.shown
    frame = run.last_frame()
    assert frame[0].endswith("━ 4/4 scans")
    said = "   ".join(frame)
    for pattern in (
        "4 fused", "0 failed", "0 in flight", r"\d slices/s", r"\d s gone",
        r"memory [\d.]+ of [\d.]+ GB", "1 worker ",
    ):  # fmt: skip
        assert re.search(pattern, said), said
    display = frame[: next(i for i, line in enumerate(frame) if line.startswith("4 fused, "))]
    assert all(len(line) < 40 for line in display)
    assert re.search(r"about \d+ s left", run.shown)


def test_typing_ctrl_c_once_spares_the_workers(run, tmp_path):
    """A terminal sends it to every process of the run; only the run itself takes notice."""
    run.wait_for(r"1 fused\x1b\[0m   0 failed   1 in flight")
    with run.workers_frozen():  # so that what is in flight is so still when the key is pressed
        fused = run.steady(r"(\d) fused(?:\x1b\[0m)?   0 failed   1 in flight")
        run.type(b"\x03")
        run.wait_for("Finishing 1 scan that is in flight")
    assert run.end() == EXIT_INTERRUPTED, run.shown
    assert "failed\x1b" not in run.shown
    assert list(ff.open_cohort(tmp_path / "out").labels) == LABELS[: int(fused) + 1]


def test_a_terminal_that_goes_away_leaves_nothing_half_done(run, tmp_path):
    run.wait_for(r"1 fused\x1b\[0m   0 failed   1 in flight")
    run.hang_up()
    assert run.process.wait(timeout=90) == EXIT_INTERRUPTED
    out = tmp_path / "out"
    published = list(ff.open_cohort(out).labels)
    assert published == LABELS[: len(published)]
    assert 1 <= len(published) < len(LABELS)
    assert leftovers(out) == []
    assert not (out / "run.lock").exists()


def test_typing_ctrl_c_ends_a_report_in_one_line(tmp_path):
    """Its processes still import then, and would each say where they died."""
    for number in range(6):
        publish_scan(tmp_path, label=f"sub-{number}")
    write_index(OutputPaths(tmp_path))
    report = AtATerminal(100, "report", tmp_path, "--jobs", 2)
    report.wait_for("6 of 6 pages")
    time.sleep(0.5)
    report.type(b"\x03")
    assert report.end() == EXIT_INTERRUPTED, report.shown
    assert "Interrupted" in report.shown
    assert "Traceback" not in report.shown
