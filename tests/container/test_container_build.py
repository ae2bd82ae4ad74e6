"""The image, built for real, does what it is for: nobody's root, nothing written but to mounts."""

import json
import os
import socket
import subprocess

import pytest
from containerfile import definition_sections
from networks import random_state
from runs import LABELS, small_cohort
from safetensors.torch import save_file

import fusionflow as ff

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

USER = 10001


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small cohort in a folder that the image's user may write."""
    folder = tmp_path_factory.mktemp("data")
    small_cohort(folder / "bids")
    os.chown(folder, USER, USER)
    folder.chmod(0o755)
    return folder


def inspect(engine, image):
    return json.loads(engine.call("podman", "image", "inspect", image).stdout)[0]


class TestImage:
    def test_says_what_it_is(self, engine, image):
        labels = inspect(engine, image)["Labels"]
        assert labels["org.opencontainers.image.version"] == ff.__version__
        assert labels["org.opencontainers.image.licenses"] == "BSD-3-Clause"
        assert labels["fusionflow.variant"] == "gpu"

    def test_has_no_entry_point_so_that_arguments_alone_are_a_command(self, engine, image):
        config = inspect(engine, image)["Config"]
        assert not config.get("Entrypoint")
        assert config["Cmd"] == ["fusionflow", "--help"]

    def test_runs_as_nobody_in_particular(self, engine, image):
        assert engine.run(image, "id", "-u").stdout.strip() == str(USER)

    @pytest.mark.parametrize("folder", ["/", "/opt/fusionflow/bin", "/data", "/weights", "/etc"])
    def test_its_root_cannot_be_written(self, engine, image, folder):
        done = engine.run(image, "touch", f"{folder}/new", check=False)
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr

    @pytest.mark.parametrize("folder", ["/", "/opt/fusionflow/bin", "/weights", "/etc"])
    def test_its_root_is_not_its_users(self, engine, image, folder):
        """Where nobody asked for a read-only one, too."""
        done = engine.run(
            image, "touch", f"{folder}/new", options=["--read-only=false"], check=False
        )
        assert done.returncode == 1
        assert "Permission denied" in done.stderr

    def test_what_it_imports_is_compiled(self, engine, image):
        said = engine.run(image, "python", "-v", "-c", "import fusionflow.cli, torch").stderr
        assert "code object from '/opt/fusionflow/" in said
        assert "code object from /opt/fusionflow/" not in said

    def test_nothing_can_be_installed(self, engine, image):
        assert engine.run(image, "python", "-m", "pip", "--version", check=False).returncode == 1


@pytest.mark.parametrize(
    "command",
    ["fusionflow --help", "dask scheduler --help", "dask worker --help", "dask cuda worker --help"],
)
def test_has_the_commands_of_pods(engine, image, command):
    assert "Usage" in engine.run(image, *command.split()).stdout


def owners(folder):
    return {path.stat().st_uid for path in folder.rglob("*")}


def test_demo_needs_no_network(engine, image, tmp_path):
    os.chown(tmp_path, USER, USER)
    engine.run(
        image, "fusionflow", "demo", "/data/demo", "--n-workers", "1", mounts={tmp_path: "/data"}
    )  # fmt: skip
    assert sorted(ff.open_cohort(tmp_path / "demo" / "fused")) == sorted(LABELS)
    assert owners(tmp_path / "demo") == {USER}


def test_a_run_needs_no_user_of_that_name(engine, image, data, tmp_path):
    os.chown(tmp_path, 4321, 4321)
    engine.run(
        image, "fusionflow", "run", "/data/bids", "/out/fused", "--method", "dwt-max",
        "--n-workers", "1", mounts={data: "/data:ro", tmp_path: "/out"},
        options=["--user=4321:4321", "--passwd=false"],
    )  # fmt: skip
    assert sorted(ff.open_cohort(tmp_path / "fused")) == sorted(LABELS)
    assert owners(tmp_path / "fused") == {4321}


class TestWeights:
    def run(self, engine, image, data, out, **mounts):
        return engine.run(
            image, "fusionflow", "run", "/data/bids", f"/data/{out}", "--method", "dwt-vgg19-l1",
            "--n-workers", "1", mounts={data: "/data", **mounts}, check=False,
        )  # fmt: skip

    def test_none_in_the_folder_is_said(self, engine, image, data):
        done = self.run(engine, image, data, "none")
        assert done.returncode == 4
        assert "No weights of vgg19 in /weights (FUSIONFLOW_WEIGHTS_DIR)" in " ".join(
            (done.stdout + done.stderr).split()
        )

    def test_those_in_a_mounted_folder_are_taken(self, engine, image, data, tmp_path):
        save_file(random_state(0), tmp_path / "vgg19.safetensors")
        for path in (tmp_path, tmp_path / "vgg19.safetensors"):
            path.chmod(0o755)
        done = self.run(engine, image, data, "mounted", **{str(tmp_path): "/weights:ro"})
        assert done.returncode == 0, done.stdout + done.stderr
        cohort = ff.open_cohort(data / "mounted")
        assert "vgg19.safetensors" in json.dumps(cohort.scan(LABELS[0]).attrs, default=str)


def test_what_apptainer_would_run_in_it_runs(engine, image, tmp_path):
    """The scripts of the definition, by the shell of the image; Apptainer itself is not needed."""
    sections = definition_sections()
    folder = {"PYTHONPATH": "/cluster/modules", "TMPDIR": "/no/such/folder"}
    options = [f"--env={name}={value}" for name, value in folder.items()]
    run = engine.run(
        image, "sh", "-ec", sections["environment"] + sections["test"] + "echo TMPDIR=$TMPDIR",
        options=options,
    )  # fmt: skip
    assert ff.__version__ in run.stdout
    assert "TMPDIR=/tmp\n" in run.stdout
    told = engine.run(image, "sh", "-ec", sections["runscript"], "fusionflow", "--version")
    assert ff.__version__ in told.stdout


@pytest.fixture
def pods(engine, image, data):
    """Start containers on this machine's loopback, as pods are started: by arguments alone."""
    started = {}

    def start(name, *words):
        options = ["--network=host", f"--name={name}"]
        command = engine.command(image, *words, mounts={data: "/data"}, options=options)
        started[name] = subprocess.Popen(
            command, env=engine.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return started[name]

    yield start
    for name, process in started.items():
        engine.call("podman", "--cgroup-manager", "cgroupfs", "kill", name, check=False)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_scheduler_two_workers_and_a_run_in_a_container_each(engine, image, data, pods):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    pods("scheduler", "dask", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    for name in ("one", "two"):
        pods(
            name, "dask", "worker", address, "--nthreads", "1", "--host", "127.0.0.1",
            "--no-dashboard", "--death-timeout", "60",
        )  # fmt: skip
    done = engine.call(
        *engine.command(
            image, "fusionflow", "run", "/data/bids", "/data/pods", "--method", "dwt-max",
            "--cluster", address, mounts={data: "/data"}, options=["--network=host"],
        ),
        timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(ff.open_cohort(data / "pods")) == sorted(LABELS)
