"""The command line: ``fusionflow run | demo | ...``, also as ``dask fusionflow ...``.

Dask imports this module whenever somebody types ``dask``, so it imports what takes time only
when a command runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fusionflow import (
    __version__,
    cli_completion,
    cli_dicom,
    cli_ledger,
    cli_plan,
    cli_report,
    cli_submit,
    cli_tools,
    cli_train,
)
from fusionflow.cli_options import (
    EXISTING,
    FOLDER,
    JSON_LOGS,
    LEVEL,
    VERBOSE,
    BidsAppCommand,
    again_options,
    configured,
    labels,
    log,
    run_options,
)
from fusionflow.errors import ConfigurationError, FusionflowError, LockedError, StoreError
from fusionflow.logs import EXIT_INTERRUPTED, complain, mend_streams
from fusionflow.signals import hang_up, interrupt, lead_nowhere, streams_without_reader
from fusionflow.stopping import Interrupts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusionflow.config import RunConfig
    from fusionflow.events import Event, RunReport

#: Not in `fusionflow.events`, which takes time to import.
EXIT_BUG = 1
EXIT_NOTHING_RAN = cli_tools.EXIT_NOTHING_RAN
_NO_READER = 128 + signal.SIGPIPE


class _Commands(click.Group):
    """Turns errors that are meant for people into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run a command."""
        with contextlib.suppress(ValueError):  # only the main thread can
            for number in (signal.SIGTERM, signal.SIGINT):  # schedulers send the first
                signal.signal(number, interrupt)
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
                signal.signal(signal.SIGHUP, hang_up)
        mend_streams()
        ctx.color = _colour(os.environ)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click deals with them
        except FusionflowError as error:
            logging.getLogger("fusionflow").debug("traceback", exc_info=error)
            _complain(ctx, str(error), _exit_code(error))
        except Exception as error:
            if isinstance(error, BrokenPipeError) and (lost := streams_without_reader()):
                for stream in lost:  # `| head`: as SIGPIPE ends programs; Python ignores it
                    lead_nowhere(stream)
                ctx.exit(_NO_READER)
            logging.getLogger("fusionflow").info("traceback", exc_info=error)
            from fusionflow.bug import of_the_machine, report_bug

            if what := of_the_machine(error):
                _complain(ctx, what, EXIT_NOTHING_RAN)

            _complain(ctx, report_bug(error), EXIT_BUG)
        except KeyboardInterrupt:  # or SIGTERM, SIGHUP
            _complain(
                ctx, "Interrupted: what was published stays, the rest was undone.", EXIT_INTERRUPTED
            )


def _complain(ctx: click.Context, message: str, code: int) -> NoReturn:
    """Say why a command ends, and end it."""
    complain(message, code)
    try:
        sys.stdout.flush()
    except OSError:  # Python would try again when it ends, and end with a code of its own
        lead_nowhere(sys.stdout.fileno())
    ctx.exit(code)


def _colour(environment: Mapping[str, str]) -> bool | None:
    """Whether there are colours; None where the stream decides. rich decides the same for itself.

    See https://no-color.org and https://force-color.org.
    """
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return True if environment.get("FORCE_COLOR") else None


def _exit_code(error: FusionflowError) -> int:
    from fusionflow.events import EXIT_LOCKED, EXIT_USAGE

    if isinstance(error, LockedError):
        return EXIT_LOCKED
    return EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_NOTHING_RAN


@click.group(
    name="fusionflow",
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="fusionflow")
def main() -> None:
    """Fuse PET and MRI of whole cohorts on Dask clusters. For research use.

    Exit codes: 0 done, 1 a bug, 2 wrong usage, 3 some scans failed or are in quarantine, 4 it could
    not run or go on, 5 another run writes the output, 130 interrupted.
    """


@main.command(cls=BidsAppCommand)
@click.version_option(__version__, prog_name="fusionflow")
@click.argument("bids_dir", type=EXISTING)
@click.argument("out_dir", type=FOLDER)
@LEVEL
@run_options
@click.option("--dry-run", is_flag=True, help="Say what would be done and why; do nothing.")
@click.option(
    "--preflight",
    "only_check",
    is_flag=True,
    help="Look whether the cluster can do it (versions, GPUs, weights, files, memory), no more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: of a dry run, or the summary.")
@JSON_LOGS
@again_options
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
    dry_run: bool,
    only_check: bool,
    as_json: bool,
    json_logs: bool,
    **options: Any,  # noqa: ANN401
) -> None:
    """Fuse the scans of BIDS_DIR into OUT_DIR, and summarise the cohort.

    BIDS_DIR can be a manifest as well: a table (.tsv) with the columns participant_id, t1w and pet.

    Scans that were made from the same inputs with the same options before are left as they are,
    and so are scans that failed for a reason of their own, until something changes. LEVEL
    `participant` only fuses, `group` only summarises; without it both are done. OUT_DIR's
    logs/last_run.json says in JSON what a run did.

    Ctrl-C once: what is in flight is finished and published, nothing more begins. Twice: it stops
    at once, and what is in flight is undone, as on SIGTERM. Run it again to go on.
    """
    log(verbose, as_json=json_logs)
    config = configured(options)
    selection = {
        "participant_labels": labels(participant_label),
        "session_labels": labels(session_label),
        "settle": options["settle"],
    }
    if dry_run:
        from fusionflow.dry_run import look

        standings = look(
            bids_dir,
            out_dir,
            config,
            **selection,
            retry_failed=options["retry_failed"],
            force=options["force"],
        )
        cli_ledger.show_standings(standings, as_json=as_json, verbose=bool(verbose))
        return
    if only_check:
        _check(bids_dir, out_dir, config, selection)
        return
    report = _run(
        bids_dir,
        out_dir,
        config,
        **selection,
        retry_failed=options["retry_failed"],
        force=options["force"],
        levels=(level,) if level else ("participant", "group"),
    )
    if as_json:
        import json

        click.echo(json.dumps(report.to_json(), indent=2))
        sys.exit(report.exit_code)
    _conclude(report, out_dir)


def _list_methods(ctx: click.Context, *, shown: bool) -> None:
    if not shown:
        return
    from fusionflow.config import method_names, named_method

    for method in map(named_method, method_names()):
        backbone = (
            f"{method.backbone} {', '.join(method.taps)}" if method.backbone else "no network"
        )
        kind = getattr(method.transform, "name", method.transform.kind)
        levels = method.transform.levels
        bands = f"{kind}, {levels} level{'s' * (levels > 1)}" if levels else "pixels"
        click.echo(f"{method.name:16} {bands:20} {method.rule:8}  {backbone}")
    ctx.exit()


def _run(bids_dir: Path, out_dir: Path, config: RunConfig, **selection: Any) -> RunReport:  # noqa: ANN401
    """Run with live progress, listening to signals."""
    from fusionflow import runner
    from fusionflow.progress import display

    interrupts = Interrupts()

    def show(event: Event) -> None:
        interrupts.see(event)
        shown.show(event)

    with interrupts.listening(), display(config.method) as shown:
        report = runner.run(bids_dir, out_dir, config, on_event=show, stop=interrupts, **selection)
        shown.end(report)
    return report


def _check(bids_dir: Path, out_dir: Path, config: RunConfig, selection: dict[str, Any]) -> None:
    """Show whether the cluster can do a run; leave with an error if it cannot."""
    from fusionflow import dry_run
    from fusionflow.progress import display

    del selection["settle"]
    checked = dry_run.check(bids_dir, out_dir, config, **selection)
    display(config.method, bar=False).show(checked)
    checked.raise_if_failed()


def _conclude(report: RunReport, out_dir: Path) -> None:
    """Say how it ended and where things are, and leave with the exit code."""
    done = len(report.fused) + len(report.unchanged)
    counts = report.counts
    line = (
        f"{counts['fused']} fused, {counts['unchanged']} unchanged, {counts['failed']} failed, "
        f"{counts['skipped']} without a PET/MRI pair"
    )
    if counts["quarantined"]:
        line += f", {counts['quarantined']} in quarantine (--retry-failed tries them again)"
    if counts["waiting"]:
        line += f", {counts['waiting']} left until their files settle"
    click.echo(line)
    if report.state == "interrupted":
        click.echo("Interrupted: what was in flight is finished. Run it again to go on")
    if report.removed:
        click.echo(
            f"{len(report.removed)} are no longer in the input and were kept "
            "(`fusionflow prune --removed` removes them)"
        )
    flagged = [record.label for record in report.fused if record.is_flagged]
    if flagged:
        some = ", ".join(flagged[:5]) + (", ..." if len(flagged) > 5 else "")
        click.secho(f"{len(flagged)} to LOOK AT, for their alignment is in doubt: {some}", fg="red")
    if report.left_out:
        click.echo(f"{len(report.left_out)} fused before are not in the summary (see above)")
    if done:
        click.echo(f"Fused volumes   {out_dir}/sub-*/**/fused/*_fused.nii.gz")
        click.echo(f"Pictures        {out_dir}/sub-*/**/fused/*_fused.png")
    if done or report.summary is not None:
        click.echo(f"Arrays          fusionflow.open_cohort({str(out_dir)!r})")
    if report.summary is not None:
        click.echo(f"Summary         {out_dir}/group_metrics.tsv, group_scans.tsv, group.zarr")
        click.echo(f"Report          {out_dir}/group.html (`fusionflow report` adds a page a scan)")
    if report.exit_code:
        sys.exit(report.exit_code)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="demo")
@click.option("--n-workers", type=click.IntRange(1), help="Worker processes (default: the cores).")
@VERBOSE
def demo(folder: Path, n_workers: int | None, verbose: int) -> None:
    """Make a small phantom PET/MRI cohort in FOLDER and fuse it.

    Writes FOLDER/bids (4 scans of 3 subjects, with lesions that only one of the two images
    shows) and FOLDER/fused.
    """
    log(verbose)
    from fusionflow.cluster_options import ClusterOptions
    from fusionflow.config import RunConfig
    from fusionflow.phantom import write_cohort

    click.echo(f"Writing a phantom cohort to {folder / 'bids'}")
    try:
        write_cohort(folder / "bids")
    except OSError as error:
        raise StoreError(
            f"Cannot write {folder / 'bids'}: {error.strerror or error}",
            "Check space and permissions",
        ) from error
    config = RunConfig(cluster=ClusterOptions(n_workers=n_workers))
    report = _run(folder / "bids", folder / "fused", config)
    if report.summary is not None:
        from fusionflow.progress import print_summary

        print_summary(report.summary)
    _conclude(report, folder / "fused")


for _command in (
    cli_ledger.status,
    cli_ledger.history,
    cli_ledger.prune,
    cli_ledger.watch,
    cli_plan.plan,
    cli_report.report,
    cli_submit.submit,
    cli_dicom.dicom,
    cli_tools.image,
    cli_tools.benchmark,
    cli_tools.weights,
    cli_train.train,
    cli_completion.completion,
):
    main.add_command(_command)
