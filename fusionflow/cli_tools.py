"""The commands around a run: ``fusionflow weights``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

EXIT_BAD_WEIGHTS = 3

OFFLINE = click.option(
    "--offline",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda _ctx, _param, value: _go_offline(wanted=value),
    help="Download nothing; weights must be on this machine.",
)


def _go_offline(*, wanted: bool) -> None:
    if wanted:
        os.environ["FUSIONFLOW_OFFLINE"] = "1"


@click.group()
def weights() -> None:
    """List, fetch, stage and verify pretrained weights."""


@weights.command("list")
def list_weights() -> None:
    """Say which weights are known, where they come from, and which this machine has."""
    from fusionflow.weight_store import known_weights

    for known in known_weights():
        click.secho(known.backbone, bold=True)
        click.echo(f"  source   {known.source}")
        click.echo(f"  licence  {known.licence}")
        if known.digest:
            click.echo(f"  file     {known.size_mb:.0f} MB, SHA-256 {known.digest}...")
        for path in known.found:
            click.echo(f"  here     {path}")
        if not known.found:
            click.echo("  here     no")


@weights.command()
@click.argument("backbones", nargs=-1)
@OFFLINE
def fetch(backbones: tuple[str, ...]) -> None:
    """Fetch torchvision's weights of BACKBONES (all by default) into torch's cache."""
    from fusionflow import weight_store

    for path in weight_store.fetch(backbones):
        click.echo(path)


@weights.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("backbones", nargs=-1)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file to copy instead of torchvision's; then name one backbone.",
)
@OFFLINE
def stage(folder: Path, backbones: tuple[str, ...], source: Path | None) -> None:
    """Copy weights of BACKBONES (all by default) into FOLDER, with their checksums.

    For compute nodes without a network: set FUSIONFLOW_WEIGHTS_DIR to FOLDER there.
    """
    from fusionflow import weight_store

    for path in weight_store.stage(folder, backbones, source):
        click.echo(path)
    click.echo(f"export FUSIONFLOW_WEIGHTS_DIR={folder.absolute()}")


@weights.command()
@click.argument(
    "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False
)
def verify(folder: Path | None) -> None:
    """Check the weights in FOLDER, or in torch's cache, against their checksums."""
    from fusionflow import weight_store

    checked = weight_store.verify(folder)
    for item in checked:
        if item.fault is None:
            click.echo(f"ok    {item.path}")
        else:
            click.secho(f"BAD   {item.path}: {item.fault}", fg="red")
    if not checked:
        click.echo("There are no weights here.")
    if not checked or any(item.fault for item in checked):
        sys.exit(EXIT_BAD_WEIGHTS)
