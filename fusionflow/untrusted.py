"""Files and names that others made: read up to a limit, and shown without being obeyed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """Open a file for reading, and refuse what may never end or never begin.

    Parameters
    ----------
    path : Path
        The file, or a link to one.
    pipes : bool
        Whether a pipe will do, too, where a person names the file: ``--config <(...)``.

    Raises
    ------
    OSError
        If it cannot be opened, or is a folder, a device, a socket or (mostly) a pipe.
    """
    # Without O_NONBLOCK a pipe that nobody writes to holds this up for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipes else os.O_NONBLOCK))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or (pipes and stat.S_ISFIFO(kind)):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_bounded(path: Path, limit: int, *, pipes: bool = False) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises
    ------
    OSError
        As `open_file`, or if it holds more.
    """
    with open_file(path, pipes=pipes) as stream:
        size = os.fstat(stream.fileno()).st_size  # reading up to the limit would make room for it
        content = stream.read((limit if pipes else min(size, limit)) + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"Larger than {limit} bytes", str(path))
    return content


def printable(text: object) -> str:
    r"""Return text as one line with what a terminal would obey or cannot show written out.

    >>> print(printable("sub-01\x1b[2J\n"))
    sub-01\x1b[2J\n
    """
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in str(text)
    )


def one_line(error: BaseException | str, most: int = 400) -> str:
    """Return what a library's error says, which may take several lines or pages, as a short one."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]} ..."
