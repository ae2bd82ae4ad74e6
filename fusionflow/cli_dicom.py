"""The command that reads DICOM: ``fusionflow dicom``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fusionflow.cli_options import EXISTING_FOLDER, FOLDER, VERBOSE, log
from fusionflow.cli_tools import EXIT_NOTHING_RAN, EXIT_SOME_FAILED

if TYPE_CHECKING:
    from fusionflow.io.dicom_bids import DicomReport, Outcome

_COLOURS = {"made": "green", "failed": "red"}


@click.command()
@click.argument("dicom_dir", type=EXISTING_FOLDER)
@click.argument("bids_dir", type=FOLDER)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    default="~/.config/fusionflow/dicom.key",
    show_default=True,
    help="The secret that labels are made with; made if it is not there. Keep it, and keep it to "
    "yourself: the same key gives the same patients the same labels.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="TSV of your own labels: patient_id, participant_id and, if wanted, study, session_id.",
)
@VERBOSE
def dicom(dicom_dir: Path, bids_dir: Path, key: Path, labels: Path | None, verbose: int) -> None:
    """Convert folders of MR and PET series to BIDS, with labels that name nobody.

    DICOM_DIR is searched at any depth. Each PET is paired with a T1-weighted MR of its study, or
    else of the patient's study nearest in date, and becomes a session of BIDS_DIR. What is there is
    left as it is, so the command can be run again when more patients came. With -v it says where
    each series lies; these paths may hold names.
    """
    from fusionflow.io.dicom_bids import convert_dicom

    log(verbose)
    report = convert_dicom(
        dicom_dir,
        bids_dir,
        key=key,
        labels=labels,
        on_outcome=lambda outcome: _tell(outcome, verbose),
    )
    _summarise(report, key, verbose)
    if report.count("failed"):
        all_failed = report.count("failed") == len(report.outcomes)
        sys.exit(EXIT_NOTHING_RAN if all_failed else EXIT_SOME_FAILED)


def _tell(outcome: Outcome, verbose: int) -> None:
    """Say what came of a session."""
    from fusionflow.untrusted import printable

    failed = outcome.state == "failed"
    if outcome.state == "there" and not outcome.notes and not verbose:
        return
    click.secho(f"{outcome.state:6} {outcome.label}", fg=_COLOURS.get(outcome.state), err=failed)
    for note in outcome.notes:
        click.echo(f"       {printable(note)}", err=failed)
    if verbose:
        for folder in outcome.folders:
            click.echo(f"       from {printable(folder)} (may hold names)", err=failed)


def _summarise(report: DicomReport, key: Path, verbose: int) -> None:
    """Say what was left, and where the key is."""
    from fusionflow.io.dicom_bids import describe
    from fusionflow.untrusted import printable

    for reason, count in Counter(item.reason for item in report.left).most_common():
        click.echo(f"left   {count} series: {reason}")
        if verbose:
            for item in report.left:
                if item.reason == reason:
                    where = printable(item.series.folder)
                    click.echo(
                        f"       {describe(item.series, report.key)} {where} (may hold names)"
                    )
    for reason, count in report.damaged.most_common():
        click.secho(f"unread {count} files: {reason}", fg="yellow")
    if report.others:
        click.echo(f"       {report.others} files are no DICOM images")
    if report.unlabelled:
        click.echo(
            f"       {report.unlabelled} patients are not in the table of labels: "
            "labelled by the key"
        )
    if report.key.made:
        click.secho(
            f"A key was made: {key.expanduser()}. Keep it, outside the dataset: the next run needs "
            "it, and whoever has it can tell which label a known patient has.",
            fg="yellow",
        )
    if report.key.shared:
        click.secho(f"Others can read the key: chmod 600 {key.expanduser()}", fg="yellow")
    click.echo(
        f"{report.count('made')} sessions made, {report.count('there')} were there, "
        f"{report.count('failed')} failed"
    )
