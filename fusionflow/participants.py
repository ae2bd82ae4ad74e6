"""The participant level of a run: which scans are due, their attempts, their publication."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distributed

from fusionflow import __version__, clusters, graph
from fusionflow.commit import publish_scan
from fusionflow.config import RunConfig
from fusionflow.errors import StoreError
from fusionflow.events import (
    Again,
    Begun,
    Event,
    Failed,
    Fused,
    Planned,
    PutOff,
    Quarantined,
    RunReport,
    Staffed,
    Started,
    Stopping,
    Unchanged,
    Waiting,
)
from fusionflow.flight import Flight
from fusionflow.history import RunLog, published_line
from fusionflow.index import write_index
from fusionflow.io.files import utc_now
from fusionflow.io.nifti import read_header
from fusionflow.io.scans import Discovery, Excluded, Scan
from fusionflow.io.store import Layout
from fusionflow.ledger import (
    OutputPaths,
    forget_attempt,
    read_attempt,
    scan_labels,
    sweep,
    write_attempt,
)
from fusionflow.performance import performance_report
from fusionflow.preflight import preflight
from fusionflow.records import Attempt, Published
from fusionflow.runlock import RunLock
from fusionflow.stages import Recipe
from fusionflow.staging import Job
from fusionflow.survey import Standing, asked_again, new_attempt, removed_labels, survey
from fusionflow.tenancy import Tenancy
from fusionflow.transform import check_levels
from fusionflow.trouble import Trouble, understand
from fusionflow.warm import kept_network

#: Seconds between two writings of the index while scans come in, and at least so many times the
#: seconds that the last one took.
_INDEX_INTERVAL = 30.0
_INDEX_SHARE = 20.0
#: Scans in a row that could not be written, after which the run stops.
_MOST_UNWRITTEN = 3


@dataclass(frozen=True)
class Plan:
    """What a run is to look at, and how it makes it."""

    source: Path
    found: Discovery
    everything: Discovery
    recipe: Recipe
    request: str

    @property
    def broken(self) -> list[Excluded]:
        """What a person must mend before it can run."""
        return [item for item in self.found.excluded if item.broken]


class _AskedToEndError(Exception):
    """Somebody asked the run to end while it waited for workers."""


class ParticipantLevel:
    """The participant level of one run; what `Flight` reports to."""

    def __init__(
        self,
        plan: Plan,
        paths: OutputPaths,
        config: RunConfig,
        lock: RunLock,
        log: RunLog,
        tell: Callable[[Event], None],
        report: RunReport,
    ) -> None:
        self.plan, self.paths, self.config = plan, paths, config
        self.recipe, self.lock, self.log = plan.recipe, lock, log
        self.tell, self.report = tell, report
        self.again = False, False
        self.stop: Callable[[], bool] = lambda: False
        #: Whether somebody asked it to end.
        self.stopped = False
        self._unwritten = 0
        self._forgot = False
        #: Attempts that came to no end yet.
        self._begun: dict[str, Attempt] = {}
        self._in_flight: set[str] = set()
        self._index_due = time.monotonic() + _INDEX_INTERVAL

    def go(self, client: distributed.Client | None, settle: float) -> None:
        """Make what is to be made."""
        plan, report = self.plan, self.report
        notes = list(plan.found.notes)
        if self.lock.taken_from is not None:
            notes.append(
                f"an earlier run ended badly ({self.lock.taken_from}); going on from there"
            )
        self.tell(
            Planned(len(plan.found.scans), plan.found.excluded, plan.recipe.weights, tuple(notes))
        )
        report.skipped = [item for item in plan.found.excluded if not item.broken]
        report.removed = removed_labels(self.paths, plan.everything)
        for item in plan.broken:
            self._exclude(item)
        due = self._due(settle)
        first = next(due, None)
        if first is not None:  # else there is nothing to start a cluster for
            self._fly(first, due, client)
        held = plan.everything.labels
        for label in scan_labels(self.paths):
            if self.lock.taken_from is not None:  # whose last tasks may have lived on for a while
                sweep(self.paths.scan(label))
            if label not in held and self.paths.attempt(label).exists():
                self._forget(label)

    @property
    def changed(self) -> bool:
        """Whether any record is another than before."""
        return self._forgot or bool(self.report.fused or self.report.failed)

    def _forget(self, label: str) -> None:
        forget_attempt(self.paths, label)
        self._forgot = True

    def _fly(
        self, first: Standing, rest: Iterator[Standing], client: distributed.Client | None
    ) -> None:
        try:
            with contextlib.ExitStack() as stack:
                options, threads = self.config.cluster, self.config.method.threads
                tenancy = Tenancy.of(self.report.run, options, client)
                client = client or stack.enter_context(
                    clusters.connect(options, torch_threads=threads, on_wait=self._on_wait)
                )
                self.tell(Started(client.dashboard_link))
                if self.is_stopping():
                    return
                self._check(client, tenancy, first)
                stack.enter_context(kept_network(client, self.recipe, tenancy.run))
                if options.performance_report:
                    stack.enter_context(performance_report(client, self.paths, tenancy.run))
                flight = Flight(client, tenancy, self, options, self.recipe)
                flight.fly(self._jobs(first, rest))
        except _AskedToEndError:
            pass  # and so `stopped` says
        finally:  # now that workers are gone, or at other work: they wrote until then
            if self._begun:  # interrupted, or planned and then not sent
                for attempt in list(self._begun.values()):
                    self._undo(attempt)
                write_index(self.paths, self.report.removed)

    def _check(self, client: distributed.Client, tenancy: Tenancy, first: Standing) -> None:
        """Stop what would fail later, before anything is done."""
        scans = {scan.label: scan for scan in (first.scan, *self.plan.found.scans) if scan}
        self.recipe, looked = preflight(
            client,
            tenancy,
            self.recipe,
            list(scans.values()),
            self.paths.root,
            self.config.cluster,
            self.config.conform.space,
            self._on_wait,
        )
        self.tell(looked)
        looked.raise_if_failed()

    def _due(self, settle: float) -> Iterator[Standing]:
        """Yield the scans that are to be fused, and tell of the others."""
        plan, (retry, force) = self.plan, self.again
        scans = plan.found.scans
        standings = survey(
            self.paths, plan.source, scans, plan.request,
            settle=settle, plugins=plan.recipe.plugins,
        )  # fmt: skip
        for standing in standings:
            if self.is_stopping():
                return
            item = asked_again(standing, retry_failed=retry, force=force)
            if item.state == "done":
                if item.attempt is not None:  # at something else
                    self._forget(item.label)
                self.report.unchanged.append(item.label)
                self.tell(Unchanged(item.label))
            elif item.state == "waiting":
                waiting = Waiting(item.label, item.why)
                self.report.waiting.append(waiting)
                self.tell(waiting)
            elif item.state == "quarantined" and item.attempt is not None:
                self.report.quarantined.append(item.attempt)
                self.tell(Quarantined(item.attempt))
            else:
                yield item

    def _jobs(self, first: Standing, rest: Iterator[Standing]) -> Iterator[Job]:
        """Plan the scans, one at a time as there is room for it."""
        due: Standing | None = first
        while due is not None:
            if due.scan is not None:
                begun = new_attempt(due.scan, self.plan.source, self.plan.request)
                begun = replace(begun, attempt=due.tried + 1)
                try:
                    yield self._job(due.scan, begun, due.why)
                except Exception as error:  # one scan must not stop the others
                    self._give_up(begun, understand(error))
            due = next(rest, None)

    def _job(self, scan: Scan, begun: Attempt, why: str) -> Job:
        """Read headers, lay the scan out, and write down that it begins."""
        grid = self.config.conform.space or scan.t1w
        read_header(scan.t1w)
        x, y, z = read_header(grid).orientation.ras_shape
        layout = Layout.of_shape((z, y, x))
        check_levels((y, x), self.config.method.transform)
        sweep(self.paths.scan(scan.label))
        token = graph.new_token()
        begun = replace(begun, state="running", run=self.report.run, started=utc_now())
        self._begun[scan.label] = begun
        write_attempt(self.paths, begun)
        job = Job(
            scan=scan,
            source=self.plan.source,
            paths=self.paths,
            layout=layout,
            recipe=self.recipe,
            conform=self.config.conform,
            request=self.plan.request,
            token=token,
            staging=self.paths.staging(scan.label, token),
            begun=begun,
            why=why,
        )
        try:
            job.staging.mkdir(parents=True)
        except OSError as error:
            raise StoreError(
                f"Cannot write {job.staging}: {error.strerror or error}",
                "Check space and permissions",
            ) from error
        return job

    def _on_wait(self) -> None:
        """End the waiting for workers if somebody asked the run to end."""
        if self.is_stopping():
            raise _AskedToEndError

    def is_stopping(self) -> bool:
        """Whether somebody asked the run to end; tells of it once, and goes on asking."""
        asked = self.stop()  # what it raises ends the run, later on, too
        if asked and not self.stopped:
            self.stopped = True
            self.tell(Stopping(len(self._in_flight)))
        return self.stopped

    def put_off(self, job: Job, trouble: Trouble) -> None:
        """Leave a scan in trouble to the next run; what it began is undone when the run ends."""
        self._in_flight.discard(job.scan.label)
        self.tell(PutOff(job.scan.label, trouble.reason))

    def sent(self, job: Job) -> None:
        """Tell that a scan is in flight."""
        self._in_flight.add(job.scan.label)
        self.tell(Begun(job.scan.label, job.layout.shape[0]))

    def staffed(self, workers: Mapping[str, Mapping[str, Any]]) -> None:
        """Tell who works, as the scheduler knows them."""
        limits = [worker.get("memory_limit") or 0 for worker in workers.values()]
        used = sum(worker.get("metrics", {}).get("memory", 0) for worker in workers.values())
        self.tell(Staffed(len(workers), int(used), sum(limits) if all(limits) else None))

    def publish(self, job: Job, record: Published) -> None:
        """Publish a scan, if the folder is still ours; the log knows of it first."""
        self.lock.check()

        def before(complete: Published) -> None:
            self.log.add("publish", **published_line(complete, job.why))

        record = publish_scan(job, record, before)
        self._begun.pop(record.label, None)
        self._in_flight.discard(record.label)
        self._unwritten = 0
        self.report.fused.append(record)
        self.tell(Fused(record, job.why))

    def try_again(self, job: Job, trouble: Trouble, *, alone: bool) -> Job:
        """Return a new attempt at a scan, on its files as they are now."""
        self._in_flight.discard(job.scan.label)
        self.log.add("again", label=job.scan.label, kind=trouble.kind, reason=trouble.reason)
        self.tell(Again(job.scan.label, trouble.reason, alone))
        begun = new_attempt(job.scan, self.plan.source, self.plan.request)
        begun = replace(begun, attempt=job.begun.attempt + 1)
        return self._job(job.scan, begun, job.why)

    def give_up(self, job: Job, trouble: Trouble) -> None:
        """Write down why a scan is not fused."""
        self._give_up(job.begun, trouble)

    def look_after(self) -> None:
        """Make sure that the folder is still ours, and write the index now and then."""
        self.lock.check()
        self.stop()
        if time.monotonic() > self._index_due:
            began = time.monotonic()
            write_index(self.paths, self.report.removed)
            took = time.monotonic() - began
            self._index_due = began + max(_INDEX_INTERVAL, _INDEX_SHARE * took)

    def _undo(self, begun: Attempt) -> None:
        """Take back a scan that was cut off: it did not fail."""
        with contextlib.suppress(StoreError, OSError):
            self.lock.check()  # else it may be another run's by now
            sweep(self.paths.scan(begun.label))
            if begun.attempt == 1:
                forget_attempt(self.paths, begun.label)
                return
            reason = "a run that tried it again was interrupted"
            before = replace(begun, state="failed", attempt=begun.attempt - 1, reason=reason)
            write_attempt(self.paths, replace(before, ended=utc_now()))

    def _exclude(self, item: Excluded) -> None:
        """Write down that a scan was refused before it was read, unless that is known."""
        try:
            known = read_attempt(self.paths, item.label)
        except StoreError:
            known = None
        if known is not None and (known.kind, known.reason) == ("excluded", item.reason):
            self.report.quarantined.append(known)
            self.tell(Quarantined(known))
            return
        self._write_failure(Attempt(item.label, "quarantined", item.reason, "excluded"))

    def _give_up(self, begun: Attempt, trouble: Trouble) -> None:
        self._write_failure(
            replace(
                begun,
                state="quarantined" if trouble.quarantines else "failed",
                reason=trouble.reason,
                kind=trouble.kind,
                worker=trouble.worker,
            )
        )
        self._unwritten += trouble.kind == StoreError.__name__
        if self._unwritten >= _MOST_UNWRITTEN:
            raise StoreError(
                f"{self._unwritten} scans in a row could not be written. The last: "
                f"{trouble.reason}",
                "What is published stays; run again to go on",
            )

    def _write_failure(self, failure: Attempt) -> None:
        self._begun.pop(failure.label, None)
        self._in_flight.discard(failure.label)
        failure = replace(failure, run=self.report.run, software=__version__, ended=utc_now())
        try:
            write_attempt(self.paths, failure)
        except StoreError as error:  # it is told all the same
            failure = replace(failure, reason=f"{failure.reason} ({error})")
        self.log.add(
            failure.state, label=failure.label, kind=failure.kind, reason=failure.reason,
            attempt=failure.attempt, worker=failure.worker,
        )  # fmt: skip
        self.report.failed.append(failure)
        self.tell(Failed(failure))
