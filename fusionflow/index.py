"""All records of an output folder in one file, for quick opening; it can always be rebuilt.

``index.json`` is JSON in which every record is a line of its own, and what holds for all is in the
last one. So it is written and read a line at a time, opening a cohort need not understand what
nobody asks for, and a cohort of a hundred thousand scans takes hardly more memory to write.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import logging
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Final, overload

from fusionflow.errors import StoreError
from fusionflow.io.files import json_bytes, replaced
from fusionflow.ledger import OutputPaths, read_attempt, read_published, scan_labels
from fusionflow.records import Attempt, Published

__all__ = ["Index", "Records", "gather_index", "is_whole", "read_index", "write_index"]

logger = logging.getLogger(__name__)

INDEX_VERSION: Final = 2
_FIRST: Final = b'{"index": %d, "published": [' % INDEX_VERSION
_MIDDLE: Final = b'], "failures": ['
#: A record begins with its label.
_LABEL: Final = re.compile(rb'\{"label": ("(?:[^"\\]|\\.)+")')


class Records(Sequence[Published]):
    """Records of scans, kept as the text that they are written as: a few thousand bytes each.

    One is read when it is asked for, every time.

    Parameters
    ----------
    records : iterable of Published
    """

    def __init__(self, records: Iterable[Published] = ()) -> None:
        self._lines = [_line(record.to_json()) for record in records]

    @classmethod
    def of_lines(cls, lines: Iterable[bytes]) -> Records:
        """Return records from their text, of which each is a line."""
        records = cls()
        records._lines = list(lines)
        return records

    def append(self, record: Published) -> None:
        """Add a record."""
        self._lines.append(_line(record.to_json()))

    def chosen(self, places: Iterable[int]) -> Records:
        """Return some of them."""
        return Records.of_lines(self._lines[place] for place in places)

    @property
    def labels(self) -> list[str]:
        """The scans' labels, in order."""
        return [_label(line) for line in self._lines]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Published: ...

    @overload
    def __getitem__(self, index: slice) -> list[Published]: ...

    def __getitem__(self, index: int | slice) -> Published | list[Published]:
        """Read a record, or some.

        Raises
        ------
        StoreError
            If it is none of this version of fusionflow.
        """
        if isinstance(index, slice):
            return [_published(line) for line in self._lines[index]]
        return _published(self._lines[index])

    def __eq__(self, other: object) -> bool:
        """Whether another sequence holds the same records."""
        if isinstance(other, Records):
            return self._lines == other._lines
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Return how many there are."""
        return f"<Records of {len(self)} scans>"


def _line(content: dict[str, Any]) -> bytes:
    """Return a record as a line; the label is first, for that is how it is found."""
    return json_bytes({"label": content["label"], **content})


def _label(line: bytes) -> str:
    """Return the label of a line."""
    found = _LABEL.match(line)
    label = str(json.loads(found[1])) if found else ""
    if not label or label.startswith(".") or "/" in label:
        raise ValueError(f"{line[:80]!r} is no record")
    return label


def _published(line: bytes) -> Published:
    try:
        return Published.from_json(json.loads(line))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"The index holds what is no record of this version of fusionflow ({error!r})",
            "Remove index.json",
        ) from error


@dataclass(frozen=True)
class Index:
    """Records of all scans.

    Attributes
    ----------
    published : Records
        Sorted by label.
    failures : tuple of Attempt
        Sorted by label; a scan can be in both, if its last attempt failed.
    removed : tuple of str
        Labels of published scans that the input no longer had when a run looked last.
    """

    published: Records = field(default_factory=Records)
    failures: tuple[Attempt, ...] = ()
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
    published, failures = Records(), []
    for record, failure in _gathered(paths):
        if record is not None:
            published.append(record)
        if failure is not None:
            failures.append(failure)
    if removed is None:
        removed = _removed_before(paths)
    gone = tuple(sorted(set(published.labels).intersection(removed)))
    return Index(published, tuple(failures), gone)


def _gathered(paths: OutputPaths) -> Iterator[tuple[Published | None, Attempt | None]]:
    """Yield what each scan's folder holds: a published record, a failure, or both."""
    for label in scan_labels(paths):
        record = attempt = None
        try:
            record = read_published(paths, label)
            attempt = read_attempt(paths, label)
        except StoreError as error:  # one damaged record must not hide the others
            attempt = Attempt(label, "failed", str(error), type(error).__name__)
        yield record, None if attempt is None or attempt.state == "running" else attempt


