"""Tasks that say where they ran, and take longer if a test wants it; workers load this first.

Jobs get its path by Dask's environment (``distributed.worker.preload``), and the folder where notes
and wishes are by `VARIABLE`.
"""

import functools
import os
import time
from pathlib import Path

from dask.utils import key_split

from fusionflow import stages, staging

VARIABLE = "FUSIONFLOW_WATCHED"


def _noted(function, stage, worker, folder):
    @functools.wraps(function)
    def noted(*arguments, **options):
        if key_split(worker.get_current_task()) != f"fusionflow-{stage}":  # it is the preflight's
            return function(*arguments, **options)
        (folder / f"{stage}-{worker.name}").touch()
        seconds = folder / "sleep"
        if stage == "fuse" and seconds.exists():
            time.sleep(float(seconds.read_text()))
        return function(*arguments, **options)

    return noted


def dask_setup(worker):
    """Prepare a worker; Dask calls this."""
    folder = Path(os.environ[VARIABLE])
    stages.fuse_slab = _noted(stages.fuse_slab, "fuse", worker, folder)
    staging.stage_scan = _noted(staging.stage_scan, "conform", worker, folder)
