"""A cluster whose workers are jobs of SLURM."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.address import security_of
from fusionflow.clusters.local import dask_log_level, free_port, scheduler_settings
from fusionflow.clusters.longest import A_WEEK, lost_workers
from fusionflow.clusters.slurm_certificates import security_of_all_sides, write_certificates
from fusionflow.clusters.slurm_shapes import shapes_of
from fusionflow.clusters.slurm_site import log_folder, python_of, require_jobqueue, shared_folder
from fusionflow.errors import ClusterError

if TYPE_CHECKING:
    from fusionflow.clusters.slurm_pools import SlurmPools

logger = logging.getLogger(__name__)

_DASHBOARD_PORT = 8787
#: Workers that may die under a task before it is tried with nothing beside it. More than on one
#: machine: a job that SLURM ends (walltime, preemption, `scancel`, a node that fails) counts
#: against every task that its workers held, and is no fault of theirs.
ALLOWED_FAILURES = 5
#: Seconds between two looks for the first worker, and until somebody is told why there is none.
_LOOK, _TELL = 0.2, 3.0


def slurm_settings(options: ClusterOptions) -> dict[str, Any]:
    """Return what a scheduler of jobs starts with."""
    return {
        **scheduler_settings(options),
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
    }


@contextlib.contextmanager
def slurm(
    options: ClusterOptions, torch_threads: int = 1, *, on_wait: Callable[[], object]
) -> Iterator[SlurmPools]:
    """Have jobs of SLURM, and cancel all of them in the end.

    Parameters
    ----------
    options : ClusterOptions
        The pools.
    torch_threads : int
        Threads that each task's network will use.
    on_wait : callable
        As in `connect`.

    Yields
    ------
    SlurmPools
        With a worker; with one that has a GPU, if one is needed.

    Raises
    ------
    MissingExtraError
        If dask-jobqueue or, without certificates of one's own, cryptography is not there.
    ConfigurationError
        If the options leave out what a job must be told.
    ClusterError
        If SLURM is not there, refuses, or starts no job in time.
    """
    require_jobqueue()
    from fusionflow.clusters.slurm_pools import SlurmPools

    shapes = shapes_of(options, torch_threads)
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(slurm_settings(options)))
        # Jobs that are gone are found by asking SLURM.
        stack.enter_context(lost_workers.at_least(A_WEEK))
        if options.tls is None:
            tls = write_certificates(stack.enter_context(private_folder(options)))
        else:
            security_of(options)  # says which file is not there
            tls = options.tls
        try:
            cluster = SlurmPools(
                shapes,
                options.slurm.look_every,
                interface=options.slurm.interface,
                python=python_of(options.slurm),
                log_directory=str(log_folder(options.slurm)),
                security=security_of_all_sides(tls),
                silence_logs=dask_log_level(),
                # Whoever reaches the dashboard may look: it asks for no password.
                scheduler_options={"dashboard_address": f"127.0.0.1:{free_port(_DASHBOARD_PORT)}"},
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(
                f"No scheduler for jobs of SLURM could be started: {error}",
                "Name a network that is there (cluster.slurm.interface; `ip -brief address` lists "
                "them), or leave it out",
            ) from error
        stack.callback(_end, cluster)
        cluster.look()
        _await_worker(cluster, options, on_wait)
        yield cluster


@contextlib.contextmanager
def private_folder(options: ClusterOptions) -> Iterator[Path]:
    """Have a folder that jobs of this user see and nobody else."""
    folder = Path(tempfile.mkdtemp(prefix="cluster-", dir=shared_folder(options.slurm)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await_worker(
    cluster: SlurmPools, options: ClusterOptions, on_wait: Callable[[], object]
) -> None:
    """Wait for a worker, with a GPU if one is needed, and say meanwhile what SLURM says.

    Raises
    ------
    ClusterError
        If none comes in time.
    """
    begun = time.monotonic()
    told = ""
    while not cluster.has_worker(with_gpu=options.needs_gpu):
        on_wait()
        time.sleep(_LOOK)
        now = time.monotonic()
        cluster.raise_if_hopeless(with_gpu=options.needs_gpu)
        if now - begun > options.patience:
            raise ClusterError(
                f"No worker{' with a GPU' if options.needs_gpu else ''} came from SLURM within "
                f"{options.patience:g} s: {cluster.standing}",
                "`squeue --me` and `sinfo -R` say more. Ask for less (cluster.slurm.pools), or "
                "wait longer (--patience)",
            )
        if now - begun > _TELL and (standing := cluster.standing) != told:
            logger.warning("Waiting for SLURM (%.0f s at most): %s", options.patience, standing)
            told = standing


def _end(cluster: SlurmPools) -> None:
    """Cancel the jobs; what goes wrong then does not make the run a bad one."""
    try:
        cluster.close()
    except (AssertionError, OSError, RuntimeError) as error:
        logger.warning("The cluster did not end well: %s: %s", type(error).__name__, error)
