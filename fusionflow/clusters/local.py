"""Clusters of this machine's processes: workers of its cores, or of its GPUs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.longest import A_WEEK, lost_workers
from fusionflow.clusters.worker_settings import WORKER_SETTINGS, ZARR_CONCURRENCY, gpu_threads
from fusionflow.errors import ClusterError, MissingExtraError
from fusionflow.placement import RESOURCE
from fusionflow.signals import interrupts_left_to_us

logger = logging.getLogger(__name__)

#: Seconds beyond the run's own patience until Dask gives tasks up that no worker can run.
_MARGIN = 60
_DASHBOARD_PORT = 8787
#: Bytes that a local worker should have at least, where their number follows the machine.
_WORKER_BYTES = 2e9
#: Dask's settings and the environment are the process's: clusters begin one after another.
_starting = threading.Lock()


@contextlib.contextmanager
def local(options: ClusterOptions, torch_threads: int = 1) -> Iterator[distributed.LocalCluster]:
    """Have workers of this machine, bound to loopback."""
    _check_main_module()
    memory, threads = _memory(options), options.threads_per_worker or 1
    workers = options.n_workers or local_workers(memory, threads * torch_threads)
    with lost_workers.at_least(A_WEEK), contextlib.ExitStack() as stack:
        with _settings(options):
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=threads,
                processes=True,
                memory_limit=int(memory / workers),
                **_on_this_machine(options),
            )
        yield stack.enter_context(cluster)


def local_workers(memory: float, threads: int) -> int:
    """Return how many workers of so many threads a machine has cores and memory (bytes) for."""
    return max(1, min(available_cores() // threads, int(memory // _WORKER_BYTES)))


@contextlib.contextmanager
def cuda(options: ClusterOptions, torch_threads: int = 1) -> Iterator[distributed.SpecCluster]:
    """Have a worker for each GPU of this machine, which advertises it; bound to loopback."""
    _check_main_module()
    wanted = cuda_options(options, torch_threads)
    from dask_cuda import LocalCUDACluster

    with lost_workers.at_least(A_WEEK), contextlib.ExitStack() as stack:
        with _settings(options):
            cluster = LocalCUDACluster(**wanted)
        yield stack.enter_context(cluster)


def cuda_options(options: ClusterOptions, torch_threads: int) -> dict[str, Any]:
    """Return what a `dask_cuda.LocalCUDACluster` is to be made with.

    Raises
    ------
    MissingExtraError
        If dask-cuda is not there.
    ClusterError
        If there is no GPU, or fewer than are asked for.
    """
    try:
        import dask_cuda  # noqa: F401 - to say now that it is not there
        import pynvml
    except ImportError as error:
        raise MissingExtraError(
            f"A cluster of GPUs needs dask-cuda, which cannot be used here: {error}",
            "pip install 'fusionflow[gpu]'",
        ) from error
    try:
        pynvml.nvmlInit()
        there = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise ClusterError(
            f"No NVIDIA GPU can be used on this machine: {error}",
            "Check that nvidia-smi lists one; or leave out --cluster cuda",
        ) from error
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
        there = min(there, len(named)) if all(name.isdigit() for name in named) else len(named)
    workers = options.n_workers or there
    if not 0 < workers <= there:
        raise ClusterError(
            f"{options.n_workers or 'All'} GPUs were asked for, and this process may use {there}",
            "Ask for fewer (--n-workers), or look at CUDA_VISIBLE_DEVICES",
        )
    threads = gpu_threads(available_cores() // workers, torch_threads)
    return {
        "n_workers": workers,
        "threads_per_worker": options.threads_per_worker or threads,
        "memory_limit": int(_memory(options) / workers),
        "device_memory_limit": 0,  # what is on a device does not outlive a task: nothing to spill
        "resources": {RESOURCE: 1},
        **_on_this_machine(options),
    }


def _memory(options: ClusterOptions) -> float:
    """Return the bytes that all workers of this machine share."""
    return options.memory_mb * 1e6 if options.memory_mb else psutil.virtual_memory().total * 0.9


def _on_this_machine(options: ClusterOptions) -> dict[str, Any]:
    """Return what clusters of this machine have in common."""
    return {
        "host": "127.0.0.1",
        "dashboard_address": f"127.0.0.1:{free_port(_DASHBOARD_PORT)}",
        "local_directory": None if options.work_dir is None else str(options.work_dir),
        "silence_logs": dask_log_level(),
    }


@contextlib.contextmanager
def _settings(options: ClusterOptions) -> Iterator[None]:
    """Set what workers and scheduler of this machine start with."""
    environment = {
        **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
        "ZARR_ASYNC__CONCURRENCY": str(ZARR_CONCURRENCY),
    }
    wanted = {
        "distributed.nanny.pre-spawn-environ": environment,
        **WORKER_SETTINGS,
        **scheduler_settings(options),
    }
    with (
        _starting,
        _put_back((*environment, "PYTHONHASHSEED")),
        dask.config.set(wanted),
        interrupts_left_to_us(),
    ):
        yield


@contextlib.contextmanager
def _put_back(names: Iterable[str]) -> Iterator[None]:
    """Put variables of the environment back at the end.

    Nannies write what is for their workers into that of the process they live in, whose other
    children it is not for. They do so again when they restart a worker.
    """
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def scheduler_settings(options: ClusterOptions) -> dict[str, Any]:
    """Return what a scheduler of a run's own starts with."""
    return {
        # A scan that was on a worker that died twice is tried again with nothing beside it.
        "distributed.scheduler.allowed-failures": 1,
        # Else a task whose last possible worker is gone waits for ever.
        "distributed.scheduler.no-workers-timeout": f"{options.patience + _MARGIN}s",
        # Slabs begin where their scan was conformed; at Dask's 1 s other workers idle meanwhile.
        "distributed.scheduler.work-stealing-interval": "100ms",
    }


def _check_main_module() -> None:
    """Refuse a script without a main guard: worker processes run it again and wait for ever.

    Raises
    ------
    ClusterError
        If the main module is such a script, or came through a pipe.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:  # a prompt, a notebook, `python -c`
        return
    try:
        guarded = "__name__" in Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        guarded = Path(path).exists()
    if not guarded:
        raise ClusterError(
            f"Worker processes import {path} and would start a cluster of their own",
            'Put what it does under `if __name__ == "__main__":`',
        )


def dask_log_level() -> int:
    """Return what Dask may log: a failed task is reported as its scan's reason, once."""
    if logging.getLogger("fusionflow").isEnabledFor(logging.DEBUG):
        return logging.WARNING
    return logging.CRITICAL


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port(wanted: int) -> int:
    """Return `wanted` if nothing listens there, otherwise 0 (any)."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
