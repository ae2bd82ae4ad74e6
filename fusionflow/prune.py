"""Remove what is no longer needed from an output folder, on request only."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionflow.errors import ConfigurationError, StoreError
from fusionflow.history import new_run, read_last_run
from fusionflow.io.bids import discover
from fusionflow.io.files import UNFINISHED, discard, relative_to
from fusionflow.ledger import (
    OutputPaths,
    read_published,
    scan_labels,
    sweep,
    write_index,
)
from fusionflow.runlock import RunLock
from fusionflow.survey import removed_labels


@dataclass(frozen=True)
class Pruned:
    """Something that was, or would be, removed.

    Attributes
    ----------
    label : str
        Of which scan.
    path : str
        Relative to the output folder.
    why : str
        Why it is not needed.
    size : int
        Bytes.
    """

    label: str
    path: str
    why: str
    size: int


def prune(
    paths: OutputPaths, *, removed: bool = False, source: Path | None = None, dry_run: bool = False
) -> tuple[Pruned, ...]:
    """Remove old versions of scans and, on request, scans that the input no longer has.

    A reader that opened the cohort before a scan was made again still reads its old version; once
    that is pruned it cannot.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    removed : bool
        Also remove published scans, files in BIDS places included, that the input no longer has.
    source : Path, optional
        The input; by default that of the last run.
    dry_run : bool
        Only say what would go.

    Returns
    -------
    tuple of Pruned

    Raises
    ------
    LockedError
        If a run is writing the folder.
    StoreError
        If it holds no fused cohort, or a file cannot be removed.
    ConfigurationError
        If the input is not there, or holds no scan at all: then it is more likely not mounted than
        emptied.
    """
    if not paths.scans.is_dir():
        raise StoreError(f"{paths.root} holds no fused cohort")
    with RunLock(paths.run_lock, new_run()):
        found = list(_old_versions(paths))
        if removed:
            found += _removed(paths, source)
        if not dry_run:
            for item in found:
                _remove(paths.root / item.path)
            for label in scan_labels(paths):
                sweep(paths.scan(label))
            sweep(paths.scans)
            write_index(paths)
    return tuple(found)


def _old_versions(paths: OutputPaths) -> Iterator[Pruned]:
    """Yield the versions that no record names."""
    for label in scan_labels(paths):
        record = read_published(paths, label)
        for folder in sorted(paths.scan(label).iterdir()):
            is_version = folder.is_dir() and not folder.name.startswith(".")
            if is_version and (record is None or folder.name != record.version):
                place = relative_to(folder, paths.root)
                yield Pruned(label, place, "an old version", _size(folder))


def _removed(paths: OutputPaths, source: Path | None) -> Iterator[Pruned]:
    """Yield what there is of scans that the input no longer has."""
    if source is None:
        last = read_last_run(paths) or {}
        if not isinstance(last.get("input"), str):
            raise ConfigurationError("No run says what the input is", "Name it: --input BIDS_DIR")
        source = Path(last["input"])
    found = discover(source)
    if not found.scans:
        raise ConfigurationError(
            f"{source} holds no scan at all: perhaps it is not mounted",
            "To remove everything, remove the output folder",
        )
    why = "the input no longer has it"
    for label in removed_labels(paths, found):
        record = read_published(paths, label)
        for item in record.outputs if record else ():
            path = paths.root / item.path
            if path.is_file():
                yield Pruned(label, item.path, why, path.stat().st_size)
        folder = paths.scan(label)
        yield Pruned(label, relative_to(folder, paths.root), why, _size(folder))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(path: Path) -> None:
    """Remove a file, or a folder in one step as far as others see it; empty folders above go."""
    try:
        if path.is_dir():
            aside = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}")
            path.rename(aside)
            discard(aside)
            return
        path.unlink(missing_ok=True)
        for folder in list(path.parents)[:3]:
            if any(folder.iterdir()):
                break
            folder.rmdir()
    except OSError as error:
        raise StoreError(
            f"Cannot remove {path}: {error.strerror or error}", "Check permissions"
        ) from error
