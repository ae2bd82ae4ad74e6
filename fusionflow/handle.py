"""A run in the background: how far it is, what came of it, and how to end it."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from fusionflow.errors import FusionflowError
from fusionflow.events import (
    Begun,
    Event,
    Failed,
    Fused,
    Planned,
    PutOff,
    Quarantined,
    RunReport,
    Started,
    Unchanged,
    Waiting,
)
from fusionflow.records import Attempt

__all__ = ["Progress", "RunHandle", "State"]

State: TypeAlias = Literal[
    "starting", "running", "stopping", "done", "stopped", "cancelled", "failed"
]

Hear: TypeAlias = Callable[[Event], None]
Ask: TypeAlias = Callable[[], bool]


class Go(Protocol):
    """A run."""

    def __call__(self, *, on_event: Hear, stop: Ask) -> RunReport:
        """Run; tell of events, and ask whether to stop: what either raises ends it."""
        ...


#: Seconds between two pictures of a run in a notebook.
_EVERY = 0.5
#: Failures that are kept for the display; the report has all.
_SHOWN = 5


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes
    ----------
    state : {"starting", "running", "stopping", "done", "stopped", "cancelled", "failed"}
        ``stopped`` if scans were left for later, ``failed`` if the run itself ended with an error;
        scans that failed do not end it.
    scans : int or None
        How many it looks at; None until it knows.
    fused, unchanged, failed, quarantined, waiting : int
        How many scans came to which end, as in `fusionflow.RunReport`.
    in_flight : int
        How many are on the cluster.
    seconds : float
        Since it began, until it ended.
    dashboard : str
        Address of Dask's dashboard, as Dask itself links it; empty while there is no cluster.
    """

    state: State
    scans: int | None
    fused: int
    unchanged: int
    failed: int
    quarantined: int
    waiting: int
    in_flight: int
    seconds: float
    dashboard: str

    @property
    def done(self) -> int:
        """How many scans came to an end."""
        return self.fused + self.unchanged + self.failed + self.quarantined + self.waiting

    @property
    def seconds_left(self) -> float | None:
        """How long it may still take, by the scans that it fused; None while nothing tells."""
        if self.state != "running" or not self.fused or self.scans is None:
            return None
        return self.seconds / self.fused * (self.scans - self.done)


