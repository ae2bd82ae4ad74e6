"""What is said of an error that nobody expected: a line, and a file to send with a report."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import traceback
from importlib import metadata

from fusionflow import __version__
from fusionflow.untrusted import one_line

#: Libraries whose versions a report has.
_LIBRARIES = (
    "dask", "distributed", "torch", "zarr", "xarray", "numpy", "nibabel", "pywavelets", "click",
)  # fmt: skip


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
