"""Which worker may run a fuse task.

A worker that owns a GPU advertises the Dask resource ``GPU``, 1 for each (``dask cuda worker
--resources GPU=1``). Where a cluster has one, a fuse task takes it, so that one such task
runs on a GPU at a time; DWT and inverse DWT ask for none of it but for a worker that has it, so
that coefficients stay in one process.

Dask loses these wishes when it optimises a graph. `fusionflow.run` and `fusionflow.compute`
submit graphs as they are; a task that was submitted another way finds out here, and says so.
"""

from __future__ import annotations

from typing import Any

import distributed
from distributed.worker import thread_state

from fusionflow.errors import PlacementError

RESOURCE = "GPU"


def advertised(client: distributed.Client | None) -> int:
    """Return how many GPUs the workers of a cluster advertise."""
    if client is None:
        return 0
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return int(sum(worker.get("resources", {}).get(RESOURCE, 0) for worker in workers))


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
