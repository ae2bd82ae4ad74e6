"""A run in the background."""

import contextlib
import threading
import time
from concurrent.futures import CancelledError

import pytest
from distributed import LocalCluster
from runs import LABELS, config, leftovers

import fusionflow as ff
from fusionflow import staging
from fusionflow.config import ClusterOptions
from fusionflow.errors import FusionflowError, NoScansError
from fusionflow.events import Begun, Failed, Fused, Planned, Quarantined, RunReport, Unchanged
from fusionflow.handle import RunHandle
from fusionflow.records import Attempt


def one_at_a_time(method="dwt-max"):
    how = config() if method is None else ff.RunConfig(method=method, conform=config().conform)
    return how.model_copy(update={"cluster": ClusterOptions(window=1)})


@pytest.fixture
def waits_for_workers(phantom_bids, tmp_path):
    """A run on a cluster to which no worker comes."""
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as nobody:
        cluster = ClusterOptions(address=nobody.scheduler_address, patience=600)
        how = config().model_copy(update={"cluster": cluster})
        out = tmp_path / "out"
        handle = ff.run(phantom_bids, out, how, wait=False)
        while handle.progress.scans is None:
            assert not handle.done(), handle.error
            time.sleep(0.05)
        yield handle, out
        handle.cancel()
        with contextlib.suppress(CancelledError):
            handle.result(60)


class Gate:
    """Holds a run where its first scan is sent, until it is let go on."""

    def __init__(self):
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, event):
        if isinstance(event, Begun) and not self.reached.is_set():
            self.reached.set()
            assert self.open.wait(60)


@pytest.fixture
def held(phantom_bids, client, tmp_path):
    """A run that is held at its first scan."""
    gate = Gate()
    out = tmp_path / "out"
    handle = ff.run(
        phantom_bids, out, one_at_a_time(), client=client, on_event=gate, wait=False
    )  # fmt: skip
    assert gate.reached.wait(60)
    yield handle, gate, out
    gate.open.set()
    handle.cancel()


class TestRun:
    def test_goes_on_until_it_is_done(self, held):
        handle, gate, _ = held
        assert not handle.done()
        assert handle.report is None
        assert (handle.progress.state, handle.progress.in_flight) == ("running", 1)
        assert "0 of 4" in repr(handle)
        gate.open.set()
        report = handle.result(120)
        assert sorted(report.fused.labels) == LABELS
        assert handle.report is report
        progress = handle.progress
        assert (progress.state, progress.fused, progress.done) == ("done", 4, 4)
        assert (progress.in_flight, progress.scans) == (0, 4)

    def test_nobody_waits_longer_than_they_want(self, held):
        handle, _, _ = held
        with pytest.raises(TimeoutError, match=r"within 0\.05 s; it goes on"):
            handle.result(0.05)

    def test_stop_finishes_what_is_in_flight(self, held, phantom_bids, client):
        handle, gate, out = held
        handle.stop()
        assert handle.progress.state == "stopping"
        gate.open.set()
        report = handle.result(120)
        assert report.state == "interrupted"
        assert (len(report.fused), handle.progress.state) == (1, "stopped")
        assert leftovers(out) == []
        rest = ff.run(phantom_bids, out, one_at_a_time(), client=client)
        assert (len(rest.fused), len(rest.unchanged)) == (3, 1)

    def test_cancel_undoes_what_is_in_flight(self, held):
        handle, gate, out = held
        handle.cancel()
        gate.open.set()
        with pytest.raises(CancelledError, match="what was published stays"):
            handle.result(60)
        assert handle.progress.state == "cancelled"
        assert leftovers(out) == []
        assert not list(out.glob("scans/*/attempt.json"))

    def test_cancel_waits_until_workers_that_live_on_have_let_go(self, held, client, tmp_path):
        handle, gate, out = held
        begun = tmp_path / "begun"

        def be_slow():
            """Have a worker begin to prepare scans, and write a while later."""
            at_once = staging.stage_scan

            def stage_scan(job):
                begun.touch()
                time.sleep(2)
                (job.staging / "late").mkdir(parents=True)
                return at_once(job)

            staging.stage_scan, staging.at_once = stage_scan, at_once

        def be_quick():
            staging.stage_scan = staging.at_once

        client.run(be_slow)
        try:
            gate.open.set()
            while not begun.exists():
                time.sleep(0.02)
            handle.cancel()
            with pytest.raises(CancelledError):
                handle.result(60)
            assert leftovers(out) == []
            time.sleep(3)
            assert leftovers(out) == []
        finally:
            client.run(be_quick)

    def test_stop_ends_the_waiting_for_workers(self, waits_for_workers):
        handle, out = waits_for_workers
        handle.stop()
        report = handle.result(60)
        assert (report.state, len(report.fused), handle.progress.state) == (
            "interrupted", 0, "stopped",
        )  # fmt: skip
        assert leftovers(out) == []

    def test_cancel_ends_the_waiting_for_workers(self, waits_for_workers):
        handle, _ = waits_for_workers
        handle.cancel()
        with pytest.raises(CancelledError):
            handle.result(60)

    def test_what_the_run_is_asked_for_reaches_it(self, phantom_bids, client, tmp_path):
        handle = ff.run(
            phantom_bids, tmp_path / "out", one_at_a_time(), client=client, wait=False,
            participant_labels=["02"], levels=["participant"],
        )  # fmt: skip
        report = handle.result(120)
        assert report.fused.labels == ["sub-02_ses-baseline"]
        assert report.summary is None

    def test_an_error_is_the_result(self, tmp_path):
        (tmp_path / "bids").mkdir()
        handle = ff.run(tmp_path / "bids", tmp_path / "out", wait=False)
        with pytest.raises(NoScansError, match="holds no subject"):
            handle.result(60)
        assert handle.done()
        assert (handle.progress.state, handle.report) == ("failed", None)
        assert isinstance(handle.error, NoScansError)
        assert "holds no subject" in handle._repr_html_()


