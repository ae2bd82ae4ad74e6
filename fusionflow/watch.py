"""Look at an input again and again, and fuse what is new."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

from fusionflow import runner
from fusionflow.config import RunConfig
from fusionflow.errors import FusionflowError, LockedError, NoScansError
from fusionflow.events import Event, RunReport

logger = logging.getLogger(__name__)

#: Seconds between two questions whether it is to end.
_TICK = 1.0


@dataclass(frozen=True)
class Looked:
    """One look at the input.

    Attributes
    ----------
    report : RunReport or None
        What it did; None if it could not.
    trouble : str
        Why it could not, else empty.
    pause : float
        Seconds until the next look.
    """

    report: RunReport | None
    trouble: str
    pause: float


def watch(
    bids_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    every: float = 900,
    settle: float = 60,
    stop: Callable[[], bool] | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_look: Callable[[Looked], None] | None = None,
    **selection: Any,  # noqa: ANN401
) -> None:
    """Run again and again, each time on what is new, changed or failed.

    Between two looks nothing is held: no cluster, and no lock on the output folder, so that other
    runs can go on in between. What goes wrong with one look, even an input folder that is not
    mounted, is told, and the next look tries again; only at the first look it is an error.

    Parameters
    ----------
    bids_dir, out_dir, config
        As in `fusionflow.run`.
    every : float
        Seconds between two looks. While files are on their way it looks again as soon as they can
        have settled.
    settle : float
        Seconds that a scan's files must have been left alone before it is fused.
    stop : callable, optional
        Asked about every second. Once it is true the look that is under way begins no further
        scan, as in `fusionflow.run`, and is the last.
    on_event : callable, optional
        As in `fusionflow.run`.
    on_look : callable, optional
        Called after each look.
    **selection
        Labels and levels, as in `fusionflow.run`.

    Raises
    ------
    FusionflowError
        If the first look meets what `fusionflow.run` raises, but for an input that holds no scan
        yet and an output folder that another run is writing.
    """
    stop = stop or (lambda: False)
    tell = on_look or (lambda looked: None)
    first = True
    while not stop():
        report, trouble = None, ""
        try:
            report = runner.run(
                bids_dir,
                out_dir,
                config,
                settle=settle,
                on_event=on_event,
                stop=stop,
                **selection,
            )
        except (NoScansError, LockedError) as error:
            trouble = str(error)
        except (FusionflowError, OSError) as error:
            if first:
                raise
            logger.debug("a look failed", exc_info=error)
            trouble = str(error)
        first = False
        soon = report is not None and bool(report.waiting)
        pause = min(every, max(settle, 1.0)) if soon else every
        tell(Looked(report, trouble, pause))
        until = time.monotonic() + pause
        while not stop() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))
