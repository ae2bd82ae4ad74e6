"""How much memory the C library keeps while a task works."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["kept_memory"]

#: What tells glibc how much it may keep, and what Dask's nanny sets that to.
_TRIM: Final = "MALLOC_TRIM_THRESHOLD_"
_MMAP: Final = "MALLOC_MMAP_THRESHOLD_"
_OF_THE_NANNY: Final = "65536"
#: Arrays of up to half of it are kept: features of a pass are of 8 MiB, slices of 512 x 512 of 2.
#: The parts in which a large scan is resampled are above it, for its worker has no room to keep.
_KEPT_BYTES: Final = 24 << 20
_USUAL_MMAP: Final = 1 << 17
#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


class _Keeping:
    """How many tasks of this process want memory to be kept."""

    lock = threading.Lock()
    tasks = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep memory that a task gives back for its next array, and then none.

    Dask's nanny lets glibc keep no more than 64 kB, and the system clears every page of the next
    array again: networks take twice as long, metrics up to three times. Without a nanny glibc finds
    its limits itself, and who set another limit meant it: nothing is done then, nor where there is
    no glibc. Arrays of more than 12 MiB are given back at once as ever.
    """
    library = _library()
    if library is None:
        yield
        return
    with _Keeping.lock:
        _Keeping.tasks += 1
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
    try:
        yield
    finally:
        with _Keeping.lock:
            _Keeping.tasks -= 1
            if not _Keeping.tasks:
                library.mallopt(_M_TRIM_THRESHOLD, int(_OF_THE_NANNY))
                library.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
                library.malloc_trim(0)


def _library() -> Any:  # noqa: ANN401
    """Return the C library of a process that a nanny set up, if it can be told what to keep."""
    if os.environ.get(_TRIM) != _OF_THE_NANNY or _MMAP in os.environ:
        return None
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
