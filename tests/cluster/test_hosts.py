"""A cluster on hosts of its own with TLS, and what a bad network does to a run on it."""

import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import dask_options, write_certificates, yaml_of
from hosts import cluster_on_hosts, why_not
from runs import LABELS, config, small_cohort

import fusionflow as ff
from fusionflow.events import EXIT_DONE

ROOT = Path(__file__).parents[2]
FAULTS = ROOT / "tests" / "faults"
sys.path.insert(0, str(FAULTS))

from injection import VARIABLE, Book, Order  # noqa: E402
from scene import examine, fused_arrays  # noqa: E402

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

TABLE = ROOT / "workflows" / "hosts.md"
#: Dask's setting for how long a network may be gone, for the scheduler and the workers.
GAP = "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"
PATIENT, DASKS_OWN = "90s", "30s"
#: Seconds that a cable is pulled for.
SHORT, LONG = 30, 60
#: Seconds that each scan takes at least, so that there is a middle to a run.
SLOW = 10


@dataclass(frozen=True)
class Row:
    """What came of a run."""

    seconds: float
    redone: int


@pytest.fixture(scope="module")
def table(request):
    """Takes what was measured; writes it down when every test of this file passed."""
    rows = {}
    yield rows
    cases = [item for item in request.session.items if item.path == Path(__file__)]
    asked_for_all = not request.config.option.keyword and "::" not in " ".join(request.config.args)
    if asked_for_all and len(rows) == len(cases):
        TABLE.write_text(page(rows))


def page(rows):
    lines = [
        f"| {case} | {row.seconds:.0f} | {row.redone} | yes | 0 |" for case, row in rows.items()
    ]
    return (
        "# Hosts\n\nWritten by `make cluster`: a scheduler, two workers of one thread and the "
        "client, each on a host of its own (network\nnamespaces on a switch) with TLS, fuse four "
        f"scans that take {SLOW} s each, and something happens to a cable while\nthe first "
        "are in the making. What is published in the end is compared with a run on this machine "
        "alone.\nSeconds are those of the whole run; redone are scans that were begun more than "
        f"once. Scheduler and workers\nhave `distributed.comm.timeouts.tcp` {PATIENT} where "
        f"nothing else is said, Dask's own is {DASKS_OWN}. Here on {len(os.sched_getaffinity(0))} "
        f"cores\n({platform.machine()}).\n\n"
        "| what happens | seconds | redone | bits equal | leftovers |\n"
        "|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


@pytest.fixture(scope="module", autouse=True)
def _possible():
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("hosts") / "bids")


@pytest.fixture(scope="module")
def expected(bids, tmp_path_factory):
    """The fused volumes of a run on this machine's processes."""
    out = tmp_path_factory.mktemp("local") / "out"
    report = ff.run(bids, out, config("dwt-vgg19", weights="auto"))
    assert len(report.fused) == 4
    return fused_arrays(out)


@pytest.fixture
def files(tmp_path):
    return write_certificates(tmp_path / "certificates")


@pytest.fixture
def book(tmp_path):
    """Orders for workers: each scan takes its time, and tells when it begins."""
    folder = tmp_path / "orders"
    folder.mkdir()
    book = Book(folder)
    book.write(Order("command", "conform", times=99, arguments={"words": ["sleep", str(SLOW)]}))
    return book


@pytest.fixture
def start(files, book, tmp_path):
    """Return how to start a cluster, with a patience of its own."""
    environment = {
        VARIABLE: str(book.folder),
        "PYTHONPATH": os.pathsep.join([str(FAULTS), os.environ.get("PYTHONPATH", "")]),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": repr([str(FAULTS / "injection.py")]),
    }

    def cluster(patience=PATIENT):
        return cluster_on_hosts(
            tmp_path / "dask", dask_options(files), {**environment, GAP: patience}
        )

    return cluster


@pytest.fixture
def words(bids, files, tmp_path):
    """What the command is told, but for the scheduler's address."""
    options = tmp_path / "cluster.yaml"
    options.write_text(yaml_of(files))
    return [bids, tmp_path / "out", "--registration", "header", "--config", options, "--cluster"]


def begin(cluster, words, log="run"):
    """Start the run, and say when."""
    return cluster.run(log, *words, cluster.address), time.monotonic()


