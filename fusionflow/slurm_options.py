"""Jobs of SLURM, as a person chooses them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from dask.utils import parse_bytes
from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from fusionflow.options import Options

__all__ = ["SlurmOptions", "SlurmPool", "fits_a_directive", "walltime_seconds"]

_MOST = 100_000
#: The forms in which SLURM takes a time limit, but for plain minutes.
_WALLTIME = re.compile(
    r"(?:(?P<days>\d+)-)?(?P<hours>\d{1,3}):(?P<minutes>[0-5]\d)(?::(?P<seconds>[0-5]\d))?"
)

_DAYS = re.compile(r"(\d+)-(\d{1,3})")
#: Options of sbatch, long and short, that jobs are given anyway, and what says them here.
_TAKEN = {
    "--array -a": "jobs",
    "--ntasks -n": "jobs",
    "--nodes -N": "jobs",
    "--ntasks-per-node": "jobs",
    "--cpus-per-task -c": "cores",
    "--mem": "memory",
    "--mem-per-cpu": "memory",
    "--mem-per-gpu": "memory",
    "--partition -p": "partition",
    "--account -A": "account",
    "--time -t": "walltime",
    "--job-name -J": "--job-name of `fusionflow submit`, or the pool's name",
    "--dependency -d": "--dependency of `fusionflow submit`",
    "--begin -b": "--begin of `fusionflow submit`",
    "--output -o": "cluster.slurm.log_directory",
    "--error -e": "cluster.slurm.log_directory",
    "--signal": "walltime",
}
#: The same for pools with GPUs.
_TAKEN_WITH_GPUS = {"--gres": "gpus", "--gpus -G": "gpus", "--gpus-per-node": "gpus"}
_OPTION = re.compile(r"(?:^|(?<=\s))(?:--[A-Za-z-]+|-[A-Za-z])")


def walltime_seconds(text: str) -> int:
    """Return the seconds of a time limit as SLURM reads it.

    Parameters
    ----------
    text : str
        ``HH:MM:SS``, ``D-HH:MM:SS``, ``D-HH:MM``, ``D-HH``, ``MM:SS`` or minutes.

    Raises
    ------
    ValueError
        If it is none of these, or no time at all.
    """
    if text.isdecimal():
        seconds = 60 * int(text)
    elif (found := _DAYS.fullmatch(text)) is not None:
        seconds = 86400 * int(found[1]) + 3600 * int(found[2])
    elif (found := _WALLTIME.fullmatch(text)) is None:
        seconds = 0
    else:
        first, second = int(found["hours"]), int(found["minutes"])
        if found["days"] is not None or found["seconds"] is not None:
            seconds = 3600 * first + 60 * second + int(found["seconds"] or 0)
        else:
            seconds = 60 * first + second
        seconds += 86400 * int(found["days"] or 0)
    if seconds <= 0:
        raise ValueError(f'{text!r} is no time limit; write "HH:MM:SS" or "D-HH:MM:SS"')
    return seconds


def fits_a_directive(path: Path) -> bool:
    """Whether a line of ``#SBATCH`` takes a path as it is."""
    return re.search(r"[\s%\\'\"]", str(path)) is None


def _one_line(value: str) -> str:
    if any(not character.isprintable() for character in value):
        raise ValueError(f"{value!r} is not one line of text")
    return value


def _no_number(value: str) -> str:
    if re.search(r"-\d+$", value):
        raise ValueError(f"{value!r} ends like the number of a job: write gpu1 or gpu-a")
    return value


_Line = Annotated[str, StringConstraints(min_length=1), AfterValidator(_one_line)]
_Word = Annotated[str, StringConstraints(pattern=r"^[^-\s'\"`$;&|<>\\][^\s'\"`$;&|<>\\]*$")]
_PoolName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,30}$"), AfterValidator(_no_number)
]


