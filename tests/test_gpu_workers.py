"""GPU workers that come late, die or never come; a GPU is a resource that a process advertises.

Schedulers and workers are processes of their own, as `dask scheduler` and `dask worker` start them.
"""

import json
import os
import signal
import subprocess
import sys
import time

import distributed
import numpy as np
import pytest
from dask.utils import key_split
from runs import config, small_cohort

import fusionflow as ff
from fusionflow import clusters, placement
from fusionflow.config import ClusterOptions
from fusionflow.errors import ClusterError
from fusionflow.events import Fused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


@pytest.fixture(scope="module")
def undisturbed(bids, tmp_path_factory):
    """What the cohort comes to on a local cluster without GPUs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    ff.run(bids, out, how(n_workers=1))
    return arrays(out)


def how(**cluster):
    return config().model_copy(update={"cluster": ClusterOptions(**cluster)})


def arrays(out):
    cohort = ff.open_cohort(out)
    return {label: cohort.scan(label).fused.values for label in cohort}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for label, fused in found.items():
        np.testing.assert_array_equal(fused, expected[label])


def workers_that_fused(stream):
    return {task["worker"] for task in stream.data if key_split(task["key"]) == "fusionflow-fuse"}


def test_one_that_dies_is_made_up_for_by_another(crew, bids, undisturbed, tmp_path):
    crew.hire("gpu-a")
    victim = crew.hire("gpu-b")
    crew.hire("cpu", gpu=False)
    crew.wait(3)
    events = []

    def note(event):
        events.append(event)
        if isinstance(event, Fused) and victim.poll() is None:
            victim.kill()

    report = ff.run(bids, tmp_path / "out", how(gpu="required"), client=crew.client, on_event=note)
    assert victim.wait() == -signal.SIGKILL
    assert len(report.fused) == 4
    assert not report.failed
    assert_same(arrays(tmp_path / "out"), undisturbed)


def test_a_second_one_that_joins_takes_its_share(crew, bids, undisturbed, tmp_path):
    crew.hire("gpu-a", threads=1)
    crew.wait(1)
    several = tmp_path / "several"
    for i in range(3):  # enough scans for it to find some left
        for subject in sorted(bids.glob("sub-*")):
            (several / f"{subject.name}{i}").parent.mkdir(exist_ok=True)
            copy_subject(subject, several / f"{subject.name}{i}")
    first, second = set(placement.workers_of(crew.client)), None

    def note(event):
        nonlocal second
        if isinstance(event, Fused) and second is None:
            second = crew.hire("gpu-b", threads=1)
            crew.wait(2)

    with distributed.get_task_stream(client=crew.client) as stream:
        report = ff.run(several, tmp_path / "out", how(window=2), client=crew.client, on_event=note)
    assert len(report.fused) == 12
    assert len(workers_that_fused(stream) - first) == 1
    found = arrays(tmp_path / "out")
    for label, fused in found.items():
        plain = label.split("_")[0][:-1] + "_" + label.split("_")[1]
        np.testing.assert_array_equal(fused, undisturbed[plain])


def copy_subject(subject, target):
    """Copy a subject under another label."""
    for path in subject.rglob("*"):
        if path.is_file():
            name = str(path.relative_to(subject)).replace(subject.name, target.name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(path.read_bytes())


def test_none_that_comes_is_an_error_and_not_a_hang(crew, bids, tmp_path):
    crew.hire("cpu", gpu=False)
    crew.wait(1)
    with pytest.raises(ClusterError, match="No worker that advertises a GPU came") as error:
        ff.run(bids, tmp_path / "out", how(gpu="required", patience=1.5), client=crew.client)
    assert "it has 1 without" in str(error.value)
    assert "--resources GPU=1" in str(error.value)
    assert not list((tmp_path / "out").glob("scans/*/*"))


def test_one_that_comes_late_is_waited_for(crew, bids, caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters.connection, "_TELL", 0.1)
    crew.hire("cpu", gpu=False)
    crew.wait(1)
    crew.hire("gpu-late")  # it takes seconds to start
    caplog.handler.setLevel(0)  # which a cluster of Dask raised
    with distributed.get_task_stream(client=crew.client) as stream:
        report = ff.run(bids, tmp_path / "out", how(gpu="required"), client=crew.client)
    assert len(report.fused) == 4
    assert "Waiting up to 300 s for a worker that advertises a GPU" in caplog.text
    assert workers_that_fused(stream) == set(placement.workers_of(crew.client, with_gpu=True))


def test_all_gone_stops_the_run_after_a_while(crew, bids, tmp_path, monkeypatch):
    monkeypatch.setattr("fusionflow.flight._WORKERS_EVERY", 0.5)
    only = crew.hire("gpu-a")
    crew.hire("cpu", gpu=False)
    crew.wait(2)

    def note(event):
        if isinstance(event, Fused):
            only.kill()

    with pytest.raises(ClusterError, match="no worker that advertises a GPU for 2 s"):
        ff.run(
            bids, tmp_path / "out", how(gpu="required", patience=2, window=1),
            client=crew.client, on_event=note,
        )  # fmt: skip
    # The next run goes on from there.
    crew.hire("gpu-b")
    until = time.monotonic() + 60
    while not placement.advertised(crew.client) and time.monotonic() < until:
        time.sleep(0.2)
    report = ff.run(bids, tmp_path / "out", how(gpu="required"), client=crew.client)
    assert report.unchanged
    assert len(report.fused) + len(report.unchanged) == 4


def test_never_leaves_gpus_alone(crew, bids, undisturbed, tmp_path):
    crew.hire("gpu-a")
    crew.hire("cpu", gpu=False)
    crew.wait(2)
    report = ff.run(bids, tmp_path / "out", how(gpu="never"), client=crew.client)
    assert len(report.fused) == 4
    assert all(record.software["device"].startswith("cpu") for record in report.fused)
    assert_same(arrays(tmp_path / "out"), undisturbed)


CUDA = """
import asyncio, json, types
import pynvml
pynvml.nvmlInit = lambda *flags: None
pynvml.nvmlDeviceGetCount = lambda: 2
pynvml.nvmlDeviceGetHandleByIndex = lambda index: index
pynvml.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(total=80 << 30)
pynvml.nvmlDeviceGetCpuAffinity = lambda handle, words: [3]
from fusionflow import clusters
from fusionflow.config import ClusterOptions
clusters.local.available_cores = lambda: 8

