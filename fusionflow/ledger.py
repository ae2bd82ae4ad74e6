"""What is done, and what failed: small files, each replaced in one step.

``scans/<label>/current.json`` names the published version of a scan. Writing it is the only
commit point: before it, the scan is as it was; after it, everything it names is there and
complete. ``index.json`` gathers these records for quick opening and can always be rebuilt.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import psutil

from fusionflow.errors import StoreError
from fusionflow.io.files import discard, file_sha256, read_json, relative_to, write_json

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

    def failure(self, label: str) -> Path:
        """Return the record of a scan's last failure."""
        return self.scan(label) / "failure.json"

    def staging(self, label: str, token: str) -> Path:
        """Return where a scan is made before it is published, by a run of this process."""
        return self.scan(label) / f".staging-{socket.gethostname()}~{os.getpid()}~{token}"


@dataclass(frozen=True)
class InputFile:
    """An input as it was read.

    Attributes
    ----------
    path : str
        Where it was, relative to the root of the input.
    size : int
        Bytes.
    mtime_ns : int
        Time of the last change, ns since the epoch.
    sha256 : str
        Of the whole file.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str

    def is_unchanged(self, root: Path) -> bool:
        """Whether the file is the one that was read; its content counts if its time changed."""
        path = root / self.path
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            return status.st_mtime_ns == self.mtime_ns or file_sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class OutputFile:
    """A file as it was published.

    Attributes
    ----------
    path : str
        Relative to the output folder.
    size : int
        Bytes.
    mtime_ns : int
        Time of its last change, ns since the epoch; 0 where only the size counts.
    sha256 : str
        Of the whole file; empty where only the size counts.
    """

    path: str
    size: int
    mtime_ns: int = 0
    sha256: str = ""

    @classmethod
    def sized(cls, path: Path, root: Path) -> OutputFile:
        """Describe a file by its size: its own format holds checksums."""
        return cls(relative_to(path, root), path.stat().st_size)

    @classmethod
    def whole(cls, path: Path, name: str) -> OutputFile:
        """Describe the file at `path`, to be found as `name`, by its content."""
        status = path.stat()
        return cls(name, status.st_size, status.st_mtime_ns, file_sha256(path))

    def is_there(self, root: Path) -> bool:
        """Whether the file is as it was published; its content counts if its time changed."""
        path = root / self.path
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            same_time = self.mtime_ns in (0, status.st_mtime_ns)
            return same_time or file_sha256(path) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True)
class Published:
    """What ``current.json`` says.

    Attributes
    ----------
    label, subject, session : str
        Which scan; `session` is None where the cohort has none.
    version : str
        Name of the Zarr group.
    request : str
        Fingerprint of everything that was asked for (not of the inputs).
    method : dict
        Every parameter.
    weights : str or None
        One line on the weights; None if the method reads no network.
    inputs : tuple of InputFile
        T1w and PET.
    frame_durations : tuple of float or None
        Seconds of each PET frame, as the sidecar has them.
    shape : tuple of int
        (z, y, x).
    affine : tuple of tuple of float
        Voxel (x, y, z) to world mm (RAS+).
    metrics : dict
        Scan-level figures: by source for those against one source.
    seconds : float
        Of the DWT, the network, the rule and the inverse DWT.
    notes : tuple of str
        Warnings.
    outputs : tuple of OutputFile
        Files in BIDS places.
    stored : tuple of OutputFile
        Files of the version's Zarr group.
    software : dict
        Versions.
    created : str
        When, ISO 8601 in UTC.
    """

    label: str
    subject: str
    session: str | None
    version: str
    request: str
    method: dict[str, Any]
    weights: str | None
    inputs: tuple[InputFile, ...]
    frame_durations: tuple[float, ...] | None
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    metrics: dict[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputFile, ...] = ()
    stored: tuple[OutputFile, ...] = ()
    software: dict[str, str] = field(default_factory=dict)
    created: str = ""

    def why_not(
        self,
        request: str,
        root: Path,
        inputs: Sequence[Path],
        frame_durations: tuple[float, ...] | None,
    ) -> str | None:
        """Say why this is not what `request` makes of these inputs as they are now.

        Parameters
        ----------
        request : str
            Fingerprint of what is asked for.
        root : Path
            Of the input.
        inputs : sequence of Path
            T1w and PET.
        frame_durations : tuple of float or None
            Seconds of each PET frame.

        Returns
        -------
        str or None
            The first reason; None if it is.
        """
        if self.request != request:
            return "another method or other options"
        if [item.path for item in self.inputs] != [relative_to(path, root) for path in inputs]:
            return "other input files"
        for item in self.inputs:
            if not item.is_unchanged(root):
                return f"{item.path} changed"
        if self.frame_durations != frame_durations:
            return "other frame durations"
        return None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Published:
        """Read the content of a record."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        values["inputs"] = tuple(InputFile(**item) for item in content["inputs"])
        values["shape"] = tuple(content["shape"])
        values["affine"] = tuple(tuple(row) for row in content["affine"])
        durations = content["frame_durations"]
        values["frame_durations"] = None if durations is None else tuple(durations)
        values["notes"] = tuple(content.get("notes", ()))
        for name in ("outputs", "stored"):
            values[name] = tuple(OutputFile(**item) for item in content.get(name, ()))
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """What ``failure.json`` says: why a scan is not there.

    Attributes
    ----------
    label : str
        Which scan.
    reason : str
        What is wrong and what to do.
    kind : str
        Name of the exception.
    request : str
        Fingerprint of what was asked for.
    created : str
        When, ISO 8601 in UTC.
    """

    label: str
    reason: str
    kind: str
    request: str = ""
    created: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Failure:
        """Read the content of a record."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})


def read_published(paths: OutputPaths, label: str) -> Published | None:
    """Return the record of a scan's published version, or None where there is none."""
    return _parse(paths.current(label), read_json(paths.current(label)), Published.from_json)


