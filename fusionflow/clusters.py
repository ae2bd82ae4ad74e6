"""Where the work runs: a cluster of this machine's processes, or a scheduler that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import dask
import distributed
import psutil

from fusionflow.config import ClusterOptions
from fusionflow.errors import ConfigurationError

#: Seconds to wait for a scheduler, and for its first worker.
_PATIENCE = 60
_DASHBOARD_PORT = 8787
#: Zarr's own requests at a time, in each task: tasks already run beside each other.
_ZARR_CONCURRENCY = 4


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
        If there is no scheduler at the address, or it has no workers.
    """
    with contextlib.ExitStack() as stack:
        if options.address is None:
            cluster = stack.enter_context(_local(options))
            client = stack.enter_context(distributed.Client(cluster))
        else:
            try:
                client = stack.enter_context(distributed.Client(options.address, timeout=_PATIENCE))
            except (OSError, TimeoutError, ValueError) as error:
                raise ConfigurationError(
                    f"No Dask scheduler answers at {options.address}: {error}",
                    "Check the address that `dask scheduler` printed",
                ) from error
            try:
                client.wait_for_workers(1, timeout=_PATIENCE)
            except TimeoutError as error:
                raise ConfigurationError(
                    f"The scheduler at {options.address} has no workers",
                    f"Start some: dask worker {options.address}",
                ) from error
        yield client


def _local(options: ClusterOptions) -> distributed.LocalCluster:
    """Start workers of this machine, bound to loopback."""
    workers = options.n_workers or max(1, available_cores() // options.threads_per_worker)
    memory = (options.memory_mb or psutil.virtual_memory().total / 1e6 * 0.9) * 1e6
    environment = {
        **dask.config.get("distributed.nanny.pre-spawn-environ", {}),
        "ZARR_ASYNC__CONCURRENCY": str(_ZARR_CONCURRENCY),
    }
    settings = {
        "distributed.nanny.pre-spawn-environ": environment,
        # Else a task whose last possible worker is gone waits for ever.
        "distributed.scheduler.no-workers-timeout": f"{_PATIENCE * 5}s",
    }
    with dask.config.set(settings):
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
