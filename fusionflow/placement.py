"""Which worker may run a fuse task.

A worker that owns a GPU advertises the Dask resource ``GPU``, 1 for each (``dask cuda worker
--resources GPU=1``). Where a cluster has one, a fuse task takes it, so that one such task
runs on a GPU at a time; DWT and inverse DWT ask for none of it but for a worker that has it, so
that coefficients stay in one process.

Dask loses these wishes when it optimises a graph. `fusionflow.run` and `fusionflow.compute`
submit graphs as they are; a task that was submitted another way finds out here, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import distributed
from distributed.worker import thread_state

from fusionflow.errors import PlacementError

RESOURCE = "GPU"


def workers_of(client: distributed.Client, *, with_gpu: bool = False) -> dict[str, dict[str, Any]]:
    """Return what the scheduler knows of its workers, by address; all, or those with a GPU."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {
        address: worker
        for address, worker in workers.items()
        if not with_gpu or gpus_of(worker) > 0
    }


def gpus_of(worker: Mapping[str, Any]) -> float:
    """Return how many GPUs a worker advertises."""
    return float(worker.get("resources", {}).get(RESOURCE, 0))


def advertised(client: distributed.Client | None) -> int:
    """Return how many GPUs the workers of a cluster advertise."""
    return 0 if client is None else int(sum(map(gpus_of, workers_of(client).values())))


def current_client() -> distributed.Client | None:
    """Return the client of this process, if there is one."""
    try:
        return distributed.get_client()
    except ValueError:
        return None


def wishes(*, takes_gpu: bool) -> dict[str, Any]:
    """Return the annotations of a layer: take the GPU, or only run beside it."""
    return {"resources": {RESOURCE: 1 if takes_gpu else 0}}


def require_gpu() -> None:
    """Check that the task that calls this was given a GPU by the scheduler.

    Raises
    ------
    PlacementError
        If not: it may have landed on a GPU worker by chance, or beside another one.
    """
    worker = getattr(thread_state, "execution_state", {}).get("worker")
    key = getattr(thread_state, "key", None)
    task = worker.state.tasks.get(key) if worker is not None else None
    if task is None or not (task.resource_restrictions or {}).get(RESOURCE):
        raise PlacementError(
            "This fuse task needs a GPU worker of the cluster, but was submitted without asking "
            "for one (Dask loses resources when it optimises a graph)",
            "Use fusionflow.compute(result) instead of result.compute(), or "
            "client.compute(result, optimize_graph=False)",
        )
