"""Dask's dashboard during a real run: what a person sees there of fusionflow."""

import urllib.request

import pytest
from runs import config, small_cohort

import fusionflow as ff
from fusionflow import clusters
from fusionflow.config import ClusterOptions

pytestmark = pytest.mark.browser

#: What Bokeh's documents in the page hold, as text.
HELD = (
    "Bokeh.documents.map(d => JSON.stringify([...d._all_models.values()]"
    ".map(m => m.data ? Object.values(m.data).map(v => Array.from(v)) : null))).join('')"
)


@pytest.fixture(scope="module")
def at_work(tmp_path_factory):
    """A run that goes on in the background, with workers of its own, and its dashboard."""
    folder = tmp_path_factory.mktemp("at-work")
    bids = small_cohort(folder / "bids")
    with clusters.connect(ClusterOptions(n_workers=2)) as client:
        handle = ff.run(bids, folder / "out", config(), client=client, wait=False)
        yield client, handle
        handle.cancel()


class TestDashboard:
    def test_tasks_are_named_after_what_they_do(self, at_work, page):
        client, handle = at_work
        page.open(client.dashboard_link)
        page.wait("window.Bokeh && Bokeh.documents.length > 0", 120)
        for stage in ("conform", "decompose", "fuse", "reconstruct"):
            page.wait(f"({HELD}).includes('fusionflow-{stage}')", 120)
        page.picture("dashboard-status")
        assert handle.error is None

    def test_a_run_is_one_span(self, at_work):
        client, handle = at_work
        report = handle.result(240)
        spans = client.run_on_scheduler(
            lambda dask_scheduler: list(dask_scheduler.extensions["spans"].spans_search_by_name)
        )
        assert ("fusionflow", report.run) in spans

    def test_groups_of_tasks_stay_when_the_run_is_over(self, at_work, page):
        client, handle = at_work
        report = handle.result(240)
        link = client.dashboard_link.replace("/status", "/individual-task-stream")
        page.open(link)
        page.wait("window.Bokeh && Bokeh.documents.length > 0", 120)
        page.wait(f"({HELD}).includes('fusionflow-fuse')", 120)
        page.picture("dashboard-tasks")
        assert len(report.fused) == 4
        assert page.requests()
        assert {url.split("/")[2] for url in page.requests()} <= {link.split("/")[2]}

    def test_it_listens_on_loopback_alone(self, at_work):
        client, _ = at_work
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(client.dashboard_link, timeout=60) as answer:
            assert answer.status == 200
