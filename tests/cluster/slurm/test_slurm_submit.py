"""Runs that are jobs of SLURM themselves, scheduler and all."""

import re
import time

import pytest
from slurm_runs import CPU, GPU, LONG, assert_same, fusionflow, options, until, written

from fusionflow.history import read_last_run
from fusionflow.ledger import OutputPaths

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def submit(slurm, bids, tmp_path):
    """Submits a run, and returns the job's number and its log."""

    def submitted(out, *words, cluster=None):
        yaml = written(tmp_path, cluster or options(tmp_path, cpu={**CPU, "jobs": 2}))
        code, shown = fusionflow(
            tmp_path / "submit.log", "submit", bids, out, "--config", yaml, *words
        )
        assert code == 0, shown
        found = re.fullmatch(r"Submitted job (\d+); its log: (\S+)\n", shown)
        assert found is not None, shown
        return found[1], tmp_path / "logs" / f"fusionflow-{found[1]}.log"

    return submitted


def read(log):
    return log.read_text() if log.exists() else "no log"


def test_come_to_the_same_bits_as_on_one_machine(slurm, submit, expected, tmp_path):
    out = tmp_path / "an 'odd' $name"
    job, log = submit(out, "--participant-label", "01", "02", "03", "-v")
    assert slurm.await_end(job, LONG) == "COMPLETED", read(log)
    assert_same(out, expected("dwt-max"))
    assert list((tmp_path / "shared").iterdir()) == []
    assert "4 fused, 0 unchanged, 0 failed" in read(log)


def test_have_networks_on_gpu_tasks_alone(slurm, submit, expected, notes, tmp_path):
    cluster = options(tmp_path, cpu=CPU, gpu=GPU)
    job, log = submit(tmp_path / "out", "--method", "dwt-vgg19-l1", "--weights", "random:0",
                      cluster=cluster)  # fmt: skip
    assert slurm.await_end(job, LONG) == "COMPLETED", read(log)
    assert_same(tmp_path / "out", expected("dwt-vgg19-l1"))
    assert notes.workers("fuse") == {"gpu-0"}
    assert "cpu-0" in notes.workers("conform")


def test_end_with_the_exit_code_of_the_run(slurm, submit, bids, tmp_path):
    job, log = submit(tmp_path / "out", "--participant-label", "99")
    assert slurm.await_end(job, LONG) == "FAILED", read(log)
    assert slurm.field(job, "ExitCode") == "2:0", read(log)
    assert "99" in read(log)


def test_go_on_where_they_were_when_they_are_requeued(slurm, submit, expected, notes, tmp_path):
    notes.slow(4)
    out = tmp_path / "out"
    job, log = submit(out)
    until(lambda: list(out.glob("scans/*/current.json")), "a published scan")
    slurm.command("scontrol", "requeue", job)
    until(lambda: slurm.field(job, "Reason") == "BeginTime", "the requeued job")
    # SLURM holds a requeued job back for two minutes (its begin time): here it need not wait.
    slurm.command("scontrol", "update", f"JobId={job}", "StartTime=now")
    assert slurm.await_end(job, LONG) == "COMPLETED", read(log)
    assert_same(out, expected("dwt-max"))
    last = read_last_run(OutputPaths(out))
    assert last["counts"]["unchanged"] >= 1
    assert last["counts"]["fused"] + last["counts"]["unchanged"] == 4
    assert list(out.glob("scans/*/attempt.json")) == []
    assert list((tmp_path / "shared").iterdir()) == []


def test_end_in_time_when_they_are_told_to(slurm, submit, notes, tmp_path):
    notes.slow(60)
    out = tmp_path / "out"
    job, log = submit(out)
    until(lambda: notes.workers("fuse"), "a scan on its way")
    slurm.command("scancel", "--batch", "--signal=TERM", job)  # as before the walltime
    assert slurm.await_end(job, LONG) == "FAILED", read(log)
    assert slurm.field(job, "ExitCode") == "130:0", read(log)
    assert "Interrupted: what was published stays" in read(log)
    assert list(out.glob("scans/*/attempt.json")) == []
    assert not OutputPaths(out).run_lock.exists()
    assert list((tmp_path / "shared").iterdir()) == []


def test_wait_for_each_other(slurm, submit, tmp_path):
    out = tmp_path / "out"
    first, _ = submit(out, "participant")
    second, log = submit(out, "group", "--dependency", first)
    assert slurm.field(second, "Dependency").startswith(f"afterany:{first}")
    assert slurm.await_end(second, LONG) == "COMPLETED", read(log)
    assert slurm.field(first, "JobState") == "COMPLETED"
    assert (out / "group_metrics.tsv").exists()


def test_begin_again_by_themselves(slurm, submit, tmp_path):
    out = tmp_path / "out"
    first, log = submit(out, "--every", "1m", "--job-name", "fusionflow")
    assert slurm.await_end(first, LONG) == "COMPLETED", read(log)
    (second,) = slurm.jobs(name="fusionflow")
    assert second != first
    until(lambda: slurm.field(second, "JobState") == "RUNNING", "the second job", 120)
    again = until(lambda: set(slurm.jobs(name="fusionflow")) - {second}, "the third job", 60)
    slurm.command("scancel", *again)
    assert slurm.await_end(second, LONG) == "COMPLETED"
    assert "4 fused, 0 unchanged" in read(log)
    assert "0 fused, 4 unchanged" in read(log.with_name(f"fusionflow-{second}.log"))
    time.sleep(1)
    assert slurm.jobs() == []


def test_are_refused_in_the_words_of_slurm(slurm, bids, tmp_path):
    yaml = written(tmp_path, options(tmp_path, cpu={**CPU, "partition": "nope"}))
    words = ("submit", bids, tmp_path / "out", "--config", yaml)
    code, shown = fusionflow(tmp_path / "log", *words)
    assert code == 4, shown
    assert "sbatch refused: sbatch: error: " in shown
    assert "Invalid partition" in shown or "invalid partition" in shown
