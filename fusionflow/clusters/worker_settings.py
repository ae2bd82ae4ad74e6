"""What workers of a run's own start with, on every kind of cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Zarr's own requests at a time, in each task: tasks already run beside each other.
ZARR_CONCURRENCY = 4
#: Workers keep a profile of each cycle, 3,600 of them: at one a second 230 kB a second.
WORKER_SETTINGS = {
    "distributed.worker.profile.interval": "100ms",
    "distributed.worker.profile.cycle": "60s",
}
#: Share of a job's or a pod's memory that its workers may take; nannies and libraries have the
#: rest. Who goes beyond all of it is ended, and not only the worker.
WORKER_SHARE = 0.9
#: Tasks at a time beside a GPU: one feeds it, others read, transform and write.
_LEAST_GPU_THREADS, _MOST_GPU_THREADS = 2, 8


def gpu_threads(cores: int, torch_threads: int) -> int:
    """Return how many tasks a worker with a GPU and so many cores runs at a time.

    >>> gpu_threads(1, 1), gpu_threads(8, 2), gpu_threads(64, 1)
    (2, 4, 8)
    """
    return min(max(_LEAST_GPU_THREADS, cores // torch_threads), _MOST_GPU_THREADS)


def dask_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return Dask's settings as the environment variables that it reads.

    >>> dask_variables({"distributed.scheduler.allowed-failures": 1})
    {'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '1'}
    """
    return {
        "DASK_" + name.upper().replace("-", "_").replace(".", "__"): str(value)
        for name, value in settings.items()
    }
