"""Nannies, schedulers and clients that are killed; workers that freeze; runs that are stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from injection import Order
from interrupting import interrupt_twice
from runs import LABELS
from scene import (
    DWT_MAX,
    SEED,
    Command,
    Dask,
    assert_no_orphans,
    assert_recovered,
    dwt_max,
    run,
)

import fusionflow as ff
from fusionflow.errors import ClusterError
from fusionflow.events import EXIT_DONE, EXIT_INTERRUPTED, EXIT_LOCKED, EXIT_NOTHING_RAN, Started

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]

VICTIM = "sub-02_ses-baseline"
#: How often a run is stopped by each signal.
TIMES = 4


@pytest.fixture
def dask_cli(book, tmp_path):
    """A scheduler and two workers from the command line; all are gone in the end."""
    cluster = Dask(tmp_path / "dask")
    yield cluster
    book.clear()
    cluster.stop()


def test_a_nanny_is_killed(bids, book, dask_cli, undisturbed, table, tmp_path):
    """Its worker goes with it; the other one does the work."""
    expected, how = undisturbed(), dwt_max(address=dask_cli.address)
    before = dask_cli.processes()
    book.write(Order("kill nanny", "fuse", VICTIM))
    told = run(bids, tmp_path / "out", how)
    (strike,) = book.strikes
    assert sorted(record.label for record in told.report.fused) == LABELS
    worker = [process for process in before if process.pid == strike["pid"]]
    assert len(worker) == 1
    finding = assert_recovered(tmp_path / "out", expected, bids=bids, how=how, gone=worker)
    assert len(dask_cli.workers()) == 1
    table.add("SIGKILL of a nanny", finding, [told.times[VICTIM] - strike["time"]])


def test_a_worker_freezes(bids, book, dask_cli, undisturbed, table, tmp_path):
    """The scheduler waits for as long as its ``worker-ttl`` says and has it restarted."""
    expected, how = undisturbed(), dwt_max(address=dask_cli.address)
    book.write(Order("freeze", "fuse", VICTIM))
    told = run(bids, tmp_path / "out", how)
    (strike,) = book.strikes
    assert sorted(record.label for record in told.report.fused) == LABELS
    frozen = [process for process in dask_cli.processes() if process.pid == strike["pid"]]
    finding = assert_recovered(tmp_path / "out", expected, bids=bids, how=how, gone=frozen)
    seconds = told.times[VICTIM] - strike["time"]
    table.add("a worker freezes (SIGSTOP, worker-ttl 10 s)", finding, [seconds])


def test_the_scheduler_is_killed(bids, book, dask_cli, undisturbed, table, tmp_path):
    """The run ends, and another one goes on with another scheduler."""
    expected, out, log = undisturbed(), tmp_path / "out", tmp_path / "log"
    book.write(Order("kill another", "commit", VICTIM, when="end",
                     arguments={"pid": dask_cli.scheduler.pid}))  # fmt: skip
    command = Command(log, "run", bids, out, *DWT_MAX, "--cluster", dask_cli.address)
    assert command.end(120) == EXIT_NOTHING_RAN
    (strike,) = book.strikes
    assert dask_cli.scheduler.wait(10) == -signal.SIGKILL
    assert "Error: The scheduler" in command.output
    assert "Traceback" not in command.output
    book.clear()
    with pytest.raises(ClusterError, match="No Dask scheduler answers"):
        run(bids, out, dwt_max(address="tcp://127.0.0.1:1"))
    other = Dask(tmp_path / "other")
    try:
        told = run(bids, out, dwt_max(address=other.address))
        assert VICTIM in told.times
        finding = assert_recovered(out, expected, bids=bids, how=dwt_max(address=other.address))
    finally:
        other.stop()
    table.add("SIGKILL of the scheduler, resumed", finding, [told.times[VICTIM] - strike["time"]])


def test_the_client_is_killed_with_a_cluster_of_its_own(
    bids, cluster, book, undisturbed, table, tmp_path
):
    """Its workers end with it, and another run goes on."""
    expected, out = undisturbed(), tmp_path / "out"
    lock = out / "run.lock"
    command = Command(tmp_path / "log", "run", bids, out, *DWT_MAX)
    while not lock.exists():
        assert command.process.is_alive(), command.output
        command.process.join(0.05)
    book.write(Order("kill another", "commit", VICTIM, arguments={"pid": command.pid}))
    workers = set()
    while command.process.is_alive():
        workers |= command.descendants()
        command.process.join(0.05)
    assert command.process.exitcode == -signal.SIGKILL
    (strike,) = book.strikes
    assert strike["pid"] in {process.pid for process in workers}
    assert lock.exists()
    told = run(bids, out, dwt_max(), client=cluster)
    assert VICTIM in told.times
    finding = assert_recovered(out, expected, bids=bids, how=dwt_max(), gone=workers)
    table.add("SIGKILL of the client, resumed", finding, [told.times[VICTIM] - strike["time"]])


@pytest.mark.parametrize("stage", ["conform", "commit"])
def test_the_client_is_killed_and_its_tasks_live_on(
    stage, bids, book, dask_cli, undisturbed, table, tmp_path
):
    """A cluster that others started finishes what it was at, while the next run is at work."""
    expected, out = undisturbed(), tmp_path / "out"
    book.write(
        Order("kill client and go on", stage, VICTIM,
              arguments={"lock": str(out / "run.lock"),
                         "attempt": str(out / "scans" / VICTIM / "attempt.json")})
    )  # fmt: skip
    command = Command(tmp_path / "log", "run", bids, out, *DWT_MAX, "--cluster", dask_cli.address)
    assert command.end(120) == -signal.SIGKILL
    (strike,) = book.strikes
    told = run(bids, out, dwt_max(address=dask_cli.address))
    assert VICTIM in told.times
    finding = assert_recovered(out, expected, bids=bids, how=dwt_max(address=dask_cli.address))
    seconds = told.times[VICTIM] - strike["time"]
    table.add("SIGKILL of the client, its tasks live on, resumed", finding, [seconds])


def test_two_runs_at_once(bids, cluster, undisturbed, table, tmp_path):
    """The second one is told by whom and since when, and the first never knows."""
    expected, out, second, began = undisturbed(), tmp_path / "out", [], time.time()

    def meanwhile(event):
        if isinstance(event, Started):
            holder = json.loads((out / "run.lock").read_text())
            program = Path(sys.executable).with_name("fusionflow")
            words = [program, "run", bids, out, *DWT_MAX]
            second.append(holder)
            second.append(
                subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            )

    report = ff.run(bids, out, dwt_max(), client=cluster, on_event=meanwhile)
    holder, ended = second
    assert ended.returncode == EXIT_LOCKED
    assert holder["pid"] == os.getpid()
    assert f"process {os.getpid()}, since {holder['since']}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(report.fused) == 4
    finding = assert_recovered(out, expected, bids=bids, how=dwt_max())
    table.add("two runs at once on one output", finding, [time.time() - began], runs=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_client_is_stopped_at_any_moment(number, bids, cluster, undisturbed, table, tmp_path):
    """What was published stays, the rest is undone, and the last run finishes what is left."""
    expected, out = undisturbed(), tmp_path / "out"
    rng = np.random.default_rng([SEED, number])
    words = ("run", bids, out, *DWT_MAX, "--n-workers", 1)
    assert Command(tmp_path / "first", "--version").end(60) == EXIT_DONE  # all is imported now
    began = time.monotonic()
    whole = Command(tmp_path / "whole", *words[:2], tmp_path / "whole-out", *words[3:])
    assert whole.end(120) == EXIT_DONE
    length = time.monotonic() - began
    codes, stopped = [], 0.0
    for turn, share in enumerate(np.sort(rng.uniform(0.05, 0.8, TIMES))):
        command = Command(tmp_path / f"log-{turn}", *words)
        command.process.join(share * length)
        if not command.process.is_alive():  # quicker than the one that was not disturbed
            codes.append(command.process.exitcode)
            continue
        workers = command.descendants()
        stopped = time.time()
        if number == signal.SIGINT:  # once would let it finish what is in flight
            interrupt_twice(command.send, command.process.is_alive)
        else:
            command.send(number)
        codes.append(command.end(60))
        assert_no_orphans(workers)
        assert "Traceback" not in command.output
        assert [path for path in out.rglob(".unfinished-*")] == []
        assert not (out / "run.lock").exists()
    assert codes.count(EXIT_INTERRUPTED) >= TIMES - 1
    assert set(codes) <= {EXIT_INTERRUPTED, EXIT_DONE}
    told = run(bids, out, dwt_max(), client=cluster)
    finding = assert_recovered(out, expected, bids=bids, how=dwt_max())
    table.add(f"{number.name} of the client at random moments, resumed", finding,
              [told.ended - stopped], runs=TIMES)  # fmt: skip
