"""Options that several commands of a run share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from fusionflow import cli_tools
from fusionflow.cli_completion import (
    CLUSTER,
    METHOD,
    OPEN_LIST,
    SOURCE,
    complete_labels,
    complete_level,
    further_labels,
)
from fusionflow.errors import ConfigurationError

if TYPE_CHECKING:
    from fusionflow.config import RunConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
EXISTING = click.Path(path_type=Path, exists=True)
VERBOSE = click.option(
    "-v", "--verbose", count=True, help="Say more, with the traceback of a bug; -vv of any error."
)
LEVEL = click.argument(
    "level",
    type=click.Choice(["participant", "group"]),
    required=False,
    shell_complete=complete_level,
)
JSON_LOGS = click.option(
    "--json-logs",
    is_flag=True,
    help="Say everything on the standard error stream as a JSON object a line, for machines: time, "
    "level, event (planned, skipped, started, preflight, staffed, begun, fused, failed, again, "
    "put_off, quarantined, unchanged, waiting, stopping, left_out, ended, looked, log, error), "
    "label, and what else there is.",
)


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: ``90``, ``30s``, ``15m``, ``2h``."""

    name = "duration"

    def convert(
        self,
        value: Any,  # noqa: ANN401
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return seconds."""
        from dask.utils import parse_timedelta

        try:
            seconds = float(parse_timedelta(value))
        except (LookupError, ValueError, TypeError, OverflowError):
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is no time; write 90, 30s, 15m or 2h", param, ctx)
        return seconds


class BidsAppCommand(click.Command):
    """Takes lists of labels as BIDS Apps do: ``--participant-label 01 02``, after the folders."""

    _LISTS = ("--participant-label", "--session-label")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give each label of a list an option of its own."""
        takes: dict[str, int] = {}
        folders, words = 0, set[str]()
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                nothing = param.is_flag or param.count
                takes |= dict.fromkeys(param.opts, 0 if nothing else param.nargs)
            elif param.required:
                folders += 1
            elif isinstance(param.type, click.Choice):
                words |= set(param.type.choices)
        spread: list[str] = []
        option, values = "", 0
        for arg in args:
            if values:
                values -= 1
            elif arg.startswith("-"):
                option, given, _ = arg.partition("=")
                values = 0 if given else takes.get(option, 0)
            elif option in self._LISTS and folders <= 0 and arg not in words:
                spread.append(option)
            else:
                ctx.meta.setdefault(SOURCE, arg)
                option, folders = "", folders - 1
            spread.append(arg)
        ctx.meta[OPEN_LIST] = option if option in self._LISTS and not values else None
        return super().parse_args(ctx, spread)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer options, and further labels where a list of them may go on."""
        return [*further_labels(ctx, incomplete), *super().shell_complete(ctx, incomplete)]


_RUN_OPTIONS = (
    click.option(
        "--participant-label",
        multiple=True,
        metavar="LABEL",
        shell_complete=complete_labels,
        help="Only these subjects.",
    ),
    click.option(
        "--session-label",
        multiple=True,
        metavar="LABEL",
        shell_complete=complete_labels,
        help="Only these sessions.",
    ),
    click.option("--method", type=METHOD, metavar="NAME", help="How to fuse; see --list-methods."),
    click.option(
        "--weights",
        metavar="WHICH",
        help="A trained model's file; of methods without training a file, `torchvision`, or "
        "random:SEED to try things out.",
    ),
    click.option(
        "--balance",
        type=click.FloatRange(0, 1),
        help="Of a learned rule: from 0, the PET, over both to 1, the MRI (default: 0.5).",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16", "int8"]),
        help="Arithmetic of the network (default: float32): bfloat16 on GPUs, and processors that "
        "have it; int8 on processors with VNNI, fastest there on slices of 150 pixels and more.",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="YAML file with any option; options given here win over it.",
    ),
    click.option(
        "--n-workers",
        type=click.IntRange(1),
        help="Worker processes, or GPUs (default: what cores and memory allow; all GPUs).",
    ),
    click.option("--mem-mb", type=click.IntRange(256), help="Memory for all workers together, MB."),
    click.option("--work-dir", type=FOLDER, help="Where workers may spill to disk."),
    click.option(
        "--bids-filter-file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help='JSON that says which images are wanted: {"pet": {"tracer": "FDG"}}.',
    ),
    click.option(
        "--derivatives",
        type=EXISTING_FOLDER,
        multiple=True,
        help="Derivatives with masks, or PET in T1w space. Can be repeated.",
    ),
    click.option(
        "--registration",
        type=click.Choice(["auto", "header", "rigid", "none"]),
        help="How the PET is brought onto the MRI (default: auto).",
    ),
    click.option(
        "--frames", metavar="WHICH", help="Of a dynamic PET: all, first5min, 40-60min, frame:3."
    ),
    click.option(
        "--pet-units",
        type=click.Choice(["stored", "suv", "suvr"]),
        help="What the PET is brought to before it is scaled (default: stored).",
    ),
    click.option(
        "--pet-window",
        type=(float, float),
        metavar="LOW HIGH",
        help="Scale the PET of every scan by these limits, so that scans compare.",
    ),
    click.option("--reference-region", metavar="NAME", help="Region whose mask SUVR divides by."),
    click.option(
        "--space",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="An image that all inputs are aligned with: results get its grid.",
    ),
    cli_tools.OFFLINE,
    click.option(
        "--cluster",
        type=CLUSTER,
        metavar="WHERE",
        help="Where the work runs: local (processes of this machine, the default), cuda (a worker "
        "for each of its GPUs), slurm, kubernetes; or a running Dask scheduler: tls://HOST:PORT, "
        "tcp://HOST:PORT, or the path of the JSON file that it wrote (--scheduler-file).",
    ),
    click.option(
        "--gpu",
        type=click.Choice(["auto", "required", "never"]),
        help="Whether networks run on workers that advertise a GPU (default: auto, if any does).",
    ),
    click.option(
        "--patience",
        type=Duration(),
        metavar="TIME",
        help="How long to wait for a worker that can do the work (default: 5m).",
    ),
    click.option(
        "--allow-plain-tcp",
        is_flag=True,
        help="Reach a scheduler on another machine without TLS: anybody on the network between "
        "can then read the images and run code on both sides.",
    ),
    click.option(
        "--time-limit",
        type=Duration(),
        metavar="TIME",
        help="How long a scan may be in flight before its workers are restarted (default: 2h).",
    ),
    click.option(
        "--performance-report",
        is_flag=True,
        help="Keep Dask's own report of what ran when and where, OUT_DIR/logs/*.performance.html.",
    ),
    VERBOSE,
)


_AGAIN_OPTIONS = (
    click.option("--retry-failed", is_flag=True, help="Try scans in quarantine again, too."),
    click.option("--force", is_flag=True, help="Make every scan again."),
    click.option(
        "--settle",
        type=Duration(),
        default="0",
        help="Leave out scans whose files changed less than this time ago: they may be on their "
        "way.",
    ),
)


def run_options(command: _Command) -> _Command:
    """Add the options of a run to a command."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


def again_options(command: _Command) -> _Command:
    """Add the options that say which scans a run makes again, or leaves for later."""
    for option in reversed(_AGAIN_OPTIONS):
        command = option(command)
    return command


def log(verbose: int, *, as_json: bool = False) -> None:
    """Show more of what happens, on the standard error stream."""
    from fusionflow.logs import set_up

    set_up(verbose, as_json=as_json)


def labels(value: tuple[str, ...]) -> list[str]:
    """Accept a repeated option as well as a list with commas or spaces."""
    return [label for item in value for label in item.replace(",", " ").split()]


def configured(options: dict[str, Any]) -> RunConfig:
    """Join the YAML file and the options of the command line."""
    from fusionflow.config import RunConfig, load_config, named_method, validated

    config = load_config(options["config"]) if options["config"] else RunConfig()
    content = config.model_dump()
    if options["method"]:
        content["method"] = named_method(options["method"]).model_dump()
    for option in ("weights", "precision"):
        if not options[option]:
            continue
        if content["method"]["backbone"] is None:
            raise ConfigurationError(
                f"Method {content['method']['name']} reads no network, so --{option} means nothing"
            )
        content["method"][option] = options[option]
    if options["balance"] is not None:
        if content["method"]["rule"] != "learned":
            raise ConfigurationError(
                f"Method {content['method']['name']} has no learned rule, so --balance means "
                "nothing"
            )
        content["method"]["balance"] = options["balance"]
    for option in ("registration", "frames", "pet_units", "pet_window", "space"):
        if options[option] is not None:
            content["conform"][option] = options[option]
    for option, name in (
        ("bids_filter_file", "bids_filter"),
        ("derivatives", "derivatives"),
        ("reference_region", "reference_region"),
    ):
        if options[option]:
            content["input"][name] = options[option]
    for option, name in (
        ("n_workers", "n_workers"),
        ("mem_mb", "memory_mb"),
        ("work_dir", "work_dir"),
        ("gpu", "gpu"),
        ("patience", "patience"),
        ("time_limit", "time_limit"),
        ("allow_plain_tcp", "allow_plain_tcp"),
        ("performance_report", "performance_report"),
    ):
        if options[option] not in (None, False):
            content["cluster"][name] = options[option]
    if options["cluster"]:
        content["cluster"] |= _cluster_of(options["cluster"])
    return validated(content, "options")


def _cluster_of(where: str) -> dict[str, Any]:
    """Return the options that one word for a cluster stands for."""
    from fusionflow.cluster_options import ClusterOptions

    nowhere = {"address": None, "scheduler_file": None}
    if where in get_args(ClusterOptions.model_fields["kind"].annotation):
        return {**nowhere, "kind": where}
    if "://" not in where and where.endswith(".json"):
        return {**nowhere, "scheduler_file": where}
    return {**nowhere, "address": where}
