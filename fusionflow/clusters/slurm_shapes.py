"""What the jobs of a pool look like: the options of a person as those of dask-jobqueue."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.utils import parse_bytes
from pydantic import ValidationError

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.worker_settings import (
    WORKER_SETTINGS,
    WORKER_SHARE,
    ZARR_CONCURRENCY,
    dask_variables,
    gpu_threads,
)
from fusionflow.errors import ClusterError, ConfigurationError, MissingExtraError
from fusionflow.options import explained
from fusionflow.placement import RESOURCE
from fusionflow.slurm_options import SlurmOptions, SlurmPool, fits_a_directive, walltime_seconds

_CPU_COMMAND = "distributed.cli.dask_worker"
_GPU_COMMAND = "dask_cuda.cli"
#: What a pool leaves out and Dask's configuration says under another name.
_FROM_DASK = {
    "cores": "cores",
    "memory": "memory",
    "partition": "queue",
    "account": "account",
    "directives": "job-extra-directives",
    "prologue": "job-script-prologue",
}
#: How sbatch calls it if a job has no time limit of its own.
_NO_LIMIT = ("unlimited", "infinite", "-1", "0")
#: The part of its walltime, and the least and most seconds, that a worker leaves before its end.
_MARGIN, _LEAST_MARGIN, _MOST_MARGIN = 0.1, 20.0, 600.0
#: The folder that jobs see as well, if nothing says which.
_HOME = "~/.fusionflow"


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
    prologue : tuple of str
        Lines of the script before it, that a person wrote.
    """

    pool: SlurmPool
    name: str
    cores: int
    memory: int
    workers: int
    threads: int
    command: str
    arguments: tuple[str, ...]
    prologue: tuple[str, ...]

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
    def seconds(self) -> int | None:
        """The walltime; None if there is none."""
        return _seconds_of(self.pool.walltime)

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
                *lifetime_exports(self.pool),
            ],
            "job_extra_directives": self.directives,
        }


