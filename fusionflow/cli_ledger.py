"""Commands on what is done: ``fusionflow status | history | prune | watch``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusionflow.cli_options import (
    EXISTING,
    EXISTING_FOLDER,
    FOLDER,
    JSON_LOGS,
    VERBOSE,
    BidsAppCommand,
    Duration,
    configured,
    labels,
    log,
    run_options,
)
from fusionflow.errors import ConfigurationError
from fusionflow.stopping import Interrupts
from fusionflow.untrusted import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fusionflow.events import Event
    from fusionflow.index import Index
    from fusionflow.ledger import OutputPaths
    from fusionflow.survey import Standing, State

_COLOURS = {"failed": "red", "quarantined": "red", "stale": "yellow", "waiting": "yellow"}


def show_standings(standings: Iterable[Standing], *, as_json: bool, verbose: bool = False) -> None:
    """Print where scans stand: a line a scan and their count, or JSON."""
    standings = sorted(standings, key=lambda item: item.label)
    if as_json:
        click.echo(json.dumps([_as_json(item) for item in standings], indent=2))
        return
    for item in standings:
        made = ""
        if item.record is not None:
            made = f"{item.record.method['name']}  {item.record.created}"
            if item.record.is_flagged:
                made += "  LOOK AT ITS ALIGNMENT"
        why = item.why if item.state != "new" else ""
        line = "  ".join(part for part in (f"{item.label:24} {item.state:11}", made, why) if part)
        click.secho(printable(line.rstrip()), fg=_COLOURS.get(item.state))
        for note in item.record.notes if verbose and item.record is not None else ():
            click.echo(printable(f"    note: {note}"))
    counts = Counter(item.state for item in standings)
    click.echo(", ".join(f"{count} {state}" for state, count in counts.items()) or "no scans")


def _as_json(item: Standing) -> dict[str, Any]:
    record, attempt = item.record, item.attempt
    content: dict[str, Any] = {"label": item.label, "state": item.state, "why": item.why}
    if record is not None:
        names = ("version", "created", "run", "attempt", "worker", "seconds", "timings", "weights")
        content["published"] = {
            **{name: getattr(record, name) for name in names},
            "method": record.method["name"],
            "inputs": [dataclasses.asdict(entry) for entry in record.inputs],
        }
    if attempt is not None:
        content["attempt"] = dataclasses.asdict(attempt)
    return content


def _topic(event: Event) -> tuple[str, str]:
    """Return which scan an event is about, and what need not be said of it again."""
    from fusionflow.events import Failed, Fused, LeftOut, Quarantined

    if isinstance(event, Fused):
        return event.record.label, ""
    if isinstance(event, Failed):
        return event.failure.label, event.failure.reason
    if isinstance(event, Quarantined):
        return event.attempt.label, event.attempt.reason
    if isinstance(event, LeftOut):
        return event.label, f"left out: {event.why}"
    return "", ""


def _standings(paths: OutputPaths, source: Path | None) -> tuple[Sequence[Standing], str]:
    """Return where scans stand as the last run would see it, and a remark."""
    from fusionflow.index import gather_index
    from fusionflow.io.inputs import find_scans, recorded_options
    from fusionflow.runlock import living_holder
    from fusionflow.survey import Standing, removed_labels, survey

    index = gather_index(paths)
    last = _last_run(paths)
    if source is None and isinstance(last.get("input"), str):
        source = Path(last["input"])
    latest = max(index.published, key=lambda item: item.created, default=None)
    request = last.get("request") or (latest.request if latest else None)
    holder = living_holder(paths.run_lock)
    run = holder.run if holder else None
    kept = {item.label: item for item in index.published}
    remark = "As the records say; the input was not looked at"
    if source is not None and isinstance(request, str):
        try:
            found = find_scans(source, recorded_options(last))
        except ConfigurationError as error:
            return _recorded(paths, index, run), f"As the records say: {error.message}"
        if found.labels:
            excluded = (
                Standing(item.label, "quarantined", item.reason, record=kept.get(item.label))
                for item in found.excluded
                if item.broken
            )
            removed = (
                Standing(label, "removed", "the input no longer has it", record=kept.get(label))
                for label in removed_labels(paths, found)
            )
            known = survey(paths, found.root, found.scans, request, live_run=run)
            return (*known, *excluded, *removed), f"Against {source} as it is now"
        remark = f"As the records say: {source} holds no subject now; perhaps it is not mounted"
    return _recorded(paths, index, run), remark


def _last_run(paths: OutputPaths) -> dict[str, Any]:
    """Return the summary of the last run; empty where there is none, or none that is whole."""
    from fusionflow.errors import StoreError
    from fusionflow.history import read_last_run

    try:
        return read_last_run(paths) or {}
    except StoreError as error:
        click.echo(f"note: {error}", err=True)
        return {}


def _recorded(paths: OutputPaths, index: Index, live_run: str | None) -> tuple[Standing, ...]:
    """Return where scans stand by their records alone."""
    from fusionflow.errors import StoreError
    from fusionflow.ledger import read_attempt, scan_labels
    from fusionflow.survey import Standing

    kept = {item.label: item for item in index.published}
    attempts = {item.label: item for item in index.failures}
    for label in scan_labels(paths):  # the index does not tell of what is in the making
        with contextlib.suppress(StoreError):
            if (attempt := read_attempt(paths, label)) is not None:
                attempts[label] = attempt
    standings = {label: Standing(label, "done", record=record) for label, record in kept.items()}
    for label, attempt in attempts.items():
        state: State = "failed" if attempt.state == "running" else attempt.state
        why = attempt.reason
        if attempt.state == "running" and attempt.run == live_run:
            state, why = "running", f"since {attempt.started}"
        elif attempt.state == "running":
            why = "it was in the making when a run was cut off"
        standings[label] = Standing(label, state, why, record=kept.get(label), attempt=attempt)
    return tuple(standings.values())


@click.command()
@click.argument("out_dir", type=EXISTING_FOLDER)
@click.option("--input", "source", type=EXISTING, help="The input (default: the last run's).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@VERBOSE
def status(out_dir: Path, source: Path | None, as_json: bool, verbose: int) -> None:
    """Say where each scan of OUT_DIR stands, and why.

    States: new, running, done, failed (the next run tries again), stale (its inputs, the method
    or its files changed), quarantined (failed, and nothing changed since), removed (from the
    input, and kept). The method is that of the last run.
    """
    log(verbose)
    from fusionflow.index import read_index
    from fusionflow.ledger import OutputPaths
    from fusionflow.runlock import living_holder

    paths = OutputPaths(out_dir.absolute())
    read_index(paths)  # says so if this is no output folder
    standings, remark = _standings(paths, source)
    if not as_json:
        click.echo(remark)
        if (holder := living_holder(paths.run_lock)) is not None:
            click.echo(printable(f"A run is at work: {holder.run}, {holder}"))
    show_standings(standings, as_json=as_json, verbose=bool(verbose))


@click.command()
@click.argument("out_dir", type=EXISTING_FOLDER)
@click.argument("what", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@VERBOSE
def history(out_dir: Path, what: str | None, as_json: bool, verbose: int) -> None:
    """List the runs that wrote OUT_DIR; or say how WHAT came to be.

    WHAT is a label, a version, or a fused file, wherever it lies now and whatever it is called.
    """
    log(verbose)
    from fusionflow.history import read_runs, trace
    from fusionflow.ledger import OutputPaths
    from fusionflow.runlock import living_holder

    paths = OutputPaths(out_dir.absolute())
    if what is not None:
        origins = trace(paths, what)
        if as_json:
            content = [{"scan": item.scan, "run": item.run.start} for item in origins]
            click.echo(json.dumps(content, indent=2))
            return
        for item in origins:
            _show_origin(item.scan, item.run.run, item.run.start)
        return
    runs = list(read_runs(paths))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(item) for item in runs], indent=2))
        return
    holder = living_holder(paths.run_lock)
    for run in runs:
        ended = "killed" if run.end is None else str(run.end.get("state"))
        if run.end is None and holder is not None and holder.run == run.run:
            ended = "running"
        seconds = "" if run.seconds is None else f"{run.seconds:.0f} s"
        start = run.start
        line = (
            f"{run.run}  {ended:11} {seconds:>8}  {len(run.published)} fused, "
            f"{len(run.failed)} failed  {_method_of(start)}  {start.get('input', '')}  "
            f"{start.get('user', '')}@{start.get('host', '')}"
        )
        click.echo(printable(line))
    if not runs:
        click.echo("No run did anything here yet.")


def _method_of(start: dict[str, Any]) -> str:
    config = start.get("config")
    method = config.get("method") if isinstance(config, dict) else None
    name = method.get("name", "") if isinstance(method, dict) else ""
    return f"{name} (fusionflow {start.get('fusionflow', '?')})"


def _show_origin(scan: dict[str, Any], run: str, start: dict[str, Any]) -> None:
    lines = [
        f"{scan['label']}  version {scan['version']}  {scan['time']}",
        f"  why      {scan.get('why')}",
        f"  run      {run} by {start.get('user')}@{start.get('host')}",
        f"  method   {_method_of(start)}",
        f"  weights  {start.get('weights') or 'none'}",
        f"  worker   {scan.get('worker')}, attempt {scan.get('attempt')}",
    ]
    for kind in ("inputs", "files"):
        lines += [f"  {kind[:-1]:8} {x['path']}  sha256 {x['sha256']}" for x in scan[kind]]
    for line in lines:
        click.echo(printable(line))


@click.command()
@click.argument("out_dir", type=EXISTING_FOLDER)
@click.option("--removed", is_flag=True, help="Also scans that the input no longer has.")
@click.option("--input", "source", type=EXISTING, help="The input (default: the last run's).")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@VERBOSE
def prune(out_dir: Path, removed: bool, source: Path | None, dry_run: bool, verbose: int) -> None:
    """Remove old versions of scans from OUT_DIR, and with --removed what left the input."""
    log(verbose)
    from fusionflow import prune as pruning
    from fusionflow.ledger import OutputPaths

    gone = pruning.prune(
        OutputPaths(out_dir.absolute()), removed=removed, source=source, dry_run=dry_run
    )
    for item in gone:
        click.echo(f"{item.path}  {item.size / 1e6:.1f} MB  {item.why}")
    done = "would be removed" if dry_run else "removed"
    click.echo(f"{sum(item.size for item in gone) / 1e6:.1f} MB {done}")


@click.command(cls=BidsAppCommand)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=FOLDER)
@click.option(
    "--every", type=Duration(), default="15m", show_default=True, help="Time between two looks."
)
@click.option(
    "--settle",
    type=Duration(),
    default="1m",
    show_default=True,
    help="How long a scan's files must have been left alone.",
)
@JSON_LOGS
@run_options
def watch(
    bids_dir: Path,
    out_dir: Path,
    every: float,
    settle: float,
    participant_label: tuple[str, ...],
    session_label: tuple[str, ...],
    verbose: int,
    json_logs: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Fuse what is new or changed in BIDS_DIR, look again, and so on until it is told to end.

    Ends cleanly, with exit code 0: on Ctrl-C when what is in flight is finished; on a second one,
    or on SIGTERM, at once, and what is in flight is undone.
    """
    log(verbose, as_json=json_logs)
    if every <= 0:
        raise ConfigurationError("--every is how long to wait between two looks, more than 0")
    config = configured(options)
    from fusionflow.events import Fused, Planned, Unchanged, Waiting
    from fusionflow.io.files import utc_now
    from fusionflow.logs import are_json
    from fusionflow.progress import display
    from fusionflow.progress_json import say as say_json
    from fusionflow.watch import Looked, watch

    told: dict[str, set[str]] = {}

    def show(event: Event) -> None:
        interrupts.see(event)
        label, what = _topic(event)
        if isinstance(event, Fused):  # what was wrong with it before may come again
            told.pop(label, None)
        elif what:  # once is enough
            if what in told.setdefault(label, set()):
                return
            told[label].add(what)
        if verbose or not isinstance(event, Unchanged | Planned | Waiting):
            shown.show(event)

    def say(looked: Looked) -> None:
        if looked.report is not None:
            shown.end(looked.report)
        if are_json():
            say_json("looked", trouble=looked.trouble, pause_seconds=looked.pause)
        counts = looked.report.counts if looked.report else {}
        what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        click.echo(
            f"{utc_now()}  {looked.trouble or what or 'nothing there'}; "
            + ("ending" if interrupts() else f"next look in {looked.pause:g} s")
        )

    interrupts, shown = Interrupts(), display(config.method, bar=False)
    click.echo(f"{utc_now()}  watching {bids_dir}, every {every:g} s")
    with contextlib.suppress(KeyboardInterrupt), interrupts.listening(), shown:
        watch(
            bids_dir,
            out_dir,
            config,
            every=every,
            settle=settle,
            stop=interrupts,
            on_event=show,
            on_look=say,
            participant_labels=labels(participant_label),
            session_labels=labels(session_label),
        )
    click.echo(f"{utc_now()}  ended")
