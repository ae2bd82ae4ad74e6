"""Dask's own report of a run: which task ran when and where, transfers, load, profiles.

It is what the dashboard shows, kept as a page. Tasks are named after their stages
(`fusionflow.tenancy`), and so are their colours and rows there.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator

import distributed

from fusionflow.errors import StoreError
from fusionflow.io.files import write_bytes
from fusionflow.ledger import OutputPaths

logger = logging.getLogger(__name__)

#: The one thing that Dask's page would fetch, from Dask's own site.
_ICON = re.compile(r'<link rel="shortcut icon"[^>]*>')


@contextlib.contextmanager
def performance_report(client: distributed.Client, paths: OutputPaths, run: str) -> Iterator[None]:
    """Write ``logs/<run>.performance.html`` on what a cluster does meanwhile.

    It is a page that needs no network, some megabytes. There is none of a run that ends with an
    error, and one that cannot be had stops nothing: it is a warning.

    Parameters
    ----------
    client : distributed.Client
        The cluster. On one that is shared the report shows the tasks of others, too.
    paths : OutputPaths
        The output folder.
    run : str
        Name of the run.
    """
    path = paths.logs / f"{run}.performance.html"
    begun = time.time()
    seen = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.monitor.count)
    client.get_task_stream(start=0, stop=0)  # from now on the scheduler remembers what ran
    yield
    # As `distributed.performance_report` does, but of this client, whichever is the current one.
    try:
        page = client.sync(
            client.scheduler.performance_report,
            start=begun, last_count=seen, code=f"fusionflow {run}", mode="inline",
        )  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, _ICON.sub("", page).encode())
    except (OSError, StoreError, ImportError) as error:
        logger.warning("No performance report %s: %s", path, error)
