"""Pods as processes of this machine: what their containers are given is run, on loopback."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from kube_runs import environment_of

from fusionflow.clusters.kubernetes_objects import dask_cluster

_NAME = "pods"


@contextlib.contextmanager
def running(options, *, certificates=None):
    """Run the scheduler and a worker of a cluster; yield the scheduler's port."""
    spec = dask_cluster(options, _NAME)["spec"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.ExitStack() as stack:
        for part in ("scheduler", "worker"):
            [container] = spec[part]["spec"]["containers"]
            stack.enter_context(_process(container, port, certificates))
            _await(port)
        yield port


@contextlib.contextmanager
def _process(container, port, certificates):
    def here(text):
        for there, instead in (
            ("/etc/fusionflow-tls", str(certificates)),
            (f"{_NAME}-scheduler:8786", f"127.0.0.1:{port}"), ("8786", str(port)),
            (":8787", "127.0.0.1:0"), (":8788", "127.0.0.1:0"),
            ("0.0.0.0", "127.0.0.1"), ("$(DASK_WORKER_NAME)", "worker-0"),
        ):  # fmt: skip
            text = text.replace(there, instead)
        return text

    words = [here(word) for word in container["args"]]
    if "--host" not in words:
        words += ["--host", "127.0.0.1"]
    environment = {name: here(value) for name, value in environment_of(container).items()}
    assert words[0] == "dask"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "dask", *words[1:]],
        env={**os.environ, "PYTHONWARNINGS": "", **environment}, cwd="/", start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _await(port):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens at {port}")
