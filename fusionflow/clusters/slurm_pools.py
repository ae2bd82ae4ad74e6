"""Pools of SLURM's jobs on one scheduler, which runs in this process.

`dask_jobqueue.SLURMCluster` has jobs of one shape, and leaves it at that when SLURM ends one. Here
each pool has its own shape, and jobs that SLURM no longer has are replaced.

Every job carries a mark of its cluster (``--comment``): whatever was interrupted on the way, what
SLURM has with that mark in the end, and this side does not know, is cancelled.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed.core import Status
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from fusionflow.clusters.slurm_commands import JobState, cancel, command, my_jobs
from fusionflow.clusters.slurm_shapes import Shape
from fusionflow.errors import ClusterError
from fusionflow.placement import RESOURCE
from fusionflow.untrusted import one_line

logger = logging.getLogger(__name__)

#: Looks in a row that must find too many jobs before one is ended.
_IDLE_LOOKS = 3
#: Jobs in a row of a pool that ended before a worker came, after which no more are sent.
_MOST_FAILURES = 3
_RUNNABLE = ("processing", "queued", "no-worker")
#: Characters of a job's log that are shown.
_MOST_LOG = 600


class _Job(SLURMJob):
    """A job whose refusal is told in SLURM's own words."""

    @staticmethod
    async def _call(cmd: list[str], **_options: Any) -> str:  # noqa: ANN401
        return await asyncio.to_thread(command, cmd)

    async def close(self) -> None:
        """Cancel the job."""
        await super().close()
        self.status = Status.closed


