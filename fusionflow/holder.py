"""Who holds something: a process, of which machine, and whether it still lives."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from fusionflow.io.files import utc_now
from fusionflow.untrusted import printable, read_bounded

_MOST_BYTES = 1 << 16


@dataclass(frozen=True)
class Holder:
    """Who holds an output folder.

    Attributes
    ----------
    run : str
        Which run.
    user, host : str
        Whose, and where.
    pid : int
        Its process.
    process_started : float
        When that process began, in seconds: process ids are given out again.
    machine : str
        Boot of the machine and its name space of processes: where `pid` means something.
    since : str
        When it took hold, ISO 8601 in UTC.
    """

    run: str
    user: str
    host: str
    pid: int
    process_started: float
    machine: str
    since: str

    def __str__(self) -> str:
        """Return who and since when, for people."""
        return printable(f"{self.user} on {self.host}, process {self.pid}, since {self.since}")

    @classmethod
    def me(cls, run: str) -> Holder:
        """Return this process as a holder."""
        return cls(
            run=run,
            user=_user(),
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=process_start(psutil.Process()),
            machine=_machine(),
            since=utc_now(),
        )

    def is_alive_here(self) -> bool | None:
        """Whether the process lives; None if it is of another machine or container."""
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process_start(process) - self.process_started) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None if _is_hidden(self.pid) else False
        except ValueError:  # no id of a process at all
            return False
        except psutil.AccessDenied:
            return True


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def process_start(process: psutil.Process) -> float:
    """Return when a process began, by a clock of its machine that nobody can set."""
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as stream:
            ticks = stream.read().rpartition(b")")[2].split()[19]
        return int(ticks) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return process.create_time()  # not Linux; or it is gone, and this says so
    except ProcessLookupError:
        raise psutil.NoSuchProcess(process.pid) from None
    except PermissionError:
        raise psutil.AccessDenied(process.pid) from None


def _is_hidden(pid: int) -> bool:
    """Whether there is such a process that this user is not shown."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _machine() -> str:
    """Return what tells boots of machines and name spaces of processes apart."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def read_holder(path: Path) -> Holder | None:
    """Return who a lock file names; None if there is none, or it names nobody."""
    try:
        content = json.loads(read_bounded(path, _MOST_BYTES))
        values = {item.name: content[item.name] for item in fields(Holder)}
        values["process_started"] = float(values["process_started"])
        holder = Holder(**values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    words = (holder.run, holder.user, holder.host, holder.machine, holder.since)
    sound = all(isinstance(word, str) for word in words) and type(holder.pid) is int
    return holder if sound else None
