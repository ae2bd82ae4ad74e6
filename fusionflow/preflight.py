"""What would fail later, found before any work: versions, GPUs, weights, files, memory, disks.

Every worker answers one question by a task of its own. What it answers is held against what the
run needs and shown as one table; what would fail stops the run there.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distributed

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters import await_workers, keep_waiting
from fusionflow.errors import ClusterError, FusionflowError
from fusionflow.inspection import Facts, Question, inspect
from fusionflow.io.files import UNFINISHED, discard
from fusionflow.io.nifti import read_header
from fusionflow.io.scans import Scan
from fusionflow.placement import RESOURCE, advertised, gpus_of, workers_of
from fusionflow.planning import voxels_held
from fusionflow.preflight_checks import (
    Check,
    Size,
    answers_check,
    disks_check,
    gpus_check,
    inputs_check,
    memory_check,
    network_check,
    output_check,
    plugins_check,
    probe_of,
    time_check,
    versions_check,
)
from fusionflow.stages import Recipe
from fusionflow.tenancy import Tenancy, task_name

__all__ = ["Check", "Preflight", "preflight"]

#: Scans whose headers are read, and whose files every worker looks for.
_SAMPLE = 8
#: Seconds that a worker may take to answer: it may be on its way out of another task.
_ANSWER = 120.0
#: Seconds for other workers to come, if all that were asked went away.
_SUCCESSION = 60.0
#: Seconds between two looks whether those that were asked are still there.
_LOOK = 2.0


@dataclass(frozen=True)
class Preflight:
    """All lines."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The lines that stop the run."""
        return tuple(check for check in self.checks if check.state == "fails")

    def raise_if_failed(self) -> None:
        """Stop what would fail later.

        Raises
        ------
        ClusterError
            If anything does.
        """
        if self.failed:
            raise ClusterError(
                "The cluster cannot do this run: "
                + "; ".join(f"{check.name}: {check.found}" for check in self.failed),
                ". ".join(dict.fromkeys(check.mend for check in self.failed if check.mend)),
            )


