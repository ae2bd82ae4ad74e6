"""A client of the cluster that a run is to use, and workers that can do the work."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import distributed
from distributed.security import Security
from distributed.utils import silence_logging_cmgr

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.address import address_of, security_of
from fusionflow.clusters.asides import finished
from fusionflow.clusters.local import cuda, dask_log_level, local
from fusionflow.clusters.longest import LongestTime
from fusionflow.errors import ClusterError, ConfigurationError
from fusionflow.placement import RESOURCE, workers_of

logger = logging.getLogger(__name__)

#: Seconds to wait for a scheduler.
_PATIENCE = 30.0
#: Seconds that a network may be gone at most before its connections are given up.
_LONGEST_GAP = 3600.0
#: As long as a client of another machine's scheduler lives: a connection is given up when nothing
#: came through for that long, and each side has its own limit.
_patience_with_the_network = LongestTime("distributed.comm.timeouts.tcp")
#: Seconds between two looks for a worker, and until somebody is told that there is none yet.
_LOOK = 0.2
_TELL = 5.0


def keep_waiting() -> None:
    """Do nothing: what is called during a wait that nobody ends."""


@contextlib.contextmanager
def connect(
    options: ClusterOptions, *, torch_threads: int = 1, on_wait: Callable[[], object] = keep_waiting
) -> Iterator[distributed.Client]:
    """Start or reach a cluster, and leave it as it was found.

    Parameters
    ----------
    options : ClusterOptions
        Where, and how many workers.
    torch_threads : int
        Threads that each task's network will use: fewer workers then have the cores.
    on_wait : callable
        Called now and then while no scheduler or worker has come; what it raises ends the
        waiting.

    Yields
    ------
    distributed.Client
        With at least one worker; `await_workers` waits for one with a GPU.

    Raises
    ------
    ConfigurationError
        If the scheduler is on another machine, without TLS, and that is not allowed; if
        certificates are not there.
    MissingExtraError
        If a package is needed for such a cluster and not there.
    ClusterError
        If there is no scheduler at the address, or it has no workers; if this machine has no GPU,
        or fewer than asked for; or if the script that calls this would be run again by every
        worker process.
    """
    with contextlib.ExitStack() as stack:
        if options.starts_a_cluster:
            if options.gpu == "required" and not options.starts_gpus:
                raise ConfigurationError(
                    "A GPU is required, and the workers that the run would start have none",
                    "Take --cluster cuda, pools with GPUs, or the address of a scheduler",
                )
            cluster = stack.enter_context(_starter(options, on_wait)(options, torch_threads))
            client = stack.enter_context(distributed.Client(cluster))
        else:
            address = address_of(options, on_wait)
            stack.enter_context(silence_logging_cmgr(dask_log_level()))
            gap = min(options.patience, _LONGEST_GAP)
            stack.enter_context(_patience_with_the_network.at_least(f"{gap}s"))
            client = stack.enter_context(_client(address, options, on_wait))
        await_workers(client, options.patience, on_wait=on_wait)
        yield client


def _starter(
    options: ClusterOptions, on_wait: Callable[[], object]
) -> Callable[[ClusterOptions, int], contextlib.AbstractContextManager[Any]]:
    """Return what starts a cluster of the kind that is wanted."""
    if options.kind == "slurm":
        from fusionflow.clusters.slurm import slurm

        return functools.partial(slurm, on_wait=on_wait)
    if options.kind == "kubernetes":
        from fusionflow.clusters.kubernetes import kubernetes

        return kubernetes
    return cuda if options.kind == "cuda" else local


def _client(
    address: str, options: ClusterOptions, on_wait: Callable[[], object]
) -> distributed.Client:
    """Return a client of the scheduler that is there.

    Raises
    ------
    ClusterError
        If none answers.
    """
    security = security_of(options)
    patience = min(_PATIENCE, options.patience)
    until = time.monotonic() + (options.scheduler_patience or 0)
    try:
        while not _answers(address, security, patience, until):
            on_wait()
            time.sleep(_LOOK)
        return distributed.Client(address, timeout=patience, security=security)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        mend = "Check the address that `dask scheduler` printed"
        if address.startswith("tls://"):
            mend += (
                "; for TLS, that cluster.tls (or Dask's distributed.comm.tls) names a certificate "
                "and key that the scheduler's authority signed"
            )
        raise ClusterError(f"No Dask scheduler answers at {address}: {error}", mend) from error


def _answers(address: str, security: Security | None, patience: float, until: float) -> bool:
    """Whether a scheduler answers; none may be there yet, until a time."""
    try:
        finished(_greet(address, security, patience))
    except OSError as error:  # a timeout as well
        if time.monotonic() > until:
            raise
        logger.info("No scheduler answers at %s yet: %s", address, error)
        return False
    return True


async def _greet(address: str, security: Security | None, patience: float) -> None:
    """See whether a scheduler answers; a client would wait for ever for one that says nothing."""
    arguments = (security or Security()).get_connection_args("client")

    async def greet() -> None:
        comm = await distributed.comm.connect(address, timeout=patience, **arguments)
        await comm.close()

    try:
        await asyncio.wait_for(greet(), patience)
    except TimeoutError as error:
        raise TimeoutError(f"it says nothing for {patience:g} s") from error


def await_workers(
    client: distributed.Client,
    patience: float,
    *,
    with_gpu: bool = False,
    on_wait: Callable[[], object] = keep_waiting,
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
        on_wait()
        time.sleep(min(_LOOK, patience))
    return found
