"""A bounded window of scans on a cluster, and what happens to those in trouble.

Dask runs a task again when its worker dies. What is beyond that is dealt with here, a scan at a
time: an error that may pass is tried once more; a scan whose workers died, ran out of memory or
hang is tried once more with nothing beside it, since its neighbours may have been at fault; and
a scan that fails twice, or is at fault itself, is given up, the others never noticing. Workers that
a scan hangs on are restarted, but not where others may be at work on them: there it is given up.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import distributed
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

from fusionflow.cluster_options import ClusterOptions
from fusionflow.errors import ClusterError, FusionflowError, LockedError
from fusionflow.graph import scan_graph
from fusionflow.io.files import discard
from fusionflow.placement import gpus_of, workers_of
from fusionflow.planning import bytes_for_scans
from fusionflow.records import Published
from fusionflow.stages import Recipe
from fusionflow.staging import Job
from fusionflow.tenancy import Tenancy
from fusionflow.trouble import Trouble, Verdict, connection_lost, took_too_long, understand

logger = logging.getLogger(__name__)

#: Seconds between two looks at the clock, the lock and the cluster.
_TICK = 1.0
#: Seconds between two looks for workers.
_WORKERS_EVERY = 10.0
#: Bytes a voxel: bands of both sources, fused bands, the fused slab.
_BYTES_A_VOXEL = 20.0
#: Seconds for a worker to restart, and to say what it is at.
_RESTART = 30.0
_ANSWER = 5.0
#: Seconds for workers to end what was cancelled: less than who ends this process may wait.
_SILENCE = 8.0
#: What asking a cluster may lead to that is breaking down, or frozen; the last where a loop or a
#: pool of connections is closed.
_NO_ANSWER = (TimeoutError, OSError, RuntimeError)
#: Looks at a scan within the time limit, where only those count that find it at work.
_LOOKS = 4
#: States of a client that has a scheduler, or may have it again: it tries for a while.
_HOLDS = ("running", "connecting")
#: Where nannies say that they ended a worker for its memory.
_MEMORY_TOPIC = "worker-restart-memory"
#: Attempts that came to no end, after which a scan only runs with nothing beside it.
_SUSPECT = 3


class Ground(Protocol):
    """What a flight reports to."""

    def publish(self, job: Job, record: Published) -> None:
        """Publish a scan."""

    def try_again(self, job: Job, trouble: Trouble, *, alone: bool) -> Job:
        """Return a new attempt at a scan."""

    def give_up(self, job: Job, trouble: Trouble) -> None:
        """Write down why a scan is not fused."""

    def sent(self, job: Job) -> None:
        """Take notice of a scan that is in flight now."""

    def staffed(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Take notice of who works, every now and then."""

    def is_stopping(self) -> bool:
        """Whether no further scan is to begin; asked about every second."""

    def put_off(self, job: Job, trouble: Trouble) -> None:
        """Leave a scan that would be tried again to the next run."""

    def look_after(self) -> None:
        """See to what is not a scan's, about every second; what it raises stops the flight."""


@dataclass(frozen=True)
class _Aloft:
    job: Job
    #: When somebody looks after it, and how often it was found at work then.
    deadline: float
    looks: int = 0