class SlurmPools(SLURMCluster):
    """Jobs of several shapes.

    Parameters
    ----------
    shapes : mapping of str to Shape
        A job of each pool, by the pool's name.
    look_every : float
        Seconds between two looks for jobs that are gone and for work.
    **options
        For `dask_jobqueue.SLURMCluster`, what all jobs have in common.
    """

    job_cls = _Job

    def __init__(self, shapes: Mapping[str, Shape], look_every: float, **options: Any) -> None:  # noqa: ANN401
        self.shapes = dict(shapes)
        #: Why no more jobs of a pool are sent.
        self.given_up: dict[str, ClusterError] = {}
        self._jobs: dict[str, JobState] = {}
        self._came: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._idle: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._told = ""
        self._mark = f"fusionflow-{secrets.token_hex(8)}"
        self._looking = asyncio.Lock()
        self._ending = False
        self._again: PeriodicCallback | None = None
        first = next(iter(self.shapes.values()))
        super().__init__(**first.keywords(), **options)
        self._common = {
            name: value for name, value in self._job_kwargs.items() if name not in first.keywords()
        }
        self._again = again = PeriodicCallback(self._look_again, look_every * 1000)
        self.loop.add_callback(again.start)

    def script_of(self, pool: str) -> str:
        """Return the script of a pool's jobs, as ``sbatch`` gets it."""
        address = self.scheduler.address
        return self.job_cls(address, name=f"{pool}-N", **self._options(pool)).job_script()

    def look(self) -> None:
        """Have every pool's jobs, and wait until SLURM has taken them.

        Raises
        ------
        ClusterError
            If SLURM refuses.
        """
        self.sync(self._look)

    def has_worker(self, *, with_gpu: bool) -> bool:
        """Whether a worker is there, or one that has a GPU."""
        return bool(self.sync(self._has_worker, with_gpu))

    async def _has_worker(self, with_gpu: bool) -> bool:
        workers = self.scheduler.workers.values()
        return any(not with_gpu or worker.resources.get(RESOURCE) for worker in workers)

    def raise_if_hopeless(self, *, with_gpu: bool) -> None:
        """Stop waiting where nobody will come.

        Raises
        ------
        ClusterError
            If every pool that could have such workers was given up.
        """
        able = [name for name, shape in self.shapes.items() if shape.pool.gpus or not with_gpu]
        if able and all(name in self.given_up for name in able):
            raise self.given_up[able[0]]

    @property
    def standing(self) -> str:
        """How the jobs stand, for people."""
        parts = []
        for pool in self.shapes:
            states = Counter(
                str(self._jobs.get(str(job.job_id), JobState("ENDED", "")))
                for name, job in self.workers.items()
                if _pool_of(name) == pool
            )
            if states:
                what = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
                parts.append(f"{pool}: {what}")
            elif pool in self.given_up:
                parts.append(f"{pool}: given up")
        return "; ".join(parts) or "no jobs"

    async def _look_again(self) -> None:
        """Look, and tell of what is wrong once: the run may go on with the jobs that are there."""
        if self.status != Status.running:
            return
        try:
            await self._look()
        except ClusterError as error:
            self._tell(str(error))
        else:
            gone = self._came and not self.scheduler.workers
            self._tell(f"No worker now; {self.standing}" if gone else "")

    def _tell(self, what: str) -> None:
        if what and what != self._told:
            logger.warning("SLURM: %s", what)
        self._told = what

    async def _look(self) -> None:
        # Who waits for it may be interrupted: what is begun comes to its end, and `_close` waits.
        await asyncio.shield(self._looked())

    async def _looked(self) -> None:
        async with self._looking:
            if not self._ending:
                await self._have_jobs()

    async def _have_jobs(self) -> None:
        self._jobs = await asyncio.to_thread(my_jobs)
        if self._ending:
            return
        await self._forget_those_that_ended()
        await self._cancel_strays()
        for pool, shape in self.shapes.items():
            mine = [name for name in self.worker_spec if _pool_of(name) == pool]
            wanted = self._wanted(shape)
            if wanted >= len(mine):
                self._idle[pool] = 0
            elif self._idle[pool] < _IDLE_LOOKS:
                self._idle[pool] += 1
            else:
                await self._end_idle(mine, len(mine) - wanted)
            for _ in range(0 if pool in self.given_up else wanted - len(mine)):
                self._numbers[pool] += 1
                self.worker_spec[f"{pool}-{self._numbers[pool]}"] = {
                    "cls": self.job_cls,
                    "options": self._options(pool),
                    "group": _suffixes(shape),
                }
        await self._correct_state()

    def _options(self, pool: str) -> dict[str, Any]:
        keywords = self.shapes[pool].keywords()
        # One that SLURM began again would be beside the one that takes its place.
        own = [f"--comment={self._mark}", "--no-requeue"]
        directives = [*keywords["job_extra_directives"], *own]
        return {**self._common, **keywords, "job_extra_directives": directives}

    async def _cancel_strays(self) -> None:
        """Cancel jobs of this cluster that nobody here knows of: an interrupted ``sbatch``."""
        known = {str(job.job_id) for job in self.workers.values()}
        strays = [
            number
            for number, job in self._jobs.items()
            if job.comment == self._mark and job.state != "COMPLETING" and number not in known
        ]
        if strays:
            await asyncio.to_thread(cancel, strays)

    async def _forget_those_that_ended(self) -> None:
        """Drop jobs that SLURM does not have any more, for others to take their place."""
        for name, job in list(self.workers.items()):
            state = self._jobs.get(str(job.job_id))
            if state is not None and state.state != "COMPLETING":
                continue
            pool = _pool_of(name)
            del self.workers[name]
            self.worker_spec.pop(name, None)
            job.status = Status.closed
            if job.job_id is None:  # never taken
                continue
            if name in self._came:
                logger.info("job %s of pool %s ended; another takes its place", job.job_id, pool)
                continue
            self._failures[pool] += 1
            if self._failures[pool] >= _MOST_FAILURES:
                self._give_up(pool, job)

    def _give_up(self, pool: str, job: SLURMJob) -> None:
        log = Path(job.log_directory) / f"{job.job_name}-{job.job_id}.err"
        try:
            said = one_line(
                log.read_text(encoding="utf-8", errors="replace")[-_MOST_LOG:], _MOST_LOG
            )
        except OSError:
            said = "it wrote no log"
        self.given_up[pool] = ClusterError(
            f"{_MOST_FAILURES} jobs of pool {pool} ended before a worker came. {log} says: {said}",
            f"Mend it (cluster.slurm.python, cluster.slurm.pools.{pool}.prologue, memory)",
        )
        logger.warning("%s", self.given_up[pool])

    def _wanted(self, shape: Shape) -> int:
        """Return how many jobs a pool is to have now."""
        if shape.pool.most == shape.pool.jobs:
            return shape.pool.jobs
        ready = sum(
            1
            for task in self.scheduler.tasks.values()
            if task.state in _RUNNABLE
            and bool((task.resource_restrictions or {}).get(RESOURCE)) == bool(shape.pool.gpus)
        )
        return min(max(shape.pool.jobs, math.ceil(ready / shape.slots)), shape.pool.most)

    async def _end_idle(self, names: list[str], count: int) -> None:
        """End so many jobs at most: those that have not begun, then those with nothing to do."""
        busy, begun = set(), set()
        for worker in self.scheduler.workers.values():
            name = self._job_of(str(worker.name))
            begun.add(name)
            if worker.processing:
                busy.add(name)
        ending = sorted((name for name in names if name not in busy), key=lambda x: x in begun)
        ending = ending[:count]
        await self.scheduler.retire_workers(
            names=[
                name + suffix
                for name in ending
                for suffix in self.worker_spec[name]["group"] or [""]
            ],
            close_workers=True,
        )
        for name in ending:
            self.worker_spec.pop(name, None)

    def _job_of(self, worker: str) -> str:
        """Return the job that a worker belongs to."""
        return worker if worker in self.worker_spec else worker.rpartition("-")[0]

    def _update_worker_status(self, op: str, msg: Any) -> None:  # noqa: ANN401
        """Keep in mind which jobs had a worker."""
        if op == "add":
            for item in msg["workers"].values():
                job = self._job_of(str(item["name"]))
                self._came.add(job)
                self._failures[_pool_of(job)] = 0
        super()._update_worker_status(op, msg)

    def _get_worker_security(self, security: Security | None) -> Security | None:
        """Return the certificates' paths as the job's shell is to read them."""
        quoted = copy.copy(security)
        for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
            if quoted is not None and getattr(quoted, name):
                setattr(quoted, name, shlex.quote(getattr(quoted, name)))
        return quoted

    async def _close(self) -> None:
        self._ending = True
        if self._again is not None:
            self._again.stop()
        async with self._looking:  # a look that is under way comes to its end
            for job in self._created - set(self.workers.values()):
                job.status = Status.closed  # refused, or gone
            try:
                await super()._close()
            finally:
                await self._cancel_all_that_are_left()

    async def _cancel_all_that_are_left(self) -> None:
        left: list[str] = []
        try:
            jobs = await asyncio.to_thread(my_jobs)
            left = [number for number, job in jobs.items() if job.comment == self._mark]
            if left:
                await asyncio.to_thread(cancel, left)
        except ClusterError as error:
            which = " ".join(left) or f"those that squeue --me -O JobID,Comment shows: {self._mark}"
            logger.warning("Jobs may be left (%s). Cancel them: scancel %s", error, which)


def _pool_of(job: str) -> str:
    return re.sub(r"-\d+$", "", job)


def _suffixes(shape: Shape) -> list[str]:
    """Return what the names of a job's workers have beyond that of the job."""
    return [f"-{number}" for number in range(shape.workers)] if shape.workers > 1 else []