def wait_until_at_work(book, host=None):
    """Wait until a scan is in the making, on a given host if there is one."""
    until = time.monotonic() + 120
    while not any(host is None or strike["pid"] in host.pids() for strike in book.strikes):
        assert time.monotonic() < until, "no scan was begun"
        time.sleep(0.05)


def assert_fused(cluster, process, book, expected, out, log="run"):
    """The run ends well, and what it published is what it should be; returns scans redone."""
    try:
        code = process.wait(300)
    finally:
        said = cluster.log(log).read_text()
    assert code == EXIT_DONE, said
    assert "Traceback" not in said
    assert ff.open_cohort(out).labels == tuple(sorted(LABELS))
    finding = examine(out, expected)
    assert not any((finding.lost, finding.twice, finding.damaged, finding.different)), finding
    assert finding.leftovers == ()
    return len(book.strikes) - len(LABELS)


def test_nothing_happens(start, words, book, expected, table):
    with start() as cluster:
        process, began = begin(cluster, words)
        redone = assert_fused(cluster, process, book, expected, words[1])
    assert redone == 0
    table["nothing"] = Row(time.monotonic() - began, redone)


def test_a_worker_is_out_of_reach_for_a_while(start, words, book, expected, table):
    """It goes on with its scan meanwhile, and delivers it when its cable is back."""
    with start() as cluster:
        process, began = begin(cluster, words)
        wait_until_at_work(book, cluster.one)
        cluster.one.unplug()
        time.sleep(SHORT)
        cluster.one.plug()
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
        assert "Remove worker" not in cluster.log("scheduler").read_text()
    assert redone == 0
    table[f"a worker's cable is out for {SHORT} s"] = Row(seconds, redone)


def test_a_worker_is_out_of_reach_for_longer_than_the_scheduler_waits(
    start, words, book, expected, table
):
    """Others do its scans. It ends, as Dask has it, and is there again when it is started."""
    with start(DASKS_OWN) as cluster:
        process, began = begin(cluster, words)
        wait_until_at_work(book, cluster.one)
        cluster.one.unplug()
        time.sleep(LONG)
        cluster.one.plug()
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
        cluster.wait_for_words("one", "End worker", 1)
        cluster.start_worker(cluster.one)
        cluster.wait_for_words("scheduler", "Register worker", 3)
    assert redone >= 1
    table[f"a worker's cable is out for {LONG} s, TCP timeout {DASKS_OWN}"] = Row(seconds, redone)


def test_the_client_is_out_of_reach_for_a_while(start, words, book, expected, table):
    """Nothing is lost: the workers go on, and it hears of all of it."""
    with start() as cluster:
        process, began = begin(cluster, words)
        wait_until_at_work(book)
        cluster.client.unplug()
        time.sleep(SHORT)
        cluster.client.plug()
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
    assert redone == 0
    table[f"the client's cable is out for {SHORT} s"] = Row(seconds, redone)


def test_the_client_is_out_of_reach_for_longer_than_the_scheduler_waits(
    start, words, book, expected, table
):
    """The scheduler gives its tasks up; the client finds it again, and sends its scans again."""
    with start(DASKS_OWN) as cluster:
        process, began = begin(cluster, words)
        wait_until_at_work(book)
        cluster.client.unplug()
        time.sleep(LONG)
        cluster.client.plug()
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
    assert redone >= 1
    table[f"the client's cable is out for {LONG} s, TCP timeout {DASKS_OWN}"] = Row(seconds, redone)


def test_a_cable_that_lets_little_through(start, words, book, expected, table):
    with start() as cluster:
        cluster.one.slow_down("1mbit")
        process, began = begin(cluster, words)
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
    assert redone == 0
    table["a worker's cable lets 1 Mbit/s through"] = Row(seconds, redone)


def test_a_worker_host_fails_and_comes_back(start, words, book, expected, table):
    """Nobody is told: the scheduler finds out when nothing came from there for long enough."""
    with start(DASKS_OWN) as cluster:
        process, began = begin(cluster, words)
        wait_until_at_work(book, cluster.one)
        cluster.one.unplug()
        cluster.one.kill()
        time.sleep(SHORT)
        cluster.one.plug()
        cluster.start_worker(cluster.one)
        redone = assert_fused(cluster, process, book, expected, words[1])
        seconds = time.monotonic() - began
        cluster.wait_for_words("scheduler", "Register worker", 3)
    assert redone >= 1
    table[f"a worker's host fails and is back after {SHORT} s, TCP timeout {DASKS_OWN}"] = Row(
        seconds, redone
    )
