"""Remove what is no longer needed from an output folder, on request only."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionflow.errors import ConfigurationError, StoreError
from fusionflow.history import new_run, read_last_run
from fusionflow.index import write_index
from fusionflow.io.derivatives import relative_folder
from fusionflow.io.files import UNFINISHED, discard, relative_to
from fusionflow.io.inputs import find_scans, is_manifest, recorded_options
from fusionflow.ledger import OutputPaths, read_published, scan_labels, sweep
from fusionflow.records import Published
from fusionflow.runlock import RunLock
from fusionflow.survey import removed_labels

logger = logging.getLogger(__name__)

#: How a run names versions; what else lies beside them is somebody's own.
_VERSION = re.compile(r"[0-9a-f]{16}(?:-[0-9]+)?")


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
        emptied. Or if it has none of what is published, or is a manifest where the last run's was a
        dataset, or the other way round: then it is more likely another input.
    """
    if not paths.scans.is_dir():
        raise StoreError(f"{paths.root} holds no fused cohort")
    with RunLock(paths.run_lock, new_run()) as lock:
        gone = list(_removed(paths, source)) if removed else []
        whole = {item.path for item in gone}
        old = [x for x in _old_versions(paths) if x.path.rpartition("/")[0] not in whole]
        found = [*old, *gone]
        if not dry_run:
            for item in found:
                lock.check()
                _remove(paths, paths.root / item.path)
            lock.check()
            for label in scan_labels(paths):
                sweep(paths.scan(label))
            sweep(paths.scans)
            write_index(paths)
    return tuple(found)


def _old_versions(paths: OutputPaths) -> Iterator[Pruned]:
    """Yield the versions that no record names; where that cannot be told, none."""
    for label in scan_labels(paths):
        if not _is_own(paths.scan(label)):
            continue
        try:
            record = read_published(paths, label)
        except StoreError as error:
            logger.warning("Nothing of %s is removed: %s", label, error)
            continue
        for folder in sorted(paths.scan(label).iterdir()):
            is_current = record is not None and folder.name == record.version
            if not is_current and _is_version(folder):
                place = relative_to(folder, paths.root)
                yield Pruned(label, place, "an old version", _size(folder))


def _is_own(folder: Path) -> bool:
    """Whether a folder is really here, not a link to elsewhere."""
    return folder.is_dir() and not folder.is_symlink()


def _is_version(folder: Path) -> bool:
    """Whether a run made a folder of a scan; what a person put there stays."""
    return _is_own(folder) and _VERSION.fullmatch(folder.name) is not None


def _removed(paths: OutputPaths, source: Path | None) -> Iterator[Pruned]:
    """Yield what there is of scans that the input no longer has."""
    last = read_last_run(paths) or {}
    before = Path(last["input"]) if isinstance(last.get("input"), str) else None
    source = source or before
    if source is None:
        raise ConfigurationError("No run says what the input is", "Name it: --input BIDS_DIR")
    mend = "Name the input of this output; if its input is another now, run on that first"
    if before is not None and is_manifest(before) != is_manifest(source):
        kinds = ("a BIDS dataset", "a manifest")
        raise ConfigurationError(
            f"{source} is {kinds[is_manifest(source)]}, and the last run's input, {before}, is "
            f"{kinds[is_manifest(before)]}",
            mend,
        )
    # A scan that the last run's filter left out is there all the same.
    options = recorded_options(last).model_copy(update={"bids_filter": None})
    found = find_scans(source, options)
    if not found.scans:
        raise ConfigurationError(
            f"{source} holds no scan at all: perhaps it is not mounted",
            "To remove everything, remove the output folder",
        )
    gone = removed_labels(paths, found)
    held = [label for label in scan_labels(paths) if paths.current(label).exists()]
    if gone and len(gone) == len(held):
        raise ConfigurationError(
            f"{source} holds none of the scans that {paths.root} was made of: perhaps it is "
            "another input",
            f"{mend}. To remove everything, remove the output folder",
        )
    why = "the input no longer has it"
    for label in gone:
        folder = paths.scan(label)
        try:
            record = read_published(paths, label)
        except StoreError as error:
            logger.warning("Nothing of %s is removed: %s", label, error)
            continue
        if record is None or not _is_own(folder):
            continue
        for item in record.outputs:
            path = paths.root / item.path
            if path.is_file() and _is_of(path, record, paths):
                yield Pruned(label, item.path, why, path.lstat().st_size)
        yield Pruned(label, relative_to(folder, paths.root), why, _size(folder))


def _is_of(path: Path, record: Published, paths: OutputPaths) -> bool:
    """Whether a file lies where the files of its scan do, and not elsewhere by way of a link."""
    folder = paths.root / relative_folder(*_subject_and_session(record.label))
    return path.parent == folder and folder.resolve() == paths.root.resolve() / (
        folder.relative_to(paths.root)
    )


def _subject_and_session(label: str) -> tuple[str, str | None]:
    subject, _, session = label.removeprefix("sub-").partition("_ses-")
    return subject, session or None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove(paths: OutputPaths, path: Path) -> None:
    """Remove a file, or a folder in one step as far as others see it; empty folders above go."""
    try:
        if path.is_dir():
            aside = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}")
            path.rename(aside)
            discard(aside)
            return
        path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == paths.root or (folder.is_dir() and any(folder.iterdir())):
                break
            folder.rmdir()
    except OSError as error:
        raise StoreError(
            f"Cannot remove {path}: {error.strerror or error}", "Check permissions"
        ) from error
