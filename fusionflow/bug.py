"""What is said of an error that nobody expected: a line, and a file to send with a report."""

from __future__ import annotations

import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from importlib import metadata

from fusionflow import __version__
from fusionflow.untrusted import one_line, printable

#: Libraries whose versions a report has.
_LIBRARIES = (
    "dask", "distributed", "torch", "zarr", "xarray", "numpy", "nibabel", "pywavelets", "click",
)  # fmt: skip


#: What a machine is short of, wherever that shows.
_SHORT_OF = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def of_the_machine(error: BaseException) -> str:
    """Return what is wrong with the machine, or a file of it, if an error says that; else ""."""
    if isinstance(error, MemoryError):
        return "There is no more memory on this machine. Free some, or give other processes less"
    if not isinstance(error, OSError) or not error.strerror:
        return ""
    if error.filename:
        return printable(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if error.errno in _SHORT_OF:
        return f"{error.strerror}, perhaps where the output of this command goes"
    return ""


def report_bug(error: BaseException) -> str:
    """Write down what somebody who mends it needs, and return the line that says so."""
    what = f"This is a bug in fusionflow {__version__} ({type(error).__name__}: {one_line(error)})."
    try:
        descriptor, path = tempfile.mkstemp(prefix="fusionflow-bug-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_account(error))
    except OSError:
        return f"{what} Please report it with the command and what it says with -v"
    return (
        f"{what} Please report it with {path}: the command, versions and the traceback, which may "
        "name files of yours"
    )


def _account(error: BaseException) -> str:
    versions = [f"fusionflow {__version__}", f"Python {platform.python_version()}"]
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    trace = "".join(traceback.format_exception(error))
    return f"{shlex.join(sys.argv)}\n{', '.join(versions)}\n{platform.platform()}\n\n{trace}"