def read_failure(paths: OutputPaths, label: str) -> Failure | None:
    """Return the record of a scan's last failure, or None where there is none."""
    return _parse(paths.failure(label), read_json(paths.failure(label)), Failure.from_json)


def _parse(path: Path, content: Any, parse: Any) -> Any:  # noqa: ANN401
    if content is None:
        return None
    try:
        return parse(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is not a record of this version of fusionflow ({error!r})",
            "Remove it and run again",
        ) from error


def publish(paths: OutputPaths, record: Published) -> None:
    """Commit a scan: from here on its new version is the one that counts."""
    write_json(paths.current(record.label), record.to_json())
    paths.failure(record.label).unlink(missing_ok=True)


def sweep(paths: OutputPaths, label: str) -> None:
    """Remove what runs on this machine that are no more left of a scan in the making."""
    for folder in paths.scan(label).glob(".staging-*"):
        host, _, rest = folder.name.removeprefix(".staging-").partition("~")
        pid = rest.partition("~")[0]
        if host == socket.gethostname() and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            discard(folder)


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
    failures : tuple of Failure
        Sorted by label; a scan can be in both, if its last attempt failed.
    """

    published: tuple[Published, ...]
    failures: tuple[Failure, ...]


def gather_index(paths: OutputPaths) -> Index:
    """Read the records of all scans."""
    published, failures = [], []
    for label in scan_labels(paths):
        try:
            record, failure = read_published(paths, label), read_failure(paths, label)
        except StoreError as error:  # one damaged record must not hide the others
            record, failure = None, Failure(label, str(error), type(error).__name__)
        if record is not None:
            published.append(record)
        if failure is not None:
            failures.append(failure)
    return Index(tuple(published), tuple(failures))


def write_index(paths: OutputPaths) -> Index:
    """Gather the records and replace ``index.json``."""
    index = gather_index(paths)
    content = {
        "index": INDEX_VERSION,
        "published": [record.to_json() for record in index.published],
        "failures": [asdict(failure) for failure in index.failures],
    }
    write_json(paths.index, content, indent=None)
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
                tuple(Failure.from_json(item) for item in content["failures"]),
            )
    except (StoreError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be used (%s): the scans are read instead", paths.index, error)
    if not paths.scans.is_dir():
        raise StoreError(
            f"{paths.root} holds no fused cohort", "Make one: fusionflow run BIDS_DIR OUT_DIR"
        )
    return gather_index(paths)