def preflight(
    client: distributed.Client,
    tenancy: Tenancy,
    recipe: Recipe,
    scans: Sequence[Scan],
    out: Path,
    options: ClusterOptions,
    space: Path | None = None,
    on_wait: Callable[[], object] = keep_waiting,
) -> tuple[Recipe, Preflight]:
    """Settle whether networks run on GPUs, and look whether a cluster can do a run.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    tenancy : Tenancy
        The run's place on it.
    recipe : Recipe
        How scans are fused.
    scans : sequence of Scan
        What may be fused; of some the files are looked for, and the headers read.
    out : Path
        The output folder, which exists.
    options : ClusterOptions
        Whether a GPU is needed, and how long to wait for a worker.
    space : Path, optional
        The image whose grid results get.
    on_wait : callable
        Called while it waits for a worker; what it raises ends that.

    Returns
    -------
    Recipe
        With `needs_gpu` as it is to be.
    Preflight
        What was found.

    Raises
    ------
    ClusterError
        If no worker comes that can do the work, or the output cannot be written.
    """
    recipe = replace(recipe, needs_gpu=_needs_gpu(client, recipe, options))
    await_workers(client, options.patience, with_gpu=recipe.needs_gpu, on_wait=on_wait)
    sample = list(scans[:: max(1, len(scans) // _SAMPLE)][:_SAMPLE])
    sizes = _sizes(sample, space)
    meeting = out / f"{UNFINISHED}preflight-{uuid.uuid4().hex[:8]}"
    try:
        meeting.mkdir()
        (meeting / "client").write_bytes(b"")
        for others_may_come in (True, False):
            known = workers_of(client)
            with tenancy.annotated():
                asked = _ask(client, tenancy, known, recipe, sample, sizes, meeting)
            facts, wrong, silent = _answers(client, asked, options.patience)
            if facts or wrong or not (others_may_come and _others_came(client, known, options)):
                break  # else all went away, perhaps at the end of their jobs
        seen = {path.name for path in meeting.iterdir()}
    except OSError as error:
        raise ClusterError(
            f"Cannot write {out}: {error.strerror or error}", "Check space and permissions"
        ) from error
    finally:
        discard(meeting)
    checks = [
        answers_check(known, facts, wrong, silent),
        versions_check(client, facts),
        *plugins_check(facts, recipe),
        gpus_check(known, facts, recipe),
        *network_check(facts, recipe),
        inputs_check(facts),
        output_check(facts, seen, known),
        memory_check(known, recipe, sizes),
        disks_check(facts, sizes, len(scans), out),
        time_check(known, facts, recipe, sizes, len(scans)),
    ]
    return recipe, Preflight(tuple(checks))


def _others_came(
    client: distributed.Client, known: Mapping[str, Any], options: ClusterOptions
) -> bool:
    """Wait a while for workers that take the place of those that are gone."""
    until = time.monotonic() + min(_SUCCESSION, options.patience)
    while time.monotonic() < until and client.status == "running":
        if workers_of(client).keys() - known.keys():
            return True
        time.sleep(_LOOK / 4)
    return False


def _needs_gpu(client: distributed.Client, recipe: Recipe, options: ClusterOptions) -> bool:
    """Whether fuse tasks are to ask for a GPU."""
    if not recipe.suits_gpus or options.gpu == "never":
        return False
    return options.needs_gpu or advertised(client) > 0


def _sizes(scans: Iterable[Scan], space: Path | None) -> list[Size]:
    """Return how large scans are, those that can be read."""
    found = []
    for scan in scans:
        with contextlib.suppress(FusionflowError):
            t1w, pet = read_header(scan.t1w), read_header(scan.pet)
            x, y, z = (t1w if space is None else read_header(space)).orientation.ras_shape
            found.append(Size(scan.label, voxels_held(t1w, pet, x * y * z), (z, y, x)))
    return found


def _ask(
    client: distributed.Client,
    tenancy: Tenancy,
    known: Mapping[str, Mapping[str, Any]],
    recipe: Recipe,
    sample: Sequence[Scan],
    sizes: Sequence[Size],
    meeting: Path,
) -> dict[str, distributed.Future]:
    """Ask every worker."""
    # One that is not here either is its scan's own fault; sizes may change: some are on their way.
    inputs = {path for scan in sample for path in scan.files.values() if path.exists()}
    name = task_name("preflight", tenancy.run)
    asked: dict[str, distributed.Future] = {}
    for index, (address, worker) in enumerate(known.items()):
        with_gpu = gpus_of(worker) > 0
        question = Question(
            recipe=recipe,
            reads_network=recipe.weights is not None and (with_gpu or not recipe.needs_gpu),
            shape=probe_of(sizes),
            files=tuple(sorted(map(str, inputs))),
            meeting=str(meeting),
            name=f"worker-{index}",
        )
        asked[address] = client.submit(
            inspect, question, key=(name, address), workers=[address], pure=False,
            resources={RESOURCE: 1} if recipe.needs_gpu and with_gpu else None,
            priority=tenancy.priority,
        )  # fmt: skip
    return asked


def _answers(
    client: distributed.Client, asked: dict[str, distributed.Future], patience: float
) -> tuple[dict[str, Facts], dict[str, str], dict[str, str]]:
    """Return what workers answered, what went wrong on others, and why some said nothing."""
    begun = time.monotonic()
    silent: dict[str, str] = {}
    while waiting := {
        address: future
        for address, future in asked.items()
        if address not in silent and not future.done()
    }:
        answered = any(future.done() for future in asked.values())
        limit = _ANSWER if answered else max(_ANSWER, patience)
        seconds = begun + limit - time.monotonic()
        if seconds <= 0:
            silent |= dict.fromkeys(waiting, "no answer: it hangs, or is busy")
            break
        with contextlib.suppress(TimeoutError):
            distributed.wait(list(waiting.values()), timeout=min(seconds, _LOOK))
        if gone := {a for a in waiting if not asked[a].done()} - workers_of(client).keys():
            silent |= dict.fromkeys(gone, "it went away when it was asked, and its log says why")
            client.cancel([asked[address] for address in gone], force=True)
    facts: dict[str, Facts] = {}
    wrong: dict[str, str] = {}
    for address, future in asked.items():
        if address in silent:
            continue
        if future.status == "finished":
            facts[address] = future.result()
        elif future.status == "error":
            error = future.exception()
            wrong[address] = f"{type(error).__name__}: {error}"
    client.cancel(list(asked.values()), force=True)
    return facts, wrong, silent
