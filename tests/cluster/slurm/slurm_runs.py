"""Runs on SLURM: how, what came of them, and what their tasks noted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from runs import config

import fusionflow as ff
from fusionflow.config import RunConfig

#: Seconds for a run, or a job, that has to load torch on a busy machine.
LONG = 240.0
CPU = {"cores": 1, "memory": "1500MB", "walltime": "00:20:00"}
#: dask-cuda does not start without NVIDIA's driver: a plain worker that advertises a GPU instead.
GPU = {**CPU, "gpus": 1, "partition": "gpu", "worker_command": "distributed.cli.dask_worker"}


def options(folder: Path, *, look_every: float = 2, patience: float = 120, **pools) -> dict:
    """Return a cluster of jobs, as YAML has it; by default of two jobs of one core."""
    return {
        "kind": "slurm",
        "patience": patience,
        "slurm": {
            "pools": pools or {"cpu": {**CPU, "jobs": 2}},
            "interface": "lo",
            "shared_directory": str(folder / "shared"),
            "log_directory": str(folder / "logs"),
            "look_every": look_every,
        },
    }


def how(cluster: dict, method: str = "dwt-max") -> RunConfig:
    """Return a run on a cluster."""
    content = config(method).model_dump()
    return RunConfig.model_validate({**content, "cluster": cluster})


def written(folder: Path, cluster: dict, method: str = "dwt-max") -> Path:
    """Write a run on a cluster as a YAML file, and return its path."""
    path = folder / "run.yaml"
    content = how(cluster, method).model_dump(mode="json", include={"method", "conform"})
    path.write_text(yaml.safe_dump({**content, "cluster": cluster}))
    return path


def arrays(out: Path) -> dict[str, np.ndarray]:
    """Return every fused volume."""
    cohort = ff.open_cohort(out)
    return {label: cohort.scan(label).fused.values for label in cohort}


def assert_same(out: Path, expected: dict[str, np.ndarray]) -> None:
    """Make sure that all is there, to the bit."""
    found = arrays(out)
    assert found.keys() == expected.keys()
    for label, fused in found.items():
        np.testing.assert_array_equal(fused, expected[label])


def until(done, what: str, seconds: float = LONG):
    """Wait until something is so, and return it."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.2)
    return found


class Notes:
    """What tasks wrote down.

    Parameters
    ----------
    folder : Path
        Where they do.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def slow(self, seconds: float) -> None:
        """Have every fuse task take longer."""
        (self.folder / "sleep").write_text(str(seconds))

    def workers(self, stage: str) -> set[str]:
        """Return the workers that ran tasks of a stage."""
        return {path.name.partition("-")[2] for path in self.folder.glob(f"{stage}-*")}


class Command:
    """``fusionflow`` as a process of its own.

    Parameters
    ----------
    log : Path
        Where its output goes.
    *words
        What comes after ``fusionflow``.
    """

    def __init__(self, log: Path, *words: object) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fusionflow", *map(str, words)],
                stdout=stream,
                stderr=stream,
                env=os.environ,
                # As from a terminal, even where the tests run in a script's background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = LONG) -> int:
        """Return the exit code once it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        raise AssertionError(f"not ended within {seconds} s:\n{self.output}")


def fusionflow(log: Path, *words: object) -> tuple[int, str]:
    """Run a command to its end, and return exit code and output."""
    command = Command(log, *words)
    return command.end(), command.output
