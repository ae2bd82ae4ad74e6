"""What the jobs of a pool look like: the options of a person as those of dask-jobqueue."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.slurm_site import checked, completed, from_dask, seconds_of, wrong
from fusionflow.clusters.worker_settings import (
    WORKER_SETTINGS,
    WORKER_SHARE,
    ZARR_CONCURRENCY,
    dask_variables,
    gpu_threads,
)
from fusionflow.errors import ConfigurationError
from fusionflow.placement import RESOURCE
from fusionflow.slurm_options import SlurmPool

_CPU_COMMAND = "distributed.cli.dask_worker"
_GPU_COMMAND = "dask_cuda.cli"
#: The part of its walltime, and the least and most seconds, that a worker leaves before its end.
_MARGIN, _LEAST_MARGIN, _MOST_MARGIN = 0.1, 20.0, 600.0


@dataclass(frozen=True)
class Shape:
    """A job of a pool.

    Attributes
    ----------
    pool : SlurmPool
        As a person wrote it; what it leaves out comes from Dask's configuration.
    name : str
        The pool's.
    cores : int
        That SLURM is asked for.
    memory : int
        Bytes that SLURM is asked for.
    workers : int
        Worker processes.
    threads : int
        Of each worker: tasks at a time.
    command : str
        The worker's, a module.
    arguments : tuple of str
        For it.
    """

    pool: SlurmPool
    name: str
    cores: int
    memory: int
    workers: int
    threads: int
    command: str
    arguments: tuple[str, ...]

    @property
    def job_name(self) -> str:
        """What ``squeue`` shows."""
        return f"fusionflow-{self.name}"

    @property
    def directives(self) -> list[str]:
        """What ``sbatch`` is told beside cores, memory, partition, account and walltime."""
        gres = [f"--gres=gpu:{self.pool.gpus}"] if self.pool.gpus else []
        return [*gres, *(self.pool.directives or ())]

    @property
    def prologue(self) -> tuple[str, ...]:
        """Lines of the script before the worker, that a person wrote."""
        return self.pool.prologue or ()

    @property
    def seconds(self) -> int | None:
        """The walltime; None if there is none."""
        return seconds_of(self.pool.walltime)

    @property
    def worker_memory(self) -> int:
        """Bytes that each worker may take: not all, for nannies are in the job as well."""
        return int(self.memory * WORKER_SHARE) // self.workers

    @property
    def slots(self) -> int:
        """Tasks of its kind that a job has room for: one for each GPU, or for each thread."""
        return self.pool.gpus or self.workers * self.threads

    def keywords(self) -> dict[str, Any]:
        """Return what a `dask_jobqueue.slurm.SLURMJob` is made with."""
        return {
            "queue": self.pool.partition,
            "account": self.pool.account,
            "walltime": self.pool.walltime,
            "cores": self.workers * self.threads,
            "job_cpu": self.cores,
            "memory": f"{self.worker_memory * self.workers} B",
            "job_mem": f"{math.ceil(self.memory / 2**20)}M",
            "processes": self.workers,
            "job_name": self.job_name,
            "worker_command": self.command,
            "worker_extra_args": list(self.arguments),
            "job_script_prologue": [
                *self.prologue,
                *worker_exports(),
                *lifetime_exports(self.seconds),
            ],
            "job_extra_directives": self.directives,
        }


def shapes_of(options: ClusterOptions, torch_threads: int) -> dict[str, Shape]:
    """Return the shape of each pool's jobs, by its name.

    Raises
    ------
    ConfigurationError
        If neither the options nor Dask's configuration say how large they are.
    """
    for name in ("n_workers", "memory_mb"):
        if getattr(options, name) is not None:
            raise ConfigurationError(
                f"cluster.{name} is for workers of this machine, not for jobs of SLURM",
                "Say it for each pool: cluster.slurm.pools (jobs, cores, memory)",
            )
    return {
        name: _shape(name, pool, options, torch_threads)
        for name, pool in options.slurm.pools.items()
    }


def _shape(name: str, pool: SlurmPool, options: ClusterOptions, torch_threads: int) -> Shape:
    pool = completed(pool)
    cores = int(_required(name, "cores", pool.cores))
    memory = parse_bytes(_required(name, "memory", pool.memory))
    if pool.gpus:
        threads = options.threads_per_worker or gpu_threads(cores // pool.gpus, torch_threads)
        workers = pool.gpus
    else:
        threads = options.threads_per_worker or 1
        workers = max(1, cores // (threads * torch_threads))
    return Shape(
        pool=pool,
        name=name,
        cores=cores,
        memory=memory,
        workers=workers,
        threads=threads,
        command=pool.worker_command or (_GPU_COMMAND if pool.gpus else _CPU_COMMAND),
        arguments=tuple(_arguments(pool, options)),
    )


def _required(pool: str, name: str, value: str | int | None) -> str | int:
    """Return an option of a pool that is needed."""
    if value is None:
        example = "cores: 8" if name == "cores" else "memory: 16GB"
        raise ConfigurationError(
            f"cluster.slurm.pools.{pool}.{name} is not given, nor jobqueue.slurm.{name} in Dask's "
            "configuration",
            f"Say how much a job of this pool gets: `{example}`",
        )
    return value


def _arguments(pool: SlurmPool, options: ClusterOptions) -> list[str]:
    """Return what a worker's command is to be told that dask-jobqueue does not."""
    extra = from_dask("worker-extra-args") or []
    if not isinstance(extra, list | tuple) or not all(isinstance(word, str) for word in extra):
        raise wrong("worker-extra-args", f"{extra!r} is no list of texts")
    arguments = [*extra]
    if pool.gpus:
        arguments += [f"--resources {RESOURCE}=1"]
        if pool.worker_command is None:  # what is on a device does not outlive a task
            arguments += ["--device-memory-limit 0"]
    folder = pool.local_directory or (options.work_dir and shlex.quote(str(options.work_dir)))
    folder = folder or checked(pool, "local_directory", "local-directory")
    return arguments + ([f"--local-directory {folder}"] if folder else [])


def exports(settings: Mapping[str, Any]) -> list[str]:
    """Return lines of a script that set Dask's configuration for what starts after them."""
    return [
        f"export {name}={shlex.quote(value)}" for name, value in dask_variables(settings).items()
    ]


def worker_exports() -> list[str]:
    """Return lines of a script that set what workers start with.

    The number of threads of OpenMP and the like is set by Dask's nanny, as on one machine.
    """
    return [f"export ZARR_ASYNC__CONCURRENCY={ZARR_CONCURRENCY}", *exports(WORKER_SETTINGS)]


def lifetime_exports(walltime: int | None) -> list[str]:
    """Return lines of a script that let workers leave before SLURM ends their job."""
    if walltime is None:
        return []
    margin = min(max(_MARGIN * walltime, _LEAST_MARGIN), _MOST_MARGIN, walltime / 2)
    return exports(
        {
            "distributed.worker.lifetime.duration": f"{walltime - margin:.0f} s",
            "distributed.worker.lifetime.stagger": f"{margin / 4:.0f} s",
        }
    )
