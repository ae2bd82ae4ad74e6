"""What is done, and what failed: small files, each replaced in one step.

``scans/<label>/current.json`` names the published version of a scan. Writing it is the only
commit point: before it, the scan is as it was; after it, everything it names is there and
complete. ``attempt.json`` beside it says what was tried since. ``index.json`` gathers these
records for quick opening and can always be rebuilt.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fusionflow.errors import StoreError
from fusionflow.io.files import UNFINISHED, discard, read_json, write_json
from fusionflow.records import Attempt, Published

logger = logging.getLogger(__name__)

INDEX_VERSION = 1


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


@dataclass(frozen=True)
class Index:
    """Records of all scans.

    Attributes
    ----------
    published : tuple of Published
        Sorted by label.
    failures : tuple of Attempt
        Sorted by label; a scan can be in both, if its last attempt failed.
    removed : tuple of str
        Labels of published scans that the input no longer had when a run looked last.
    """

    published: tuple[Published, ...]
    failures: tuple[Attempt, ...]
    removed: tuple[str, ...] = ()


def gather_index(paths: OutputPaths, removed: Collection[str] | None = None) -> Index:
    """Read the records of all scans.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    removed : collection of str, optional
        Labels that the input no longer has; by default what the index says.
    """
    published, failures = [], []
    for label in scan_labels(paths):
        attempt = None
        try:
            if (record := read_published(paths, label)) is not None:
                published.append(record)
            attempt = read_attempt(paths, label)
        except StoreError as error:  # one damaged record must not hide the others
            attempt = Attempt(label, "failed", str(error), type(error).__name__)
        if attempt is not None and attempt.state != "running":
            failures.append(attempt)
    if removed is None:
        removed = _removed_before(paths)
    held = {record.label for record in published}
    return Index(tuple(published), tuple(failures), tuple(sorted(held.intersection(removed))))


def _removed_before(paths: OutputPaths) -> list[str]:
    try:
        return list((read_json(paths.index) or {}).get("removed", ()))
    except (StoreError, AttributeError, TypeError):
        return []


def write_index(paths: OutputPaths, removed: Collection[str] | None = None) -> Index:
    """Gather the records, and replace ``index.json`` if it says something else.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    removed : collection of str, optional
        As in `gather_index`.
    """
    index = gather_index(paths, removed)
    content = {
        "index": INDEX_VERSION,
        "published": [record.to_json() for record in index.published],
        "failures": [asdict(attempt) for attempt in index.failures],
        "removed": list(index.removed),
    }
    write_json(paths.index, content, indent=None, unless_same=True)
    return index


def read_index(paths: OutputPaths) -> Index:
    """Return the gathered records, from the scans themselves where there is no good index.

    Raises
    ------
    StoreError
        If the folder holds no output of fusionflow.
    """
    try:
        content = read_json(paths.index)
        if content is not None and content["index"] == INDEX_VERSION:
            return Index(
                tuple(Published.from_json(item) for item in content["published"]),
                tuple(Attempt.from_json(item) for item in content["failures"]),
                tuple(map(str, content["removed"])),
            )
    except (StoreError, KeyError, TypeError, AttributeError, ValueError) as error:
        logger.warning("%s cannot be used (%s): the scans are read instead", paths.index, error)
    if not paths.scans.is_dir():
        raise StoreError(
            f"{paths.root} holds no fused cohort", "Make one: fusionflow run BIDS_DIR OUT_DIR"
        )
    return gather_index(paths)
