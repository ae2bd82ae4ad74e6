"""A cohort, a cluster whose workers take orders, undisturbed results, and the table of faults."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
from pathlib import Path

import dask
import psutil
import pytest
from injection import VARIABLE, Book
from runs import config, small_cohort
from scene import INJECTION, Table, assert_no_orphans, descendants, fused_arrays, run

from fusionflow import clusters
from fusionflow.config import ClusterOptions

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "workflows" / "faults.md"
WORKERS = 2
_CLONE_NEWNS = 0x00020000
_rows = pytest.StashKey[Table]()
_passed = pytest.StashKey[set]()


def pytest_configure(config):
    config.stash[_rows] = Table()
    config.stash[_passed] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.passed:
        item.config.stash[_passed].add(item.nodeid)
    elif report.failed:
        item.config.stash[_passed].discard(item.nodeid)
    return report


def pytest_sessionfinish(session):
    """Write the table if every test of a fault ran and passed, and only then."""
    config = session.config
    items = [item for item in session.items if HERE in item.path.parents]
    ran, files = {item.nodeid for item in items}, {item.path for item in items}
    whole = not config.option.keyword and not any("::" in word for word in config.args)
    if not whole or not ran or ran - config.stash[_passed] or config.option.collectonly:
        return
    if files == set(HERE.glob("test_*.py")):
        cores = len(os.sched_getaffinity(0))
        TABLE.write_text(
            "# Faults\n\nWritten by `make faults`: each fault really happens to a run on a real "
            "cluster of processes, and what is\npublished in the end is compared with an "
            "undisturbed run. Seconds are from the fault until the scan that\nit hit was "
            "published, or else until the run ended (least and most where it happened more than "
            f"once), here\non {cores} cores ({platform.machine()}).\n\n"
            f"{config.stash[_rows]}\n"
        )


@pytest.fixture(scope="session")
def table(pytestconfig):
    """Takes what a test measured."""
    return pytestconfig.stash[_rows]


@pytest.fixture(scope="session", autouse=True)
def namespace():
    """Mounts that only this process and those that it starts see, and that end with it.

    Gives the reason why that is not possible, or None.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNS):
        return f"no mounts here: {os.strerror(ctypes.get_errno())}"
    made = subprocess.run(
        ["mount", "--make-rprivate", "/"], capture_output=True, text=True, check=False
    )
    return f"no mounts here: {made.stderr.strip()}" if made.returncode else None


@pytest.fixture
def disk(namespace, tmp_path):
    """A file system whose size the test says: call it with bytes, again to change them."""
    if namespace is not None:
        pytest.skip(namespace)
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        how = "remount," if mounted else ""
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "none", folder], check=True
        )
        mounted = True
        return folder

    yield resize
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def orders(namespace, tmp_path_factory):
    """Where orders for workers go; every worker that starts from here on takes them."""
    book = Book(tmp_path_factory.mktemp("orders"))
    preload = [str(INJECTION)]
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.worker.preload": preload}),
    ):
        patch.setenv(VARIABLE, str(book.folder))
        patch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", repr(preload))
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        # Least that Dask allows is 10 heartbeats, 5 s; a worker that loads torch may be busy so
        # long on a machine that has other work.
        patch.setenv("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "10s")
        yield book


@pytest.fixture
def book(orders):
    """The folder of orders, empty before and after."""
    orders.clear()
    yield orders
    orders.clear()


@pytest.fixture(scope="session")
def _cluster(orders):
    """Worker processes as `fusionflow run` starts them, with so much memory that torch fits."""
    with clusters.connect(ClusterOptions(n_workers=WORKERS, memory_mb=WORKERS * 2500)) as client:
        yield client


@pytest.fixture
def cluster(_cluster, book):
    """The workers, all there before and after; none that was killed lives on."""
    _cluster.wait_for_workers(WORKERS, timeout=60)
    yield _cluster
    book.clear()
    _cluster.wait_for_workers(WORKERS, timeout=60)
    pids = set(_cluster.run(os.getpid).values())
    with contextlib.suppress(psutil.NoSuchProcess):
        assert_no_orphans(process for process in descendants() if process.pid not in pids)


@pytest.fixture(scope="session")
def bids(tmp_path_factory):
    """Four small scans of three subjects."""
    return small_cohort(tmp_path_factory.mktemp("faults") / "bids")


@pytest.fixture(scope="session")
def undisturbed(bids, _cluster, tmp_path_factory):
    """The fused volumes of a run without faults: ``undisturbed(method)`` -> label -> array."""
    made = {}

    def of(method="dwt-max"):
        if method not in made:
            out = tmp_path_factory.mktemp("undisturbed") / method
            run(bids, out, config(method), client=_cluster)
            made[method] = fused_arrays(out)
            assert len(made[method]) == 4
        return made[method]

    return of