class TestCounts:
    """Of a run that tells what it is made to tell."""

    @staticmethod
    def after(*events, error=None):
        def go(*, on_event, stop):
            for event in events:
                on_event(event)
            if error is not None:
                raise error
            return RunReport(state="done")

        handle = RunHandle(go)
        handle._thread.join(10)
        return handle

    def test_what_was_refused_unread_is_none_of_the_scans(self):
        excluded = Attempt("sub-03", "quarantined", "two PETs", "excluded")
        broken = Attempt("sub-04", "quarantined", "no voxels", "ImageError")
        progress = self.after(
            Planned(3, (), None, ()), Failed(excluded), Quarantined(excluded), Unchanged("sub-01"),
            Begun("sub-04", 5), Failed(broken), Quarantined(broken),
        ).progress  # fmt: skip
        assert (progress.failed, progress.quarantined, progress.unchanged) == (1, 1, 1)
        assert (progress.done, progress.in_flight) == (3, 0)

    def test_who_listens_as_well_hears_it_all(self):
        heard = []
        RunHandle(
            lambda *, on_event, stop: [on_event(Unchanged("a")), RunReport(state="done")][1],
            heard.append,
        ).result(10)
        assert heard == [Unchanged("a")]

    def test_it_stops_where_the_caller_says_so(self):
        asked = []

        def go(*, on_event, stop):
            asked.append(stop())
            return RunReport(state="interrupted")

        handle = RunHandle(go, stop=lambda: True)
        handle.result(10)
        assert asked == [True]
        assert handle.progress.state == "stopped"

    @pytest.mark.parametrize("error", [FusionflowError("gone"), SystemExit(3), ValueError("x")])
    def test_any_error_is_kept(self, error):
        handle = self.after(error=error)
        assert handle.error is error
        with pytest.raises(type(error)):
            handle.result()

    def test_time_left_is_by_the_scans_that_were_fused(self, fused):
        _, report, _ = fused
        reached, go_on = threading.Event(), threading.Event()

        def go(*, on_event, stop):
            on_event(Planned(10, (), None, ()))
            on_event(Unchanged("sub-00"))
            for record in report.fused:
                on_event(Fused(record, "new"))
            reached.set()
            assert go_on.wait(10)
            return RunReport(state="done")

        handle = RunHandle(go)
        assert reached.wait(10)
        now = handle.progress
        assert now.seconds_left == pytest.approx(now.seconds / 4 * 5)
        go_on.set()
        handle.result(10)
        assert handle.progress.seconds_left is None


def test_a_terminal_of_ipython_gets_a_line_that_it_can_show(capsys):
    """It prints what a page would hold as the name of an object, again whenever it is renewed."""
    pytest.importorskip("IPython")
    ended = RunReport(run="a-run", state="done")
    handle = RunHandle(lambda *, on_event, stop: ended)
    handle.result(10)
    handle._ipython_display_()
    assert capsys.readouterr().out == "<RunHandle done: 0 scans, 0 failed>\n"