class Flight:
    """Keeps a window of scans in flight.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    tenancy : Tenancy
        The run's place on it.
    ground : Ground
        Told of what happens.
    options : ClusterOptions
        Gives window, time limit and patience.
    recipe : Recipe
        Whether there is a network, and whether a worker without a GPU cannot do the work.
    """

    def __init__(
        self,
        client: distributed.Client,
        tenancy: Tenancy,
        ground: Ground,
        options: ClusterOptions,
        recipe: Recipe,
    ) -> None:
        self.client, self.tenancy, self.ground = client, tenancy, ground
        self.needs_gpu, self.reads_network = recipe.needs_gpu, recipe.weights is not None
        self._wanted, self.patience = options.window, options.patience
        self.time_limit = options.time_limit
        self.window = self.bytes = 0.0
        self._look_at(workers_of(client))
        self._aloft: dict[distributed.Future, _Aloft] = {}
        self._landed: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()
        self._again: deque[Job] = deque()
        self._alone: deque[Job] = deque()
        self._next: list[Job] = []
        self._tried: set[str] = set()
        self._workers_seen = self._workers_asked = time.monotonic()
        self._connecting = False

    def fly(self, jobs: Iterable[Job]) -> None:
        """Bring every scan to an end.

        Parameters
        ----------
        jobs : iterable of Job
            Taken one at a time, as there is room.

        Raises
        ------
        ClusterError
            If the scheduler, or every worker, is gone.
        FusionflowError
            If every further scan would fail as well.
        """
        try:
            waiting = self._sorted_out(iter(jobs))
            while self._fill(waiting):
                self._await_one()
        finally:
            if self._aloft and self.client.status == "running":
                self._call_off()

    def _sorted_out(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Yield scans; put off those that never came to an end, perhaps for their own doing."""
        for job in jobs:
            if job.begun.attempt > _SUSPECT:
                self._alone.append(job)
            else:
                yield job

    def _fill(self, jobs: Iterator[Job]) -> bool:
        """Send scans up while there is room; False if none is left at all, or to be begun."""
        while not self.ground.is_stopping() and len(self._aloft) < self.window:
            job = self._next.pop() if self._next else None
            job = job or (self._again.popleft() if self._again else next(jobs, None))
            if job is None:
                break
            if self._aloft and self._held + bytes_in_flight(job) > self.bytes:
                self._next.append(job)  # until others have landed
                break
            self._send(job)
        while not (self._aloft or self.ground.is_stopping()) and self._alone:
            self._send(self._alone.popleft())  # one that cannot be sent is dealt with at once
        return bool(self._aloft)

    def _send(self, job: Job) -> None:
        try:
            with self.tenancy.annotated():
                future = self.client.compute(
                    scan_graph(job),
                    optimize_graph=False,
                    priority=self.tenancy.priority,
                    fifo_timeout=0,  # first come, first done: else all would end together
                )
        except (TypeError, ValueError, RecursionError) as error:  # it cannot be sent
            self._deal_with(job, understand(error))
            return
        self._aloft[future] = _Aloft(job, self._next_look())
        future.add_done_callback(self._landed.put)
        self.ground.sent(job)

    def _next_look(self) -> float:
        """Return when to look after what is sent or seen now."""
        if self.time_limit is None:
            return math.inf
        return time.monotonic() + self.time_limit / (_LOOKS if self.tenancy.shared else 1)

    def _await_one(self) -> None:
        """Wait for a scan to land, a tick at most, and look after the rest."""
        try:
            future = self._landed.get(timeout=_TICK)
        except queue.Empty:
            pass
        else:
            if (item := self._aloft.pop(future, None)) is not None:
                self._take(future, item.job)
            del future  # releases what the scheduler still holds of the scan
        self.ground.look_after()
        self._check_cluster()
        self._end_overdue()

    def _take(self, future: distributed.Future, job: Job) -> None:
        """Deal with a scan that came to an end."""
        if future.status != "error" and self.client.status not in _HOLDS:
            self._raise_lost()
        if future.status in ("finished", "cancelled"):
            try:
                record = future.result()
            except OSError:  # of the way back: no task raised it
                discard(job.staging)
                self._deal_with(job, connection_lost())
                return
            except FutureCancelledError as cancelled:
                discard(job.staging)
                self._deal_with(job, understand(cancelled))
                return
            try:
                self.ground.publish(job, record)
            except LockedError:
                discard(job.staging)
                raise
            except FusionflowError as refused:
                discard(job.staging)
                self._deal_with(job, understand(refused))
            return
        error = future.exception() if future.status == "error" else None
        discard(job.staging)
        self._deal_with(job, understand(error, future.status, self._short_of_memory(error)))

    def _deal_with(self, job: Job, trouble: Trouble) -> None:
        verdict, label = trouble.verdict, job.scan.label
        once_more = verdict in (Verdict.AGAIN, Verdict.ALONE) and label not in self._tried
        if once_more or verdict is Verdict.RESEND:
            if self.ground.is_stopping():
                self.ground.put_off(job, trouble)
                return
            if once_more:
                self._tried.add(label)
            alone = verdict is Verdict.ALONE
            try:
                again = self.ground.try_again(job, trouble, alone=alone)
            except FusionflowError as another:
                trouble = understand(another)
            else:
                (self._alone if alone else self._again).append(again)
                return
        self.ground.give_up(job, trouble)
        if verdict is Verdict.STOP:
            raise FusionflowError(f"{label}: {trouble.reason}", "Every scan would meet this")

    def _end_overdue(self) -> None:
        """Give up scans that hang, and restart the workers they hang on if they are ours alone."""
        limit, now = self.time_limit, time.monotonic()
        overdue = {future: item for future, item in self._aloft.items() if now > item.deadline}
        if not overdue or limit is None:
            return
        if self.tenancy.shared:
            for future, item in overdue.items():
                busy = self._busy_with(future, item.job)  # else it waits for what others do
                looks = item.looks + bool(busy)
                if looks < _LOOKS:
                    self._aloft[future] = _Aloft(item.job, self._next_look(), looks)
                else:
                    self.client.cancel([future], force=True)
                    self._drop(future, took_too_long(limit, busy))
            return
        stuck = self._holders(*(item.job for item in overdue.values()))
        self.client.cancel(list(overdue), force=True)
        if stuck:
            logger.info("restarting %s: over the time limit", ", ".join(stuck))
            self.client.restart_workers(stuck, timeout=_RESTART, raise_for_error=False)
        for future in overdue:
            self._drop(future, took_too_long(limit))

    def _drop(self, future: distributed.Future, trouble: Trouble) -> None:
        """Take a scan out of the air."""
        job = self._aloft.pop(future).job
        discard(job.staging)
        self._deal_with(job, trouble)

    def _holders(self, *jobs: Job, patience: float | None = None) -> list[str]:
        """Return the workers that were given tasks of scans."""
        ask = self.client.scheduler.processing
        given = self.client.sync(ask, workers=None, callback_timeout=patience)
        return [address for address, keys in given.items() if _any_of(keys, jobs)]

    def _busy_with(self, future: distributed.Future, job: Job) -> list[str]:
        """Return the workers that are at a scan at this moment, or do not answer."""
        ask = self.client.scheduler.call_stack
        try:
            return list(self.client.sync(ask, keys=[future.key], callback_timeout=_ANSWER))
        except (TimeoutError, OSError, KeyError):  # a worker that is frozen, or gone by now
            return self._holders(job)

    def _call_off(self) -> None:
        """Cancel what is aloft, and wait until workers that live on are done: till then they write.

        No one call of a task can be broken off, and what follows it was cancelled.
        """
        jobs, until, holders = [item.job for item in self._aloft.values()], math.inf, []
        if self.tenancy.outlived:
            until = time.monotonic() + _SILENCE
            with contextlib.suppress(*_NO_ANSWER):
                while not self._has_come() and time.monotonic() < until - _SILENCE / 2:
                    time.sleep(_SILENCE / 80)
                holders = self._holders(*jobs, patience=_ANSWER)
        self.client.cancel(list(self._aloft))
        silent = 0
        while holders and silent < 2:  # at the first look, one may be about to begin
            left = until - time.monotonic()
            if left <= 0:
                logger.info("%s: still at what was cancelled; the next run tidies up", holders)
                return
            silent = silent + 1 if self._is_silent(holders, jobs, min(left, _ANSWER)) else 0
            time.sleep(_SILENCE / 80)

    def _has_come(self) -> bool:
        """Whether the scheduler has all that was sent: questions, and a cancel, can overtake it."""
        ask = self.client.scheduler.call_stack
        try:
            self.client.sync(ask, keys=[item.key for item in self._aloft], callback_timeout=_ANSWER)
        except KeyError:
            return False
        return True

    def _is_silent(self, holders: list[str], jobs: Sequence[Job], patience: float) -> bool:
        """Whether workers that are still there say within some seconds that they are at no task."""
        ask = self.client.scheduler.broadcast
        try:
            stacks = self.client.sync(
                ask, msg={"op": "call_stack"}, workers=holders, on_error="ignore",
                callback_timeout=patience,
            )  # fmt: skip
        except _NO_ANSWER:
            return False
        return not any(_any_of(keys, jobs) for keys in stacks.values())

    def _check_cluster(self) -> None:
        """Stop if the scheduler or all workers are gone.

        Raises
        ------
        ClusterError
            If they are.
        """
        now = time.monotonic()
        if self.client.status not in _HOLDS:
            self._raise_lost()
        if self.client.status == "connecting":
            if not self._connecting:
                logger.warning("The connection to the scheduler broke; waiting for it")
            self._connecting = True
            return
        self._connecting = False
        if now - self._workers_asked < _WORKERS_EVERY:
            return
        self._workers_asked = now
        workers = workers_of(self.client)
        if any(gpus_of(worker) or not self.needs_gpu for worker in workers.values()):
            self._workers_seen = now
            self._look_at(workers)
        elif now - self._workers_seen > self.patience:
            what = "worker that advertises a GPU" if self.needs_gpu else "worker"
            raise ClusterError(
                f"The cluster has had no {what} for {self.patience:g} s",
                "What is published stays. Start workers and run again to go on",
            )

    def _raise_lost(self) -> None:
        raise ClusterError(
            f"The scheduler {self.client.scheduler.address if self.client.scheduler else ''} is "
            "gone, or was out of reach for too long",
            "What is published stays; run again to go on",
        )

    def _short_of_memory(self, error: BaseException | None) -> set[str]:
        """Return the workers that their nannies ended for their memory, if one died at all."""
        if not isinstance(error, KilledWorker):
            return set()
        for patience in (0.5, 0.0):  # its nanny's word may still be on the way
            events = self.client.get_events(_MEMORY_TOPIC) or ()
            ended = {str(message.get("worker")) for _, message in events}
            if error.last_worker.address in ended:
                break
            time.sleep(patience)
        return ended

    @property
    def _held(self) -> float:
        """Bytes that the scans in flight may need."""
        return sum(bytes_in_flight(item.job) for item in self._aloft.values())

    def _look_at(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell who works, and make use of the room that they give."""
        self.ground.staffed(workers)
        self._look_for_room(workers)

    def _look_for_room(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Set how many scans to have in flight, and how large they may be together.

        Two for each task that can run at a time, so that no worker waits for the next one; and what
        they hold on the way from stage to stage must fit the workers' memory.
        """
        threads = sum(worker["nthreads"] for worker in workers.values())
        self.window = self._wanted or max(2, 2 * threads)
        limits = [worker.get("memory_limit") or float("inf") for worker in workers.values()]
        self.bytes = bytes_for_scans(limits, reads_network=self.reads_network)


def bytes_in_flight(job: Job) -> float:
    """Return the bytes that the cluster may hold for a scan at a time, estimated."""
    return float(math.prod(job.layout.shape)) * _BYTES_A_VOXEL


def _any_of(keys: Iterable[Any], jobs: Sequence[Job]) -> bool:
    """Whether any key is of a task of these scans."""
    return any(job.token in str(key) for key in keys for job in jobs)
