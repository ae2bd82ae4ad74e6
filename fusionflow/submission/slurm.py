"""A run as one job of SLURM: a script that starts scheduler, workers and the run itself."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dask.utils import format_bytes

from fusionflow import __version__
from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.local import scheduler_settings
from fusionflow.clusters.slurm_commands import submit as sbatch
from fusionflow.clusters.slurm_shapes import Shape, exports, shapes_of, worker_exports
from fusionflow.clusters.slurm_site import (
    interface_of,
    log_folder,
    log_path,
    python_of,
    require_jobqueue,
    shared_folder,
    shared_path,
)
from fusionflow.config import RunConfig
from fusionflow.errors import ConfigurationError
from fusionflow.submission.configuration import config_inside, weights_file

#: Seconds before the walltime at which the run is told to end, or the part of it that they are.
_NOTICE, _NOTICE_SHARE = 120, 4
#: What ends a file inside the script.
_END = "FUSIONFLOW_END_OF_FILE"
#: Seconds that a worker waits for the scheduler.
_DEATH_TIMEOUT = 300
_DEPENDENCY = re.compile(r"[A-Za-z0-9:,?_+]+")
_BEGIN = re.compile(r"[A-Za-z0-9:+/.-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Batch:
    """A run that is to be a job.

    Attributes
    ----------
    bids_dir, out_dir : Path
        As ``fusionflow run`` takes them.
    arguments : tuple of str
        What else it is told: that for which there is no place in `config`.
    config : RunConfig
        What these and the YAML file mean together.
    name : str
        The job's.
    dependency : str or None
        What it waits for, as ``sbatch --dependency`` takes it; a number stands for
        ``afterany:NUMBER``.
    begin : str or None
        When it may begin, as ``sbatch --begin`` takes it.
    every : float or None
        Seconds after which it is to begin again, and again.
    """

    bids_dir: Path
    out_dir: Path
    arguments: tuple[str, ...]
    config: RunConfig
    name: str = "fusionflow"
    dependency: str | None = None
    begin: str | None = None
    every: float | None = None

    def __post_init__(self) -> None:
        """Refuse what would be another line or option of the script."""
        for option, value, allowed, example in (
            ("--job-name", self.name, _NAME, "fusionflow-study1"),
            ("--dependency", self.dependency, _DEPENDENCY, "afterok:123"),
            ("--begin", self.begin, _BEGIN, "now+1hour"),
        ):
            if value is not None and allowed.fullmatch(value) is None:
                raise ConfigurationError(f"{option} {value!r} is nothing that sbatch takes",
                                         f"Write it as {example}")  # fmt: skip
        if self.every is not None and self.every < 60:
            raise ConfigurationError(
                "--every is the time from one job's begin to the next one's, 1m at least"
            )

    @property
    def log(self) -> str:
        """Where the job writes; ``%j`` stands for its number."""
        return f"{log_path(self.config.cluster.slurm)}/{self.name}-%j.log"


def submit(batch: Batch) -> str:
    """Give a run to SLURM, and return the job's number.

    Raises
    ------
    ClusterError
        If SLURM is not there, or refuses.
    """
    text = script(batch)
    shared_folder(batch.config.cluster.slurm)
    log_folder(batch.config.cluster.slurm)
    return sbatch(text)


def script(batch: Batch) -> str:
    """Return a run as a script for ``sbatch``.

    Raises
    ------
    ConfigurationError
        If the options leave out how large a job is.
    MissingExtraError
        If dask-jobqueue is not there.
    """
    require_jobqueue()
    options = batch.config.cluster
    shapes = list(shapes_of(options, batch.config.method.threads).values())
    parts = [
        "#!/bin/bash",
        f"# fusionflow run, with a Dask cluster of its own, as one job of SLURM.\n"
        f"# Written by `fusionflow submit` (fusionflow {__version__}).",
        *_directives(batch, shapes),
        _MEANINGS,
        *_section("What the job needs first", shapes[0].prologue),  # often not fit for `set -u`
        "set -euo pipefail",
        *_section("The same again, until: scancel --name=" + batch.name, _again(batch)),
        _folder(options),
        "\n".join(["# The options of the run.", *_file("run.yaml", _configuration(batch.config))]),
        _SIGNALS,
        _scheduler(options),
        *(_workers(shape, number, len(shapes), options) for number, shape in enumerate(shapes)),
        _run(batch),
    ]
    return "\n\n".join(parts) + "\n"


def scrontab(schedule: str, words: Sequence[str]) -> str:
    """Return lines for ``scrontab -e`` that submit a run at the times of a crontab.

    Parameters
    ----------
    schedule : str
        Five fields, such as ``0 2 * * *``.
    words : sequence of str
        The arguments of ``fusionflow submit``.

    Raises
    ------
    ConfigurationError
        If the schedule is not five fields.
    """
    fields = schedule.split()
    if len(fields) != 5 or any(not re.fullmatch(r"[A-Za-z0-9*/,-]+", field) for field in fields):
        raise ConfigurationError(
            f"--schedule {schedule!r} is no time of a crontab",
            "Write five fields: minute, hour, day, month, day of the week: '0 2 * * *'",
        )
    command = shlex.join([sys.executable, "-m", "fusionflow", "submit", *words])
    if "\n" in command:
        raise ConfigurationError("A line of scrontab cannot hold a path with a line break")
    # In a crontab a % that stands alone begins the input of the command.
    command = command.replace("%", "\\%")
    return f"#SCRON --job-name=fusionflow-submit --time=00:10:00\n{' '.join(fields)} {command}\n"


_MEANINGS = """\
# The job's exit code is that of the run:
#   0    done
#   2    wrong options, or nothing that could be meant by them; the log says which
#   3    done, but some scans failed or are in quarantine: `fusionflow status` says which and why
#   4    it could not run, or not go on; the log says why
#   5    another run writes the output folder; this one did nothing
#   130  told to end before it was done (walltime, scancel): submit it again and it goes on\
"""

_SIGNALS = """\
# Before the walltime SLURM tells this script, which tells the run: what is published stays.
run= signals=0
on_signal() {
  signals=$((signals + 1))
  if [ -z "$run" ]; then exit 130; fi
  kill -TERM "$run" 2>/dev/null || true
}
trap on_signal TERM USR1\
"""


def _directives(batch: Batch, shapes: Sequence[Shape]) -> list[str]:
    """Return the options of sbatch: of the job, and of each pool a component of its own."""
    common = [
        f"--job-name={batch.name}",
        f"--output={batch.log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{_notice(shapes)}",
    ]
    if batch.dependency is not None:
        kind = "afterany:" if batch.dependency.isdecimal() else ""
        common.append(f"--dependency={kind}{batch.dependency}")
    if batch.begin is not None:
        common.append(f"--begin={batch.begin}")
    blocks = []
    for number, shape in enumerate(shapes):
        options = [*(common if number == 0 else ()), *_component(shape)]
        blocks.append("\n".join(f"#SBATCH {option}" for option in options))
    return ["\n#SBATCH hetjob\n".join(blocks)]


def _notice(shapes: Sequence[Shape]) -> int:
    """Return how many seconds before the walltime the run is told to end."""
    limits = [limit for shape in shapes if (limit := shape.seconds) is not None]
    return min([_NOTICE, *(limit // _NOTICE_SHARE for limit in limits)])


def _component(shape: Shape) -> list[str]:
    """Return what sbatch is told of a pool: a task is what is a job of its own elsewhere."""
    pool = shape.pool
    room = (
        [f"--nodes={pool.jobs}", "--ntasks-per-node=1"] if pool.gpus else [f"--ntasks={pool.jobs}"]
    )
    named = [
        f"--{option}={value}"
        for option, value in (
            ("partition", pool.partition),
            ("account", pool.account),
            ("time", pool.walltime),
        )
        if value is not None
    ]
    return [*room, *_share(shape), *named, *shape.directives]


def _share(shape: Shape) -> list[str]:
    """Return what SLURM is to give to each task of a pool, as sbatch and srun both take it."""
    memory = math.ceil(shape.memory / shape.cores / 2**20)
    return [f"--cpus-per-task={shape.cores}", f"--mem-per-cpu={memory}M"]


def _configuration(config: RunConfig) -> list[str]:
    """Return the lines of the run's configuration."""
    options, method = config.cluster, config.method
    path = weights_file(method.weights)
    if path is not None:
        method = method.model_copy(update={"weights": str(path.absolute())})
    # Workers with GPUs and without may come in any order.
    gpu = "required" if options.needs_gpu else options.gpu
    return config_inside(config.model_copy(update={"method": method}), gpu=gpu).splitlines()


