"""Fuse tasks run on the worker that has the GPU, one at a time, on a real scheduler."""

import distributed
import numpy as np
import pytest
import xarray as xr
from dask.utils import key_split
from runs import small_cohort

import fusionflow as ff
from fusionflow.config import METHODS, RunConfig
from fusionflow.errors import PlacementError

METHOD = METHODS["dwt-vgg19-l1"].model_copy(update={"weights": "random:0"})


@pytest.fixture(scope="module")
def client():
    """Two workers without and one worker with a GPU to offer; all of them are processes.

    The GPU is a resource that the worker advertises: no device is needed to see where tasks go.
    """
    spec = {
        "cpu-0": {"cls": distributed.Nanny, "options": {"nthreads": 1}},
        "cpu-1": {"cls": distributed.Nanny, "options": {"nthreads": 1}},
        "gpu-0": {
            "cls": distributed.Nanny,
            "options": {"nthreads": 2, "resources": {"GPU": 1}},
        },
    }
    for worker in spec.values():
        worker["options"] |= {"silence_logs": 40}
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }
    with (
        distributed.SpecCluster(scheduler=scheduler, workers=spec, silence_logs=40) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(3)
        client.register_plugin(WatchFuse())
        yield client


@pytest.fixture(scope="module")
def gpu_worker(client):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next(address for address, worker in workers.items() if worker["resources"])


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            name: (("z", "y", "x"), rng.random((64, 48, 48), dtype=np.float32))
            for name in ("mri", "pet")
        }
    )


def stage_of(key):
    return key_split(key).removeprefix("fusionflow-")


class WatchFuse(distributed.WorkerPlugin):
    """Counts the fuse tasks that a worker executes at a time."""

    name = "watch-fuse"

    def __init__(self):
        self.executing = set()
        self.most = 0

    def transition(self, key, start, finish, **kwargs):
        if stage_of(key) != "fuse":
            return
        if finish == "executing":
            self.executing.add(key)
            self.most = max(self.most, len(self.executing))
        elif start == "executing":
            self.executing.discard(key)


def by_stage(stream):
    """Finished tasks of a task stream: stage -> list of the workers that ran one."""
    stages = {}
    for task in stream.data:
        stages.setdefault(stage_of(task["key"]), []).append(task["worker"])
    return stages


def assert_placed(client, stream, gpu_worker, count):
    stages = by_stage(stream)
    fuse = stages["fuse"]
    assert len(fuse) == count
    assert set(fuse) == {gpu_worker}
    most = client.run(lambda dask_worker: dask_worker.plugins["watch-fuse"].most)
    assert most[gpu_worker] == 1, "one fuse task at a time"
    # Coefficients stay in the process that made them.
    for stage in ("decompose", "reconstruct"):
        assert set(stages[stage]) == {gpu_worker}
    return stages


def test_run(client, gpu_worker, tmp_path):
    small_cohort(tmp_path / "bids")
    config = RunConfig(method=METHOD)
    with distributed.get_task_stream(client=client) as stream:
        report = ff.run(tmp_path / "bids", tmp_path / "out", config, client=client)
    assert len(report.fused) == 4
    stages = assert_placed(client, stream, gpu_worker, count=4 * 3)
    assert set(stages["conform"]) - {gpu_worker}, "workers without a GPU conform scans"


def test_compute(client, gpu_worker, scan):
    lazy = ff.fuse(scan, METHOD)
    with distributed.get_task_stream(client=client) as stream:
        result = ff.compute(lazy)
    assert_placed(client, stream, gpu_worker, count=4)
    assert result.fused.shape == (64, 48, 48)


def test_plain_compute_says_what_to_do(client, scan):
    lazy = ff.fuse(scan, METHOD)
    with pytest.raises(PlacementError, match=r"fusionflow\.compute\(result\)"):
        lazy.fused.compute()
    with pytest.raises(PlacementError, match="optimize_graph=False"):
        lazy.compute()


def test_unoptimised_plain_compute_is_placed(client, gpu_worker, scan):
    lazy = ff.fuse(scan, METHOD)
    with distributed.get_task_stream(client=client) as stream:
        client.compute(lazy.fused.data, optimize_graph=False).result()
    assert_placed(client, stream, gpu_worker, count=4)


def test_a_method_without_network_may_run_anywhere(client, scan):
    lazy = ff.fuse(scan, "average")
    expected = (scan.mri + scan.pet).values / 2
    np.testing.assert_allclose(lazy.fused.compute().values, expected, atol=1e-6)
