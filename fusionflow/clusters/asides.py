"""Coroutines that are waited for where a loop may run already, as in a notebook."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def finished(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Return what a coroutine comes to, in a thread and a loop of its own; raise what it raises.

    >>> finished(asyncio.sleep(0, "done"))
    'done'
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
