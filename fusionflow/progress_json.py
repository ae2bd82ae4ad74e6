"""What is said of each event to machines: a JSON object a line (``--json-logs``).

Every line has ``time`` (ISO 8601 in UTC), ``level`` (``debug``, ``info``, ``warning``, ``error``)
and ``event``; lines on a scan have its ``label``. These names stay as they are; new ones may come.

================ ===================================================================================
event            further fields
================ ===================================================================================
``planned``      ``scans``, ``method``, ``weights``, ``notes``: the run begins
``skipped``      ``label``, ``reason``: no PET/MRI pair there
``started``      ``dashboard``: the cluster is there
``preflight``    ``checks``: each ``name``, ``state`` (``ok``, ``note``, ``fails``), ``found``,
                 ``mend``
``staffed``      ``workers``, ``memory_bytes``, ``limit_bytes``: every ten seconds or so
``begun``        ``label``, ``slices``: it is in flight
``fused``        ``label``, ``slices``, ``fusion_seconds``, ``attempt``, ``worker``, ``version``,
                 ``why``, ``notes``: it is published
``failed``       ``label``, ``reason``, ``kind``, ``state``, ``attempt``, ``worker``
``again``        ``label``, ``reason``, ``alone``: it is tried once more
``put_off``      ``label``, ``reason``: it would be tried once more, but the run is ending
``quarantined``  ``label``, ``reason``, ``kind``, ``state``, ``attempt``, ``worker``: left alone
``unchanged``    ``label``: it is as it was made before
``waiting``      ``label``, ``reason``: its files may still be on their way
``stopping``     ``in_flight``: somebody asked the run to end
``left_out``     ``label``, ``reason``: it is not in the cohort's summary
``ended``        ``run``, ``state``, ``exit_code``, ``counts``
``looked``       ``trouble``, ``pause_seconds``: a watch waits for its next look
``log``          ``logger``, ``message``, perhaps ``traceback``: what Python's logging has to say
``error``        ``message``, ``exit_code``: why the command ended
================ ===================================================================================
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusionflow.config import Method
    from fusionflow.events import Event
    from fusionflow.records import Attempt

_LEVELS = {
    "staffed": "debug", "failed": "error", "error": "error", "quarantined": "warning",
    "again": "warning", "put_off": "warning", "left_out": "warning", "stopping": "warning",
}  # fmt: skip


def line(event: str, *, level: str = "", **fields: Any) -> str:  # noqa: ANN401
    """Return a line: a JSON object of what happened now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    level = level or _LEVELS.get(event, "info")
    return json.dumps({"time": now, "level": level, "event": event, **fields})


def say(event: str, **fields: Any) -> None:  # noqa: ANN401
    """Write a line to the standard error stream."""
    sys.stderr.write(line(event, **fields) + "\n")  # in one piece: other threads write, too
    sys.stderr.flush()


class JsonFormatter(logging.Formatter):
    """Makes lines of what Python's logging has to say."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        more = {}
        if record.exc_info:
            more["traceback"] = self.formatException(record.exc_info)
        return line(
            "log",
            level="error" if record.levelno > logging.ERROR else record.levelname.lower(),
            logger=record.name,
            message=record.getMessage(),
            **more,
        )


def fields_of(event: Event, method: Method) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the fields of each line that an event is worth."""
    from fusionflow import events as told
    from fusionflow.preflight import Preflight

    match event:
        case told.Planned():
            weights = event.weights.description if event.weights else None
            notes = list(event.notes)
            yield (
                "planned",
                {"scans": event.scans, "method": method.name, "weights": weights, "notes": notes},
            )
            for item in event.excluded:
                if not item.broken:
                    yield "skipped", {"label": item.label, "reason": item.reason}
        case told.Started(dashboard):
            yield "started", {"dashboard": dashboard}
        case Preflight(checks):
            yield "preflight", {"checks": [dict(vars(check)) for check in checks]}
        case told.Staffed(workers, memory, limit):
            yield (
                "staffed",
                {"workers": workers, "memory_bytes": memory, "limit_bytes": limit},
            )
        case told.Begun(label, slices):
            yield "begun", {"label": label, "slices": slices}
        case told.Fused(record, why):
            yield (
                "fused",
                {
                    "label": record.label,
                    "slices": record.shape[0],
                    "fusion_seconds": record.seconds,
                    "attempt": record.attempt,
                    "worker": record.worker,
                    "version": record.version,
                    "why": why,
                    "notes": list(record.notes),
                },
            )
        case told.Failed(attempt):
            yield "failed", _attempt(attempt)
        case told.Quarantined(attempt):
            yield "quarantined", _attempt(attempt)
        case told.Again(label, reason, alone):
            yield "again", {"label": label, "reason": reason, "alone": alone}
        case told.PutOff(label, reason):
            yield "put_off", {"label": label, "reason": reason}
        case told.Unchanged(label):
            yield "unchanged", {"label": label}
        case told.Waiting(label, reason):
            yield "waiting", {"label": label, "reason": reason}
        case told.LeftOut(label, reason):
            yield "left_out", {"label": label, "reason": reason}
        case told.Stopping(in_flight):
            yield "stopping", {"in_flight": in_flight}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    names = ("label", "reason", "kind", "state", "attempt", "worker")
    return {name: getattr(attempt, name) for name in names}
