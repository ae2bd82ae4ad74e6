"""The commands beside a run: ``fusionflow weights | image | benchmark``."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fusionflow.config import Method
    from fusionflow.luts import ColourTable

EXIT_SOME_FAILED = 3
EXIT_NOTHING_RAN = 4

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
    from fusionflow.learned import read_card, shipped_models
    from fusionflow.weight_store import known_weights

    for path in shipped_models():
        card = read_card(path)
        click.secho(f"{card.name}, trained", bold=True)
        click.echo("  source   comes with fusionflow")
        click.echo(f"  licence  {card.licence}")
        click.echo(f"  here     {path}")
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
@click.argument("model", type=click.Path(path_type=Path))
def show(model: Path) -> None:
    """Say what MODEL is and how it was made: a file of `train`, or a method's name."""
    import yaml

    from fusionflow.config import METHODS
    from fusionflow.learned import find_model, read_card

    method = METHODS.get(str(model))
    if method is not None and method.rule == "learned":
        model = find_model(method).path or model
    card = read_card(model).model_dump(mode="json")
    click.echo(yaml.safe_dump(card, sort_keys=False, allow_unicode=True), nl=False)


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
    """Check the weights in FOLDER against their checksums.

    By default the models that come with fusionflow, and what torch's cache holds.
    """
    from fusionflow import weight_store

    checked = weight_store.verify(folder)
    for item in checked:
        if item.fault is None:
            click.echo(f"ok    {item.path}")
        else:
            click.secho(f"BAD   {item.path}: {item.fault}", fg="red")
    if not checked:
        raise click.UsageError(f"{folder} holds no weights: name the folder that does")
    if any(item.fault for item in checked):
        sys.exit(EXIT_SOME_FAILED)


def _methods(names: tuple[str, ...], weights: str | None) -> list[Method]:
    """Return methods by name, with other weights where some are given."""
    from fusionflow.config import METHODS, named_method

    chosen = [item for name in names for item in name.replace(",", " ").split()] or list(METHODS)
    methods = [named_method(name) for name in chosen]
    if weights is None:
        return methods
    return [
        method.model_copy(update={"weights": weights}) if method.weights == "auto" else method
        for method in methods
    ]


def _table(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> ColourTable | None:
    """Read a colour table."""
    from fusionflow.errors import InputError
    from fusionflow.luts import read_table

    try:
        return read_table(value) if value else None
    except InputError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("mri", type=click.Path(path_type=Path, exists=True))
@click.argument("pet", type=click.Path(path_type=Path, exists=True))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The fused PNG; a folder if MRI and PET are folders.",
)
@click.option("--method", default="dwt-vgg19", show_default=True, help="How to fuse.")
@click.option("--weights", metavar="WHICH", help="As in `run`.")
@click.option(
    "--colour",
    type=click.Choice(["uptake", "luminance", "grey"]),
    help="How to take a PET in colour: recover its uptake (default), or as published.",
)
@click.option(
    "--lut",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=_table,
    help="CSV of the PET's colour table, red,green,blue a row; else it is recognised.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Put MRI, PET and fused side by side; of a PET in colour both ways to fuse it.",
)
@OFFLINE
def image(
    mri: Path,
    pet: Path,
    output: Path,
    method: str,
    weights: str | None,
    colour: str | None,
    lut: ColourTable | None,
    compare: bool,
) -> None:
    """Fuse pictures: MRI and PET are two files, or two folders of files of the same names."""
    from fusionflow import images
    from fusionflow.errors import FusionflowError
    from fusionflow.graph import make_recipe
    from fusionflow.io.files import write_bytes
    from fusionflow.untrusted import printable

    if lut is not None and colour in ("luminance", "grey"):
        raise click.UsageError(f"--lut tells uptake; with --colour {colour} it has no use")
    if mri.is_dir() != pet.is_dir():
        raise click.UsageError(f"{mri} and {pet} are not both pictures or both folders")
    if mri.is_dir() and output.exists() and not output.is_dir():
        raise click.UsageError(f"{output} is a file; for folders of pictures name a folder")
    if not mri.is_dir() and (output.is_dir() or output.suffix.lower() != ".png"):
        raise click.UsageError(f"{output} is not the name of a PNG file")
    recipe = make_recipe(_methods((method,), weights)[0])
    if weights and recipe.weights is None:
        raise click.UsageError(f"Method {method} reads no network, so --weights means nothing")
    if recipe.weights is not None:
        warn = "WARNING " if recipe.weights.is_random else ""
        click.echo(f"{warn}weights of {recipe.weights.backbone}: {recipe.weights.description}")
    pairs = images.find_pairs(mri, pet)
    failed = 0
    for pair in pairs:
        try:
            sources = images.read_pair(pair, colour, lut)  # type: ignore[arg-type]
            shown = [images.fuse_and_colour(sources, recipe)]
            if compare:
                shown = [images.read_rgb(pair.mri), sources.pet_rgb, *shown]
                if sources.colour == "uptake":  # the published way beside ours
                    published = images.read_pair(pair, "luminance")
                    shown.append(images.fuse_and_colour(published, recipe))
        except FusionflowError as error:
            failed += 1
            click.secho(f"failed {printable(pair.name)}  {error}", fg="red", err=True)
            continue
        target = output / f"{pair.name}.png" if mri.is_dir() else output
        buffer = io.BytesIO()
        images.side_by_side(shown).save(buffer, "PNG")
        write_bytes(target, buffer.getvalue())
        how = f"uptake from {sources.table}" if sources.table else sources.colour
        click.echo(f"fused  {printable(target)}  ({how})")
    if failed:
        sys.exit(EXIT_NOTHING_RAN if failed == len(pairs) else EXIT_SOME_FAILED)


