"""What each run did: a log a run, and how a fused volume came to be.

``logs/<run>.jsonl`` has a line for the start, one for each scan before it is published or after
it failed, and one for the end. Lines are only ever added, so a run that is killed leaves a log
that is true as far as it goes. A run that finds nothing to do writes none; ``logs/last_run.json``
is replaced by every run and is what a scheduler reads.
"""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionflow.errors import ScanNotFoundError, StoreError
from fusionflow.io.files import file_sha256, read_json, utc_now, write_json
from fusionflow.ledger import OutputPaths
from fusionflow.records import Published

logger = logging.getLogger(__name__)


def new_run() -> str:
    """Return the name of a run that begins now; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


class RunLog:
    """Adds lines to the log of a run; the first one makes the file.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    run : str
        Which run.
    start : mapping
        What the first line says besides the time, the user and the process.
    """

    def __init__(self, paths: OutputPaths, run: str, start: Mapping[str, Any]) -> None:
        self.path = paths.logs / f"{run}.jsonl"
        self.begun = utc_now()
        self._start = start
        self._failed = self._cut = False

    def add(self, event: str, **content: Any) -> None:  # noqa: ANN401
        """Add a line. A log that cannot be written stops nothing, and that is said once."""
        line = self._line(event, utc_now(), content)
        try:
            if not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                who = {"host": socket.gethostname(), "pid": os.getpid(), "user": _user()}
                line = self._line("start", self.begun, {**who, **self._start}) + line
            with self.path.open("ab", buffering=0) as stream:
                line = b"\n" + line if self._cut else line
                written = stream.write(line)
            self._cut = written != len(line)  # the disk is full; the next line shall not suffer
            if self._cut:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301
        except OSError as error:
            if not self._failed:
                logger.warning("Cannot write the log %s: %s", self.path, error.strerror or error)
            self._failed = True

    def end(self, **content: Any) -> None:  # noqa: ANN401
        """Add the last line, if there is any."""
        if os.path.exists(self.path):  # unlike the path's own method it never raises
            self.add("end", **content)

    @staticmethod
    def _line(event: str, time: str, content: Mapping[str, Any]) -> bytes:
        return (json.dumps({"event": event, "time": time, **content}, default=str) + "\n").encode()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass
class RunHistory:
    """A run, as its log tells it.

    Attributes
    ----------
    run : str
        Its name.
    start : dict
        When, by whom, with what: input, method, weights, options, version.
    published : list of dict
        A line for each scan: label, version, inputs, files with their SHA-256.
    failed : list of dict
        A line for each scan that failed.
    end : dict or None
        How it ended; None if it was killed or still goes on.
    """

    run: str
    start: dict[str, Any] = field(default_factory=dict)
    published: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it did not end."""
        if self.end is None:
            return None
        try:
            began, ended = (datetime.fromisoformat(x["time"]) for x in (self.start, self.end))
        except (KeyError, ValueError, TypeError):
            return None
        return (ended - began).total_seconds()


def read_runs(paths: OutputPaths) -> Iterator[RunHistory]:
    """Yield every run that did something, oldest first."""
    for path in sorted(paths.logs.glob("*.jsonl")):
        history = RunHistory(path.stem)
        for line in _lines(path):
            event = line.get("event")
            if event == "start":
                history.start = line
            elif event == "publish":
                if _is_sound(line):
                    history.published.append(line)
            elif event in ("failed", "quarantined"):
                history.failed.append(line)
            elif event == "end":
                history.end = line
        yield history


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log; one that was cut short is left out."""
    try:
        with path.open("rb") as stream:
            for line in stream:
                try:
                    content = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(content, dict):
                    yield content
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}") from error


def _is_sound(line: Mapping[str, Any]) -> bool:
    """Whether a line on a published scan says what is needed to trace it."""
    files = [line.get(name) for name in ("inputs", "files")]
    return all(isinstance(line.get(name), str) for name in ("label", "version", "time")) and all(
        isinstance(entries, list)
        and all(isinstance(item, dict) and {"path", "sha256"} <= item.keys() for item in entries)
        for entries in files
    )


def published_line(record: Published, why: str) -> dict[str, Any]:
    """Return what the log says of a scan that is about to be published."""
    return {
        "label": record.label,
        "version": record.version,
        "why": why,
        "attempt": record.attempt,
        "worker": record.worker,
        "seconds": round(record.seconds, 3),
        "inputs": [{"path": item.path, "sha256": item.sha256} for item in record.inputs],
        "files": [{"path": item.path, "sha256": item.sha256} for item in record.outputs],
    }


@dataclass(frozen=True)
class Origin:
    """How a published scan came to be: a line of a log, and the run it is from."""

    scan: dict[str, Any]
    run: RunHistory


def trace(paths: OutputPaths, what: str) -> tuple[Origin, ...]:
    """Return how scans came to be, oldest first.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    what : str
        A label or a version; or a file that was published once, wherever it is now and whatever it
        is called: its content counts.

    Raises
    ------
    ScanNotFoundError
        If no run tells of it.
    StoreError
        If the file, or a log, cannot be read.
    """
    path = Path(what)
    try:
        digest = file_sha256(path) if path.is_file() else None
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error.strerror or error}") from error
    found = []
    for run in read_runs(paths):
        for line in run.published:
            hashes = [item["sha256"] for item in line["files"]]
            if digest in hashes if digest else what in (line["label"], line["version"]):
                found.append(Origin(line, run))
    if not found:
        raise ScanNotFoundError(
            f"No run of {paths.root} published {what}",
            "Give a label (sub-01_ses-02), a version, or a fused file",
        )
    return tuple(found)


def write_last_run(paths: OutputPaths, content: Mapping[str, Any]) -> None:
    """Replace the machine-readable summary of the last run."""
    write_json(paths.logs / "last_run.json", dict(content))


def read_last_run(paths: OutputPaths) -> dict[str, Any] | None:
    """Return the summary of the last run; None where there is none.

    Raises
    ------
    StoreError
        If it cannot be read.
    """
    content = read_json(paths.logs / "last_run.json")
    if content is not None and not isinstance(content, dict):
        raise StoreError(f"{paths.logs / 'last_run.json'} is no summary of a run", "Remove it")
    return content