def _file(name: str, lines: Sequence[str]) -> list[str]:
    """Return lines that write a file, as it is, into the job's folder.

    Raises
    ------
    ConfigurationError
        If a line would end it.
    """
    if _END in lines:
        raise ConfigurationError(
            f"A line {_END} ends a file inside the job's script", "Write the line otherwise"
        )
    return [f"cat > \"$private/{name}\" <<'{_END}'", *lines, _END]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["\n".join([f"# {title}.", *lines])] if lines else []


def _again(batch: Batch) -> list[str]:
    """Return lines that submit the script once more, for later."""
    if batch.every is None:
        return []
    return [
        'if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then  # not when SLURM starts it again',
        f'  sbatch --begin=now+{batch.every:.0f} --dependency=singleton "$0"',
        "fi",
    ]


def _folder(options: ClusterOptions) -> str:
    """Return lines that make a folder for scheduler file and certificates."""
    python = python_of(options.slurm)
    shared = shlex.quote(str(shared_path(options.slurm)))
    lines = [
        "# A folder that every node sees, and no other user: where the scheduler is, certificates.",
        f"private=$(mktemp -d {shared}/job-XXXXXXXX)",
        "clean_up() {",
        "  trap - EXIT",
        "  kill $(jobs -p) 2>/dev/null || true",
        '  rm -rf "$private"',
        "}",
        "trap clean_up EXIT",
    ]
    if options.tls is None:
        lines.append(f'{python} -m fusionflow.clusters.slurm_certificates "$private"')
        files = {what: f'"$private/{name}.pem"' for what, name in
                 (("ca_file", "ca"), ("cert", "cert"), ("key", "key"))}  # fmt: skip
    else:
        files = {what: shlex.quote(str(path)) for what, path in options.tls}
    lines.append(f"export DASK_DISTRIBUTED__COMM__TLS__CA_FILE={files['ca_file']}")
    for side in ("SCHEDULER", "WORKER", "CLIENT"):
        for what in ("cert", "key"):
            variable = f"DASK_DISTRIBUTED__COMM__TLS__{side}__{what.upper()}"
            lines.append(f"export {variable}={files[what]}")
    return "\n".join([*lines, "export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true"])


