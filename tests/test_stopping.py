"""A run that is asked to end: what is in flight is finished, and nothing more begins."""

import json
import signal
import threading

import pytest
from interrupting import interrupt_twice
from runs import LABELS, config, leftovers

import fusionflow as ff
from fusionflow.events import (
    EXIT_INTERRUPTED,
    Again,
    Begun,
    Failed,
    Fused,
    PutOff,
    Stopping,
)
from fusionflow.history import read_runs
from fusionflow.ledger import OutputPaths, read_attempt
from fusionflow.records import Attempt
from fusionflow.stopping import Interrupts


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


class TestSignals:
    """What they ask for, sent to this process."""

    @pytest.fixture
    def interrupts(self):
        interrupts = Interrupts()
        with interrupts.listening():
            yield interrupts

    def test_one_lets_what_is_in_flight_be_finished(self, interrupts):
        interrupts.see(Begun("sub-01", 40))
        assert not interrupts()
        signal.raise_signal(signal.SIGINT)
        assert interrupts()

    def test_a_second_one_stops_at_once(self, interrupts):
        interrupts.see(Begun("sub-01", 40))
        with pytest.raises(KeyboardInterrupt):
            interrupt_twice(signal.raise_signal, lambda: True)

    def test_an_echo_of_the_first_is_none(self, interrupts):
        interrupts.see(Begun("sub-01", 40))
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupts()

    @pytest.mark.parametrize(
        "end",
        [
            Failed(Attempt("sub-01", "failed", "why", "Kind")),
            Again("sub-01", "why", alone=False),
            PutOff("sub-01", "why"),
        ],
    )
    def test_one_while_nothing_is_in_flight_stops_at_once(self, interrupts, end):
        interrupts.see(Begun("sub-01", 40))
        interrupts.see(end)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def test_sigterm_stops_at_once_whatever_is_in_flight(self, interrupts):
        interrupts.see(Begun("sub-01", 40))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    def test_so_does_sighup_unless_it_is_ignored(self):
        before = signal.getsignal(signal.SIGHUP)
        try:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            with Interrupts().listening(), pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
            with Interrupts().listening():
                signal.raise_signal(signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_one_more_does_not_cut_off_the_tidying_up(self, interrupts):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)

    def test_are_handled_as_before_afterwards(self):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with Interrupts().listening():
            assert signal.getsignal(signal.SIGINT) is not before[0]
        after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert after == before

    def test_are_left_alone_by_other_threads(self):
        before = signal.getsignal(signal.SIGINT)
        seen = []

        def listen():
            with Interrupts().listening():
                seen.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
        assert seen == [before]
