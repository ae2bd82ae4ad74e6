"""A scheduler, and workers, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import HERE, ROOT

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.local import scheduler_settings
from fusionflow.clusters.worker_settings import WORKER_SETTINGS, dask_variables

#: As a cluster that a run starts has it.
_SETTINGS = dask_variables({**WORKER_SETTINGS, **scheduler_settings(ClusterOptions())})


@contextlib.contextmanager
def dask_process(command: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``dask_scheduler`` or ``dask_worker``, and kill it at the end.

    Nothing of it is wanted any more then, and a worker that is asked to end sometimes hangs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{command}", "--no-dashboard", *arguments],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", **_SETTINGS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def scheduler(folder: Path) -> Iterator[tuple[int, str]]:
    """Start a scheduler; yield its pid and address."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    local = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    with dask_process("dask_scheduler", *local) as process:
        while not file.exists():
            if process.poll() is not None:
                raise RuntimeError("the scheduler did not start")
            time.sleep(0.05)
        yield process.pid, json.loads(file.read_text())["address"]
