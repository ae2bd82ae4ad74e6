"""Workers that a test starts and ends, as ``dask worker`` does, on a scheduler of its own."""

import contextlib
import os
import signal
import subprocess
import sys

import distributed


class Crew:
    """A scheduler, and workers that a test starts and ends."""

    def __init__(self, client):
        self.client = client
        self.processes = {}

    def hire(self, name, *, gpu=True, threads=2, before=(), **environment):
        """Start a worker without a nanny, behind other words of a command if there are some."""
        words = [
            *before, sys.executable, "-m", "distributed.cli.dask_worker",
            self.client.scheduler.address,
            "--no-nanny", "--name", name, "--nthreads", str(threads), "--host", "127.0.0.1",
            "--no-dashboard", "--death-timeout", "60",
        ]  # fmt: skip
        if gpu:
            words += ["--resources", "GPU=1"]
        self.processes[name] = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
            cwd="/",  # or it would find the package of the folder that tests run in
        )
        return self.processes[name]

    def wait(self, count):
        self.client.wait_for_workers(count, timeout=120)

    def dismiss(self):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@contextlib.contextmanager
def crew_of_a_scheduler():
    """Start a scheduler without workers."""
    with (
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        crew = Crew(client)
        try:
            yield crew
        finally:
            crew.dismiss()


def path_of_another_version(folder):
    """Return a PYTHONPATH with which a worker says that its fusionflow is 0.0.1."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from importlib import metadata\n"
        "true = metadata.version\n"
        "metadata.version = lambda name: '0.0.1' if name == 'fusionflow' else true(name)\n"
    )
    return str(folder)
