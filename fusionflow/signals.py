"""Signals: what they raise, who hears them, and what a lost terminal or reader leaves."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import termios
import weakref
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType


@contextlib.contextmanager
def interrupts_left_to_us() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of them, from processes that start in here.

    Threads that start in here hand the block down to what they start later: workers that restart.
    A Ctrl-C that comes meanwhile is not lost.
    """
    resource_tracker.ensure_running()  # the first process that starts it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hang_up(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as a handler of SIGHUP."""
    leave_lost_terminal()
    interrupt(number, frame)


def leave_lost_terminal() -> None:
    """Say nothing more to a terminal that went away: each word would be an error of its own."""
    for stream in (0, 1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                lead_nowhere(stream)


def lead_nowhere(stream: int) -> None:
    """Let a file descriptor drop what is written to it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, stream)
    os.close(nothing)


def streams_without_reader() -> list[int]:
    """Return which of standard output and error are pipes that nobody reads any more."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, 0)
    return [stream for stream, state in poll.poll(0) if state & select.POLLERR]


def interrupt(_signal: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as a handler of a signal.

    Where Python tidies up an object what is raised is lost, and Dask has a lot to tidy up when a
    scan is done: it is raised a moment later then.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == weakref.__file__:
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        frame = frame.f_back
    raise KeyboardInterrupt
