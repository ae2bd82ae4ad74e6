"""Where the work runs: a cluster that a run starts, or a scheduler that is there."""

from fusionflow.clusters.connection import await_workers, connect, keep_waiting
from fusionflow.clusters.local import available_cores, cuda_options, local_workers

__all__ = [
    "available_cores",
    "await_workers",
    "connect",
    "cuda_options",
    "keep_waiting",
    "local_workers",
]
