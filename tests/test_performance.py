"""Dask's own report, kept beside the log of a run."""

import re

import dask
import pytest
from runs import config

import fusionflow as ff
from fusionflow.cli import main
from fusionflow.config import ClusterOptions
from fusionflow.ledger import OutputPaths
from fusionflow.performance import performance_report


@pytest.fixture(scope="module")
def reported(phantom_bids, client, tmp_path_factory):
    """A run that keeps its report."""
    out = tmp_path_factory.mktemp("reported")
    how = config().model_copy(update={"cluster": ClusterOptions(performance_report=True)})
    report = ff.run(phantom_bids, out, how, participant_labels=["02"], client=client)
    return out, report


def test_names_the_tasks_of_the_run_and_needs_no_network(reported):
    out, report = reported
    page = (out / "logs" / f"{report.run}.performance.html").read_text()
    for stage in ("conform", "decompose", "fuse", "reconstruct", "commit"):
        assert f"fusionflow-{stage}" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=.https?:", page)


def test_is_written_only_when_asked_for(fused):
    out, _, _ = fused
    assert not list((out / "logs").glob("*.html"))


def test_one_that_cannot_be_written_stops_nothing(client, tmp_path, caplog):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with performance_report(client, OutputPaths(tmp_path), "a-run"):
        client.submit(sum, (1, 2)).result()
    assert "No performance report" in caplog.text
    assert "a-run.performance.html" in caplog.text


def test_an_error_of_the_run_is_not_hidden(client, tmp_path):
    with pytest.raises(ZeroDivisionError), performance_report(client, OutputPaths(tmp_path), "b"):
        raise ZeroDivisionError
    assert not list(tmp_path.rglob("*.html"))


def test_is_no_reason_to_make_scans_again(reported, phantom_bids, client):
    out, _ = reported
    again = ff.run(phantom_bids, out, config(), participant_labels=["02"], client=client)
    assert again.unchanged == ["sub-02_ses-baseline"]


def test_the_command_line_asks_for_it():
    (option,) = [
        item for item in main.commands["run"].params if "--performance-report" in item.opts
    ]
    assert option.is_flag
    assert not ClusterOptions().performance_report


class TestDashboard:
    """The link to it is Dask's, so that it leads through whatever stands before it."""

    def test_by_default_it_is_on_loopback(self, client):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status", client.dashboard_link)

    def test_behind_a_hub_it_leads_through_the_proxy(self, phantom_bids, client, tmp_path):
        links = []

        def hear(event):
            if hasattr(event, "dashboard"):
                links.append(event.dashboard)

        template = {"distributed.dashboard.link": "/user/ada/proxy/{port}/status"}
        with dask.config.set(template):
            handle = ff.run(
                phantom_bids, tmp_path, config("dwt-max", weights="auto"), client=client,
                participant_labels=["02"], on_event=hear, wait=False,
            )  # fmt: skip
            handle.result(120)
        assert re.fullmatch(r"/user/ada/proxy/\d+/status", handle.progress.dashboard)
        assert links == [handle.progress.dashboard]
        assert f'href="{links[0]}"' in handle._repr_html_()
