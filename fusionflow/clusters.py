"""Where the work runs: a cluster of this machine's processes, or a scheduler that is there."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import dask
import distributed
import psutil
from distributed.utils import silence_logging_cmgr

from fusionflow.config import ClusterOptions
from fusionflow.errors import ClusterError, ConfigurationError

logger = logging.getLogger(__name__)

#: Seconds to wait for a scheduler, and for its first worker.
_PATIENCE = 30
_DASHBOARD_PORT = 8787
#: Zarr's own requests at a time, in each task: tasks already run beside each other.
_ZARR_CONCURRENCY = 4
#: Dask looks so long after it lost a worker whether its nanny brought it back, and else ends the
#: nanny. One that is restarting a second time at that very moment would be lost for good.
_LOST_WORKER_TIMEOUT = "7 days"


@contextlib.contextmanager
def connect(options: ClusterOptions) -> Iterator[distributed.Client]:
    """Start or reach a cluster, and leave it as it was found.

    Parameters
    ----------
    options : ClusterOptions
        Where, and how many workers.

    Yields
    ------
    distributed.Client
        With at least one worker.

    Raises
    ------
    ConfigurationError
        If the scheduler is on another machine, without TLS, and that is not allowed.
    ClusterError
        If there is no scheduler at the address, or it has no workers; or if the script that calls
        this would be run again by every worker process.
    """
    with contextlib.ExitStack() as stack:
        if options.address is None:
            patient = {"distributed.deploy.lost-worker-timeout": _LOST_WORKER_TIMEOUT}
            stack.enter_context(dask.config.set(patient))
            cluster = stack.enter_context(_local(options))
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
            try:
                client.wait_for_workers(1, timeout=_PATIENCE)
            except TimeoutError as error:
                raise ClusterError(
                    f"The scheduler at {options.address} has no workers",
                    f"Start some: dask worker {options.address}",
                ) from error
        yield client


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


def _local(options: ClusterOptions) -> distributed.LocalCluster:
    """Start workers of this machine, bound to loopback."""
    _check_main_module()
    workers = options.n_workers or max(1, available_cores() // options.threads_per_worker)
    memory = (options.memory_mb or psutil.virtual_memory().total / 1e6 * 0.9) * 1e6
    environment = {
        **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
        "ZARR_ASYNC__CONCURRENCY": str(_ZARR_CONCURRENCY),
    }
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        # A scan that was on a worker that died twice is tried again with nothing beside it.
        "distributed.scheduler.allowed-failures": 1,
        # Else a task whose last possible worker is gone waits for ever.
        "distributed.scheduler.no-workers-timeout": f"{_PATIENCE * 10}s",
    }
    with dask.config.set(settings), _workers_leave_interrupts_to_us():
        return distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=options.threads_per_worker,
            processes=True,
            host="127.0.0.1",
            memory_limit=int(memory / workers),
            dashboard_address=f"127.0.0.1:{_free_port(_DASHBOARD_PORT)}",
            local_directory=None if options.work_dir is None else str(options.work_dir),
            silence_logs=_dask_log_level(),
        )


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
