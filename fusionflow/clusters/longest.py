"""Settings of Dask that are the process's, while several clusters and clients in it want some."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import dask
from dask.utils import parse_timedelta

__all__ = ["A_WEEK", "LongestTime", "lost_workers"]

A_WEEK: Final = "7 days"


class LongestTime:
    """A time in Dask's settings: the longest of those that somebody wants who is not done yet.

    `dask.config.set` as a context puts back what it found, which is wrong where two overlap.

    Parameters
    ----------
    key : str
        Dask's name of the setting.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._wanted: list[str] = []
        self._before: Any = None

    @contextlib.contextmanager
    def at_least(self, time: str) -> Iterator[None]:
        """Have it at least so long for a while, and then as it was before anybody wanted any."""
        with self._lock:
            if not self._wanted:
                self._before = dask.config.get(self._key)
            self._wanted.append(time)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(time)
                self._set()

    def _set(self) -> None:
        longest = max([self._before, *self._wanted], key=parse_timedelta)
        dask.config.set({self._key: longest})


#: Dask looks so long after it lost a worker whether that came back, and else ends its nanny, or
#: cancels its job. One that is restarting at that very moment would be lost for good.
lost_workers: Final = LongestTime("distributed.deploy.lost-worker-timeout")
