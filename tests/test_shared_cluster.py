"""A cluster that is not ours alone: what others do on it never notices a run, and the reverse."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import distributed
import pytest
from dask.utils import key_split
from distributed.utils import key_split_group
from interrupting import interrupt_twice
from runs import LABELS, config, small_cohort

import fusionflow as ff
from fusionflow import fusion, graph
from fusionflow.config import ClusterOptions
from fusionflow.events import EXIT_INTERRUPTED, Fused
from fusionflow.preflight import Preflight
from fusionflow.tenancy import Tenancy
from fusionflow.warm import kept_network

pytestmark = pytest.mark.cluster

FAULTS = Path(__file__).with_name("faults")
VICTIM = "sub-02_ses-baseline"
STAGES = {"preflight", "conform", "decompose", "fuse", "reconstruct", "commit"}


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


def on(crew, method="average", **options):
    """Return how to run on the cluster of others."""
    cluster = ClusterOptions(address=crew.client.scheduler.address, **options)
    return config(method).model_copy(update={"cluster": cluster})


def fused_bits(out):
    cohort = ff.open_cohort(out)
    return {label: cohort.scan(label).fused.values.tobytes() for label in cohort}


def keys_on(client):
    """Return the names of all tasks that the scheduler knows."""
    return client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))


def plugins_on(client):
    names = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.worker_plugins))
    return sorted(name for name in names if "fusionflow" in name)


def wait_for(condition, seconds=30.0):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.05)


def work(seconds):
    """Return what takes a thread for a while, and says in which process."""

    def busy():  # in here, so that workers need not have this file
        time.sleep(seconds)
        return os.getpid()

    return busy


class Others:
    """What others have on a cluster: a dataset, and a task on each worker that takes its time."""

    def __init__(self, client, seconds):
        self.client = client
        client.publish_dataset(theirs=client.submit(sum, [1, 2], key="their-sum"))
        self.tasks = [
            client.submit(work(seconds), workers=[address], key=f"their-task-{number}", priority=5)
            for number, address in enumerate(client.scheduler_info(n_workers=-1)["workers"])
        ]
        self.pids = client.run(os.getpid)
        self.plugins = plugins_on(client)

    def assert_undisturbed(self):
        """Each task ran once, where it began, and the dataset is there."""
        assert sorted(self.client.gather(self.tasks)) == sorted(self.pids.values())
        assert self.client.run(os.getpid) == self.pids
        assert self.client.get_dataset("theirs").result() == 3
        assert plugins_on(self.client) == self.plugins
        wait_for(lambda: not [key for key in keys_on(self.client) if "fusionflow" in key])


class TestNames:
    def test_of_all_tasks_are_the_runs_own(self, crew, bids, tmp_path):
        """Another run of the same scans shares no task with it, nor with others."""
        crew.hire("one", gpu=False)
        crew.wait(1)
        groups = {}
        for name in ("first", "second"):
            with distributed.get_task_stream(client=crew.client) as stream:
                report = ff.run(bids, tmp_path / name, on(crew))
            assert len(report.fused) == 4
            groups[name] = {key_split_group(task["key"]) for task in stream.data}
            assert groups[name] == {f"fusionflow-{stage}-{report.run}" for stage in STAGES}
            # What the dashboard shows together, and the scheduler knows durations of.
            shown = {key_split(task["key"]) for task in stream.data}
            assert shown == {f"fusionflow-{stage}" for stage in STAGES}
        assert not groups["first"] & groups["second"]

    def test_and_a_span_tell_which_part_is_a_runs(self, crew, bids, tmp_path):
        """One span for a run, with a few groups of tasks: what it holds is kept for ever."""
        crew.hire("one", gpu=False)
        crew.wait(1)
        report = ff.run(bids, tmp_path / "out", on(crew))

        def spans(dask_scheduler):
            known = dask_scheduler.extensions["spans"].spans_search_by_name
            return {
                name: [
                    (sorted(group.name for group in span.groups), span.cumulative_worker_metrics)
                    for span in spans
                ]
                for name, spans in known.items()
            }

        time.sleep(1)  # until workers said how long all took
        found = crew.client.run_on_scheduler(spans)
        ((groups, metrics),) = found["fusionflow", report.run]
        assert set(groups) == {f"fusionflow-{stage}-{report.run}" for stage in STAGES}
        assert len(groups) < 2 * len(STAGES)
        measured = {key[1] for key in metrics if key[0] == "execute" and key[1] != "N/A"}
        assert measured == {f"fusionflow-{stage}" for stage in STAGES}
        assert not [groups for groups, _ in found.get(("default",), []) if groups]


class TestTurns:
    """On one thread, so that it is plain who comes first."""

    @pytest.fixture
    def crew(self, crew):
        crew.hire("one", gpu=False, threads=1)
        crew.wait(1)
        return crew

    def test_others_wait_for_a_few_scans_and_not_for_the_run(self, crew, bids, tmp_path):
        theirs, fused_before = [], []

        def note(event):
            if isinstance(event, Fused):
                if not theirs:
                    theirs.append(crew.client.submit(work(0)))
                    theirs[0].add_done_callback(lambda _: fused_before.append(len(seen)))
                seen.append(event)

        seen = []
        report = ff.run(bids, tmp_path / "out", on(crew, window=1), on_event=note)
        assert len(report.fused) == 4
        wait_for(lambda: fused_before)
        assert fused_before[0] <= 2

    def test_a_stream_of_others_tasks_does_not_starve_a_run(self, crew, bids, tmp_path):
        """They never stop to come, and there always is one that waits."""
        over, done = threading.Event(), []

        def others():
            waiting = []
            while not over.is_set():
                waiting = [future for future in waiting if not future.done()]
                done.append(4 - len(waiting))
                waiting += [
                    crew.client.submit(work(0.1), pure=False) for _ in range(4 - len(waiting))
                ]
                time.sleep(0.02)

        thread = threading.Thread(target=others)
        thread.start()
        try:
            report = ff.run(bids, tmp_path / "out", on(crew))
        finally:
            over.set()
            thread.join()
        assert len(report.fused) == 4
        assert sum(done) > 8  # they went on meanwhile

    @pytest.mark.parametrize(("priority", "first"), [(10, True), (-10, False)])
    def test_priority_decides_who_comes_first(self, crew, bids, tmp_path, priority, first):
        theirs = []

        def note(event):
            if isinstance(event, Preflight):
                theirs.extend(crew.client.submit(work(0.2), pure=False) for _ in range(30))

        report = ff.run(bids, tmp_path / "out", on(crew, priority=priority), on_event=note)
        assert len(report.fused) == 4
        waiting = [future for future in theirs if not future.done()]
        assert bool(waiting) == first


class TestOthersSurvive:
    @pytest.fixture
    def crew(self, crew):
        for name in ("one", "two"):
            crew.hire(
                name, gpu=False, threads=2, FUSIONFLOW_FAULTS=str(self.orders),
                PYTHONPATH=os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")]),
                DASK_DISTRIBUTED__WORKER__PRELOAD=repr([str(FAULTS / "injection.py")]),
            )  # fmt: skip
        crew.wait(2)
        return crew

    @pytest.fixture(autouse=True)
    def _orders(self, tmp_path):
        self.orders = tmp_path / "orders"
        self.orders.mkdir()

    def order(self, action, **arguments):
        """Let the tasks that fuse one of the scans go wrong."""
        content = {"action": action, "place": "fuse", "label": VICTIM, "slab": 0, "times": 99}
        (self.orders / "order.json").write_text(json.dumps({**content, "arguments": arguments}))

    def test_a_run(self, crew, bids, tmp_path):
        others = Others(crew.client, 5)
        assert len(ff.run(bids, tmp_path / "out", on(crew, "dwt-vgg19-l1")).fused) == 4
        others.assert_undisturbed()

    def test_an_error_that_ends_it(self, crew, bids, tmp_path):
        others = Others(crew.client, 8)

        def fail(event):
            if isinstance(event, Fused):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ff.run(bids, tmp_path / "out", on(crew, "dwt-vgg19-l1"), on_event=fail)
        others.assert_undisturbed()

    def test_an_interrupt(self, crew, bids, tmp_path):
        others, out = Others(crew.client, 15), tmp_path / "out"
        self.order("command", words=["sleep", "2"])
        command = subprocess.Popen(
            [sys.executable, "-m", "fusionflow", "run", bids, out, "--method", "dwt-vgg19-l1",
             "--weights", "random:0", "--registration", "header",
             "--cluster", crew.client.scheduler.address],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            wait_for(lambda: list(self.orders.glob("strike-*")), 60)
            interrupt_twice(command.send_signal, lambda: command.poll() is None)
            output, _ = command.communicate(timeout=60)
        finally:
            command.kill()
            command.wait()
        assert command.returncode == EXIT_INTERRUPTED, output
        others.assert_undisturbed()

    def test_a_scan_over_the_time_limit(self, crew, bids, tmp_path):
        """It is given up at once, and who can free its thread is told which."""
        others = Others(crew.client, 20)
        self.order("hang")
        report = ff.run(bids, tmp_path / "out", on(crew, "dwt-max", time_limit=4))
        assert len(report.fused) == 3
        (failure,) = report.failed
        assert (failure.label, failure.kind, failure.state, failure.attempt) == (
            VICTIM, "TimeLimit", "quarantined", 1,
        )  # fmt: skip
        assert failure.worker in others.pids
        assert f"a thread of {failure.worker}" in failure.reason
        assert "no worker was restarted" in failure.reason
        assert f"client.restart_workers(['{failure.worker}'])" in failure.reason
        others.assert_undisturbed()


def test_a_scan_that_waits_for_others_is_not_over_the_time_limit(crew, bids, tmp_path):
    crew.hire("one", gpu=False, threads=1)
    crew.wait(1)
    theirs = []

    def note(event):
        if isinstance(event, Preflight):
            theirs.append(crew.client.submit(work(9), priority=10))
            time.sleep(0.5)

    report = ff.run(bids, tmp_path / "out", on(crew, time_limit=4), on_event=note)
    assert len(report.fused) == 4
    assert not report.failed
    assert theirs[0].result()


class TestTwoRunsAtOnce:
    def test_give_the_bits_that_each_gives_alone(self, crew, bids, tmp_path):
        for name in ("one", "two"):
            crew.hire(name, gpu=False, threads=2)
        crew.wait(2)
        words = [
            sys.executable, "-m", "fusionflow", "run", bids, "--method", "dwt-vgg19",
            "--registration", "header", "--cluster", crew.client.scheduler.address,
        ]  # fmt: skip
        outs = [tmp_path / "left", tmp_path / "right"]
        running = [
            subprocess.Popen(
                [*words[:5], out, *words[5:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True,
            )
            for out in outs
        ]  # fmt: skip
        try:
            said = [process.communicate(timeout=120)[0] for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        assert [process.returncode for process in running] == [0, 0], said
        how = config("dwt-vgg19", weights="auto")
        ff.run(bids, tmp_path / "alone", how, client=crew.client)
        alone = fused_bits(tmp_path / "alone")
        assert sorted(alone) == sorted(LABELS)
        assert fused_bits(outs[0]) == fused_bits(outs[1]) == alone

    def test_keep_a_network_each(self, crew):
        """When one ends, workers that come later still read what the other one needs."""
        recipe = graph.make_recipe(config().method)
        with kept_network(crew.client, recipe, "first"):
            with kept_network(crew.client, recipe, "second"):
                names = ["fusionflow-network-first", "fusionflow-network-second"]
                assert plugins_on(crew.client) == names
            crew.hire("late", gpu=False)
            crew.wait(1)
            assert list(crew.client.run(fusion.networks_made).values()) == [1]
        assert plugins_on(crew.client) == []


class TestWhoseClusterItIs:
    """Restarting workers is only for who has them alone."""

    @pytest.mark.parametrize(
        ("options", "given", "shared"),
        [
            ({}, False, False), ({}, True, True), ({"kind": "cuda"}, False, False),
            ({"address": "tls://10.0.0.1:8786"}, False, True),
            ({"scheduler_file": "scheduler.json"}, False, True),
            ({"address": "tls://10.0.0.1:8786", "shared": False}, False, False),
            ({"shared": False}, True, False), ({"shared": True}, False, True),
        ],
    )  # fmt: skip
    def test_follows_from_where_it_came_from(self, options, given, shared):
        client = object() if given else None
        tenancy = Tenancy.of("run", ClusterOptions(**options), client)
        assert tenancy.shared is shared
