"""A scheduler that is there: its file, its certificates, and what is said if these are wrong."""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import distributed
import pytest
from certificates import dask_options, write_certificates, yaml_of
from crew import path_of_another_version
from runs import config, small_cohort

import fusionflow as ff
from fusionflow import clusters
from fusionflow.config import ClusterOptions, load_config
from fusionflow.errors import ClusterError, ConfigurationError

pytestmark = pytest.mark.cluster

#: Seconds beyond its patience that an error may take.
MARGIN = 5.0


def options_of(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return load_config(path).cluster


@contextlib.contextmanager
def takes_less_than(seconds):
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@contextlib.contextmanager
def dask_scheduler(folder, *words):
    """Start one from the command line; gives the file that it writes."""
    file = folder / "scheduler.json"
    command = [
        str(Path(sys.executable).with_name("dask")), "scheduler", "--host", "127.0.0.1", "--port",
        "0", "--no-dashboard", "--scheduler-file", str(file), *words,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield file
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


class TestSchedulerFile:
    def test_is_waited_for(self, crew, tmp_path, caplog):
        """The run may begin before the scheduler does."""
        crew.hire("one", gpu=False)
        crew.wait(1)
        file = tmp_path / "later.json"
        content = json.dumps({"address": crew.client.scheduler.address})
        timer = threading.Timer(1.0, file.write_text, [content])
        timer.start()
        caplog.handler.setLevel(logging.NOTSET)  # which Dask's own clusters silence
        with clusters.connect(ClusterOptions(scheduler_file=file)) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        timer.join()
        assert f"Waiting up to 300 s for a scheduler to write {file}" in caplog.text

    def test_of_a_real_scheduler_whose_workers_do_not_come(self, tmp_path):
        options = options_of(
            tmp_path, f"cluster:\n  scheduler_file: {tmp_path}/scheduler.json\n  patience: 8\n"
        )
        with (
            dask_scheduler(tmp_path) as file,
            pytest.raises(ClusterError, match=r"No worker came .* within 8 s") as error,
            takes_less_than(30 + MARGIN),
            clusters.connect(options),
        ):
            pass
        assert f"dask worker {json.loads(file.read_text())['address']}" in str(error.value)

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, "No such file or directory"),
            ('{"type": "Scheduler", "addr', "it is no scheduler's file"),
            ("[1, 2]", "it is no scheduler's file"),
            ('{"id": "Scheduler-1"}', "it is no scheduler's file"),
            ("\xff\xfe", "it is no scheduler's file"),
        ],
    )
    def test_that_is_missing_or_damaged_is_named_in_time(self, tmp_path, content, why):
        file = tmp_path / "scheduler.json"
        if content is not None:
            file.write_bytes(content.encode("latin-1"))
        with (
            takes_less_than(0.5 + MARGIN),
            pytest.raises(ClusterError) as error,
            clusters.connect(ClusterOptions(scheduler_file=file, patience=0.5)),
        ):
            pass
        assert f"No scheduler's address in {file} within 0.5 s: {why}" in str(error.value)
        assert f"dask scheduler --scheduler-file {file}" in str(error.value)

    def test_of_a_scheduler_that_is_gone(self, tmp_path):
        with dask_scheduler(tmp_path) as file:
            while not file.exists():
                time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            kept = file.read_bytes()
        file.write_bytes(kept)
        with (
            takes_less_than(1 + MARGIN),
            pytest.raises(ClusterError, match=f"No Dask scheduler answers at {address}"),
            clusters.connect(ClusterOptions(scheduler_file=file, patience=1)),
        ):
            pass

    def test_what_would_fail_is_found_there_as_well(self, crew, bids, tmp_path):
        """Another version, and images that only this machine has, before anything runs."""
        older = path_of_another_version(tmp_path / "older")
        file, out = tmp_path / "scheduler.json", tmp_path / "out"
        out.mkdir()
        hide = f"mount -t tmpfs none '{bids}' && exec \"$@\""
        apart = ["unshare", "-m", "sh", "-c", hide, "sh"]
        if subprocess.run([*apart[:2], "true"], capture_output=True, check=False).returncode:
            pytest.skip("no mount namespaces here")
        file.write_text(json.dumps({"address": crew.client.scheduler.address}))
        crew.hire("other", gpu=False, before=apart, PYTHONPATH=older)
        crew.wait(1)
        how = config("average")
        how = how.model_copy(update={"cluster": ClusterOptions(scheduler_file=file)})
        with pytest.raises(ClusterError) as error:
            ff.run(bids, out, how)
        assert "versions: fusionflow 0.0.1, here" in str(error.value)
        assert "is not seen" in str(error.value)
        assert not (out / "scans").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_certificates(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def tls_scheduler(files, tmp_path_factory):
    """A scheduler with certificates and a worker, as from the command line; its address."""
    folder = tmp_path_factory.mktemp("scheduler")
    with dask_scheduler(folder, "--protocol", "tls", *dask_options(files)) as file:
        worker = subprocess.Popen(
            [Path(sys.executable).with_name("dask"), "worker", "--scheduler-file", str(file),
             "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1",
             "--protocol", "tls", *dask_options(files)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        try:
            while not file.exists():
                time.sleep(0.1)
            yield json.loads(file.read_text())["address"]
        finally:
            worker.kill()
            worker.wait()


class TestTls:
    def test_with_the_files_that_yaml_names(self, bids, files, tls_scheduler, tmp_path):
        assert tls_scheduler.startswith("tls://")
        options = options_of(tmp_path, f"{yaml_of(files)}  address: {tls_scheduler}\n")
        how = config("average").model_copy(update={"cluster": options})
        assert len(ff.run(bids, tmp_path / "out", how).fused) == 4

    def test_of_another_authority(self, tls_scheduler, tmp_path):
        others = write_certificates(tmp_path / "others")
        options = options_of(
            tmp_path, f"{yaml_of(others)}  address: {tls_scheduler}\n  patience: 5\n"
        )
        with (
            takes_less_than(5 + MARGIN),
            pytest.raises(ClusterError, match=f"No Dask scheduler answers at {tls_scheduler}") as e,
            clusters.connect(options),
        ):
            pass
        assert "TLS certificate does not match" in str(e.value)
        assert "cluster.tls" in str(e.value)

    def test_of_a_client_that_the_scheduler_does_not_know(self, files, tls_scheduler, tmp_path):
        """It shows a certificate that another authority signed."""
        others = write_certificates(tmp_path / "others")
        mixed = {**others, "ca_file": files["ca_file"]}
        options = options_of(
            tmp_path, f"{yaml_of(mixed)}  address: {tls_scheduler}\n  patience: 5\n"
        )
        with (
            takes_less_than(5 + MARGIN),
            pytest.raises(ClusterError, match=f"No Dask scheduler answers at {tls_scheduler}"),
            clusters.connect(options),
        ):
            pass

    @pytest.mark.parametrize("option", ["ca_file", "cert", "key"])
    def test_of_which_a_file_is_missing(self, files, option, tmp_path):
        missing = {**files, option: tmp_path / "gone.pem"}
        options = options_of(tmp_path, f"{yaml_of(missing)}  address: tls://127.0.0.1:1\n")
        with (
            pytest.raises(ConfigurationError, match=rf"tls\.{option}: cannot read") as error,
            clusters.connect(options),
        ):
            pass
        assert str(tmp_path / "gone.pem") in str(error.value)

    @pytest.mark.parametrize("option", ["ca_file", "cert", "key"])
    def test_of_which_a_file_is_no_certificate(self, files, option, tls_scheduler, tmp_path):
        broken = tmp_path / "broken.pem"
        broken.write_text("no certificate\n")
        options = options_of(
            tmp_path,
            f"{yaml_of({**files, option: broken})}  address: {tls_scheduler}\n  patience: 5\n",
        )
        with (
            takes_less_than(5 + MARGIN),
            pytest.raises(ConfigurationError, match=r"cluster\.tls: "),
            clusters.connect(options),
        ):
            pass


@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_what_answers_nothing_is_given_up(protocol, files, tmp_path):
    """A port that takes calls and says nothing: a scheduler that froze, say."""
    options = options_of(tmp_path, yaml_of(files)) if protocol == "tls" else ClusterOptions()
    with socket.create_server(("127.0.0.1", 0)) as server, takes_less_than(1 + MARGIN):
        address = f"{protocol}://127.0.0.1:{server.getsockname()[1]}"
        options = options.model_copy(update={"address": address, "patience": 1})
        with (
            pytest.raises(ClusterError, match=f"No Dask scheduler answers at {address}"),
            clusters.connect(options),
        ):
            pass


def test_dask_has_its_own_patience_again_in_the_end(crew):
    """A run is patient with a network that is gone for a while; what comes after it is not."""
    import dask

    setting = "distributed.comm.timeouts.tcp"
    before = dask.config.get(setting)
    crew.hire("one", gpu=False)
    crew.wait(1)
    options = ClusterOptions(address=crew.client.scheduler.address, patience=100)
    with clusters.connect(options) as client:
        assert dask.config.get(setting) == "100.0s"
        assert isinstance(client, distributed.Client)
    assert dask.config.get(setting) == before