class RunHandle:
    """A run that goes on in a thread of this process; see ``fusionflow.run(..., wait=False)``.

    In a notebook it shows how far the run is, and goes on showing it while other cells run. The
    run ends with the process: a script waits for it with `result`.

    Parameters
    ----------
    go : callable
        The run.
    on_event, stop : callable, optional
        As in `fusionflow.run`; called in the thread of the run.
    """

    def __init__(self, go: Go, on_event: Hear | None = None, stop: Ask | None = None) -> None:
        self._go, self._on_event, self._stop = go, on_event, stop
        self._began = time.monotonic()
        self._ended: float | None = None
        self._scans: int | None = None
        self._counts: Counter[str] = Counter()
        self._in_flight: set[str] = set()
        self._dashboard = ""
        self._failures: list[Attempt] = []
        self._stopping = self._cancelling = False
        self._report: RunReport | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._shown = ""
        self._shown_at = 0.0
        self._thread = threading.Thread(target=self._run, name="fusionflow-run", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """How far it is."""
        with self._lock:
            return Progress(
                state=self._state,
                scans=self._scans,
                fused=self._counts["fused"],
                unchanged=self._counts["unchanged"],
                failed=self._counts["failed"],
                quarantined=self._counts["quarantined"],
                waiting=self._counts["waiting"],
                in_flight=len(self._in_flight),
                seconds=(self._ended or time.monotonic()) - self._began,
                dashboard=self._dashboard,
            )

    @property
    def failures(self) -> tuple[Attempt, ...]:
        """Scans that failed in this run so far."""
        with self._lock:
            return tuple(self._failures)

    @property
    def report(self) -> RunReport | None:
        """What the run did; None until it ended, or if it ended with an error."""
        return self._report

    @property
    def error(self) -> BaseException | None:
        """What ended the run, if it did not end by itself."""
        return self._error

    def done(self) -> bool:
        """Whether the run has ended, one way or another."""
        return not self._thread.is_alive()

    def result(self, timeout: float | None = None) -> RunReport:
        """Wait for the run, and return what it did.

        Interrupting this only ends the waiting.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            If the run has not ended by then; it goes on.
        CancelledError
            If it was cancelled (`concurrent.futures.CancelledError`).
        FusionflowError
            What `fusionflow.run` raises.
        """
        self._thread.join(timeout)
        if not self.done():
            raise TimeoutError(f"The run has not ended within {timeout:g} s; it goes on")
        if self._error is not None:
            raise self._error
        if self._report is None:
            raise FusionflowError("The run ended without a report", "See the log of the run")
        return self._report

    def stop(self) -> None:
        """Begin no further scan; what is in flight is finished, and the cohort summarised.

        A run that still waits for workers ends at once.
        """
        self._stopping = True

    def cancel(self) -> None:
        """End the run within about a second; what was published stays, the rest is undone.

        It returns at once; `result` waits, and then raises CancelledError. While pods of
        Kubernetes come up nobody is asked, so it takes until the scheduler's pod is there.
        """
        self._stopping = self._cancelling = True

    def __repr__(self) -> str:
        """Return how far it is."""
        now = self.progress
        of = "" if now.scans is None else f" of {now.scans}"
        return f"<RunHandle {now.state}: {now.done}{of} scans, {now.failed} failed>"

    def _repr_html_(self) -> str:
        """Return how far it is, as HTML that stays as it is."""
        from fusionflow.display import progress_html

        return progress_html(self.progress, self.failures[:_SHOWN], self._error)

    def _ipython_display_(self) -> None:
        """Show how far it is, wherever IPython shows this; a notebook, until it has ended."""
        from IPython import get_ipython
        from IPython.display import HTML, display

        if getattr(get_ipython(), "kernel", None) is None:  # a terminal renews nothing it has shown
            print(repr(self))
            return
        self._shown = self._shown or uuid.uuid4().hex
        display(HTML(self._repr_html_()), display_id=self._shown)

    @property
    def _state(self) -> State:
        if self._ended is not None:
            if isinstance(self._error, CancelledError):
                return "cancelled"
            if self._report is None:
                return "failed"
            return "done" if self._report.state == "done" else "stopped"
        if self._stopping:
            return "stopping"
        return "starting" if self._scans is None else "running"

    def _run(self) -> None:
        try:
            self._report = self._go(on_event=self._hear, stop=self._asked)
        except KeyboardInterrupt:
            self._error = CancelledError("The run was cancelled; what was published stays")
        except BaseException as error:  # it is for whoever asks for the result
            self._error = error
        with self._lock:
            self._ended = time.monotonic()
            self._in_flight.clear()
        self._show(force=True)

    def _asked(self) -> bool:
        """Whether to begin no further scan; asked every second, too."""
        if self._cancelling:
            raise KeyboardInterrupt
        self._show()
        self._stopping = self._stopping or (self._stop is not None and self._stop())
        return self._stopping

    def _hear(self, event: Event) -> None:
        with self._lock:
            self._count(event)
        if self._on_event is not None:
            self._on_event(event)
        self._asked()

    def _count(self, event: Event) -> None:
        match event:
            case Planned(scans=scans):
                self._scans = scans
            case Started(dashboard=dashboard):
                self._dashboard = dashboard
            case Begun(label=label):
                self._in_flight.add(label)
            case Unchanged():
                self._counts["unchanged"] += 1
            case Waiting():
                self._counts["waiting"] += 1
            case Quarantined(attempt=attempt):
                self._counts["quarantined"] += attempt.kind != "excluded"
            case Fused(record=record):
                self._counts["fused"] += 1
                self._in_flight.discard(record.label)
            case PutOff(label=label):
                self._in_flight.discard(label)
            case Failed(failure=failure):
                self._failures.append(failure)
                # What was refused before it was read is none of the scans that were planned.
                self._counts["failed"] += failure.kind != "excluded"
                self._in_flight.discard(failure.label)

    def _show(self, *, force: bool = False) -> None:
        """Renew what notebooks show, now and then."""
        now = time.monotonic()
        if not self._shown or (now - self._shown_at < _EVERY and not force):
            return
        self._shown_at = now
        from IPython.display import HTML, update_display

        update_display(HTML(self._repr_html_()), display_id=self._shown)
