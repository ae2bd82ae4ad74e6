"""What is a run's own on a cluster that it may share: names of its tasks, its priority, its span.

Every task of a run is named ``fusionflow-STAGE-RUN``. Dask's dashboard, and what its scheduler
learns of how long tasks take, go by the words before the first that holds a digit: runs come
together as ``fusionflow-conform``, ``fusionflow-fuse`` and so on, and never with tasks of others.
The scheduler keeps a group for each full name, and a span keeps its groups as long as the scheduler
lives: a few for a run, whatever the number of its scans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import dask
import distributed

from fusionflow.cluster_options import ClusterOptions

__all__ = ["Tenancy", "task_name"]


@dataclass(frozen=True)
class Tenancy:
    """A run on a cluster.

    Attributes
    ----------
    run : str
        Its name.
    shared : bool
        Whether others may work on the cluster as well: then no worker is restarted.
    priority : int
        Where its tasks stand beside those of others; more is sooner.
    outlived : bool
        Whether workers live on when the run ends.
    span : dict
        The span that its tasks belong to, ``("fusionflow", run)``, as Dask annotates them.
    """

    run: str
    shared: bool = False
    priority: int = 0
    outlived: bool = False
    span: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Name the span once: Dask makes a span of every name that it is given."""
        with distributed.span("fusionflow", self.run):
            object.__setattr__(self, "span", dask.get_annotations()["span"])

    @classmethod
    def of(cls, run: str, options: ClusterOptions, client: distributed.Client | None) -> Tenancy:
        """Return the place of a run on its cluster.

        Parameters
        ----------
        run : str
            Its name.
        options : ClusterOptions
            What a person chose.
        client : Client or None
            A cluster that the run was given, and so is not its own.
        """
        outlived = client is not None or not options.starts_a_cluster
        shared = outlived if options.shared is None else options.shared
        return cls(run, shared, options.priority, outlived)

    @contextlib.contextmanager
    def annotated(self) -> Iterator[None]:
        """Let tasks that are submitted meanwhile belong to the run's span."""
        with dask.annotate(span=self.span):
            yield


def task_name(stage: str, run: str) -> str:
    """Return how keys of tasks of a stage begin; nobody else's do.

    >>> from dask.utils import key_split
    >>> name = task_name("fuse", "20260731T120000Z-0a1b2c")
    >>> name
    'fusionflow-fuse-20260731T120000Z-0a1b2c'
    >>> key_split((name, "sub-01", 0))
    'fusionflow-fuse'
    """
    return f"fusionflow-{stage}-{run}"
