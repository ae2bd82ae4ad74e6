"""Where the work runs: a cluster of this machine's processes, or a scheduler that is there."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
import distributed
import psutil
from distributed.utils import silence_logging_cmgr

from fusionflow.config import ClusterOptions
from fusionflow.errors import ClusterError, ConfigurationError, MissingExtraError
from fusionflow.placement import RESOURCE, workers_of

logger = logging.getLogger(__name__)

#: Seconds to wait for a scheduler.
_PATIENCE = 30
#: Seconds between two looks for a worker, and until somebody is told that there is none yet.
_LOOK = 0.2
_TELL = 5.0
_DASHBOARD_PORT = 8787
#: Bytes that a local worker should have at least, where their number follows the machine.
_WORKER_BYTES = 2e9
#: Tasks at a time beside a GPU: one feeds it, others read, transform and write.
_GPU_THREADS = 2, 8
#: Zarr's own requests at a time, in each task: tasks already run beside each other.
_ZARR_CONCURRENCY = 4
#: Dask looks so long after it lost a worker whether its nanny brought it back, and else ends the
#: nanny. One that is restarting a second time at that very moment would be lost for good.
_LOST_WORKER_TIMEOUT = "7 days"


@contextlib.contextmanager
def connect(options: ClusterOptions, *, torch_threads: int = 1) -> Iterator[distributed.Client]:
    """Start or reach a cluster, and leave it as it was found.

    Parameters
    ----------
    options : ClusterOptions
        Where, and how many workers.
    torch_threads : int
        Threads that each task's network will use: fewer workers then have the cores.

    Yields
    ------
    distributed.Client
        With at least one worker; `await_workers` waits for one with a GPU.

    Raises
    ------
    ConfigurationError
        If the scheduler is on another machine, without TLS, and that is not allowed.
    MissingExtraError
        If dask-cuda is needed and not there.
    ClusterError
        If there is no scheduler at the address, or it has no workers; if this machine has no GPU,
        or fewer than asked for; or if the script that calls this would be run again by every
        worker process.
    """
    with contextlib.ExitStack() as stack:
        if options.gpu == "required" and options.address is None and not options.starts_gpus:
            raise ConfigurationError(
                "A GPU is required, and workers of this machine's processors have none",
                "Take --cluster cuda, or the address of a scheduler",
            )
        if options.address is None:
            patient = {"distributed.deploy.lost-worker-timeout": _LOST_WORKER_TIMEOUT}
            stack.enter_context(dask.config.set(patient))
            start = _cuda if options.starts_gpus else _local
            cluster = stack.enter_context(start(options, torch_threads))
            client = stack.enter_context(distributed.Client(cluster))
        else:
            _check_address(options)
            stack.enter_context(silence_logging_cmgr(_dask_log_level()))
            try:
                client = stack.enter_context(distributed.Client(options.address, timeout=_PATIENCE))
            except (OSError, TimeoutError, ValueError) as error:
                raise ClusterError(
                    f"No Dask scheduler answers at {options.address}: {error}",
                    "Check the address that `dask scheduler` printed",
                ) from error
            await_workers(client, options.patience)
        yield client


def await_workers(
    client: distributed.Client, patience: float, *, with_gpu: bool = False
) -> dict[str, dict[str, Any]]:
    """Wait for a worker, or for one that advertises a GPU, and return all such workers.

    Raises
    ------
    ClusterError
        If none came in time, or the scheduler is gone.
    """
    what = "worker that advertises a GPU" if with_gpu else "worker"
    begun = time.monotonic()
    told = False
    while not (found := workers_of(client, with_gpu=with_gpu)):
        waited = time.monotonic() - begun
        address = client.scheduler.address if client.scheduler else ""
        if client.status != "running":
            raise ClusterError(f"The scheduler {address} is gone", "Start it again")
        if waited > patience:
            extra = f" --resources {RESOURCE}=1 --nthreads 2" if with_gpu else ""
            command = "dask cuda worker" if with_gpu else "dask worker"
            others = len(workers_of(client))
            raise ClusterError(
                f"No {what} came to the scheduler at {address} within {patience:g} s"
                + (f"; it has {others} without" if others else ""),
                f"Start one: {command} {address}{extra}; or wait longer (--patience)",
            )
        if waited > _TELL and not told:
            logger.warning("Waiting up to %.0f s for a %s at %s", patience, what, address)
            told = True
        time.sleep(min(_LOOK, patience))
    return found


def _check_address(options: ClusterOptions) -> None:
    """Refuse to talk in the clear with a scheduler on another machine, unless that is asked for.

    Raises
    ------
    ConfigurationError
        If it would.
    """
    address = str(options.address)
    protocol, _, rest = address.rpartition("://")
    if protocol in ("tls", "wss", "inproc"):
        return
    host = rest.rpartition(":")[0].strip("[]")
    if _is_loopback(host):
        return
    if not options.allow_plain_tcp:
        raise ConfigurationError(
            f"The scheduler at {address} is on another machine, without TLS (plain TCP): anybody "
            "on the network between can read the images and run code on both sides",
            "Start it with TLS and use tls://HOST:PORT, or, in a network that you trust, give "
            "--allow-plain-tcp (cluster.allow_plain_tcp: true)",
        )
    logger.warning("%s is reached without TLS: images travel in the clear", address)


def _is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own and nobody else's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _local(options: ClusterOptions, torch_threads: int) -> distributed.LocalCluster:
    """Start workers of this machine, bound to loopback."""
    _check_main_module()
    memory, threads = _memory(options), options.threads_per_worker or 1
    workers = options.n_workers or local_workers(memory, threads * torch_threads)
    with _settings(options):
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            processes=True,
            memory_limit=int(memory / workers),
            **_on_this_machine(options),
        )


def local_workers(memory: float, threads: int) -> int:
    """Return how many workers of so many threads a machine has cores and memory (bytes) for."""
    return max(1, min(available_cores() // threads, int(memory // _WORKER_BYTES)))


def _cuda(options: ClusterOptions, torch_threads: int) -> distributed.SpecCluster:
    """Start a worker for each GPU of this machine, which advertises it; bound to loopback."""
    _check_main_module()
    wanted = cuda_options(options, torch_threads)
    from dask_cuda import LocalCUDACluster

    with _settings(options):
        return LocalCUDACluster(**wanted)


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
    least, most = _GPU_THREADS
    share = available_cores() // (workers * torch_threads)
    return {
        "n_workers": workers,
        "threads_per_worker": options.threads_per_worker or min(max(least, share), most),
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
        "dashboard_address": f"127.0.0.1:{_free_port(_DASHBOARD_PORT)}",
        "local_directory": None if options.work_dir is None else str(options.work_dir),
        "silence_logs": _dask_log_level(),
    }


@contextlib.contextmanager
def _settings(options: ClusterOptions) -> Iterator[None]:
    """Set what workers and scheduler of this machine start with."""
    environment = {
        **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
        "ZARR_ASYNC__CONCURRENCY": str(_ZARR_CONCURRENCY),
    }
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        # Workers keep a profile of each cycle, 3,600 of them: at one a second 230 kB a second.
        "distributed.worker.profile.interval": "100ms",
        "distributed.worker.profile.cycle": "60s",
        # A scan that was on a worker that died twice is tried again with nothing beside it.
        "distributed.scheduler.allowed-failures": 1,
        # Else a task whose last possible worker is gone waits for ever.
        "distributed.scheduler.no-workers-timeout": f"{options.patience + 2 * _PATIENCE}s",
    }
    with dask.config.set(settings), _workers_leave_interrupts_to_us():
        yield


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


@contextlib.contextmanager
def _workers_leave_interrupts_to_us() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of them, from processes that start in here.

    Threads that start in here hand the block down to what they start later: workers that restart.
    A Ctrl-C that comes meanwhile is not lost.
    """
    resource_tracker.ensure_running()  # the first process that starts it would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dask_log_level() -> int:
    """Return what Dask may log: a failed task is reported as its scan's reason, once."""
    if logging.getLogger("fusionflow").isEnabledFor(logging.DEBUG):
        return logging.WARNING
    return logging.CRITICAL


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_port(wanted: int) -> int:
    """Return `wanted` if nothing listens there, otherwise 0 (any)."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted
