"""What is written down of a scan: its files, how it was published, what was tried since."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal

from fusionflow.errors import StoreError
from fusionflow.io.files import file_sha256, relative_to
from fusionflow.pet_info import PetInfo

#: Of an attempt: in the making, to be tried again by the next run, or not until something changes.
AttemptState = Literal["running", "failed", "quarantined"]

#: What a record may name a folder: it can never lead elsewhere.
_ONE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


def _check_inside(path: str) -> None:
    """Refuse a path of a record that leads out of its folder."""
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ValueError(f"{path!r} leads out of the folder")


def _check_label(label: str) -> None:
    """Refuse a label that leads out of the folder of scans."""
    if not label or label.startswith(".") or "/" in label or "\0" in label:
        raise ValueError(f"{label!r} is no name of a scan")


def _check_types(values: Mapping[str, Any], types: Mapping[str, type | UnionType]) -> None:
    """Refuse values of other types than they have here: whoever edits a record may err."""
    for name, expected in types.items():
        value = values.get(name, _ABSENT)
        if value is not _ABSENT and (not isinstance(value, expected) or isinstance(value, bool)):
            raise TypeError(f"{name} is {value!r}")


_ABSENT = object()


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
        try:
            status = os.stat(f"{root}/{self.path}")  # joining paths takes longer than looking
            if status.st_size != self.size:
                return False
            same_time = self.mtime_ns in (0, status.st_mtime_ns)
            return same_time or file_sha256(root / self.path) == self.sha256
        except OSError:
            return False


def why_damaged(files: Iterable[OutputFile], root: Path) -> str | None:
    """Name the first file below the output folder that is not as it was published, if any."""
    for item in files:
        if not item.is_there(root):
            return f"{item.path} is missing or damaged"
    return None


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
    pet_info : PetInfo
        Metadata of the PET, as they were.
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
    run : str
        Which run made it; see its log.
    attempt : int
        How many times it took.
    worker : str
        Host and name of the worker that finished it.
    timings : dict
        Stage -> seconds, summed over slabs.
    conformed : dict
        How it was prepared: alignment, units, scaling, mask.
    facts : str
        Fingerprint of what was known of the scan besides the content of its files.
    """

    label: str
    subject: str
    session: str | None
    version: str
    request: str
    method: dict[str, Any]
    weights: str | None
    inputs: tuple[InputFile, ...]
    pet_info: PetInfo
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    metrics: dict[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    outputs: tuple[OutputFile, ...] = ()
    stored: tuple[OutputFile, ...] = ()
    software: dict[str, str] = field(default_factory=dict)
    created: str = ""
    run: str = ""
    attempt: int = 1
    worker: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    conformed: dict[str, Any] = field(default_factory=dict)
    facts: str = ""

    def check_stored(self, root: Path) -> None:
        """Look for every file of its Zarr group: Zarr reads zeros where one is gone or empty.

        Raises
        ------
        StoreError
            If one is not there, or not as long as it was.
        """
        if what := why_damaged(self.stored, root):
            raise StoreError(f"{root}/{what}", "Run fusionflow again")

    def why_not(
        self,
        request: str,
        root: Path,
        inputs: Sequence[Path],
        pet_info: PetInfo,
    ) -> str | None:
        """Say why this is not what `request` makes of these inputs as they are now.

        Parameters
        ----------
        request : str
            Fingerprint of what is asked for.
        root : Path
            Of the input.
        inputs : sequence of Path
            The files that are read.
        pet_info : PetInfo
            Metadata of the PET.

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
        if self.pet_info != pet_info:
            return "other metadata of the PET"
        return None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Published:
        """Read the content of a record."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        _check_types(values, _PUBLISHED)
        _check_label(values["label"])
        if not isinstance(values["method"].get("name"), str):
            raise TypeError("the method has no name")
        values["inputs"] = tuple(InputFile(**item) for item in content["inputs"])
        if not all(isinstance(item.path, str) for item in values["inputs"]):
            raise TypeError("an input has no path")
        values["shape"] = tuple(map(int, content["shape"]))
        if len(values["shape"]) != 3:
            raise ValueError("the shape is not (z, y, x)")
        values["affine"] = tuple(tuple(row) for row in content["affine"])
        values["pet_info"] = PetInfo.from_json(content["pet_info"])
        values["notes"] = tuple(content.get("notes", ()))
        for name in ("outputs", "stored"):
            values[name] = tuple(OutputFile(**item) for item in content.get(name, ()))
            for item in values[name]:
                _check_inside(item.path)
        if not _ONE_NAME.fullmatch(values["version"]):
            raise ValueError("the version is no name of a folder")
        return cls(**values)

    @property
    def is_flagged(self) -> bool:
        """Whether a person should look at the alignment."""
        alignment = self.conformed.get("Alignment")
        return isinstance(alignment, dict) and bool(alignment.get("flagged"))

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        files = ("inputs", "outputs", "stored")
        content = {name: [vars(item) for item in getattr(self, name)] for name in files}
        return {**vars(self), "pet_info": self.pet_info.to_json(), **content}


_PUBLISHED: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("label", "subject", "version", "request", "created", "run", "worker"), str),
    **dict.fromkeys(("method", "metrics", "software", "timings", "conformed", "pet_info"), dict),
    "facts": str,
    **dict.fromkeys(("session", "weights"), str | None),
    "seconds": int | float,
    "attempt": int,
}
_ATTEMPT: Mapping[str, type | UnionType] = {
    **dict.fromkeys(("label", "reason", "kind", "request", "run", "worker"), str),
    **dict.fromkeys(("state", "software", "facts", "started", "ended"), str),
    "attempt": int,
}


