"""Whole runs whose workers are jobs of a real SLURM."""

import re
import signal
import threading
import time

import pytest
from interrupting import interrupt_twice
from slurm_runs import (
    CPU,
    GPU,
    LONG,
    Command,
    assert_same,
    fusionflow,
    how,
    options,
    until,
    written,
)

import fusionflow as ff
from fusionflow.errors import ClusterError
from fusionflow.events import Fused
from fusionflow.ledger import OutputPaths


@pytest.fixture
def out(tmp_path):
    """The output folder; nothing else may be left in the shared one."""
    yield tmp_path / "out"
    shared = tmp_path / "shared"
    assert not shared.exists() or list(shared.iterdir()) == []


def attempts(out):
    """Return the scans in trouble."""
    return [path.parent.name for path in OutputPaths(out).root.glob("scans/*/attempt.json")]


def test_come_to_the_same_bits_as_on_one_machine(slurm, bids, expected, tmp_path, out):
    names = set()
    report = ff.run(
        bids, out, how(options(tmp_path)),
        on_event=lambda event: names.update(slurm.command("squeue", "-h", "-o", "%j").split()),
    )  # fmt: skip
    assert len(report.fused) == 4
    assert_same(out, expected("dwt-max"))
    assert names == {"fusionflow-cpu"}


def test_have_networks_on_gpu_jobs_alone(slurm, bids, expected, notes, tmp_path, out):
    pools = {"cpu": CPU, "gpu": GPU}
    report = ff.run(bids, out, how(options(tmp_path, **pools), "dwt-vgg19-l1"))
    assert len(report.fused) == 4
    assert_same(out, expected("dwt-vgg19-l1"))
    assert notes.workers("fuse") == {"gpu-1"}
    assert "cpu-1" in notes.workers("conform")


def test_get_another_job_for_one_that_is_cancelled(slurm, bids, expected, notes, tmp_path, out):
    notes.slow(3)
    cancelled = []

    def cancel(event):
        if isinstance(event, Fused) and not cancelled:
            cancelled.append(slurm.jobs("RUNNING")[0])
            slurm.command("scancel", cancelled[0])

    report = ff.run(bids, out, how(options(tmp_path)), on_event=cancel)
    assert len(report.fused) == 4
    assert not report.failed
    assert_same(out, expected("dwt-max"))
    assert attempts(out) == []
    assert len(cancelled) == 1
    assert notes.workers("fuse") == {"cpu-1", "cpu-2", "cpu-3"}


@pytest.mark.timeout(600)
def test_outlive_the_walltime_of_their_jobs(slurm, bids, expected, notes, tmp_path, out):
    notes.slow(8)  # each of 16 tasks, two at a time: more than two jobs have time for
    pool = {**CPU, "walltime": "00:01:00"}
    begun = time.monotonic()
    report = ff.run(bids, out, how(options(tmp_path, cpu=pool)))
    assert len(report.fused) == 4
    assert not report.failed
    assert attempts(out) == []
    assert time.monotonic() - begun > 96
    assert len(notes.workers("fuse")) >= 3
    assert_same(out, expected("dwt-max"))


def test_have_more_jobs_while_there_is_work(slurm, bids, expected, notes, tmp_path, out):
    notes.slow(2)
    pool = {**CPU, "jobs": 1, "jobs_most": 2}
    most = []
    report = ff.run(
        bids, out, how(options(tmp_path, cpu=pool)),
        on_event=lambda event: most.append(len(slurm.jobs())),
    )  # fmt: skip
    assert len(report.fused) == 4
    assert max(most) == 2
    assert_same(out, expected("dwt-max"))


def test_are_told_why_no_job_begins(slurm, bids, tmp_path, out):
    slurm.command("scontrol", "update", "nodename=cpu1", "state=drain", "reason=a test")
    try:
        yaml = written(tmp_path, options(tmp_path, patience=8))
        code, shown = fusionflow(tmp_path / "log", "run", bids, out, "--config", yaml)
    finally:
        slurm.command("scontrol", "update", "nodename=cpu1", "state=resume")
    assert code == 4, shown
    pending = r"cpu: .*PENDING \(.*(DRAINED|UnavailableNodes)"
    assert re.search(r"Waiting for SLURM \(8 s at most\): " + pending, shown)
    assert re.search(r"No worker came from SLURM within 8 s: " + pending, shown)
    assert "--patience" in shown
    assert slurm.jobs() == []


def test_go_on_when_the_node_is_back(slurm, bids, expected, tmp_path, out):
    slurm.command("scontrol", "update", "nodename=cpu1", "state=drain", "reason=a test")
    back = ("scontrol", "update", "nodename=cpu1", "state=resume")
    timer = threading.Timer(6, slurm.command, back)
    timer.start()
    try:
        report = ff.run(bids, out, how(options(tmp_path)))
    finally:
        timer.join()
    assert len(report.fused) == 4
    assert_same(out, expected("dwt-max"))


def test_stop_where_jobs_end_before_their_worker_comes(slurm, bids, tmp_path, out):
    pool = {**CPU, "prologue": ["echo 'no module named x' >&2", "exit 1"]}
    with pytest.raises(ClusterError, match="3 jobs of pool cpu ended before a worker") as refused:
        ff.run(bids, out, how(options(tmp_path, cpu=pool)))
    assert "no module named x" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said", "mend"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope", "`sinfo` lists"),
        ({"cores": 999}, "More processors requested than permitted", "Ask for fewer cores"),
        ({"directives": ["--gres=tpu:1"]}, "Invalid generic resource", "`sinfo -o '%P %G'`"),
    ],
)
def test_are_refused_in_the_words_of_slurm(slurm, bids, tmp_path, out, change, said, mend):
    yaml = written(tmp_path, options(tmp_path, cpu={**CPU, **change}))
    code, shown = fusionflow(tmp_path / "log", "run", bids, out, "--config", yaml)
    assert code == 4, shown
    assert "sbatch refused: sbatch: error: " in shown
    assert said in shown
    assert mend in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leave_no_job_when_they_are_interrupted(slurm, bids, notes, tmp_path, out, number):
    notes.slow(60)
    yaml = written(tmp_path, options(tmp_path))
    command = Command(tmp_path / "log", "run", bids, out, "--config", yaml)
    until(lambda: notes.workers("fuse"), "a scan on its way", LONG)
    assert len(slurm.jobs()) == 2
    if number == signal.SIGINT:  # once would let it finish what is in flight
        interrupt_twice(command.process.send_signal, lambda: command.process.poll() is None)
    else:
        command.process.send_signal(number)
    assert command.end() == 130, command.output
    until(lambda: not slurm.jobs(), "the end of the jobs", 30)
