"""What many tests share. Clusters are made by the tests that need them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from crew import crew_of_a_scheduler
from hypothesis import settings
from runs import config

import fusionflow as ff
from fusionflow import clusters
from fusionflow.config import ClusterOptions
from fusionflow.phantom import write_cohort

SHARED = Path(__file__).resolve().parents[2] / "shared"

#: A package of its own, whose tests run where it is installed (`test_plugin_package.py`).
collect_ignore = ["plugin_package"]

# How long an example takes says nothing here: the first one loads torch or compiles a filter.
settings.register_profile("fusionflow", deadline=None)
settings.load_profile("fusionflow")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Let no ``--offline`` of one test be that of the next."""
    monkeypatch.setenv("FUSIONFLOW_OFFLINE", "")


@pytest.fixture(autouse=True)
def _our_logger(caplog):
    """Messages go where pytest sees them, whatever a command called in here set up before."""
    logger = logging.getLogger("fusionflow")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    caplog.handler.setLevel(logging.NOTSET)  # a local cluster of Dask silences it


@pytest.fixture
def crew():
    """A scheduler of a test's own, `crew.client`, without workers: `crew.hire` starts them."""
    with crew_of_a_scheduler() as crew:
        yield crew


@pytest.fixture(scope="session")
def shared():
    """The real data and weights beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data and weights at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def vgg19_weights(shared):
    """VGG19 as trained on ImageNet, up to conv3_1; input BGR, x * 255 - mean."""
    path = shared / "weights" / "vgg19-conv1_1-conv3_1.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="session")
def phantom_bids(tmp_path_factory):
    """Four small scans of three subjects."""
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    write_cohort(folder, shape=(47, 56, 41))
    return folder


@pytest.fixture(scope="session")
def client():
    """Two worker processes of one thread each."""
    with clusters.connect(ClusterOptions(n_workers=2)) as client:
        yield client


@pytest.fixture(scope="session")
def fused(phantom_bids, client, tmp_path_factory):
    """The phantom cohort, fused with dwt-vgg19 on random weights."""
    out = tmp_path_factory.mktemp("fused") / "out"
    events = []
    report = ff.run(phantom_bids, out, config(), client=client, on_event=events.append)
    return out, report, events
