"""How far a run is, from what it tells: counts, slices a second, the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from fusionflow.events import (
    Again,
    Begun,
    Event,
    Failed,
    Fused,
    Planned,
    PutOff,
    Quarantined,
    Staffed,
    Stopping,
    Unchanged,
    Waiting,
)

#: Seconds that the sliding window holds, and scans that it holds in any case.
_WINDOW = 300.0
_AT_LEAST = 8
#: Scans that have to be through before anything is said of the time that is left.
_ENOUGH = 2


class Tally:
    """Counts what a run tells.

    Parameters
    ----------
    clock : callable
        Returns seconds.

    Attributes
    ----------
    total : int
        Scans of the input.
    fused, failed, untouched : int
        Scans that were published; that failed; that are as they were, wait, or are in quarantine.
    is_stopping : bool
        Whether somebody asked the run to end.
    staff : Staffed or None
        Who worked when that was last looked at.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.total = self.fused = self.failed = self.untouched = 0
        self.is_stopping = False
        self.staff: Staffed | None = None
        self._aloft: dict[str, int] = {}
        self._slices_of_begun: dict[str, int] = {}
        #: When scans landed, with how many slices; first, when the window begins.
        self._landed: deque[tuple[float, int]] = deque()

    def see(self, event: Event) -> None:
        """Take an event into account."""
        match event:
            case Planned():
                self.total = event.scans
            case Staffed():
                self.staff = event
            case Stopping():
                self.is_stopping = True
            case Begun():
                if not self._landed:
                    self._landed.append((self.clock(), 0))
                self._aloft[event.label] = self._slices_of_begun[event.label] = event.slices
            case Again() | PutOff():
                self._aloft.pop(event.label, None)
            case Fused():
                self.fused += 1
                self._land(event.record.label, event.record.shape[0])
            case Failed(failure) if failure.kind != "excluded":  # those are not in the total
                self.failed += 1
                self._aloft.pop(failure.label, None)
            case Quarantined(attempt) if attempt.kind != "excluded":
                self.untouched += 1
            case Unchanged() | Waiting():
                self.untouched += 1

    def _land(self, label: str, slices: int) -> None:
        now = self.clock()
        self._aloft.pop(label, None)
        self._landed.append((now, slices))
        while len(self._landed) > _AT_LEAST + 1 and self._landed[1][0] < now - _WINDOW:
            self._landed.popleft()

    @property
    def through(self) -> int:
        """Scans that nothing more will be done to."""
        return self.fused + self.failed + self.untouched

    @property
    def in_flight(self) -> int:
        """Scans on the cluster."""
        return len(self._aloft)

    @property
    def rate(self) -> float | None:
        """Slices a second over the last minutes; None before a scan is through."""
        if len(self._landed) < 2:
            return None
        landed = list(self._landed)
        until = self.clock() if self._aloft else landed[-1][0]
        seconds = until - landed[0][0]
        slices = sum(slices for _, slices in landed[1:])
        return slices / seconds if seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at this rate, or None as long as too little is known.

        Scans in flight are taken to be half done. Of those that nobody has looked at yet as many
        are taken to be due, and they are taken to be as large, as those before them.
        """
        rate = self.rate
        if not rate or self.fused < _ENOUGH:
            return None
        slices = sum(self._aloft.values()) / 2
        unseen = 0 if self.is_stopping else max(self.total - self.through - self.in_flight, 0)
        begun = len(self._slices_of_begun)
        share = begun / (begun + self.untouched)
        slices += unseen * share * sum(self._slices_of_begun.values()) / begun
        return slices / rate if slices else None
