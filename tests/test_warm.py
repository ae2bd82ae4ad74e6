"""One network a process: read when the worker starts, once, whatever the number of tasks."""

from dataclasses import replace

import distributed
import pytest
from dask.utils import key_split
from networks import random_state
from runs import config, small_cohort
from safetensors.torch import save_file

import fusionflow as ff
from fusionflow import fusion, graph
from fusionflow.config import METHODS, RunConfig
from fusionflow.warm import KeepNetwork, kept_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


def loads(client):
    """Networks that each worker process has read so far, by its name."""

    def count(dask_worker):
        return dask_worker.name, fusion.networks_made()

    return dict(client.run(count).values())


@pytest.mark.parametrize("method", ["dwt-vgg19-l1", "dwt-vgg19"])
def test_many_tasks_and_one_load_a_process(crew, bids, tmp_path, method):
    crew.hire("one", gpu=False, threads=2)
    crew.hire("two", gpu=False, threads=2)
    crew.wait(2)
    assert loads(crew.client) == {"one": 0, "two": 0}
    how = config(method) if method != "dwt-vgg19" else RunConfig(conform=config().conform)
    with distributed.get_task_stream(client=crew.client) as stream:
        for name in ("first", "second"):
            report = ff.run(bids, tmp_path / name, how, client=crew.client)
            assert len(report.fused) == 4
    fused = [task for task in stream.data if key_split(task["key"]) == "fusionflow-fuse"]
    assert len(fused) == 2 * 4 * 3
    assert loads(crew.client) == {"one": 1, "two": 1}


def test_a_worker_that_comes_later_has_read_it_before_its_first_task(crew):
    recipe = graph.make_recipe(config().method)
    with kept_network(crew.client, recipe, "run"):
        crew.hire("late", gpu=False)
        crew.wait(1)
        assert loads(crew.client) == {"late": 1}
    crew.hire("after", gpu=False)
    crew.wait(2)
    assert loads(crew.client) == {"late": 1, "after": 0}


def test_workers_without_a_gpu_do_not_read_what_runs_on_gpus(crew):
    recipe = replace(graph.make_recipe(config().method), needs_gpu=True)
    with kept_network(crew.client, recipe, "run"):
        crew.hire("gpu")
        crew.hire("cpu", gpu=False)
        crew.wait(2)
        assert loads(crew.client) == {"gpu": 1, "cpu": 0}


def test_what_travels_is_small():
    """Path and checksum, never the network."""
    for method in (config().method, METHODS["dwt-vgg19"]):
        recipe = graph.make_recipe(method)
        assert len(distributed.protocol.pickle.dumps(KeepNetwork(recipe, "run"))) < 10_000
        assert len(distributed.protocol.pickle.dumps(recipe)) < 10_000


def test_a_worker_that_cannot_read_it_says_so_in_its_log_and_goes_on(crew, tmp_path):
    path = tmp_path / "vgg19-mine.safetensors"
    save_file(random_state(1), path)
    recipe = graph.make_recipe(config(weights=str(path)).method)
    path.unlink()
    with kept_network(crew.client, recipe, "run"):
        crew.hire("one", gpu=False)
        crew.wait(1)
        assert crew.client.submit(sum, [1, 2]).result() == 3
        assert loads(crew.client) == {"one": 0}
