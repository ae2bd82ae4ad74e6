"""The command that writes what people look at: ``fusionflow report``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fusionflow.cli_options import EXISTING_FOLDER, VERBOSE, BidsAppCommand, labels, log
from fusionflow.untrusted import printable


@click.command(cls=BidsAppCommand)
@click.argument("out_dir", type=EXISTING_FOLDER)
@click.option(
    "--participant-label",
    multiple=True,
    metavar="LABEL",
    help="Write pages of the scans of these subjects only; that of the cohort holds all.",
)
@click.option("--no-scans", is_flag=True, help="Write the page of the cohort only.")
@click.option(
    "--compare-with",
    type=EXISTING_FOLDER,
    multiple=True,
    metavar="OTHER_OUT",
    help="Output of another method on the same people, to be compared. Can be repeated.",
)
@click.option(
    "--jobs", type=click.IntRange(1), help="Pages to write at a time (default: the cores)."
)
@VERBOSE
def report(
    out_dir: Path,
    participant_label: tuple[str, ...],
    no_scans: bool,
    compare_with: tuple[Path, ...],
    jobs: int | None,
    verbose: int,
) -> None:
    """Write pages to look at: one for each scan of OUT_DIR, and group.html for the cohort.

    They are made from OUT_DIR alone, each is one file that needs nothing else, and those that
    are up to date stay. Exit code 3 says that a page of a scan could not be written.
    """
    log(verbose)
    from fusionflow.clusters import available_cores
    from fusionflow.events import EXIT_QUARANTINED
    from fusionflow.index import read_index
    from fusionflow.ledger import OutputPaths
    from fusionflow.report.cohort_page import write_cohort_report
    from fusionflow.report.scan_pages import chosen_labels, due, write_pages
    from fusionflow.runlock import living_holder

    paths = OutputPaths(out_dir.absolute())
    known = read_index(paths).published.labels
    chosen = chosen_labels(paths, known, labels(participant_label))
    if (holder := living_holder(paths.run_lock)) is not None:
        click.echo(printable(f"A run is at work ({holder.run}): what it makes from now on lacks."))
    trouble = []
    if not no_scans:
        new = due(paths, chosen)
        click.echo(f"{len(new)} of {len(chosen)} pages of scans to write")
        done = write_pages(paths.root, new, jobs or available_cores())
        with click.progressbar(done, length=len(new), label="Pages", file=sys.stderr) as bar:
            trouble = [item for item in bar if item.path is None]
    for item in trouble:
        click.secho(printable(f"{item.label}: {item.trouble}"), fg="red", err=True)
    group = write_cohort_report(paths, compare_with=compare_with)
    if not no_scans and chosen:
        click.echo(f"Scans    {out_dir}/sub-*/**/fused/*_fused.html")
    click.echo(f"Cohort   {group}")
    if trouble:
        click.echo(f"{len(trouble)} pages could not be written (see above)")
        sys.exit(EXIT_QUARANTINED)
