"""Files that are replaced in one step, hashed, flushed: what keeping records safely needs."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fusionflow.errors import StoreError

logger = logging.getLogger(__name__)

#: How the names begin of files and folders that are not finished; a run that dies leaves them.
UNFINISHED = ".unfinished-"


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: str) -> str:
    """Return the SHA-256 of texts, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def relative_to(path: Path, root: Path) -> str:
    """Return `path` as it is written in records: relative to `root`, with slashes.

    What does not lie below it is absolute; ``root / path`` leads there in both cases.
    """
    if not path.is_relative_to(root):
        return path.absolute().as_posix()
    return path.relative_to(root).as_posix()


def _encode(value: Any) -> Any:  # noqa: ANN401
    """Return `value` with what JSON has no word for written as text, and NaN as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def json_bytes(content: Any, indent: int | None = None) -> bytes:  # noqa: ANN401
    """Return what JSON can hold as text; NaN becomes null, infinities text."""
    return json.dumps(_encode(content), indent=indent, allow_nan=False).encode()


def write_json(
    path: Path,
    content: Any,  # noqa: ANN401
    *,
    indent: int | None = 2,
    unless_same: bool = False,
) -> None:
    """Replace a JSON file in one step: a reader finds the old or the new one, whole.

    Parameters
    ----------
    path : Path
        The file; folders above it are made.
    content : mapping, list or scalar
        What JSON can hold; NaN becomes null, infinities text.
    indent : int, optional
        As in `json.dumps`.
    unless_same : bool
        Leave a file that holds just that as it is.

    Raises
    ------
    StoreError
        If it cannot be written; the old file is then as it was.
    """
    data = json_bytes(content, indent) + b"\n"
    if unless_same:
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return
    write_bytes(path, data)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, after its content has reached the disk.

    Raises
    ------
    StoreError
        If it cannot be written; the old file is then as it was.
    """
    with replaced(path) as (stream, _):
        stream.write(content)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give what a file's new content is written to; it takes the place of the old one at the end.

    Yields
    ------
    BinaryIO
        To write to.
    Path
        Where that is until then; who removes it leaves the old file as it is.

    Raises
    ------
    StoreError
        If it cannot be written; the old file is then as it was.
    """
    temporary = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream, temporary
            stream.flush()
            os.fsync(stream.fileno())
        if temporary.exists():
            os.replace(temporary, path)
            flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"Cannot write {path}: {error.strerror or error}", "Check space and permissions"
        ) from error


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, or None where there is none.

    Raises
    ------
    StoreError
        If it is there and cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"Cannot read {path}: {error}", "Remove it and run again") from error


def flush_tree(folder: Path) -> None:
    """Let every file and folder below `folder`, and itself, reach the disk."""
    for place, _, names in os.walk(folder):
        for path in (*(os.path.join(place, name) for name in names), place):
            flush(Path(path))


def flush(path: Path) -> None:
    """Let a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def utc_now() -> str:
    """Return the time as records have it, ISO 8601 in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def discard(folder: Path) -> None:
    """Remove a staging folder, as far as it is there."""
    shutil.rmtree(folder, ignore_errors=True)
