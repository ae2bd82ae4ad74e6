"""The command line: ``fusionflow run | demo | status``, also as ``dask fusionflow ...``.

Dask imports this module whenever somebody types ``dask``, so it imports what takes time only
when a command runs.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fusionflow import __version__, cli_tools
from fusionflow.errors import ConfigurationError, FusionflowError

if TYPE_CHECKING:
    from fusionflow.config import RunConfig
    from fusionflow.runner import RunReport

EXIT_USAGE = 2
EXIT_SOME_FAILED = 3
EXIT_NOTHING_RAN = 4
EXIT_INTERRUPTED = 130


def _interrupt(_signal: int, _frame: object) -> None:
    """Treat SIGTERM, which schedulers send, like Ctrl-C."""
    raise KeyboardInterrupt


class _Commands(click.Group):
    """Turns errors that are meant for people into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a command."""
        with contextlib.suppress(ValueError):  # only the main thread can
            signal.signal(signal.SIGTERM, _interrupt)
        try:
            return super().invoke(ctx)
        except FusionflowError as error:
            if logging.getLogger("fusionflow").isEnabledFor(logging.DEBUG):
                logging.getLogger("fusionflow").debug("traceback", exc_info=error)
            click.secho(f"Error: {error}", fg="red", err=True)
            usage = isinstance(error, ConfigurationError)
            ctx.exit(EXIT_USAGE if usage else EXIT_NOTHING_RAN)
        except KeyboardInterrupt:  # or SIGTERM
            click.secho("Interrupted: what was published stays, the rest was undone.", err=True)
            ctx.exit(EXIT_INTERRUPTED)


@click.group(
    name="fusionflow",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fusionflow")
def main() -> None:
    r"""Fuse PET and MRI of whole cohorts on Dask clusters. For research use.

    \b
    Exit codes: 0 done, 2 wrong usage, 3 some scans failed, 4 nothing could run.
    """


def _log(verbose: int) -> None:
    """Show more of what happens, on the standard error stream."""
    logger = logging.getLogger("fusionflow")
    if not logger.handlers:  # not the root logger's: Dask's own messages keep their levels
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


def _labels(value: tuple[str, ...]) -> list[str]:
    """Accept a repeated option as well as a list with commas or spaces."""
    return [label for item in value for label in item.replace(",", " ").split()]


class _BidsAppCommand(click.Command):
    """Takes lists of labels as BIDS Apps do: ``--participant-label 01 02``, after the folders."""

    _LISTS = ("--participant-label", "--session-label")
    _FLAGS = ("-v", "-vv", "--verbose", "--offline")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give each label of a list an option of its own."""
        spread: list[str] = []
        option, folders = "", 0
        for arg in args:
            if arg.startswith("-"):
                option = "" if arg in self._FLAGS else arg
            elif option in self._LISTS and spread[-1] == option:
                pass  # the value that the option has in any case
            elif option in self._LISTS and folders >= 2 and arg not in ("participant", "group"):
                spread.append(option)
            elif not option or spread[-1] != option:
                folders += 1
            spread.append(arg)
        return super().parse_args(ctx, spread)


@main.command(cls=_BidsAppCommand)
@click.version_option(__version__, prog_name="fusionflow")
@click.argument("bids_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out_dir", type=click.Path(path_type=Path, file_okay=False))
@click.argument("level", type=click.Choice(["participant", "group"]), required=False)
@click.option("--participant-label", multiple=True, metavar="LABEL", help="Only these subjects.")
@click.option("--session-label", multiple=True, metavar="LABEL", help="Only these sessions.")
@click.option("--method", metavar="NAME", help="How to fuse; see --list-methods.")
@click.option(
    "--weights",
    metavar="WHICH",
    help="Pretrained weights: a file, `torchvision`, or random:SEED to try without.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file with any option; options given here win over it.",
)
@click.option("--n-workers", type=click.IntRange(1), help="Worker processes (default: the cores).")
@click.option("--mem-mb", type=click.IntRange(256), help="Memory for all workers together, MB.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where workers may spill to disk.",
)
@cli_tools.OFFLINE
@click.option("--cluster", metavar="ADDRESS", help="A running Dask scheduler, tcp://HOST:PORT.")
@click.option("-v", "--verbose", count=True, help="Say more; -vv for tracebacks.")
@click.option(
    "--list-methods",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: _list_methods(ctx, shown=value),
    help="List the methods and exit.",
)
def run(
    bids_dir: Path,
    out_dir: Path,
    level: str | None,
    participant_label: tuple[str, ...],
    session_label: tuple[str, ...],
    verbose: int,
    **options: Any,  # noqa: ANN401
) -> None:
    """Fuse the scans of BIDS_DIR into OUT_DIR, and summarise the cohort.

    Scans that were made from the same inputs with the same options before are left as they are.
    LEVEL `participant` only fuses, `group` only summarises; without it both are done.
    """
    _log(verbose)
    config = _configured(options)
    report = _run(
        bids_dir,
        out_dir,
        config,
        participant_labels=_labels(participant_label),
        session_labels=_labels(session_label),
        levels=(level,) if level else ("participant", "group"),
    )
    _conclude(report, out_dir)