def _removed_before(paths: OutputPaths) -> tuple[str, ...]:
    try:
        return _parsed(paths.index.read_bytes()).removed
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return ()


def write_index(paths: OutputPaths, removed: Collection[str] | None = None) -> None:
    """Gather the records, and replace ``index.json`` if it says something else.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    removed : collection of str, optional
        As in `gather_index`.

    Raises
    ------
    StoreError
        If it cannot be written; the old one is then as it was.
    """
    before = set(_removed_before(paths) if removed is None else removed)
    with replaced(paths.index) as (stream, temporary):
        _write(stream, paths, before)
        stream.flush()
        with contextlib.suppress(OSError):
            if filecmp.cmp(temporary, paths.index, shallow=False):
                temporary.unlink()


def _write(stream: BinaryIO, paths: OutputPaths, removed: set[str]) -> None:
    """Write the lines of an index."""
    failures: list[Attempt] = []
    gone: list[str] = []
    sum_so_far = 0

    def put(data: bytes) -> None:
        nonlocal sum_so_far
        sum_so_far = zlib.crc32(data, sum_so_far)
        stream.write(data)

    put(_FIRST)
    between = b"\n"
    for record, failure in _gathered(paths):
        if record is not None:
            put(between + _line(record.to_json()))
            between = b",\n"
            if record.label in removed:
                gone.append(record.label)
        if failure is not None:
            failures.append(failure)
    put(b"\n" + _MIDDLE)
    between = b"\n"
    for failure in failures:
        put(between + json_bytes(asdict(failure)))
        between = b",\n"
    last = json_bytes({"removed": sorted(gone), "crc32": sum_so_far})
    stream.write(b"\n], " + last[1:] + b"\n")


def _parsed(data: bytes) -> Index:
    """Return what an index file says.

    Raises
    ------
    ValueError
        If it is none of this version, or damaged.
    """
    *lines, last = data.rstrip(b"\n").split(b"\n")
    body = len(data.rstrip(b"\n")) - len(last) - 1
    if not lines or lines[0] != _FIRST or not last.startswith(b"], "):
        raise ValueError("it is no index of this version")
    about = json.loads(b"{" + last[3:])
    if zlib.crc32(memoryview(data)[:body]) != about["crc32"]:
        raise ValueError("its checksum does not fit")
    middle = lines.index(_MIDDLE)
    published = Records.of_lines(line.removesuffix(b",") for line in lines[1:middle])
    failures = tuple(
        Attempt.from_json(json.loads(line.removesuffix(b","))) for line in lines[middle + 1 :]
    )
    return Index(published, failures, tuple(map(str, about["removed"])))


def is_whole(paths: OutputPaths) -> bool:
    """Whether there is an index that can be read."""
    try:
        _parsed(paths.index.read_bytes())
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return False
    return True


def read_index(paths: OutputPaths) -> Index:
    """Return the gathered records, from the scans themselves where there is no good index.

    Raises
    ------
    StoreError
        If the folder holds no output of fusionflow.
    """
    try:
        index = _parsed(paths.index.read_bytes())
        index.published.labels  # noqa: B018 - what has none is no record
    except FileNotFoundError:
        pass
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be used (%s): the scans are read instead", paths.index, error)
    else:
        return index
    if not paths.scans.is_dir():
        raise StoreError(
            f"{paths.root} holds no fused cohort", "Make one: fusionflow run BIDS_DIR OUT_DIR"
        )
    return gather_index(paths)
