"""Names of files in BIDS, taken apart; and which of them a person wants.

The rules are those of the Brain Imaging Data Structure, 1.11.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionflow.errors import ConfigurationError
from fusionflow.untrusted import printable, read_bounded

LABEL = r"[0-9A-Za-z+]+"
_NAME = re.compile(rf"((?:[0-9A-Za-z]+-{LABEL}_)*)([0-9A-Za-z]+)(?:\.nii|\.nii\.gz|\.json|\.tsv)")

#: Long name -> name in files, of the entities that can matter here.
ENTITIES = {
    "subject": "sub", "session": "ses", "task": "task", "tracer": "trc", "acquisition": "acq",
    "ceagent": "ce", "reconstruction": "rec", "direction": "dir", "run": "run", "echo": "echo",
    "part": "part", "chunk": "chunk", "processing": "proc", "space": "space", "split": "split",
    "hemisphere": "hemi", "cohort": "cohort", "resolution": "res", "density": "den",
    "label": "label", "description": "desc", "segmentation": "seg",
}  # fmt: skip
_SHORT = frozenset(ENTITIES.values())
_MOST_FILTER_BYTES = 1 << 20


@dataclass(frozen=True)
class BidsFile:
    """A file whose name follows BIDS, taken apart.

    Attributes
    ----------
    path : Path
        The file.
    entities : mapping of str to str
        Such as ``{"sub": "01", "trc": "FDG"}``.
    suffix : str
        Such as ``T1w``.
    derived : bool
        Whether it was found in a derivative dataset beside the input.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    derived: bool = False

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: few entities first, then by name."""
        return len(self.entities), natural(self.path.name)

    @property
    def unknown(self) -> list[str]:
        """Entities that BIDS does not know, such as ``tracer`` for ``trc``."""
        return [name for name in self.entities if name not in _SHORT]


def parse_name(path: Path) -> BidsFile | None:
    """Take a file name apart: ``key-value_..._suffix.extension``, each key once."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    pairs = re.findall(r"([^-_]+)-([^-_]+)_", match[1])
    entities = dict(pairs)
    return BidsFile(path, entities, match[2]) if len(entities) == len(pairs) else None


def natural(name: str) -> tuple[Any, ...]:
    """Return a sort key that takes runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def listing(folder: str | os.PathLike[str]) -> tuple[list[str], list[str], set[str]]:
    """Return the names of folders, files, and dangling links (also among files), not hidden.

    Raises
    ------
    OSError
        If the folder cannot be listed.
    """
    folders, files, dangling = [], [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                absent = entry.is_symlink() and not entry.is_file()
            except OSError:  # a link to itself
                absent = True
            files.append(entry.name)
            if absent:
                dangling.add(entry.name)
    return sorted(folders, key=natural), sorted(files, key=natural), dangling


@dataclass(frozen=True)
class Filters:
    """Which images a person wants, by their entities.

    Attributes
    ----------
    wanted : mapping
        Kind (``t1w``, ``pet``, ``mask``) -> entity -> texts that will do; None: the entity must
        not be there.
    """

    wanted: Mapping[str, Mapping[str, tuple[str, ...] | None]]

    def take(self, kind: str, file: BidsFile) -> bool:
        """Whether a file is wanted; runs and other numbers match whatever their zeros."""
        for entity, values in self.wanted.get(kind, {}).items():
            has = file.entities.get(entity)
            if values is None:
                if has is not None:
                    return False
            elif has is None or not any(_equal(has, value) for value in values):
                return False
        return True

    def of(self, kind: str) -> str:
        """Return what is wanted, as text; empty if everything is."""
        return ", ".join(
            f"no {entity}-" if values is None else f"{entity}-{' or '.join(values)}"
            for entity, values in self.wanted.get(kind, {}).items()
        )


NO_FILTERS = Filters({})


def _equal(one: str, other: str) -> bool:
    if one.isdecimal() and other.isdecimal():
        return int(one) == int(other)
    return one == other


def read_filters(path: Path) -> Filters:
    """Read a filter file, as BIDS Apps of the NiPreps family take it.

    ``{"t1w": {"acquisition": "mprage"}, "pet": {"tracer": "FDG", "run": [1, 2], "reconstruction":
    null}}``: long or short names of entities; a list means any of; null, that the entity is not
    there.

    Raises
    ------
    ConfigurationError
        If it cannot be read, or holds something else.
    """
    try:
        content = json.loads(read_bounded(path, _MOST_FILTER_BYTES))
    except OSError as error:
        raise ConfigurationError(
            f"The filter file {path} cannot be read: {error.strerror or error}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"The filter file {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"The filter file {path} holds no JSON object")
    wanted: dict[str, dict[str, tuple[str, ...] | None]] = {}
    for kind, entities in content.items():
        if kind not in ("t1w", "pet", "mask"):
            raise ConfigurationError(
                f"{path} filters {printable(kind)!r}", "It can filter t1w, pet and mask"
            )
        if not isinstance(entities, dict):
            raise ConfigurationError(f"{path}: {kind} is no JSON object")
        wanted[kind] = {
            _entity(path, name): _values(path, name, value)
            for name, value in entities.items()
            if name not in ("datatype", "suffix", "extension")  # given by the kind
        }
    return Filters(wanted)


def _entity(path: Path, name: str) -> str:
    short = ENTITIES.get(name, name)
    if short not in _SHORT:
        raise ConfigurationError(
            f"{path} filters by {printable(name)!r}, which is no BIDS entity",
            f"Known are: {', '.join(ENTITIES)}",
        )
    return short


def _values(path: Path, name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    values: Sequence[object] = value if isinstance(value, list) else [value]
    if not values or not all(
        isinstance(item, str | int) and not isinstance(item, bool) for item in values
    ):
        raise ConfigurationError(
            f"{path}: {printable(name)} is to be a text, a number, a list or null"
        )
    return tuple(str(item).removeprefix(f"{ENTITIES.get(name, name)}-") for item in values)


def some(names: Iterable[str], most: int = 5) -> str:
    """Return a few names as text, and how many more there are."""
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
