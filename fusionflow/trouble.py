"""What an error of a scan's tasks means, in a person's words, and what to do about it."""

from __future__ import annotations

import enum
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import distributed
from distributed.scheduler import KilledWorker, NoValidWorkerError

from fusionflow.errors import (
    FusionflowError,
    InputChangedError,
    PlacementError,
    StoreError,
    WeightsError,
)

logger = logging.getLogger(__name__)


class Verdict(enum.Enum):
    """What follows from an error."""

    QUARANTINE = "the scan itself is at fault: not again until something changes"
    AGAIN = "may pass: once more in this run, then quarantine"
    ALONE = "may be the neighbours' doing: once more with nothing beside it, then quarantine"
    RESEND = "the connection broke: once more, as often as it breaks and is there again"
    LATER = "not the scan's fault: the next run tries again"
    STOP = "every scan would meet it: stop the run"


@dataclass(frozen=True)
class Trouble:
    """Why a scan was not fused.

    Attributes
    ----------
    verdict : Verdict
        What follows.
    kind : str
        Name of the exception, or what came instead of one.
    reason : str
        What is wrong and what to do.
    worker : str
        The worker it happened on, where that is known.
    """

    verdict: Verdict
    kind: str
    reason: str
    worker: str = ""

    @property
    def quarantines(self) -> bool:
        """Whether the scan, if this is the end of it, is not to be tried by the next run."""
        return self.verdict in (Verdict.QUARANTINE, Verdict.AGAIN, Verdict.ALONE)


#: What Dask says of tasks when a client lost its scheduler, which then forgets them.
_LOST = "scheduler-connection-lost"
_MEMORY = "Give each worker more memory, or run fewer at a time"


def understand(
    error: BaseException | None, status: str = "error", short_of_memory: Collection[str] = ()
) -> Trouble:
    """Say what an error of a task means.

    Parameters
    ----------
    error : exception or None
        What the task ended with, if it did.
    status : str
        Of its future.
    short_of_memory : collection of str
        Addresses of workers that their nannies ended for their memory.
    """
    kind = type(error).__name__
    if error is None:
        return Trouble(Verdict.LATER, status, f"Its tasks were {status}")
    if isinstance(error, KilledWorker):
        worker = error.last_worker.address
        if worker in short_of_memory:
            return Trouble(
                Verdict.ALONE,
                "OutOfMemory",
                f"Out of memory: the workers that ran it were ended for it. {_MEMORY}",
                worker,
            )
        reason = (
            "The workers that ran it died, or were stopped by the machine (often for their "
            f"memory). {_MEMORY}; a worker's log says more"
        )
        return Trouble(Verdict.ALONE, kind, reason, worker)
    if _is_memory(error):
        return Trouble(Verdict.ALONE, "OutOfMemory", f"Out of memory: {error}. {_MEMORY}")
    if isinstance(error, InputChangedError | StoreError):
        return Trouble(Verdict.LATER, kind, str(error))
    if isinstance(error, WeightsError | PlacementError):
        return Trouble(Verdict.STOP, kind, str(error))
    if isinstance(error, NoValidWorkerError):
        return Trouble(Verdict.STOP, kind, f"No worker may run it: {error}")
    if isinstance(error, FusionflowError):
        return Trouble(Verdict.QUARANTINE, kind, str(error))
    if isinstance(error, distributed.client.FutureCancelledError):
        return (
            connection_lost() if error.reason == _LOST else Trouble(Verdict.LATER, kind, str(error))
        )
    logger.debug("a task failed", exc_info=error)
    return Trouble(Verdict.AGAIN, kind, f"Unexpected {kind}: {error}")


def connection_lost() -> Trouble:
    """Return the trouble of a scan that the scheduler forgot, or whose end cannot be heard of."""
    return Trouble(Verdict.RESEND, "ConnectionLost", "The connection to the scheduler broke")


def took_too_long(seconds: float, busy: Sequence[str] = ()) -> Trouble:
    """Return the trouble of a scan that was in flight for longer than it may.

    Parameters
    ----------
    seconds : float
        How long it may.
    busy : sequence of str
        Addresses of workers that still are at it, since they are not to be restarted.
    """
    if busy:
        workers = ", ".join(busy)
        return Trouble(
            Verdict.QUARANTINE,
            "TimeLimit",
            f"It took longer than the time limit of {seconds:g} s. Others may work on this cluster "
            f"(cluster.shared), so no worker was restarted, and a thread of {workers} may still "
            f"be busy with it: who runs the cluster can free it by client.restart_workers("
            f"{list(busy)}). Raise cluster.time_limit if that is too short",
            busy[0],
        )
    return Trouble(
        Verdict.ALONE,
        "TimeLimit",
        f"It took longer than the time limit of {seconds:g} s; the workers that ran it were "
        "restarted. Raise cluster.time_limit if that is too short",
    )


def _is_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the processor or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
