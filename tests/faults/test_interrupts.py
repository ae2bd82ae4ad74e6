"""Ctrl-C once: what is in flight is finished. Twice: it stops at once. On real commands."""

import json
import signal
import time

import pytest
from injection import Order
from interrupting import interrupt_twice
from runs import LABELS, leftovers
from scene import DWT_MAX, Command, assert_recovered, dwt_max, run

import fusionflow as ff
from fusionflow.events import EXIT_DONE, EXIT_INTERRUPTED
from fusionflow.ledger import OutputPaths, read_attempt

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]

#: The first one: with room for one scan, the others have not begun when it is on its way.
VICTIM = LABELS[0]


@pytest.fixture
def one_at_a_time(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("cluster: {window: 1}\n")
    return ("--config", path)


@pytest.fixture
def interrupted(bids, book, cluster, one_at_a_time, tmp_path):
    """Interrupt a run while its first scan is on a worker, in some way; return the command."""

    def interrupted(order, way):
        book.write(order)
        command = Command(
            tmp_path / "log", "run", bids, tmp_path / "out", *DWT_MAX, *one_at_a_time,
            "--cluster", cluster.scheduler.address,
        )  # fmt: skip
        until = time.monotonic() + 60
        while not book.strikes:
            assert time.monotonic() < until, command.output
            time.sleep(0.05)
        way(command)
        assert command.end(60) == EXIT_INTERRUPTED, command.output
        assert "Traceback" not in command.output
        assert leftovers(tmp_path / "out") == []
        assert not (tmp_path / "out/run.lock").exists()
        last = json.loads((tmp_path / "out/logs/last_run.json").read_text())
        assert last["state"] == "interrupted"
        book.clear()
        return command, last

    return interrupted


def once(command):
    command.send(signal.SIGINT)


def test_once_finishes_what_is_in_flight(interrupted, bids, cluster, undisturbed, tmp_path):
    slow = Order("command", "fuse", VICTIM, slab=0, arguments={"words": ["sleep", "3"]})
    command, last = interrupted(slow, once)
    assert "Finishing 1 scan that is in flight; Ctrl-C again stops at once" in command.output
    assert "Interrupted: what was in flight is finished" in command.output
    assert last["fused"] == [VICTIM]
    assert list(ff.open_cohort(tmp_path / "out").labels) == [VICTIM]
    assert (tmp_path / "out/group_scans.tsv").exists()
    for label in LABELS[1:]:
        assert read_attempt(OutputPaths(tmp_path / "out"), label) is None
    told = run(bids, tmp_path / "out", dwt_max(), client=cluster)
    assert told.report.unchanged == [VICTIM]
    assert_recovered(tmp_path / "out", undisturbed(), bids=bids, how=dwt_max())


def twice(command):
    interrupt_twice(command.send, lambda: command.process.is_alive())


def term(command):
    command.send(signal.SIGTERM)


@pytest.mark.parametrize("way", [twice, term])
def test_at_once_undoes_what_is_in_flight(interrupted, bids, cluster, tmp_path, way):
    slow = Order("command", "fuse", VICTIM, slab=0, arguments={"words": ["sleep", "20"]})
    began = time.monotonic()
    command, last = interrupted(slow, way)
    assert "Interrupted: what was published stays, the rest was undone." in command.output
    assert last["fused"] == []
    assert time.monotonic() - began < 60
    assert read_attempt(OutputPaths(tmp_path / "out"), VICTIM) is None


def test_what_meets_trouble_then_is_left_to_the_next_run(
    interrupted, book, bids, cluster, tmp_path
):
    """A task raised something unexpected: at other times it would be tried once more."""

    def once_then_trouble(command):
        once(command)
        until = time.monotonic() + 30
        while "Finishing" not in command.output:
            assert time.monotonic() < until, command.output
            time.sleep(0.05)

    words = ["sh", "-c", "sleep 4; false"]
    order = Order("command", "fuse", VICTIM, slab=0, arguments={"words": words})
    command, last = interrupted(order, once_then_trouble)
    assert f"later  {VICTIM}" in command.output
    assert (last["fused"], last["failed"]) == ([], [])
    assert read_attempt(OutputPaths(tmp_path / "out"), VICTIM) is None
    told = run(bids, tmp_path / "out", dwt_max(), client=cluster)
    assert sorted(told.report.fused.labels) == LABELS
    assert told.report.exit_code == EXIT_DONE