def require_jobqueue() -> None:
    """Load dask-jobqueue, and what Dask's configuration says of jobs if no file of it does.

    Raises
    ------
    MissingExtraError
        If it is not there.
    ClusterError
        If this is not the main thread, where alone it can be loaded.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Jobs of SLURM need dask-jobqueue, which cannot be used here: {error}",
            "pip install 'fusionflow[slurm]'",
        ) from error
    except ValueError as error:
        raise ClusterError(
            f"dask-jobqueue cannot be loaded here: {error}",
            "Write `import dask_jobqueue` where your program begins, in its main thread",
        ) from error
    if signal.getsignal(signal.SIGINT) is not before:  # it makes Ctrl-C end Python with code 0
        signal.signal(signal.SIGINT, before)


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
    pool = _completed(pool)
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
        prologue=pool.prologue or (),
    )


def _completed(pool: SlurmPool) -> SlurmPool:
    """Return a pool with what Dask's configuration says where it says nothing itself.

    Raises
    ------
    ConfigurationError
        If that is no such thing; named as Dask's configuration does.
    """
    found: dict[str, Any] = {
        option: _checked(pool, option, key)
        for option, key in _FROM_DASK.items()
        if getattr(pool, option) is None
    }
    if pool.walltime is None:
        found["walltime"] = _walltime_of_dask()
    return pool.model_copy(update=found)


def _checked(pool: SlurmPool, option: str, key: str) -> Any:  # noqa: ANN401
    """Return what Dask's configuration says of a pool's option, None if nothing."""
    value = from_dask(key)
    if not value:
        return None
    try:
        checked = SlurmPool.model_validate({"gpus": pool.gpus, option: value})
    except ValidationError as error:
        raise _wrong(key, explained(error)) from error
    return getattr(checked, option)


def _walltime_of_dask() -> str | None:
    """Return the walltime of Dask's configuration, in any of SLURM's forms."""
    value = from_dask("walltime")
    if value is None or value == "":
        return None
    if not isinstance(value, str):  # YAML reads 12:00:00 as a number to the base of 60
        raise _wrong("walltime", f'{value!r} is no text; put it in quotes: "12:00:00"')
    try:
        _seconds_of(value)
    except ValueError as error:
        raise _wrong("walltime", str(error)) from error
    return value


def _wrong(key: str, said: str) -> ConfigurationError:
    return ConfigurationError(
        f"jobqueue.slurm.{key} in Dask's configuration: {said}",
        "Mend it there, or say it for each pool (cluster.slurm.pools)",
    )


def _seconds_of(walltime: str | None) -> int | None:
    """Return the seconds of a walltime; None if there is no limit."""
    if walltime is None or walltime.lower() in _NO_LIMIT:
        return None
    return walltime_seconds(walltime)


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
        raise _wrong("worker-extra-args", f"{extra!r} is no list of texts")
    arguments = [*extra]
    if pool.gpus:
        arguments += [f"--resources {RESOURCE}=1"]
        if pool.worker_command is None:  # what is on a device does not outlive a task
            arguments += ["--device-memory-limit 0"]
    folder = pool.local_directory or (options.work_dir and shlex.quote(str(options.work_dir)))
    folder = folder or _checked(pool, "local_directory", "local-directory")
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


def lifetime_exports(pool: SlurmPool) -> list[str]:
    """Return lines of a script that let workers leave before SLURM ends their job."""
    walltime = _seconds_of(pool.walltime)
    if walltime is None:
        return []
    margin = min(max(_MARGIN * walltime, _LEAST_MARGIN), _MOST_MARGIN, walltime / 2)
    return exports(
        {
            "distributed.worker.lifetime.duration": f"{walltime - margin:.0f} s",
            "distributed.worker.lifetime.stagger": f"{margin / 4:.0f} s",
        }
    )


def python_of(slurm: SlurmOptions) -> str:
    """Return what starts Python in a job, as its shell is to read it."""
    return slurm.python or from_dask("python") or shlex.quote(sys.executable)


def interface_of(slurm: SlurmOptions) -> str | None:
    """Return the network interface that all sides talk through."""
    interface = slurm.interface or from_dask("interface") or None
    try:
        return SlurmOptions.model_validate({"interface": interface}).interface
    except ValidationError as error:
        raise _wrong("interface", explained(error)) from error


def shared_path(slurm: SlurmOptions) -> Path:
    """Return the folder that jobs see as well."""
    wanted = slurm.shared_directory or from_dask("shared-temp-directory") or _HOME
    return Path(wanted).expanduser().absolute()


def shared_folder(slurm: SlurmOptions) -> Path:
    """Return the folder that jobs see as well; made if it is not there."""
    return _made(shared_path(slurm), "shared_directory")


def log_path(slurm: SlurmOptions) -> Path:
    """Return the folder for what jobs have to say."""
    wanted = slurm.log_directory or from_dask("log-directory") or shared_path(slurm) / "logs"
    folder = Path(wanted).expanduser().absolute()
    if not fits_a_directive(folder):
        raise ConfigurationError(
            f"The logs would go to {folder}, and SLURM takes no blanks, quotes, % or \\ in a path",
            "Name another folder (cluster.slurm.log_directory)",
        )
    return folder


def log_folder(slurm: SlurmOptions) -> Path:
    """Return the folder for what jobs have to say; made if it is not there."""
    return _made(log_path(slurm), "log_directory")


def _made(folder: Path, option: str) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"cluster.slurm.{option}: cannot make {folder}: {error.strerror or error}",
            "Name a folder that this user may write and that jobs see under the same path",
        ) from error
    return folder


def from_dask(name: str, default: Any = None) -> Any:  # noqa: ANN401
    """Return what Dask's configuration says of jobs of SLURM."""
    return dask.config.get(f"jobqueue.slurm.{name}", default)
