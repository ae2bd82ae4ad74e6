"""The cohort: a bounded window of scans in flight, one at fault never stopping the others."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias

import distributed
import xarray as xr

from fusionflow import clusters, cohort, graph
from fusionflow.commit import publish_scan
from fusionflow.config import RunConfig
from fusionflow.errors import ConfigurationError, FusionflowError, NoScansError, StoreError
from fusionflow.io.bids import Excluded, Scan, discover
from fusionflow.io.derivatives import write_dataset_files
from fusionflow.io.files import discard, fingerprint, write_json
from fusionflow.io.nifti import read_header
from fusionflow.io.store import Layout
from fusionflow.ledger import Failure, OutputPaths, Published, read_published, sweep, write_index
from fusionflow.placement import advertised
from fusionflow.stages import Job, Recipe
from fusionflow.transform import check_levels
from fusionflow.weights import Weights

logger = logging.getLogger(__name__)

Level = Literal["participant", "group"]

#: There is no reason to fuse a scan.
_NOTHING = ""
#: Seconds between two writings of the index while scans come in.
_INDEX_INTERVAL = 30.0


@dataclass(frozen=True)
class Planned:
    """The run begins.

    Attributes
    ----------
    scans : int
        How many it will look at.
    excluded : tuple of Excluded
        What it leaves out, and why.
    weights : Weights or None
        What the network runs with.
    notes : tuple of str
        On the dataset as a whole.
    """

    scans: int
    excluded: tuple[Excluded, ...]
    weights: Weights | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The cluster is there; `dashboard` is the address of its dashboard."""

    dashboard: str


@dataclass(frozen=True)
class Unchanged:
    """A scan was made from these inputs with this method before."""

    label: str


@dataclass(frozen=True)
class Fused:
    """A scan was published; `why` says why it was made again, None that it is new."""

    record: Published
    why: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A published scan is not part of the cohort's summary."""

    label: str
    why: str


@dataclass(frozen=True)
class Failed:
    """A scan could not be fused; the others go on."""

    failure: Failure


Event: TypeAlias = Planned | Started | Unchanged | Fused | Failed | LeftOut