def _named_folder(
    _ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]
) -> dict[str, Path]:
    """Read NAME=DIR options."""
    folders = {}
    for item in value:
        name, _, folder = item.partition("=")
        if not name or not Path(folder).is_dir():
            raise click.BadParameter(f"{item!r} is not NAME=FOLDER of a folder that is there")
        if "@" in name or not name.isprintable():
            raise click.BadParameter(f"{name!r}: a name has no @ and no control characters")
        if name in folders:
            raise click.BadParameter(f"{name} is given twice")
        folders[name] = Path(folder)
    return folders


def _numbers(_ctx: click.Context, _param: click.Parameter, value: str) -> list[float]:
    """Read numbers with commas between them."""
    try:
        return list(dict.fromkeys(float(item) for item in value.replace(",", " ").split()))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list of numbers") from error


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--methods", multiple=True, metavar="NAMES", help="Which methods (default: all).")
@click.option(
    "--scores-of",
    multiple=True,
    metavar="NAME=DIR",
    callback=_named_folder,
    help="Fused pictures made elsewhere, named as the pairs are.",
)
@click.option("--weights", metavar="WHICH", help="As in `run`, for every method with a network.")
@click.option(
    "--balances",
    metavar="LIST",
    default="",
    callback=_numbers,
    help="Settings of the knob, such as 0,0.25,0.5, at which a learned rule is measured, too.",
)
@click.option("--convention", metavar="NAME", help="Figures as another code base computes them.")
@click.option(
    "--colour",
    type=click.Choice(["luminance", "uptake", "grey"]),
    default="luminance",
    show_default=True,
    help="How to take a PET in colour; luminance, as others do.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Timed runs after the one that warms up.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="benchmark",
    show_default=True,
    help="Folder for the tables and the page.",
)
@OFFLINE
def benchmark(
    folder: Path,
    methods: tuple[str, ...],
    scores_of: dict[str, Path],
    weights: str | None,
    balances: list[float],
    convention: str | None,
    colour: str,
    repeats: int,
    output: Path,
) -> None:
    """Compare methods on FOLDER: folders of MRI and PET pictures, or a fused cohort."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fusionflow import benchmark as bench
    from fusionflow.benchmark_front import along_the_knob
    from fusionflow.benchmark_report import ordered, paper_table, write_report
    from fusionflow.conventions import CONVENTIONS

    if convention and convention not in CONVENTIONS:
        known = ", ".join(CONVENTIONS)
        raise click.UsageError(f"No convention is called {convention!r}; known are {known}")
    if (folder / "index.json").is_file():
        pairs = bench.pairs_of_cohort(folder)
    else:
        pairs = bench.pairs_of_folder(folder, colour)  # type: ignore[arg-type]
    result = bench.run_benchmark(
        pairs,
        along_the_knob(_methods(methods, weights), balances),
        scores_of,
        convention=convention,
        repeats=repeats,
        tell=lambda line: click.echo(line, err=True),
    )
    count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
    title = f"{count} of {folder.name}" + (f", {convention}" if convention else "")
    paths = write_report(result, output, title)
    table = ordered(result.table)
    for shown in (table.iloc[:, :9], paper_table(table)):
        if shown is None:
            continue
        grid = Table("method", title=escape(title))
        for column in shown.columns:
            grid.add_column(str(column), justify="right")
        for name, row in shown.iterrows():
            grid.add_row(escape(str(name)), *(f"{value:.4g}" for value in row))
        Console(width=None if sys.stdout.isatty() else 160).print(grid)
    for name, why in result.not_run.items():
        click.secho(f"not run: {name}: {why}", fg="yellow")
    for path in paths:
        click.echo(path)
