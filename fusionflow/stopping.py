"""What signals do to a run.

Ctrl-C (SIGINT) once: what is in flight is finished, and no further scan begins. Twice, or while
nothing is in flight: it stops at once, and what was in flight is undone. SIGTERM stops at once,
for who sends it (SLURM, Kubernetes, systemd, a shutdown) kills a process some seconds later; so
does SIGHUP, when the terminal goes away, unless `nohup` has it ignored.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from fusionflow.signals import interrupt, leave_lost_terminal

if TYPE_CHECKING:
    from fusionflow.events import Event

#: Seconds within which a second SIGINT is the first one's echo: launchers hand on what the
#: terminal has sent to the whole group already.
ECHO = 0.2
#: Seconds that a run has for tidying up before another signal cuts that off, too.
_TIDYING = 10.0


class Interrupts:
    """What a person or a scheduler asked of a run by signals; called, whether it is to end."""

    def __init__(self) -> None:
        self._in_flight: set[str] = set()
        self._asked = self._cut = -math.inf

    def __call__(self) -> bool:
        """Whether no further scan is to begin."""
        return self._asked > -math.inf

    def see(self, event: Event) -> None:
        """Take notice of what is in flight."""
        from fusionflow.events import Again, Begun, Failed, Fused, PutOff  # slow: not for all

        if isinstance(event, Begun):
            self._in_flight.add(event.label)
        elif isinstance(event, Fused):
            self._in_flight.discard(event.record.label)
        elif isinstance(event, Failed):
            self._in_flight.discard(event.failure.label)
        elif isinstance(event, Again | PutOff):
            self._in_flight.discard(event.label)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals as long as this is open; in another thread than the main one, none."""
        handlers = {signal.SIGINT: self._on_interrupt, signal.SIGTERM: self._at_once}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._hang_up
        before = {}
        try:
            for number, handler in handlers.items():
                with contextlib.suppress(ValueError):  # only the main thread can
                    before[number] = signal.signal(number, handler)
            yield
        finally:
            for number, handler_before in before.items():
                signal.signal(number, handler_before)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._in_flight and not self():
            self._asked = now
        elif now - self._asked > ECHO:
            self._at_once(number, frame)

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        leave_lost_terminal()
        self._at_once(number, frame)

    def _at_once(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._cut > _TIDYING:
            self._asked = self._cut = now
            interrupt(number, frame)