def _interface(options: ClusterOptions) -> str:
    interface = interface_of(options.slurm)
    return f" --interface {interface}" if interface else ""


def _scheduler(options: ClusterOptions) -> str:
    return "\n".join(
        [
            "# The scheduler, with TLS; its dashboard asks for no password, and stays on the node.",
            *exports(scheduler_settings(options)),
            f"{python_of(options.slurm)} -m distributed.cli.dask_scheduler --protocol tls --port 0"
            f"{_interface(options)} \\",
            '  --dashboard-address 127.0.0.1:0 --scheduler-file "$private/scheduler.json" &',
        ]
    )


def _workers(shape: Shape, number: int, pools: int, options: ClusterOptions) -> str:
    """Return lines that start a pool's workers, one task each."""
    memory = format_bytes(shape.worker_memory).replace(" ", "")
    words = [
        f"exec {python_of(options.slurm)} -m {shape.command}",
        f'--scheduler-file "$1" --name "{shape.name}-$SLURM_PROCID"',
        f"--nthreads {shape.threads} --memory-limit {memory} --death-timeout {_DEATH_TIMEOUT}",
        *shape.arguments,
    ]
    if shape.command == "distributed.cli.dask_worker":
        words.insert(2, f"--nworkers {shape.workers} --nanny")
    group = f" --het-group={number}" if pools > 1 else ""
    gres = f" --gres=gpu:{shape.pool.gpus}" if shape.pool.gpus else ""
    lines = [*shape.prologue, *worker_exports(), " ".join(words) + _interface(options)]
    return "\n".join(
        [
            f"# Workers of pool {shape.name}.",
            *_file(f"{shape.name}.sh", lines),
            f"srun{group} --ntasks={shape.pool.jobs} {' '.join(_share(shape))}{gres} "
            "--kill-on-bad-exit=0 \\",
            f'  bash "$private/{shape.name}.sh" "$private/scheduler.json" &',
        ]
    )


def _run(batch: Batch) -> str:
    options = batch.config.cluster
    words = shlex.join([str(batch.bids_dir), str(batch.out_dir), *batch.arguments])
    return "\n".join(
        [
            "# The run. A signal ends the wait for it, not the run, hence the loop.",
            f"{python_of(options.slurm)} -m fusionflow run {words} \\",
            '  --config "$private/run.yaml" --cluster "$private/scheduler.json" &',
            "run=$!",
            "seen=-1",
            'while [ "$signals" -ne "$seen" ]; do',
            '  seen=$signals code=0; wait "$run" || code=$?',
            "done",
            'exit "$code"',
        ]
    )