class SlurmPool(Options):
    """Jobs of one shape.

    What is None comes from Dask's configuration (``jobqueue.slurm``, see dask-jobqueue), which the
    site may have set up.

    Attributes
    ----------
    jobs : int
        How many there are to be; with `jobs_most` the least.
    jobs_most : int or None
        The most, as work asks for them; None keeps to `jobs`.
    cores : int or None
        Of each job. Without GPUs a job gets as many worker processes as its cores allow for the
        threads of a task.
    memory : str or None
        Of each job, such as ``16GB``.
    gpus : int
        NVIDIA GPUs of each job (``--gres=gpu:N``), with a worker for each.
    partition, account : str or None
        As ``sbatch`` takes them.
    walltime : str or None
        ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``. Workers leave some time before, and other jobs take
        their place: it need not be the time of the whole run, but must be longer than a scan takes.
    directives : tuple of str or None
        More options of ``sbatch``, without ``#SBATCH``: ``--qos=long``, ``--constraint=a100``.
    prologue : tuple of str or None
        Lines of the job's script before the worker: ``module load ...``, ``conda activate ...``.
    worker_command : str or None
        Module that is a worker's command instead of ``dask_cuda.cli`` (with GPUs) or
        ``distributed.cli.dask_worker``.
    local_directory : str or None
        Folder on the node where workers spill; the job's shell expands ``$TMPDIR`` and the like.
    """

    jobs: int = Field(strict=True, default=1, ge=1, le=_MOST)
    jobs_most: int | None = Field(strict=True, default=None, ge=1, le=_MOST)
    cores: int | None = Field(strict=True, default=None, ge=1, le=4096)
    memory: str | None = None
    gpus: int = Field(strict=True, default=0, ge=0, le=64)
    partition: _Word | None = None
    account: _Word | None = None
    walltime: str | None = None
    directives: tuple[_Line, ...] | None = None
    prologue: tuple[_Line, ...] | None = None
    worker_command: _Line | None = None
    local_directory: _Line | None = None

    @field_validator("jobs_most")
    @classmethod
    def _most_is_not_less(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("jobs")
        if value is not None and least is not None and value < least:
            raise ValueError(f"the most is less than the least (jobs: {least})")
        return value

    @field_validator("memory")
    @classmethod
    def _memory_is_bytes(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            many = parse_bytes(value)
        except ValueError:
            many = 0
        if many < 256e6 or value.strip().replace(".", "").isdecimal():
            raise ValueError(f"{value!r} is no memory of a job; write 16GB or 4000MB")
        return value

    @field_validator("walltime", mode="before")
    @classmethod
    def _walltime_is_text(cls, value: object) -> object:
        if isinstance(value, int):  # YAML reads 12:00:00 as a number to the base of 60
            raise ValueError('put it in quotes: "12:00:00"')  # noqa: TRY004 - pydantic's way
        return value

    @field_validator("walltime")
    @classmethod
    def _walltime_is_a_time(cls, value: str | None) -> str | None:
        if value is None:
            return None
        walltime_seconds(value)
        if value.count(":") != 2 and "-" not in value:
            raise ValueError(f'{value!r} could be read in two ways; write "HH:MM:SS"')
        return value

    @field_validator("directives")
    @classmethod
    def _directives_are_others(
        cls, value: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        taken = _TAKEN | (_TAKEN_WITH_GPUS if info.data.get("gpus") else {})
        instead = {option: said for options, said in taken.items() for option in options.split()}
        for line in value or ():
            if not _OPTION.match(line):
                raise ValueError(f"{line!r} is no option of sbatch; write it as --qos=long")
            for option in _OPTION.findall(line):
                if option in instead:
                    raise ValueError(f"{option} is set for each job: use {instead[option]}")
        return value

    @property
    def most(self) -> int:
        """The most jobs that there may be."""
        return self.jobs_most or self.jobs


class SlurmOptions(Options):
    """Pools of jobs that work for one scheduler, which runs where the run does.

    Attributes
    ----------
    pools : dict of str to SlurmPool
        Each kind of job by a name of its own.
    interface : str or None
        Network interface that scheduler and workers talk through, such as ``ib0``; None lets Dask's
        configuration (``jobqueue.slurm.interface``), or else the machine's routes, choose.
    shared_directory : Path or None
        Folder that jobs see under the same path: certificates (readable for nobody else) lie there
        while a run lasts. None takes Dask's ``jobqueue.slurm.shared-temp-directory``, or else
        ``~/.fusionflow``.
    log_directory : Path or None
        Where jobs write what they have to say. None takes Dask's ``jobqueue.slurm.log-directory``,
        or else ``logs`` in the shared directory.
    python : str or None
        What starts Python in a job, as its shell reads it: a path, or a command such as
        ``apptainer exec --nv /shared/fusionflow.sif python``. None takes Dask's
        ``jobqueue.slurm.python``, or else the interpreter of this run.
    look_every : float
        Seconds between two looks with ``squeue`` whether all jobs are still there.
    """

    pools: dict[_PoolName, SlurmPool] = Field(default={"cpu": SlurmPool()}, min_length=1)
    interface: _Word | None = None
    shared_directory: Path | None = None
    log_directory: Path | None = None
    python: _Line | None = None
    look_every: float = Field(default=10, ge=1, le=3600)

    @field_validator("shared_directory", "log_directory")
    @classmethod
    def _are_found_from_anywhere(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("log_directory")
    @classmethod
    def _slurm_takes_it(cls, value: Path | None) -> Path | None:
        if value is not None and not fits_a_directive(value):
            raise ValueError(f"{str(value)!r}: SLURM takes no blanks, quotes, % or \\ in it")
        return value

    @property
    def has_gpus(self) -> bool:
        """Whether a pool's jobs have GPUs."""
        return any(pool.gpus for pool in self.pools.values())
