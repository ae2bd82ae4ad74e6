"""SLURM's commands, with a time limit, and its own words where one refuses."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from fusionflow.errors import ClusterError
from fusionflow.untrusted import one_line

#: Seconds for a command; a controller that is not there makes some wait for ever.
PATIENCE = 60.0
#: What SLURM says, and what a person can do about it.
_MENDS = (
    ("invalid partition", "Name one that `sinfo` lists (partition of the pool)"),
    ("invalid account", "Name one that `sacctmgr show associations user=$USER` lists (account)"),
    ("invalid qos", "Name one that `sacctmgr show qos` lists (directives: --qos=...)"),
    ("node configuration is not available", "Ask for less: cores, memory, gpus, directives"),
    ("more processors requested", "Ask for fewer cores; `sinfo -o '%P %c'` lists them"),
    ("invalid generic resource", "Ask for GPUs where `sinfo -o '%P %G'` lists some (partition)"),
    ("time limit", "Ask for a shorter walltime; `sinfo -o '%P %l'` lists what partitions allow"),
    ("unable to contact", "Try again when SLURM's controller answers (`scontrol ping`)"),
    ("limit", "Ask for fewer jobs, or wait until others have ended (`squeue --me`)"),
)
_ELSE = "Mend what it says: partition, account, walltime, cores, memory, gpus, directives"


#: Variables that change what commands show or ask.
_FOR_PEOPLE = ("SQUEUE_", "SCANCEL_")


@dataclass(frozen=True)
class JobState:
    """How a job stands: ``PENDING``, ``RUNNING``, ..., the reason that SLURM gives, its comment."""

    state: str
    reason: str
    comment: str = ""

    def __str__(self) -> str:
        """Return both, for people."""
        return self.state if self.reason in ("", "None") else f"{self.state} ({self.reason})"


def command(words: list[str], text: str | None = None) -> str:
    """Run a command of SLURM and return what it printed.

    Parameters
    ----------
    words : list of str
        The command and its arguments.
    text : str, optional
        For its standard input.

    Raises
    ------
    ClusterError
        If it is not there, does not end, or refuses; with its own words.
    """
    name = words[0]
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
            # What somebody likes to see (SQUEUE_FORMAT, SQUEUE_STATES) would hide jobs.
            env={name: x for name, x in os.environ.items() if not name.startswith(_FOR_PEOPLE)},
            start_new_session=True,  # Ctrl-C is for the run, which then cancels its jobs
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"There is no command {name} here",
            "Run this where SLURM's commands are: a login node of the cluster",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"{name} gave no answer within {PATIENCE:g} s",
            "Try again when SLURM's controller answers (`scontrol ping`)",
        ) from error
    if done.returncode:
        words_of_slurm = one_line(done.stderr.strip() or done.stdout.strip(), 500)
        raise ClusterError(
            f"{name} refused: {words_of_slurm or f'exit code {done.returncode}'}",
            _mend(words_of_slurm),
        )
    return done.stdout


def _mend(said: str) -> str:
    lower = said.lower()
    return next((mend for sign, mend in _MENDS if sign in lower), _ELSE)


def my_jobs() -> dict[str, JobState]:
    """Return how this user's jobs stand that have not ended, by number.

    Raises
    ------
    ClusterError
        If SLURM does not say.
    """
    found = {}
    for line in command(["squeue", "--me", "--noheader", "--format=%A|%T|%r|%k"]).splitlines():
        number, state, reason, comment = (*line.strip().split("|", 3), "", "", "")[:4]
        found[number] = JobState(state, reason, comment)
    return found


def cancel(numbers: list[str]) -> None:
    """Cancel jobs.

    Raises
    ------
    ClusterError
        If SLURM refuses.
    """
    command(["scancel", *numbers])


def submit(script: str, options: list[str] | None = None) -> str:
    """Give a script to ``sbatch`` and return the job's number.

    Raises
    ------
    ClusterError
        If it is refused.
    """
    said = command(["sbatch", "--parsable", *(options or [])], script)
    found = re.search(r"^(\d+)(?:;.*)?$", said, re.MULTILINE)
    if found is None:
        raise ClusterError(f"sbatch gave no number of a job, but {one_line(said)!r}")
    return found[1]
