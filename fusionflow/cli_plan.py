"""What a run would do: ``fusionflow plan``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusionflow.cli_options import EXISTING, BidsAppCommand, configured, labels, log, run_options

if TYPE_CHECKING:
    from fusionflow.planning import Outlooks


@click.command(cls=BidsAppCommand)
@click.argument("bids_dir", type=EXISTING)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@run_options
def plan(
    bids_dir: Path,
    as_json: bool,
    participant_label: tuple[str, ...],
    session_label: tuple[str, ...],
    verbose: int,
    **options: Any,  # noqa: ANN401
) -> None:
    """Say what `run` with the same options would do to each scan of BIDS_DIR, and do nothing.

    Headers are read, voxels are not: what is wrong with those shows in the run. Memory and time are
    estimates; for the time a few slices of noise are fused here. Exit code 3: a person must mend
    something before all can run; 4: nothing can run.
    """
    log(verbose)
    config = configured(options)
    from fusionflow.events import EXIT_NOTHING_RAN, EXIT_QUARANTINED
    from fusionflow.planning import plan as plan_input

    outlooks = plan_input(
        bids_dir.absolute(),
        config,
        participant_labels=labels(participant_label),
        session_labels=labels(session_label),
    )
    if as_json:
        click.echo(json.dumps(outlooks.to_json(), indent=2))
    else:
        _show(outlooks, verbose=bool(verbose))
    if any(item.broken for item in outlooks.excluded):
        sys.exit(EXIT_QUARANTINED)
    if not outlooks.scans:
        sys.exit(EXIT_NOTHING_RAN)


def _show(outlooks: Outlooks, *, verbose: bool) -> None:
    """Print a paragraph for each scan, and sums."""
    from fusionflow.untrusted import printable

    for note in outlooks.notes:
        click.echo(f"note: {printable(note)}")
    for item in outlooks.scans:
        size = " x ".join(f"{mm:.3g}" for mm in item.voxel_mm)
        click.echo(
            f"{item.label}  {' x '.join(map(str, item.shape))} voxels of {size} mm (z, y, x)"
        )
        for role, path in item.files.items():
            click.echo(f"    {role:9} {printable(path)}")
        for step in item.steps:
            click.echo(f"    - {printable(step)}")
        time = "" if item.seconds is None else f", {item.seconds:.0f} s of one core"
        click.echo(f"    about {item.memory_bytes / 1e9:.1f} GB{time}")
        for note in item.notes if verbose else ():
            click.echo(f"    note: {printable(note)}")
    for left in outlooks.excluded:
        colour = "red" if left.broken else "yellow"
        click.secho(f"{left.label}  excluded: {printable(left.reason)}", fg=colour)
    seconds = [item.seconds for item in outlooks.scans if item.seconds is not None]
    memory = max((item.memory_bytes for item in outlooks.scans), default=0.0)
    total = f", about {sum(seconds) / 60:.0f} min of one core in all" if seconds else ""
    click.echo(
        f"{len(outlooks.scans)} would run, {len(outlooks.excluded)} would not; a worker needs up "
        f"to about {memory / 1e9:.1f} GB{total}"
    )
