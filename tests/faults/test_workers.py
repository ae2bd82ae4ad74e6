"""Workers that are killed, frozen, out of memory; tasks that raise or hang."""

import pytest
from injection import Order
from runs import LABELS, config
from scene import assert_recovered, run

from fusionflow.config import ClusterOptions
from fusionflow.io import store
from fusionflow.ledger import OutputPaths, read_attempt

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

VICTIM = "sub-02_ses-baseline"


@pytest.mark.parametrize(
    ("stage", "when", "method"),
    [
        ("conform", "begin", "dwt-max"),
        ("conform", "end", "dwt-max"),
        ("decompose", "begin", "dwt-max"),
        ("fuse", "begin", "dwt-vgg19-l1"),
        ("reconstruct", "begin", "dwt-max"),
        ("write", "begin", "dwt-max"),
        ("write", "end", "dwt-max"),
        ("commit", "begin", "dwt-max"),
        ("commit", "end", "dwt-max"),
    ],
)
def test_a_worker_is_killed(
    stage, when, method, bids, cluster, book, undisturbed, table, tmp_path, monkeypatch
):
    """Dask runs the tasks again elsewhere: all is fused, nothing is tried a second time by us."""
    expected = undisturbed(method)
    if stage == "write":
        monkeypatch.setattr(store, "MOST_SHARD_BYTES", 1)  # a shard a slab
    book.write(Order("kill", stage, VICTIM, when=when))
    told = run(bids, tmp_path / "out", config(method), client=cluster)
    (strike,) = book.strikes
    assert strike["label"] == VICTIM
    assert sorted(record.label for record in told.report.fused) == LABELS
    assert {record.attempt for record in told.report.fused} == {1}
    finding = assert_recovered(tmp_path / "out", expected, bids=bids, how=config(method))
    seconds = told.times[VICTIM] - strike["time"]
    table.add(f"SIGKILL of a worker, stage {stage}", finding, [seconds])


class TestTasks:
    def test_one_that_raises_once_is_tried_again(
        self, bids, cluster, book, undisturbed, table, tmp_path
    ):
        expected = undisturbed()
        book.write(Order("raise", "fuse", VICTIM))
        told = run(bids, tmp_path / "out", config("dwt-max"), client=cluster)
        (strike,) = book.strikes
        tries = {record.label: record.attempt for record in told.report.fused}
        assert tries == {label: 1 + (label == VICTIM) for label in LABELS}
        finding = assert_recovered(tmp_path / "out", expected, bids=bids, how=config("dwt-max"))
        table.add("a task raises once", finding, [told.times[VICTIM] - strike["time"]])

    def test_one_that_always_raises_is_quarantined(
        self, bids, cluster, book, undisturbed, table, tmp_path
    ):
        expected, out = undisturbed(), tmp_path / "out"
        book.write(Order("raise", "fuse", VICTIM, times=99))
        told = run(bids, out, config("dwt-max"), client=cluster)
        strikes = book.strikes
        assert len(strikes) >= 2
        assert [(item.label, item.state, item.attempt) for item in told.report.failed] == [
            (VICTIM, "quarantined", 2)
        ]
        assert told.report.failed[0].reason == "Unexpected RuntimeError: injected by a test"
        finding = assert_recovered(out, expected, bids=bids, how=config("dwt-max"), failed=[VICTIM])
        seconds = told.times[VICTIM] - strikes[0]["time"]
        table.add("a task always raises (quarantined)", finding, [seconds])
        self.assert_quarantine_ends(bids, out, cluster, book, expected)

    def test_one_that_hangs_once_is_tried_again_alone(
        self, bids, cluster, book, undisturbed, table, tmp_path
    ):
        expected, how = undisturbed(), self.limited(12)
        book.write(Order("hang", "fuse", VICTIM))
        told = run(bids, tmp_path / "out", how, client=cluster)
        (strike,) = book.strikes
        tries = {record.label: record.attempt for record in told.report.fused}
        assert tries == {label: 1 + (label == VICTIM) for label in LABELS}
        finding = assert_recovered(tmp_path / "out", expected, bids=bids, how=how)
        seconds = told.times[VICTIM] - strike["time"]
        table.add("a task hangs once (time limit 12 s)", finding, [seconds])

    def test_one_that_always_hangs_is_quarantined(
        self, bids, cluster, book, undisturbed, table, tmp_path
    ):
        expected, how, out = undisturbed(), self.limited(12), tmp_path / "out"
        book.write(Order("hang", "fuse", VICTIM, times=99))
        told = run(bids, out, how, client=cluster)
        strikes = book.strikes
        assert len({strike["pid"] for strike in strikes}) >= 2
        assert [(item.label, item.state, item.kind) for item in told.report.failed] == [
            (VICTIM, "quarantined", "TimeLimit")
        ]
        assert "time limit of 12 s" in told.report.failed[0].reason
        finding = assert_recovered(out, expected, bids=bids, how=how, failed=[VICTIM])
        seconds = told.times[VICTIM] - strikes[0]["time"]
        table.add("a task always hangs (quarantined, time limit 12 s)", finding, [seconds])
        self.assert_quarantine_ends(bids, out, cluster, book, expected)

    def test_one_that_takes_all_memory_is_quarantined_for_that(
        self, bids, cluster, book, undisturbed, table, tmp_path
    ):
        """Twice on different workers, and twice with nothing beside it; the others are done."""
        expected, out = undisturbed(), tmp_path / "out"
        book.write(Order("take memory", "fuse", VICTIM, slab=0, times=99))
        told = run(bids, out, config("dwt-max"), client=cluster)
        strikes = book.strikes
        assert len({strike["pid"] for strike in strikes}) >= 2
        assert [(item.label, item.state, item.kind) for item in told.report.failed] == [
            (VICTIM, "quarantined", "OutOfMemory")
        ]
        assert "Out of memory" in told.report.failed[0].reason
        assert told.report.failed[0].attempt == 2
        finding = assert_recovered(out, expected, bids=bids, how=config("dwt-max"), failed=[VICTIM])
        seconds = told.times[VICTIM] - strikes[0]["time"]
        table.add("a task takes all memory (quarantined)", finding, [seconds])
        cluster.wait_for_workers(2, timeout=60)
        self.assert_quarantine_ends(bids, out, cluster, book, expected)

    @staticmethod
    def limited(seconds):
        how = config("dwt-max")
        return how.model_copy(update={"cluster": ClusterOptions(time_limit=seconds, shared=False)})

    @staticmethod
    def assert_quarantine_ends(bids, out, cluster, book, expected):
        """Left alone until somebody asks; then, with the fault gone, as if nothing had been."""
        book.clear()
        how = config("dwt-max")
        left = run(bids, out, how, client=cluster).report
        assert [attempt.label for attempt in left.quarantined] == [VICTIM]
        assert not left.fused
        again = run(bids, out, how, client=cluster, retry_failed=True).report
        assert [record.label for record in again.fused] == [VICTIM]
        assert read_attempt(OutputPaths(out), VICTIM) is None
        assert_recovered(out, expected, bids=bids, how=how)
