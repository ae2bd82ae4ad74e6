"""Runs on a SLURM whose commands take their time, as those of a busy site do."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from slurm_runs import CPU, Command, assert_same, fusionflow, options, until, written


@pytest.fixture
def slow(tmp_path, monkeypatch):
    """Let a command of SLURM begin by waiting, and say that it does."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def slowed(name, seconds):
        real, began = shutil.which(name), folder / f"{name}-began"
        script = folder / name
        script.write_text(f'#!/bin/sh\ntouch "{began}"\nsleep {seconds}\nexec {real} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return began

    return slowed


def test_end_while_somebody_looks(slurm, slow, bids, expected, tmp_path):
    """A look that is under way when the run ends sends no more jobs."""
    slow("squeue", 1.5)
    yaml = written(tmp_path, options(tmp_path, look_every=1))
    code, shown = fusionflow(tmp_path / "log", "run", bids, tmp_path / "out", "--config", yaml)
    assert code == 0, shown
    assert "did not end well" not in shown
    assert_same(tmp_path / "out", expected("dwt-max"))
    until(lambda: not slurm.jobs(), "the end of the jobs", 30)


def test_are_interrupted_while_jobs_are_sent(slurm, slow, bids, tmp_path):
    began = slow("sbatch", 4)
    yaml = written(tmp_path, options(tmp_path, cpu={**CPU, "jobs": 2}))
    command = Command(tmp_path / "log", "run", bids, tmp_path / "out", "--config", yaml)
    until(began.exists, "sbatch")
    command.process.send_signal(signal.SIGINT)
    assert command.end() == 130, command.output
    assert "Traceback" not in command.output
    until(lambda: not slurm.jobs(), "the end of the jobs", 30)


def test_ask_for_a_network_that_is_not_there(slurm, bids, tmp_path):
    cluster = options(tmp_path)
    cluster["slurm"]["interface"] = "nope9"
    yaml = written(tmp_path, cluster)
    code, shown = fusionflow(tmp_path / "log", "run", bids, tmp_path / "out", "--config", yaml)
    assert code == 4, shown
    assert "cluster.slurm.interface" in shown
    assert "Traceback" not in shown