async def look():
    from dask_cuda import LocalCUDACluster
    options = clusters.cuda_options(ClusterOptions(kind="cuda", memory_mb=8000), 1)
    cluster = LocalCUDACluster(asynchronous=True, **options)
    print(json.dumps([
        {
            "class": spec["cls"].__name__,
            "devices": spec["options"]["env"]["CUDA_VISIBLE_DEVICES"],
            **{key: spec["options"][key]
               for key in ("nthreads", "resources", "memory_limit", "host")},
        }
        for spec in cluster.worker_spec.values()
    ]), flush=True)
    import os; os._exit(0)  # it was never started

asyncio.run(look())
"""


def cuda(script, **environment):
    """Run a script in a process of its own: it lies to dask-cuda about the machine."""
    pytest.importorskip("dask_cuda")
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "", **environment},
    )  # fmt: skip


def test_dask_cuda_would_start_one_worker_for_each_gpu():
    """The real LocalCUDACluster, not started: NVML is a stand-in, for there is no driver here."""
    done = cuda(CUDA)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert lines, done.stderr
    one = {"class": "Nanny", "nthreads": 4, "resources": {"GPU": 1}, "memory_limit": 4_000_000_000,
           "host": "127.0.0.1"}  # fmt: skip
    assert json.loads(lines[0]) == [{**one, "devices": "0,1"}, {**one, "devices": "1,0"}]


def test_as_many_gpus_as_are_visible():
    script = CUDA.replace("ClusterOptions(", "ClusterOptions(n_workers=2, ")
    done = cuda(script, CUDA_VISIBLE_DEVICES="1")
    assert "2 GPUs were asked for, and this process may use 1" in done.stderr


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_named(bids, tmp_path):
    pytest.importorskip("dask_cuda")
    with pytest.raises(ClusterError, match="No NVIDIA GPU can be used on this machine"):
        ff.run(bids, tmp_path / "out", how(kind="cuda"))


def test_without_dask_cuda_the_extra_is_named(bids, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with pytest.raises(ff.FusionflowError, match=r"fusionflow\[gpu\]"):
        ff.run(bids, tmp_path / "out", how(kind="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="no CUDA device")
def test_on_a_real_gpu(bids, undisturbed, tmp_path):
    report = ff.run(bids, tmp_path / "out", how(kind="cuda"))
    assert {record.software["device"] for record in report.fused} == {"cuda"}
    for label, fused in arrays(tmp_path / "out").items():
        np.testing.assert_allclose(fused, undisturbed[label], atol=1e-3)
