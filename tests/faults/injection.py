"""Faults as they strike in a worker: what tests order, and the workers that carry it out.

Workers load this file before they start (``distributed.worker.preload``), those that a nanny
restarts as well. It wraps what the tasks of a scan call; each call looks into a folder for an
order, and goes on undisturbed where there is none for its place and scan.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from dask.utils import key_split

from fusionflow import commit, stages, staging

#: Names the folder of orders, to workers that this environment is handed down to.
VARIABLE = "FUSIONFLOW_FAULTS"
#: Most bytes that a task takes which is to run out of memory, and how many at a time.
_MOST_BYTES, _STEP_BYTES = 4 << 30, 32 << 20
#: Seconds after which a fault that waits for something gives up.
_PATIENCE = 60.0

#: Where a fault can strike: stage of the task -> functions that such tasks call.
PLACES = {
    "conform": ((staging, "stage_scan"),),
    "read": ((staging, "conform_into"),),
    "decompose": ((staging, "decompose_staged"),),
    "fuse": ((stages, "fuse_slab"),),
    "reconstruct": ((staging, "reconstruct_staged"),),
    "write": ((commit, "write_shard"),),
    "commit": ((commit, "commit_slabs"), (commit, "commit")),
}


@dataclass(frozen=True)
class Order:
    """A fault that is to strike.

    Attributes
    ----------
    action : str
        Which: a name of `ACTIONS`.
    place : str
        Where: a name of `PLACES`.
    label : str or None
        The scan; None takes the first that comes.
    slab : int or None
        The slab, if not every one.
    times : int
        How often.
    when : {"begin", "end"}
        Before the work of the task, or when it is done and nobody knows yet.
    arguments : dict
        For the action.
    """

    action: str
    place: str
    label: str | None = None
    slab: int | None = None
    times: int = 1
    when: str = "begin"
    arguments: dict[str, Any] = field(default_factory=dict)


class Book:
    """The folder in which tests leave orders and workers write down what they did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, order: Order) -> None:
        """Leave an order in place of the one before."""
        self.clear()
        aside = self.folder / "order.new"
        aside.write_text(json.dumps(asdict(order)))
        aside.rename(self.folder / "order.json")

    def clear(self) -> None:
        """Take the order back and forget what was done."""
        for path in self.folder.iterdir():
            path.unlink()

    def read(self) -> Order | None:
        """Return the order, if there is one."""
        try:
            return Order(**json.loads((self.folder / "order.json").read_text()))
        except FileNotFoundError:
            return None

    def claim(self, order: Order, label: str) -> bool:
        """Whether this call is to carry out the order; writes down that it does."""
        for number in range(order.times):
            try:
                with (self.folder / f"strike-{number:03}").open("x") as stream:
                    json.dump({"time": time.time(), "pid": os.getpid(), "label": label}, stream)
            except FileExistsError:
                continue
            return True
        return False

    @property
    def strikes(self) -> list[dict[str, Any]]:
        """What was carried out: time, process and scan, in order."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("strike-*"))]


def _end_ourselves() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _end_the_nanny() -> None:
    os.kill(os.getppid(), signal.SIGKILL)


def _end_another(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _raise() -> None:
    raise RuntimeError("injected by a test")


def _hang() -> None:
    threading.Event().wait()


def _take_memory() -> None:
    taken = []
    while len(taken) * _STEP_BYTES < _MOST_BYTES:
        taken.append(np.ones(_STEP_BYTES // 8))
    threading.Event().wait(_PATIENCE)


def _command(words: list[str]) -> None:
    subprocess.run(words, check=True, timeout=_PATIENCE)


def _copy(source: str, target: str) -> None:
    shutil.copyfile(source, target)


def _end_the_client_and_outlive_it(lock: str, attempt: str) -> None:
    """End the run, and go on with this task when the next run is at the same scan."""
    holder = json.loads(Path(lock).read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            if json.loads(Path(attempt).read_text())["run"] != holder["run"]:
                break
        threading.Event().wait(0.01)


ACTIONS: dict[str, Callable[..., None]] = {
    "kill": _end_ourselves,
    "freeze": _freeze,
    "kill nanny": _end_the_nanny,
    "kill another": _end_another,
    "raise": _raise,
    "hang": _hang,
    "take memory": _take_memory,
    "command": _command,
    "copy": _copy,
    "kill client and go on": _end_the_client_and_outlive_it,
}


def _wrapped(function: Callable[..., Any], place: str, book: Book) -> Callable[..., Any]:
    """Return a function of a task with the fault in it that is ordered for its place."""

    @wraps(function)
    def faulty(*args: Any, **kwargs: Any) -> Any:
        order = book.read()
        if order is None or order.place != place:
            return function(*args, **kwargs)
        layer, label, *slab = distributed.get_worker().get_current_task()
        of_this_stage = place == "read" or key_split(layer) == f"fusionflow-{place}"
        of_this_slab = order.slab is None or slab[:-1] == [order.slab]
        meant = of_this_stage and of_this_slab and order.label in (None, label)
        if meant and order.when == "begin" and book.claim(order, label):
            ACTIONS[order.action](**order.arguments)
        result = function(*args, **kwargs)
        if meant and order.when == "end" and book.claim(order, label):
            ACTIONS[order.action](**order.arguments)
        return result

    return faulty


def dask_setup(worker: distributed.Worker) -> None:
    """Prepare a worker; Dask calls this."""
    book = Book(Path(os.environ[VARIABLE]))
    for place, functions in PLACES.items():
        for module, name in functions:
            setattr(module, name, _wrapped(getattr(module, name), place, book))
