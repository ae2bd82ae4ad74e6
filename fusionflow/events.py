"""What a run tells while it goes on, and what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import xarray as xr

from fusionflow.index import Records
from fusionflow.io.scans import Excluded
from fusionflow.preflight import Preflight
from fusionflow.records import Attempt, Published
from fusionflow.weights import Weights

#: 0, and what a scheduler can act on.
EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_QUARANTINED = 3
EXIT_NOTHING_RAN = 4
EXIT_LOCKED = 5
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Planned:
    """The run begins.

    Attributes
    ----------
    scans : int
        How many it will look at.
    excluded : tuple of Excluded
        What it leaves out, and why.
    weights : Weights or None
        What the network runs with.
    notes : tuple of str
        On the dataset as a whole, and on what an earlier run left.
    """

    scans: int
    excluded: tuple[Excluded, ...]
    weights: Weights | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The cluster is there; `dashboard` is the address of its dashboard."""

    dashboard: str


@dataclass(frozen=True)
class Staffed:
    """What works for the run at this moment, told every now and then.

    Attributes
    ----------
    workers : int
        How many there are.
    memory : int
        Bytes that they use together.
    limit : int or None
        Bytes that they may use together; None if one of them has no limit.
    """

    workers: int
    memory: int
    limit: int | None


@dataclass(frozen=True)
class Begun:
    """A scan of so many slices was sent to the cluster: it is in flight."""

    label: str
    slices: int


@dataclass(frozen=True)
class Stopping:
    """Somebody asked the run to end: so many scans are in flight, and no further one begins."""

    in_flight: int


@dataclass(frozen=True)
class Unchanged:
    """A scan was made from these inputs with this method before."""

    label: str


@dataclass(frozen=True)
class Waiting:
    """A scan is left for a later run, for its files may still be on their way."""

    label: str
    why: str


@dataclass(frozen=True)
class Quarantined:
    """A scan failed before, nothing changed since, and it is not tried again."""

    attempt: Attempt


@dataclass(frozen=True)
class Fused:
    """A scan was published; `why` says why it was made."""

    record: Published
    why: str


@dataclass(frozen=True)
class Again:
    """A scan failed and is tried once more; `alone` if nothing else will run beside it."""

    label: str
    reason: str
    alone: bool


@dataclass(frozen=True)
class PutOff:
    """A scan failed in a way that may pass while the run was ending; the next run tries again."""

    label: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """A scan could not be fused; the others go on."""

    failure: Attempt


@dataclass(frozen=True)
class LeftOut:
    """A published scan is not part of the cohort's summary."""

    label: str
    why: str


Event: TypeAlias = (
    Planned
    | Started
    | Preflight
    | Staffed
    | Begun
    | Stopping
    | Unchanged
    | Waiting
    | Quarantined
    | Fused
    | Again
    | PutOff
    | Failed
    | LeftOut
)


@dataclass
class RunReport:
    """What a run did.

    Attributes
    ----------
    run : str
        Its name: when it began, and a token. ``logs/<run>.jsonl`` says more.
    state : {"running", "done", "interrupted", "stopped"}
        How it ended.
    fused : Records
        Scans that it published, a sequence of `Published`.
    unchanged : list of str
        Labels that were done before.
    failed : list of Attempt
        Scans that could not be fused, broken inputs included.
    quarantined : list of Attempt
        Scans that failed in an earlier run and were not tried again.
    waiting : list of Waiting
        Scans whose files may still be on their way.
    skipped : list of Excluded
        Places without a PET/T1w pair.
    removed : tuple of str
        Published scans that the input no longer has; they are kept.
    summary : DataTree or None
        The cohort's figures, if the group level ran and there are some.
    left_out : dict
        Label -> why a published scan is not part of the summary.
    """

    run: str = ""
    state: Literal["running", "done", "interrupted", "stopped"] = "running"
    fused: Records = field(default_factory=Records)
    unchanged: list[str] = field(default_factory=list)
    failed: list[Attempt] = field(default_factory=list)
    quarantined: list[Attempt] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    skipped: list[Excluded] = field(default_factory=list)
    removed: tuple[str, ...] = ()
    summary: xr.DataTree | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many scans ended in which way."""
        return {
            "fused": len(self.fused),
            "unchanged": len(self.unchanged),
            "failed": len(self.failed),
            "quarantined": len(self.quarantined),
            "waiting": len(self.waiting),
            "skipped": len(self.skipped),
            "removed": len(self.removed),
        }

    @property
    def exit_code(self) -> int:
        """0 if all is done, 3 if some scans failed or are in quarantine, 130 if it was stopped."""
        if self.state == "interrupted":
            return EXIT_INTERRUPTED
        return EXIT_QUARANTINED if self.failed or self.quarantined else EXIT_DONE

    def to_json(self) -> dict[str, Any]:
        """Return what the machine-readable summary says, but for what the run itself adds."""
        return {
            "run": self.run,
            "state": self.state,
            "counts": self.counts,
            "fused": self.fused.labels,
            "failed": [
                {"label": item.label, "state": item.state, "kind": item.kind, "reason": item.reason}
                for item in (*self.failed, *self.quarantined)
            ],
            "waiting": [{"label": item.label, "reason": item.why} for item in self.waiting],
            "skipped": [{"label": item.label, "reason": item.reason} for item in self.skipped],
            "removed": list(self.removed),
            "methods": dict(Counter(record.method["name"] for record in self.fused)),
        }
