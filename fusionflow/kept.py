"""What a process makes once and keeps, such as networks, which take seconds to read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: Networks of one kind that a process keeps: a worker that lives for weeks sees many methods.
_MOST: Final = 4


class _Place(Generic[T]):
    """Where one thing is made and kept."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.things: list[T] = []


class Kept(Generic[T]):
    """The things used last by key, each made at the first call; who wants the same waits for it.

    Parameters
    ----------
    most : int
        How many are kept. One that is dropped lives on where it is in use.

    Attributes
    ----------
    made : int
        How many were made so far.
    """

    def __init__(self, most: int = _MOST) -> None:
        self.made = 0
        self._most = most
        self._lock = threading.Lock()
        #: The one used last is the last.
        self._places: dict[Hashable, _Place[T]] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept under `key`, or make it; others can be used meanwhile."""
        with self._lock:
            place = self._places.pop(key) if key in self._places else _Place[T]()
            self._places[key] = place
        with place.lock:
            if not place.things:
                place.things.append(make())
                with self._lock:
                    self.made += 1
            thing = place.things[0]
        self._drop()
        return thing

    def _drop(self) -> None:
        """Forget what was not used for the longest time, but nothing that is being made."""
        with self._lock:
            idle = [key for key, place in self._places.items() if not place.lock.locked()]
            for key in idle[: max(0, len(self._places) - self._most)]:
                del self._places[key]
