"""A run that is asked to end: what is in flight is finished, and nothing more begins."""

import json

import pytest
from runs import LABELS, config, leftovers

import fusionflow as ff
from fusionflow.events import EXIT_INTERRUPTED, Begun, Fused, Stopping
from fusionflow.history import read_runs
from fusionflow.ledger import OutputPaths, read_attempt


def one_at_a_time():
    options = config("average", weights=None)
    return options.model_copy(update={"cluster": options.cluster.model_copy(update={"window": 1})})


@pytest.fixture
def stopped(phantom_bids, client, tmp_path):
    """A run that is asked to end as soon as its second scan is in flight."""
    events = []
    report = ff.run(
        phantom_bids,
        tmp_path / "out",
        one_at_a_time(),
        client=client,
        on_event=events.append,
        stop=lambda: sum(isinstance(event, Begun) for event in events) == 2,
    )
    return tmp_path / "out", report, events


class TestARunThatIsAskedToEnd:
    def test_publishes_what_is_in_flight_and_begins_nothing_more(self, stopped):
        out, report, events = stopped
        begun = [event.label for event in events if isinstance(event, Begun)]
        assert len(begun) == 2
        assert report.fused.labels == begun
        assert list(ff.open_cohort(out).labels) == sorted(begun)
        assert leftovers(out) == []

    def test_says_once_how_many_are_in_flight(self, stopped):
        events = [event for event in stopped[2] if isinstance(event, Begun | Stopping | Fused)]
        assert events[3] == Stopping(in_flight=1)
        assert sum(isinstance(event, Stopping) for event in events) == 1

    def test_says_everywhere_that_it_was_interrupted(self, stopped):
        out, report, _ = stopped
        assert report.state == "interrupted"
        assert report.exit_code == EXIT_INTERRUPTED
        last = json.loads((out / "logs/last_run.json").read_text())
        assert last["state"] == "interrupted"
        assert last["counts"]["fused"] == 2
        (run,) = read_runs(OutputPaths(out))
        assert run.end["state"] == "interrupted"

    def test_summarises_what_there_is(self, stopped):
        out, report, _ = stopped
        assert report.summary is not None
        rows = (out / "group_scans.tsv").read_text().splitlines()[1:]
        assert len(rows) == 2

    def test_leaves_the_rest_as_if_it_had_never_been_looked_at(self, stopped, phantom_bids, client):
        out, report, _ = stopped
        rest = sorted(set(LABELS) - set(report.fused.labels))
        assert [read_attempt(OutputPaths(out), label) for label in rest] == [None, None]
        again = ff.run(phantom_bids, out, one_at_a_time(), client=client)
        assert sorted(again.fused.labels) == rest
        assert again.state == "done"
        assert again.exit_code == 0


def test_one_that_is_asked_before_it_begins_starts_no_cluster(phantom_bids, tmp_path):
    events = []
    report = ff.run(
        phantom_bids,
        tmp_path,
        one_at_a_time(),
        on_event=events.append,
        stop=lambda: True,
    )
    assert report.state == "interrupted"
    assert not report.fused
    assert [type(event).__name__ for event in events] == ["Planned", "Stopping"]