def _list_methods(ctx: click.Context, *, shown: bool) -> None:
    if not shown:
        return
    from fusionflow.config import METHODS

    for method in METHODS.values():
        backbone = (
            f"{method.backbone} {', '.join(method.taps)}" if method.backbone else "no network"
        )
        kind = getattr(method.transform, "name", method.transform.kind)
        levels = method.transform.levels
        bands = f"{kind}, {levels} level{'s' * (levels > 1)}" if levels else "pixels"
        click.echo(f"{method.name:16} {bands:20} {method.rule:8}  {backbone}")
    ctx.exit()


def _configured(options: dict[str, Any]) -> RunConfig:
    """Join the YAML file and the options of the command line."""
    from fusionflow.config import RunConfig, load_config, named_method, validated

    config = load_config(options["config"]) if options["config"] else RunConfig()
    content = config.model_dump()
    if options["method"]:
        content["method"] = named_method(options["method"]).model_dump()
    if options["weights"]:
        if content["method"]["backbone"] is None:
            raise ConfigurationError(
                f"Method {content['method']['name']} reads no network, so --weights means nothing"
            )
        content["method"]["weights"] = options["weights"]
    for option, name in (
        ("n_workers", "n_workers"),
        ("mem_mb", "memory_mb"),
        ("work_dir", "work_dir"),
        ("cluster", "address"),
    ):
        if options[option] is not None:
            content["cluster"][name] = options[option]
    return validated(content, "options")


def _run(bids_dir: Path, out_dir: Path, config: RunConfig, **selection: Any) -> RunReport:  # noqa: ANN401
    """Run with live progress."""
    from fusionflow import runner
    from fusionflow.progress import Display

    with Display(config.method) as display:
        return runner.run(bids_dir, out_dir, config, on_event=display.show, **selection)


def _conclude(report: RunReport, out_dir: Path) -> None:
    """Say how it ended and where things are, and leave with the exit code."""
    done = len(report.fused) + len(report.unchanged)
    click.echo(
        f"{len(report.fused)} fused, {len(report.unchanged)} unchanged, "
        f"{len(report.failed)} failed, {len(report.skipped)} without a PET/MRI pair"
    )
    if report.left_out:
        click.echo(f"{len(report.left_out)} fused before are not in the summary (see above)")
    if done:
        click.echo(f"Fused volumes   {out_dir}/sub-*/**/fused/*_fused.nii.gz")
        click.echo(f"Pictures        {out_dir}/sub-*/**/fused/*_fused.png")
    if done or report.summary is not None:
        click.echo(f"Arrays          fusionflow.open_cohort({str(out_dir)!r})")
    if report.summary is not None:
        click.echo(f"Summary         {out_dir}/group_metrics.tsv, group_scans.tsv, group.zarr")
    if report.failed:
        sys.exit(EXIT_SOME_FAILED)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="demo")
@click.option(
    "--weights",
    default="random:0",
    show_default=True,
    metavar="WHICH",
    help="As in `run`; the default needs no download, and is no pretrained network.",
)
@click.option("--n-workers", type=click.IntRange(1), help="Worker processes (default: the cores).")
@click.option("-v", "--verbose", count=True, help="Say more; -vv for tracebacks.")
def demo(folder: Path, weights: str, n_workers: int | None, verbose: int) -> None:
    """Make a small phantom PET/MRI cohort in FOLDER and fuse it.

    Writes FOLDER/bids (4 scans of 3 subjects, with lesions that only one of the two images
    shows) and FOLDER/fused.
    """
    _log(verbose)
    from fusionflow.config import ClusterOptions, RunConfig, named_method
    from fusionflow.phantom import write_cohort

    click.echo(f"Writing a phantom cohort to {folder / 'bids'}")
    write_cohort(folder / "bids")
    method = named_method("dwt-vgg19").model_copy(update={"weights": weights})
    config = RunConfig(method=method, cluster=ClusterOptions(n_workers=n_workers))
    report = _run(folder / "bids", folder / "fused", config)
    if report.summary is not None:
        from fusionflow.progress import print_summary

        print_summary(report.summary)
    _conclude(report, folder / "fused")


@main.command()
@click.argument("out_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-v", "--verbose", count=True, help="Say more; -vv for tracebacks.")
def status(out_dir: Path, verbose: int) -> None:
    """Say which scans of OUT_DIR are fused, how, and which failed and why."""
    _log(verbose)
    from fusionflow.ledger import OutputPaths, gather_index, read_index

    paths = OutputPaths(out_dir)
    read_index(paths)  # says so if this is no output folder
    index = gather_index(paths)
    failed = {failure.label: failure for failure in index.failures}
    for record in index.published:
        state = "fused" if record.label not in failed else "fused before, failed now"
        click.echo(f"{record.label:24} {state}  {record.method['name']}  {record.created}")
        for note in record.notes if verbose else ():
            click.echo(f"    note: {note}")
    for failure in failed.values():
        click.secho(f"{failure.label:24} failed  {failure.reason}", fg="red")
    methods = Counter(record.method["name"] for record in index.published)
    by_method = ", ".join(f"{count} with {name}" for name, count in methods.items())
    click.echo(
        f"{len(index.published)} fused{f' ({by_method})' if by_method else ''}, "
        f"{len(failed)} failed"
    )


for _command in (cli_tools.image, cli_tools.benchmark, cli_tools.weights):
    main.add_command(_command)
