"""Where the work runs: images do not cross a network in the clear unless somebody asks for it."""

import contextlib
import logging
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import dask
import distributed
import psutil
import pytest
from click.testing import CliRunner

from fusionflow import clusters
from fusionflow.cli import main
from fusionflow.config import ClusterOptions
from fusionflow.errors import ClusterError, ConfigurationError


def own_address():
    """Return an address of this machine that others could reach, if it has one."""
    for addresses in psutil.net_if_addrs().values():
        for item in addresses:
            if item.family == socket.AF_INET and not item.address.startswith("127."):
                return item.address
    return None


@pytest.fixture
def elsewhere():
    """An address that counts as another machine's."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    return address


@pytest.fixture
def nobody_calls(monkeypatch):
    """Fail the test if anybody so much as makes a client."""

    def refuse(*arguments, **options):
        raise AssertionError("there was an attempt to connect")

    monkeypatch.setattr(distributed, "Client", refuse)
    monkeypatch.setattr(distributed.comm, "connect", refuse)


class Called(Exception):  # noqa: N818
    """Somebody would have connected."""


@pytest.fixture
def calls(monkeypatch):
    """Stop where a client would connect, for an address that nobody answers at."""

    def call(*arguments, **options):
        raise Called

    monkeypatch.setattr(distributed, "Client", call)
    monkeypatch.setattr(distributed.comm, "connect", call)


def connect(address, **options):
    with clusters.connect(ClusterOptions(address=address, **options)):
        pass


class TestPlainTcp:
    @pytest.mark.parametrize(
        "address",
        [
            "tcp://10.0.0.1:8786", "10.0.0.1:8786", "10.0.0.1", "tcp://10.0.0.1",
            "node-7:8786", "tcp://node-7.example.org:8786", "tcp://localhost.example.org:8786",
            "tcp://127.0.0.1.example.org:8786", "tcp://0.0.0.0:8786", "tcp://169.254.1.1:1",
            "tcp://[2001:db8::1]:8786", "[2001:db8::1]:8786", "tcp://[fe80::1%eth0]:8786",
            "tcp://[::]:8786", "tcp://[::ffff:10.0.0.1]:8786",
        ],
    )  # fmt: skip
    def test_to_another_machine_is_refused_before_anything_connects(self, nobody_calls, address):
        with pytest.raises(ConfigurationError, match="plain TCP") as error:
            connect(address)
        assert address in str(error.value)
        assert "--allow-plain-tcp" in str(error.value)
        assert "tls://" in str(error.value)

    def test_no_byte_leaves(self, elsewhere):
        """A scheduler that listens there hears nothing."""
        with socket.create_server((elsewhere, 0)) as server:
            server.setblocking(False)
            with pytest.raises(ConfigurationError):
                connect(f"tcp://{elsewhere}:{server.getsockname()[1]}")
            with pytest.raises(BlockingIOError):
                server.accept()

    @pytest.mark.parametrize(
        "address",
        [
            "tcp://127.0.0.1:8786", "127.0.0.1:8786", "tcp://127.8.9.10:8786", "localhost:8786",
            "tcp://localhost:8786", "tcp://[::1]:8786", "[::1]:8786",
        ],
    )  # fmt: skip
    def test_to_this_machine_is_no_matter(self, calls, caplog, address):
        with pytest.raises(Called):
            connect(address)
        assert caplog.text == ""

    @pytest.mark.parametrize("address", ["tcp://10.0.0.1:8786", "node-7:8786"])
    def test_is_allowed_on_request_and_warned_of(self, calls, caplog, address):
        with caplog.at_level(logging.WARNING), pytest.raises(Called):
            connect(address, allow_plain_tcp=True)
        assert f"{address} is reached without TLS" in caplog.text

    @pytest.mark.parametrize("address", ["tls://10.0.0.1:8786", "tls://[2001:db8::1]:8786"])
    def test_is_not_what_tls_speaks(self, calls, caplog, address):
        with pytest.raises(Called):
            connect(address)
        assert caplog.text == ""

    @pytest.mark.parametrize("address", ["ws://10.0.0.1:8786", "ucx://10.0.0.1:8786"])
    def test_is_not_the_only_way_to_talk_in_the_clear(self, nobody_calls, address):
        with pytest.raises(ConfigurationError):
            connect(address)

    def test_on_the_command_line(self, tmp_path, nobody_calls):
        from fusionflow.phantom import write_cohort

        write_cohort(tmp_path / "bids", shape=(16, 16, 16))
        result = CliRunner().invoke(
            main,
            ["run", str(tmp_path / "bids"), str(tmp_path / "out"), "--method", "average",
             "--cluster", "tcp://10.0.0.1:8786"],
        )  # fmt: skip
        assert result.exit_code == 2
        assert "plain TCP" in result.output


@contextlib.contextmanager
def cluster_at(host, **options):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, host=host,
        dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL, **options,
    ) as cluster:  # fmt: skip
        yield cluster


class TestRealSchedulers:
    def test_over_plain_tcp_on_request(self, elsewhere, caplog):
        with cluster_at(elsewhere, protocol="tcp") as cluster:
            address = cluster.scheduler_address
            with pytest.raises(ConfigurationError, match="plain TCP"):
                connect(address)
            options = ClusterOptions(address=address, allow_plain_tcp=True)
            with clusters.connect(options) as client:
                assert client.submit(sum, [1, 2]).result() == 3
        assert client.status == "closed"

    @pytest.fixture
    def certificate(self, tmp_path):
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=fusionflow", "-keyout", "key.pem", "-out", "cert.pem"],
            cwd=tmp_path, capture_output=True, check=False,
        )  # fmt: skip
        if made.returncode:
            pytest.skip("openssl makes no certificate here")
        files = {"key": str(tmp_path / "key.pem"), "cert": str(tmp_path / "cert.pem")}
        parts = {f"distributed.comm.tls.{x}.{k}": v for x in ("client", "scheduler", "worker")
                 for k, v in files.items()}  # fmt: skip
        with dask.config.set(
            {**parts, "distributed.comm.tls.ca-file": files["cert"],
             "distributed.comm.require-encryption": True}
        ):  # fmt: skip
            yield distributed.Security()

    def test_over_tls_without_being_asked(self, elsewhere, certificate):
        with cluster_at(elsewhere, protocol="tls://", security=certificate) as cluster:
            assert cluster.scheduler_address.startswith("tls://")
            with clusters.connect(ClusterOptions(address=cluster.scheduler_address)) as client:
                assert client.submit(sum, [1, 2]).result() == 3

    def test_where_nobody_answers(self, monkeypatch):
        monkeypatch.setattr(clusters.connection, "_PATIENCE", 1)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=f"No Dask scheduler answers at .*{port}"):
            connect(f"tcp://127.0.0.1:{port}")

    @pytest.mark.parametrize(
        "address", ["nonsense://127.0.0.1:1", "tcp://127.0.0.1:port", "tcp://"]
    )
    def test_at_what_is_no_address(self, monkeypatch, address):
        monkeypatch.setattr(clusters.connection, "_PATIENCE", 1)
        with pytest.raises((ClusterError, ConfigurationError)):
            connect(address)


def test_a_gpu_is_not_waited_for_on_processors(nobody_calls):
    with pytest.raises(ConfigurationError, match="Take --cluster cuda"):
        connect(None, gpu="required")


class TestLocalWorkers:
    @pytest.mark.parametrize(
        ("cores", "gigabytes", "threads", "workers"),
        [
            (16, 64, 1, 16),  # one a core
            (16, 64, 4, 4),  # whose tasks or networks use several
            (16, 9, 1, 4),  # no more than memory is for
            (2, 1, 1, 1), (2, 64, 8, 1),  # one at least
        ],
    )  # fmt: skip
    def test_follow_cores_and_memory(self, monkeypatch, cores, gigabytes, threads, workers):
        monkeypatch.setattr(clusters.local, "available_cores", lambda: cores)
        assert clusters.local_workers(gigabytes * 1e9, threads) == workers

    def test_leave_no_core_to_two_threads(self):
        """Threads of a method's network count: workers x tasks x threads are the cores at most."""
        memory = int(8e9)
        for torch_threads in (1, clusters.available_cores()):
            options = ClusterOptions(memory_mb=memory // 10**6)
            with clusters.connect(options, torch_threads=torch_threads) as client:
                busy = sum(client.nthreads().values()) * torch_threads
            assert busy <= clusters.available_cores()

    def test_that_are_idle_take_slabs_of_a_scan_ten_times_a_second(self):
        def milliseconds(dask_scheduler):
            return dask_scheduler.periodic_callbacks["stealing"].callback_time

        with clusters.connect(ClusterOptions(n_workers=1)) as client:
            assert client.run_on_scheduler(milliseconds) == 100

    def test_of_two_clusters_the_first_that_ends_takes_nothing_from_the_other(self):
        def patience():
            return dask.config.get("distributed.deploy.lost-worker-timeout")

        before, environment = patience(), dict(os.environ)
        with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
            for stack in (one, other):  # without clients, of which the last is the current one
                stack.enter_context(clusters.local.local(ClusterOptions(n_workers=1)))
            one.close()
            assert patience() == "7 days"
        assert patience() == before
        assert dict(os.environ) == environment

    def test_that_threads_start_at_once_do_not_mix_up_their_environment(self, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        before = dict(os.environ)

        def threads_of_one(_):
            with clusters.connect(ClusterOptions(n_workers=1)) as client:
                return client.run(lambda: os.environ["OMP_NUM_THREADS"])

        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(threads_of_one, range(2)):
                assert list(found.values()) == ["1"]
        assert dict(os.environ) == before

    def test_leave_the_environment_of_their_client_alone(self, monkeypatch):
        for name in ("MALLOC_TRIM_THRESHOLD_", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        before = dict(os.environ)
        with clusters.connect(ClusterOptions(n_workers=1)) as client:
            assert dict(os.environ) == before
            (theirs,) = client.run(lambda: dict(os.environ)).values()
        assert theirs["MALLOC_TRIM_THRESHOLD_"] == "65536"
        assert theirs["MKL_NUM_THREADS"] == "1"
        assert theirs["OMP_NUM_THREADS"] == "7"  # who sets it means it
