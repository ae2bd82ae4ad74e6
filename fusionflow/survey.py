"""Where every scan stands: what is to be made, and why."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fusionflow import __version__
from fusionflow.config import RunConfig
from fusionflow.errors import ConfigurationError, FusionflowError, StoreError
from fusionflow.io.files import file_sha256, fingerprint
from fusionflow.io.scans import UNREADABLE, Discovery, Scan
from fusionflow.ledger import OutputPaths, read_attempt, read_published, scan_labels
from fusionflow.plugins import Plugin
from fusionflow.provided import plugins_of
from fusionflow.records import Attempt, Published, Stamp, why_damaged
from fusionflow.weights import Weights

#: Of a scan. ``waiting``: its files may still be on their way. ``removed``: the input no longer
#: has it.
State = Literal["new", "running", "done", "failed", "stale", "quarantined", "waiting", "removed"]


@dataclass(frozen=True)
class Standing:
    """Where a scan stands.

    Attributes
    ----------
    label : str
        Which scan.
    state : str
        One of `State`.
    why : str
        Why it is to be made, or is not; empty if it is done.
    scan : Scan or None
        What the input has; None if it is removed.
    record : Published or None
        What is published.
    attempt : Attempt or None
        What was tried since.
    tried : int
        How many times this very thing was tried and came to nothing.
    """

    label: str
    state: State
    why: str = ""
    scan: Scan | None = None
    record: Published | None = None
    attempt: Attempt | None = None
    tried: int = 0

    @property
    def is_due(self) -> bool:
        """Whether a run makes it unless told otherwise."""
        return self.state in ("new", "failed", "stale")


def request_of(config: RunConfig, weights: Weights | None) -> str:
    """Return the fingerprint of all that a run asks for: method, weights and preparation.

    Parts that come from other packages count with the version of their package.

    Raises
    ------
    ConfigurationError
        If the image of the space cannot be read.
    """
    conform, space = config.conform, ""
    if conform.space is not None:  # its content counts, wherever it lies
        try:
            space = file_sha256(conform.space)
        except OSError as error:
            raise ConfigurationError(
                f"The image of the space, {conform.space}, cannot be read: {error.strerror}"
            ) from error
        conform = conform.model_copy(update={"space": None})
    return fingerprint(
        config.method.fingerprint(weights.identity if weights else None),
        conform.canonical(),
        config.region,
        space,
        *map(str, plugins_of(config.method, conform.mask)),
    )


def new_attempt(scan: Scan, source: Path, request: str) -> Attempt:
    """Return an attempt at a scan as its files are now."""
    return Attempt(
        scan.label,
        "running",
        request=request,
        inputs=tuple(Stamp.of(path, source) for path in scan.files.values()),
        facts=scan.facts,
        software=__version__,
    )


def standing(
    paths: OutputPaths,
    scan: Scan,
    source: Path,
    request: str,
    *,
    live_run: str | None = None,
    settle: float = 0,
    plugins: Sequence[Plugin] = (),
) -> Standing:
    """Say where a scan of the input stands.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    scan : Scan
        Which scan.
    source : Path
        Root of the input.
    request : str
        Fingerprint of what is asked for.
    live_run : str, optional
        The run that is at work now.
    settle : float
        Seconds that the files of a scan must have been left alone.
    plugins : sequence of Plugin
        What of `request` comes from other packages: to say why, if one has another version.
    """
    label, damaged = scan.label, None
    record: Published | None = None
    try:
        record = read_published(paths, label)
    except StoreError as error:  # a damaged record is replaced by a new one
        damaged = str(error)
    try:
        attempt = read_attempt(paths, label)
    except StoreError:
        attempt = None  # it decides nothing that could be lost

    def at(state: State, why: str = "", tried: int = 0) -> Standing:
        return Standing(label, state, why, scan, record, attempt, tried)

    why = damaged if record is None else _why_not(record, paths, scan, source, request, plugins)
    if record is not None and why is None:
        return at("done")
    if attempt is not None and attempt.state == "running" and attempt.run == live_run is not None:
        return at("running", f"since {attempt.started}")
    if settle > 0 and (moving := _changed_lately(scan, settle)):
        return at("waiting", moving)
    if attempt is not None and attempt.is_about(new_attempt(scan, source, request)):
        tried = attempt.attempt
        if attempt.state == "quarantined":
            return at("quarantined", attempt.reason, tried)
        if attempt.state == "failed":
            return at("failed", f"failed before: {attempt.reason}", tried)
        return at("failed", "it was in the making when a run was cut off", tried)
    if why is None:
        return at("new", "new")
    return at("stale", why)


def _why_not(
    record: Published,
    paths: OutputPaths,
    scan: Scan,
    source: Path,
    request: str,
    plugins: Sequence[Plugin],
) -> str | None:
    """Say why what is published is not what is asked for; None if it is."""
    if record.request != request and (other := _other_versions(record, plugins)):
        return other
    why = record.why_not(request, source, tuple(scan.files.values()), scan.pet_info)
    if why is not None:
        return why
    if record.facts != scan.facts:
        return "another use of the same files"
    return why_damaged((*record.stored, *record.outputs), paths.root)


def _other_versions(record: Published, plugins: Sequence[Plugin]) -> str:
    """Say which packages had another version when a scan was made; "" for none."""
    made = {item.package: record.software.get(item.package, "") for item in plugins}
    return "; ".join(
        f"made with {item.package} {made[item.package]}, installed is {item.version}"
        for item in {item.package: item for item in plugins}.values()
        if made[item.package] not in ("", item.version)
    )


def _changed_lately(scan: Scan, settle: float) -> str | None:
    """Say which file changed less than `settle` seconds ago, by what the system last noted."""
    now = time.time()
    for path in (*scan.files.values(), *scan.sidecars):
        try:
            status = os.stat(path)
        except OSError as error:
            if path in scan.sidecars:  # a link to nowhere, say: its notes tell, and it can run
                continue
            return f"{path.name} cannot be looked at: {error.strerror}"
        age = now - status.st_ctime  # cannot be set, unlike the time of modification
        if age < settle:
            return f"{path.name} changed {max(age, 0):.0f} s ago"
    return None


def survey(
    paths: OutputPaths,
    source: Path,
    scans: Sequence[Scan],
    request: str,
    *,
    live_run: str | None = None,
    settle: float = 0,
    plugins: Sequence[Plugin] = (),
) -> Iterator[Standing]:
    """Yield where each scan of the input stands, one at a time as it is asked for.

    A scan whose files cannot even be looked at is `failed`, with the reason.
    """
    for scan in scans:
        try:
            yield standing(
                paths, scan, source, request, live_run=live_run, settle=settle, plugins=plugins
            )
        except (OSError, FusionflowError) as error:
            yield Standing(scan.label, "failed", str(error), scan)


def asked_again(item: Standing, *, retry_failed: bool = False, force: bool = False) -> Standing:
    """Return where a scan stands once somebody asked for it to be made again."""
    if force and item.state in ("done", "quarantined"):
        return replace(item, state="stale", why="asked for again")
    if retry_failed and item.state == "quarantined" and item.scan is not None:
        return replace(item, state="failed", why=f"asked for again; {item.why}")
    return item


def removed_labels(paths: OutputPaths, found: Discovery) -> tuple[str, ...]:
    """Return the labels of published scans that a whole input no longer has.

    Where a subject's folder cannot be listed nobody can say which sessions it has: they are not
    removed. Nor is anything while a manifest has a row whose label cannot be read.
    """
    if any(item.label.startswith(UNREADABLE) for item in found.excluded):
        return ()  # a row of a manifest whose label is a typo may be any of them
    held = {scan.label for scan in found.scans}
    held |= {item.label for item in found.excluded if item.broken}
    unlisted = {item.label for item in found.excluded if item.broken}
    return tuple(
        label
        for label in scan_labels(paths)
        if label not in held
        and label.partition("_ses-")[0] not in unlisted
        and paths.current(label).exists()
    )