@dataclass
class RunReport:
    """What a run did.

    Attributes
    ----------
    fused : list of Published
        Scans that it published.
    unchanged : list of str
        Labels that were done before.
    failed : list of Failure
        Scans that could not be fused, broken inputs included.
    skipped : list of Excluded
        Places without a PET/T1w pair.
    summary : DataTree or None
        The cohort's figures, if the group level ran and there are some.
    left_out : dict
        Label -> why a published scan is not part of the summary.
    """

    fused: list[Published] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Excluded] = field(default_factory=list)
    summary: xr.DataTree | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def run(
    bids_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    levels: Sequence[Level] = ("participant", "group"),
    client: distributed.Client | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> RunReport:
    """Fuse the scans of a BIDS tree, and summarise the cohort.

    Parameters
    ----------
    bids_dir : path-like
        The tree.
    out_dir : path-like
        The output folder; made if it is not there.
    config : RunConfig, optional
        Method and options; by default ``dwt-vgg19`` on a local cluster.
    participant_labels, session_labels : sequence of str
        Restrict the run; with or without ``sub-`` and ``ses-``.
    levels : sequence of {"participant", "group"}
        What to do.
    client : distributed.Client, optional
        A cluster to run on; otherwise one is started or reached as `config` says.
    on_event : callable, optional
        Called with each `Event`, in this thread.

    Returns
    -------
    RunReport

    Raises
    ------
    NoScansError
        If there is nothing to fuse (or, at the group level alone, to summarise).
    ConfigurationError
        If options or the cluster cannot be used.
    WeightsNotFoundError
        If the weights are not there.
    StoreError
        If the output folder cannot be written.
    """
    config = config or RunConfig()
    source, paths = Path(bids_dir).absolute(), OutputPaths(Path(out_dir).absolute())
    tell = on_event or (lambda event: None)
    report = RunReport()
    if "participant" in levels:
        graph.check_dask_settings()
        if paths.root.resolve() == source.resolve():
            raise ConfigurationError(
                f"Input and output are the same folder, {source}",
                f"Write to {source / 'derivatives' / 'fusionflow'}, say",
            )
        found = discover(
            source, participant_labels=participant_labels, session_labels=session_labels
        )
        report.skipped = [item for item in found.excluded if not item.broken]
        # Weights and method are looked at before anything starts or is written.
        recipe = graph.make_recipe(config.method, config.region)
        broken = [item for item in found.excluded if item.broken]
        if not found.scans and not broken:
            raise NoScansError(
                f"{source} holds no subject with both a T1w and a PET image",
                "fusionflow needs sub-*/[ses-*/]anat/*_T1w.nii[.gz] and pet/*_pet.nii[.gz]",
            )
        write_dataset_files(paths, source)
        tell(Planned(len(found.scans), found.excluded, recipe.weights, found.notes))
        cohort_run = _CohortRun(source, paths, config, recipe, tell, report)
        for item in broken:
            cohort_run.fail(item.label, "excluded", item.reason)
        todo = cohort_run.unfinished(found.scans)
        first = next(todo, None)
        if first is not None:  # else there is nothing to start a cluster for
            try:
                with contextlib.ExitStack() as stack:
                    client = client or stack.enter_context(clusters.connect(config.cluster))
                    tell(Started(client.dashboard_link))
                    cohort_run.fuse_all(itertools.chain([first], todo), client)
            finally:  # once more now that the workers are gone, for they wrote until then
                for folder in cohort_run.abandoned:
                    discard(folder)
        write_index(paths)
        if "group" in levels:
            _summarise(paths, source, report, tell, cohort_run.request)
    elif "group" in levels:
        _summarise(paths, source, report, tell)
    return report


def _summarise(
    paths: OutputPaths,
    source: Path,
    report: RunReport,
    tell: Callable[[Event], None],
    request: str | None = None,
) -> None:
    """Summarise the scans that are in the input and were made as this run asks.

    Raises
    ------
    NoScansError
        If there are none; but not at the end of a run that fused some or tried to.
    ConfigurationError
        If the group level is run alone and scans were made in different ways.
    """
    present = {scan.label for scan in discover(source).scans}
    report.summary, report.left_out = cohort.write_summary(paths, present=present, request=request)
    for label, why in report.left_out.items():
        tell(LeftOut(label, why))


class _CohortRun:
    """The participant level of one run."""

    def __init__(
        self,
        source: Path,
        paths: OutputPaths,
        config: RunConfig,
        recipe: Recipe,
        tell: Callable[[Event], None],
        report: RunReport,
    ) -> None:
        self.source, self.paths, self.config = source, paths, config
        self.recipe, self.tell, self.report = recipe, tell, report
        identity = recipe.weights.identity if recipe.weights else None
        self.why: dict[str, str | None] = {}
        self.abandoned: list[Path] = []
        self.request = fingerprint(
            config.method.fingerprint(identity), config.conform.canonical(), config.region
        )

    def unfinished(self, scans: Sequence[Scan]) -> Iterator[Scan]:
        """Yield the scans that are to be fused, and tell of those that are done."""
        for scan in scans:
            label = scan.label
            try:
                why = self._why_not_done(scan)
            except Exception as error:
                self._fail_of(label, error)
                continue
            if why != _NOTHING:
                self.why[label] = why
                yield scan
            else:
                self.report.unchanged.append(label)

    def fuse_all(self, scans: Iterator[Scan], client: distributed.Client) -> None:
        """Keep the window full until every scan is fused or failed."""
        if advertised(client) and self.recipe.weights is not None:
            self.recipe = replace(self.recipe, needs_gpu=True)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        threads = sum(worker["nthreads"] for worker in workers)
        window = self.config.cluster.window or max(2, 2 * threads)
        jobs = self._planned(scans)
        in_flight: dict[distributed.Future, Job] = {}
        done = distributed.as_completed(loop=client.loop)
        written = time.monotonic()
        try:
            while True:
                while len(in_flight) < window and (job := next(jobs, None)) is not None:
                    future = client.compute(graph.scan_graph(job), optimize_graph=False)
                    in_flight[future] = job
                    done.add(future)
                if not in_flight:
                    break
                future = next(done)
                self._take(future, in_flight.pop(future))
                del future  # releases what the scheduler still holds of the scan
                if time.monotonic() - written > _INDEX_INTERVAL:
                    write_index(self.paths)
                    written = time.monotonic()
        finally:
            if in_flight:  # interrupted
                client.cancel(list(in_flight))
                self.abandoned = [job.staging for job in in_flight.values()]
                for folder in self.abandoned:
                    discard(folder)
                write_index(self.paths)

    def _planned(self, scans: Iterator[Scan]) -> Iterator[Job]:
        """Plan the scans, one at a time as there is room for it."""
        for scan in scans:
            try:
                job = self._plan(scan)
            except Exception as error:  # one scan must not stop the others
                self._fail_of(scan.label, error)
            else:
                yield job

    def _why_not_done(self, scan: Scan) -> str | None:
        """Say why a scan is to be fused: None if it is new, `_NOTHING` if it is not to be."""
        paths, label = self.paths, scan.label
        try:
            record = read_published(paths, label)
        except StoreError as error:  # a damaged record is replaced by a new one
            return str(error)
        if record is None:
            return None
        why = record.why_not(self.request, self.source, (scan.t1w, scan.pet), scan.frame_durations)
        if why is not None:
            return why
        for item in (*record.stored, *record.outputs):
            if not item.is_there(paths.root):
                return f"{item.path} is missing or damaged"
        paths.failure(label).unlink(missing_ok=True)  # of an attempt that asked for something else
        self.tell(Unchanged(label))
        return _NOTHING

    def _plan(self, scan: Scan) -> Job:
        """Read the header of the T1w image and lay the scan out."""
        x, y, z = read_header(scan.t1w).orientation.ras_shape
        layout = Layout.of_shape((z, y, x))
        check_levels((y, x), self.config.method.transform)
        sweep(self.paths, scan.label)
        token = graph.new_token()
        return Job(
            scan=scan,
            source=self.source,
            paths=self.paths,
            layout=layout,
            recipe=self.recipe,
            conform=self.config.conform,
            request=self.request,
            token=token,
            staging=self.paths.staging(scan.label, token),
        )

    def _take(self, future: distributed.Future, job: Job) -> None:
        """Record how a scan ended."""
        label = job.scan.label
        if future.status == "finished":
            try:
                record = publish_scan(job, future.result())
            except FusionflowError as error:
                discard(job.staging)
                self._fail_of(label, error)
                return
            self.report.fused.append(record)
            self.tell(Fused(record, self.why.get(label)))
            return
        discard(job.staging)
        self._fail_of(
            label, future.exception() if future.status == "error" else None, future.status
        )

    def _fail_of(self, label: str, error: BaseException | None, status: str = "error") -> None:
        """Say in a person's words why a scan failed."""
        if isinstance(error, FusionflowError):
            reason = str(error)
        elif isinstance(error, distributed.scheduler.KilledWorker):
            reason = (
                f"The workers that ran it died ({error.last_worker.name} last): most often "
                "memory. Give each worker more, or run fewer at a time"
            )
        elif error is None:
            reason = f"Its tasks were {status}"
        else:
            reason = f"Unexpected {type(error).__name__}: {error}"
            logger.debug("%s failed", label, exc_info=error)
        self.fail(label, type(error).__name__, reason)

    def fail(self, label: str, kind: str, reason: str) -> None:
        """Write down why a scan is not fused."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        failure = Failure(label, reason, kind, self.request, now)
        try:
            write_json(self.paths.failure(label), asdict(failure))
        except StoreError as error:  # it is told all the same
            failure = replace(failure, reason=f"{reason} ({error})")
        self.report.failed.append(failure)
        self.tell(Failed(failure))
