"""The command that hands a run to a cluster manager: ``fusionflow submit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fusionflow.cli_options import (
    FOLDER,
    JSON_LOGS,
    LEVEL,
    BidsAppCommand,
    Duration,
    again_options,
    configured,
    log,
    run_options,
)
from fusionflow.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fusionflow.config import RunConfig

#: What a configuration cannot say: a submitted run has all the rest from a file of its own.
_SELECTION = (
    "level", "participant_label", "session_label", "preflight", "retry_failed", "force", "settle",
    "offline", "json_logs", "verbose",
)  # fmt: skip


@click.command(cls=BidsAppCommand)
@click.argument("bids_dir", type=click.Path(path_type=Path))
@click.argument("out_dir", type=FOLDER)
@LEVEL
@run_options
@click.option("--preflight", is_flag=True, help="The job only looks whether it could do it.")
@again_options
@JSON_LOGS
@click.option(
    "--print", "only_print", is_flag=True, help="Print what would be submitted, and do nothing."
)
@click.option("--job-name", default="fusionflow", show_default=True, help="Of SLURM's job.")
@click.option(
    "--dependency",
    metavar="SPEC",
    help="SLURM: begin after other jobs, such as afterok:123; 123 stands for afterany:123.",
)
@click.option("--begin", metavar="TIME", help="SLURM: not before this time: 20:00, now+2hours.")
@click.option(
    "--every",
    type=Duration(),
    metavar="TIME",
    help="SLURM: the job submits itself again for this time after its begin, such as 1d.",
)
@click.option(
    "--schedule",
    metavar="CRON",
    help="When to run again and again, such as '0 2 * * *'. SLURM: print lines for scrontab -e, "
    "and do nothing. Kubernetes: a CronJob.",
)
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    bids_dir: Path,
    out_dir: Path,
    verbose: int,
    only_print: bool,
    schedule: str | None,
    **options: Any,  # noqa: ANN401
) -> None:
    """Let SLURM or Kubernetes run `fusionflow run BIDS_DIR OUT_DIR`, scheduler and all.

    The run needs nothing of this machine once it is submitted. All options of `run` are handed on.
    What jobs or pods look like is said in the configuration (cluster.slurm, cluster.kubernetes).
    With SLURM everything is inside one job, whose exit code is that of the run.
    """
    log(verbose)
    config = configured(options)
    bids_dir, out_dir = bids_dir.absolute(), out_dir.absolute()
    if not config.cluster.starts_a_cluster or config.cluster.kind not in ("slurm", "kubernetes"):
        raise ConfigurationError(
            "There is nobody to submit it to",
            "Give --cluster slurm or --cluster kubernetes, or cluster.kind in the configuration",
        )
    arguments = tuple(_arguments(ctx, only=_SELECTION))
    if config.cluster.kind == "kubernetes":
        for option in ("dependency", "begin", "every"):
            if options[option] is not None:
                raise ConfigurationError(f"--{option} is for SLURM", "Take --schedule")
        if ctx.get_parameter_source("job_name") is ParameterSource.COMMANDLINE:
            raise ConfigurationError("--job-name is for SLURM", "Give cluster.kubernetes.name")
        _kubernetes(bids_dir, out_dir, arguments, config, schedule=schedule, only_print=only_print)
        return
    if not bids_dir.exists():  # with Kubernetes only pods need to see it
        raise ConfigurationError(f"There is no {bids_dir}", "Check the path of BIDS_DIR")
    from fusionflow.submission import slurm

    batch = slurm.Batch(
        bids_dir,
        out_dir,
        arguments,
        config,
        name=options["job_name"],
        dependency=options["dependency"],
        begin=options["begin"],
        every=options["every"],
    )
    if schedule is not None:
        for option in ("every", "begin", "dependency"):
            if options[option] is not None:
                raise ConfigurationError(
                    f"--{option} and --schedule both say when", "Give one of the two"
                )
        slurm.script(batch)  # says now what would be wrong with it every night
        own = _arguments(ctx, without=("schedule", "only_print"))
        listed = [str(bids_dir), str(out_dir), *own]
        click.echo(slurm.scrontab(schedule, listed), nl=False)
        return
    if only_print:
        click.echo(slurm.script(batch), nl=False)
        return
    number = slurm.submit(batch)
    click.echo(f"Submitted job {number}; its log: {batch.log.replace('%j', number)}")


def _kubernetes(
    bids_dir: Path,
    out_dir: Path,
    words: tuple[str, ...],
    config: RunConfig,
    *,
    schedule: str | None,
    only_print: bool,
) -> None:
    """Print the objects of Kubernetes that are a run, or make them."""
    from fusionflow.submission import kubernetes

    objects = kubernetes.objects(bids_dir, out_dir, words, config, schedule=schedule)
    if only_print:
        click.echo(kubernetes.as_yaml(objects), nl=False)
        return
    click.echo(kubernetes.submit(objects, config.cluster.kubernetes.namespace))


def _arguments(
    ctx: click.Context, without: tuple[str, ...] = (), only: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the options and the level that the command line gave, for another one like it."""
    for param in ctx.command.params:
        name = str(param.name)
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or name in without:
            continue
        if only and name not in only:
            continue
        value = ctx.params[name]
        if not isinstance(param, click.Option):
            if name == "level" and value:
                yield value
            continue
        option = max(param.opts, key=len)
        if param.is_flag:
            yield option
        elif param.count:
            yield from [option] * value
        elif param.nargs > 1:
            yield from (option, *map(str, value))
        else:
            for item in value if param.multiple else [value]:
                yield f"{option}={_text(param, item)}"


def _text(param: click.Option, value: Any) -> str:  # noqa: ANN401
    """Return a value as a command line takes it from any folder."""
    if isinstance(value, Path):
        return str(value.absolute())
    if param.name == "weights" and Path(value).is_file():
        return str(Path(value).absolute())
    return f"{value:g}s" if isinstance(param.type, Duration) else str(value)
