"""What is done, and what failed: small files, each replaced in one step.

``scans/<label>/current.json`` names the published version of a scan. Writing it is the only
commit point: before it, the scan is as it was; after it, everything it names is there and
complete. ``attempt.json`` beside it says what was tried since. ``index.json`` gathers these
records (`fusionflow.index`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fusionflow.errors import StoreError
from fusionflow.io.files import UNFINISHED, discard, read_json, write_json
from fusionflow.records import Attempt, Published

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputPaths:
    """Where things lie in an output folder."""

    root: Path

    @property
    def scans(self) -> Path:
        """The Zarr groups and records of all scans."""
        return self.root / "scans"

    @property
    def index(self) -> Path:
        """The gathered records."""
        return self.root / "index.json"

    @property
    def group_store(self) -> Path:
        """The cohort's summary."""
        return self.root / "group.zarr"

    def scan(self, label: str) -> Path:
        """Return the folder of a scan."""
        return self.scans / label

    def version(self, label: str, version: str) -> Path:
        """Return the Zarr group of one version of a scan."""
        return self.scan(label) / version

    def current(self, label: str) -> Path:
        """Return the record of a scan's published version."""
        return self.scan(label) / "current.json"

    def attempt(self, label: str) -> Path:
        """Return the record of what was tried since, or before there was a published version."""
        return self.scan(label) / "attempt.json"

    def staging(self, label: str, token: str) -> Path:
        """Return where a scan is made before it is published."""
        return self.scan(label) / f"{UNFINISHED}{token}"

    @property
    def run_lock(self) -> Path:
        """Who writes here now."""
        return self.root / "run.lock"

    @property
    def logs(self) -> Path:
        """What each run did."""
        return self.root / "logs"


_Record = TypeVar("_Record", Published, Attempt)


def read_published(paths: OutputPaths, label: str) -> Published | None:
    """Return the record of a scan's published version, or None where there is none.

    Raises
    ------
    StoreError
        If there is one that cannot be read.
    """
    return _read(paths.current(label), label, Published.from_json)


def read_attempt(paths: OutputPaths, label: str) -> Attempt | None:
    """Return the record of the last attempt at a scan, or None where there is none.

    Raises
    ------
    StoreError
        If there is one that cannot be read.
    """
    return _read(paths.attempt(label), label, Attempt.from_json)


def _read(path: Path, label: str, parse: Callable[[Mapping[str, Any]], _Record]) -> _Record | None:
    content = read_json(path)
    if content is None:
        return None
    try:
        record = parse({**content, "label": _same(content["label"], label)})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(
            f"{path} is not a record of this version of fusionflow ({error!r})",
            "Remove it and run again",
        ) from error
    return record


def _same(label: object, expected: str) -> str:
    if label != expected:
        raise ValueError(f"it is about {label}")
    return expected


def publish(paths: OutputPaths, record: Published) -> None:
    """Commit a scan: from here on its new version is the one that counts."""
    write_json(paths.current(record.label), record.to_json())
    forget_attempt(paths, record.label)


def write_attempt(paths: OutputPaths, attempt: Attempt) -> None:
    """Write down that a scan is in the making, or why nothing came of it."""
    write_json(paths.attempt(attempt.label), asdict(attempt))


def forget_attempt(paths: OutputPaths, label: str) -> None:
    """Remove the record of an attempt, and the scan's folder if nothing else is in it."""
    paths.attempt(label).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        paths.scan(label).rmdir()


def sweep(folder: Path) -> None:
    """Remove what a run that is no more left unfinished in a folder.

    Only the one run that holds the output may do so.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(UNFINISHED)]
        for path in left:
            if path.is_dir():
                discard(path)
            else:
                path.unlink(missing_ok=True)


def scan_labels(paths: OutputPaths) -> Iterator[str]:
    """Yield the label of every scan that has a folder, sorted."""
    if paths.scans.is_dir():
        with os.scandir(paths.scans) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
        yield from (name for name in names if not name.startswith("."))
