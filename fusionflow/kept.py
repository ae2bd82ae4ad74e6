"""What a process makes once and keeps: networks, which take seconds to read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Things by key, each made at the first call; threads that want the same wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._things: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under `key`, or make it."""
        with self._lock:
            if key not in self._things:
                self._things[key] = make()
            return self._things[key]
