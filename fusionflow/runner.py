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
from typing import Any, Literal, TypeAlias

import distributed
import xarray as xr

from fusionflow import clusters, cohort, graph
from fusionflow.config import RunConfig
from fusionflow.errors import ConfigurationError, FusionflowError, NoScansError, StoreError
from fusionflow.io.bids import Excluded, Scan, discover
from fusionflow.io.derivatives import write_dataset_files
from fusionflow.io.nifti import read_header
from fusionflow.io.store import Layout
from fusionflow.ledger import (
    Failure,
    OutputPaths,
    Published,
    discard,
    fingerprint,
    read_published,
    write_index,
    write_json,
)
from fusionflow.placement import advertised
from fusionflow.stages import Job, Recipe
from fusionflow.transform import check_levels
from fusionflow.weights import Weights

logger = logging.getLogger(__name__)

Level = Literal["participant", "group"]

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
    """A scan was published."""

    record: Published


@dataclass(frozen=True)
class Failed:
    """A scan could not be fused; the others go on."""

    failure: Failure


Event: TypeAlias = Planned | Started | Unchanged | Fused | Failed


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
        The cohort's figures, if the group level ran.
    """

    fused: list[Published] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    skipped: list[Excluded] = field(default_factory=list)
    summary: xr.DataTree | None = None


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
            with contextlib.ExitStack() as stack:
                client = client or stack.enter_context(clusters.connect(config.cluster))
                tell(Started(client.dashboard_link))
                cohort_run.fuse_all(itertools.chain([first], todo), client)
        write_index(paths)
    if "group" in levels and ("participant" not in levels or report.fused or report.unchanged):
        report.summary = cohort.write_summary(paths)
    return report


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
        self.request = fingerprint(
            config.method.fingerprint(identity), config.conform.canonical(), config.region
        )

    def unfinished(self, scans: Sequence[Scan]) -> Iterator[Scan]:
        """Yield the scans that are to be fused, and tell of those that are done."""
        for scan in scans:
            try:
                record = read_published(self.paths, scan.label)
            except StoreError as error:  # a damaged record is replaced by a new one
                logger.warning("%s", error)
                record = None
            if record and self._is_done(record, scan):
                self.report.unchanged.append(scan.label)
                self.tell(Unchanged(scan.label))
            else:
                yield scan

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
                for job in in_flight.values():
                    discard(job.staging)
                write_index(self.paths)

    def _planned(self, scans: Iterator[Scan]) -> Iterator[Job]:
        """Plan the scans, one at a time as there is room for it."""
        for scan in scans:
            try:
                yield self._plan(scan)
            except FusionflowError as error:
                self.fail(scan.label, type(error).__name__, str(error))

    def _is_done(self, record: Published, scan: Scan) -> bool:
        """Whether a scan needs nothing: same request, same inputs, everything still there."""
        return (
            record.is_what(self.request, (scan.t1w, scan.pet), scan.frame_durations)
            and (self.paths.version(scan.label, record.version) / "zarr.json").is_file()
            and all((self.paths.root / name).is_file() for name in record.outputs)
        )

    def _plan(self, scan: Scan) -> Job:
        """Read the header of the T1w image and lay the scan out."""
        x, y, z = read_header(scan.t1w).orientation.ras_shape
        layout = Layout.of_shape((z, y, x))
        check_levels((y, x), self.config.method.transform)
        return Job(
            scan=scan,
            source=self.source,
            paths=self.paths,
            layout=layout,
            recipe=self.recipe,
            conform=self.config.conform,
            request=self.request,
            token=graph.new_token(),
        )

    def _take(self, future: distributed.Future, job: Job) -> None:
        """Record how a scan ended."""
        label = job.scan.label
        if future.status == "finished":
            record: Published = future.result()
            self.report.fused.append(record)
            self.tell(Fused(record))
            return
        discard(job.staging)
        error: Any = future.exception() if future.status == "error" else None
        if isinstance(error, FusionflowError):
            reason = str(error)
        elif isinstance(error, distributed.scheduler.KilledWorker):
            reason = (
                f"The workers that ran it died ({error.last_worker.name} last): most often "
                "memory. Give each worker more, or run fewer at a time"
            )
        elif error is None:
            reason = f"Its tasks were {future.status}"
        else:
            reason = f"Unexpected {type(error).__name__}: {error}"
            logger.debug("%s failed", label, exc_info=error)
        self.fail(label, type(error).__name__, reason)

    def fail(self, label: str, kind: str, reason: str) -> None:
        """Write down why a scan is not fused."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        failure = Failure(label, reason, kind, self.request, now)
        write_json(self.paths.failure(label), asdict(failure))
        self.report.failed.append(failure)
        self.tell(Failed(failure))
