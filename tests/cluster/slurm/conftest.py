"""A SLURM of two nodes for all tests in here, a cohort, and what comes of it without SLURM."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import slurm_node
import watched
from runs import config, small_cohort
from slurm_runs import Notes, arrays

import fusionflow as ff
from fusionflow.config import ClusterOptions


def pytest_collection_modifyitems(items):
    """All of these need SLURM, and take longer than others."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def _slurm(tmp_path_factory):
    if (why := slurm_node.install()) is not None:
        pytest.skip(why)
    node = slurm_node.Slurm(tmp_path_factory.mktemp("slurm"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(node.config))
        try:
            node.start()
            yield node
        finally:
            node.stop()


@pytest.fixture
def slurm(_slurm):
    """A SLURM without jobs, before and after; a test that leaves one behind has failed."""
    yield _slurm
    left = _slurm.jobs()
    _slurm.end_all_jobs()
    assert left == []


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """What tasks in jobs write down, and whether they are to be slow."""
    folder = tmp_path / "notes"
    folder.mkdir()
    here = str(Path(__file__).parent)
    monkeypatch.setenv(watched.VARIABLE, str(folder))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", repr([watched.__file__]))
    monkeypatch.setenv("PYTHONPATH", here, prepend=os.pathsep)
    return Notes(folder)


@pytest.fixture(scope="session")
def bids(tmp_path_factory):
    """Four small scans of three subjects."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


@pytest.fixture(scope="session")
def expected(bids, tmp_path_factory):
    """What the cohort comes to on a local cluster: ``expected(method)``."""
    made = {}

    def of(method):
        if method not in made:
            out = tmp_path_factory.mktemp("local") / "out"
            how = config(method).model_copy(update={"cluster": ClusterOptions(n_workers=1)})
            ff.run(bids, out, how)
            made[method] = arrays(out)
            assert len(made[method]) == 4
        return made[method]

    return of