@dataclass(frozen=True)
class Stamp:
    """An input as it was when an attempt at its scan began.

    Attributes
    ----------
    path : str
        Relative to the root of the input.
    size : int
        Bytes.
    mtime_ns : int
        Time of the last change, ns since the epoch.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, root: Path) -> Stamp:
        """Return the stamp of a file as it is now; one that is not there has size -1."""
        try:
            status = path.stat()
        except OSError:
            return cls(relative_to(path, root), -1, 0)
        return cls(relative_to(path, root), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class Attempt:
    """What ``attempt.json`` says: a scan in the making, or why it is not there.

    Attributes
    ----------
    label : str
        Which scan.
    state : {"running", "failed", "quarantined"}
        ``failed`` is tried again by the next run, ``quarantined`` only if something changes or
        somebody asks for it.
    reason : str
        What is wrong and what to do; empty while it runs.
    kind : str
        Name of the exception; ``excluded`` if the input was refused before it was read.
    attempt : int
        How many times this request was tried on these inputs, this time included.
    request : str
        Fingerprint of what was asked for.
    inputs : tuple of Stamp
        T1w and PET.
    run : str
        Which run.
    worker : str
        The worker that failed last, where that is known.
    software : str
        Version of fusionflow.
    facts : str
        Fingerprint of what was known of the scan besides the content of its files.
    started, ended : str
        When, ISO 8601 in UTC.
    """

    label: str
    state: AttemptState
    reason: str = ""
    kind: str = ""
    attempt: int = 1
    request: str = ""
    inputs: tuple[Stamp, ...] = ()
    run: str = ""
    worker: str = ""
    software: str = ""
    facts: str = ""
    started: str = ""
    ended: str = ""

    def is_about(self, other: Attempt) -> bool:
        """Whether both are attempts at the same thing by the same software."""
        mine, others = (
            (item.request, item.inputs, item.software, item.facts) for item in (self, other)
        )
        return mine == others

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Attempt:
        """Read the content of a record."""
        known = {item.name for item in fields(cls)}
        values = {key: value for key, value in content.items() if key in known}
        _check_types(values, _ATTEMPT)
        _check_label(values["label"])
        values["inputs"] = tuple(Stamp(**item) for item in content.get("inputs", ()))
        if values.get("state") not in ("running", "failed", "quarantined"):
            raise ValueError("no such state")
        return cls(**values)
