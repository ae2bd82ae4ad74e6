"""What a site says of jobs of SLURM in Dask's configuration, where a person says nothing."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import dask
from pydantic import ValidationError

from fusionflow.errors import ClusterError, ConfigurationError, MissingExtraError
from fusionflow.options import explained
from fusionflow.slurm_options import SlurmOptions, SlurmPool, fits_a_directive, walltime_seconds

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
#: The folder that jobs see as well, if nothing says which.
_HOME = "~/.fusionflow"


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


def completed(pool: SlurmPool) -> SlurmPool:
    """Return a pool with what Dask's configuration says where it says nothing itself.

    Raises
    ------
    ConfigurationError
        If that is no such thing; named as Dask's configuration does.
    """
    found: dict[str, Any] = {
        option: checked(pool, option, key)
        for option, key in _FROM_DASK.items()
        if getattr(pool, option) is None
    }
    if pool.walltime is None:
        found["walltime"] = _walltime_of_dask()
    return pool.model_copy(update=found)


def checked(pool: SlurmPool, option: str, key: str) -> Any:  # noqa: ANN401
    """Return what Dask's configuration says of a pool's option, None if nothing."""
    value = from_dask(key)
    if not value:
        return None
    try:
        found = SlurmPool.model_validate({"gpus": pool.gpus, option: value})
    except ValidationError as error:
        raise wrong(key, explained(error)) from error
    return getattr(found, option)


def _walltime_of_dask() -> str | None:
    """Return the walltime of Dask's configuration, in any of SLURM's forms."""
    value = from_dask("walltime")
    if value is None or value == "":
        return None
    if not isinstance(value, str):  # YAML reads 12:00:00 as a number to the base of 60
        raise wrong("walltime", f'{value!r} is no text; put it in quotes: "12:00:00"')
    try:
        seconds_of(value)
    except ValueError as error:
        raise wrong("walltime", str(error)) from error
    return value


def wrong(key: str, said: str) -> ConfigurationError:
    """Return the error of a value in Dask's configuration that is of no use."""
    return ConfigurationError(
        f"jobqueue.slurm.{key} in Dask's configuration: {said}",
        "Mend it there, or say it for each pool (cluster.slurm.pools)",
    )


def seconds_of(walltime: str | None) -> int | None:
    """Return the seconds of a walltime; None if there is no limit."""
    if walltime is None or walltime.lower() in _NO_LIMIT:
        return None
    return walltime_seconds(walltime)


def python_of(slurm: SlurmOptions) -> str:
    """Return what starts Python in a job, as its shell is to read it."""
    return slurm.python or from_dask("python") or shlex.quote(sys.executable)


def interface_of(slurm: SlurmOptions) -> str | None:
    """Return the network interface that all sides talk through."""
    interface = slurm.interface or from_dask("interface") or None
    try:
        return SlurmOptions.model_validate({"interface": interface}).interface
    except ValidationError as error:
        raise wrong("interface", explained(error)) from error


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


def from_dask(name: str) -> Any:  # noqa: ANN401
    """Return what Dask's configuration says of jobs of SLURM, None if nothing."""
    return dask.config.get(f"jobqueue.slurm.{name}", None)
