"""How much memory the C library keeps while a task works."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import distributed
import numpy as np
import numpy.typing as npt

__all__ = ["apart", "kept_memory"]

T = TypeVar("T", bound=np.generic)

#: What tells glibc how much it may keep, and what Dask's nanny sets that to.
_TRIM: Final = "MALLOC_TRIM_THRESHOLD_"
_MMAP: Final = "MALLOC_MMAP_THRESHOLD_"
_OF_THE_NANNY: Final = "65536"
#: Arrays of up to half of it are kept: features of a pass are of 8 MiB, slices of 512 x 512 of 2.
#: The parts in which a large scan is resampled are above it, for its worker has no room to keep.
_KEPT_BYTES: Final = 24 << 20
_USUAL_MMAP: Final = 1 << 17
#: Bytes that make glibc look what it may give back where a thread has its memory, as giving back
#: 64 KiB does; `malloc_trim` cuts that of the main thread alone.
_OF_A_THREAD: Final = 96 << 10
#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


class _Keeping:
    """How many tasks of this process want memory to be kept."""

    lock = threading.Lock()
    tasks = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep memory that is given back for the next array, and then none.

    Dask's nanny lets glibc keep no more than 64 kB, and the system clears every page of the next
    array again: networks take twice as long, metrics up to three times. Without a nanny glibc finds
    its limits itself, and who set another limit meant it: nothing is done then, nor where there is
    no glibc. Arrays of more than 12 MiB are given back at once as ever.

    What Dask is to hold between tasks is to be set `apart`: else it lies in memory that was kept,
    and when it is released nobody gives that back to the system.
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
            library.mallopt(_M_TRIM_THRESHOLD, int(_OF_THE_NANNY))
            library.free(library.malloc(_OF_A_THREAD))  # trims what this thread has
            if _Keeping.tasks:
                library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            else:
                library.mallopt(_M_MMAP_THRESHOLD, _USUAL_MMAP)
                library.malloc_trim(0)


def apart(array: npt.NDArray[T]) -> npt.NDArray[T]:
    """Return an array in pages of its own, which the system has again as soon as it is released.

    It is the array itself where memory is not kept, and where it is too large to be kept.
    """
    if array.nbytes > _KEPT_BYTES // 2 or _library() is None:
        return array
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, max(1, array.nbytes), flags=private)
    copy = np.frombuffer(pages, array.dtype, array.size).reshape(array.shape)
    copy[...] = array
    return copy


def _library() -> Any:  # noqa: ANN401
    """Return the C library of a worker that a nanny set up, if it can be told what to keep."""
    if not _has_nanny() or os.environ.get(_TRIM) != _OF_THE_NANNY or _MMAP in os.environ:
        return None
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        return None
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.restype, library.free.argtypes = None, (ctypes.c_void_p,)
    return library


def _has_nanny() -> bool:
    """Whether this thread does a task of a worker with a nanny.

    The environment does not tell: a nanny sets it where it lives, in the client of a local cluster,
    too, whose C library began without.
    """
    try:
        return distributed.get_worker().nanny is not None
    except ValueError:
        return False
