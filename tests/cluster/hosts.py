"""Hosts of their own on one machine: network namespaces, joined by a switch in another one.

Nothing of it touches the machine's own network, and removing the namespaces removes all of it. The
hosts share the machine's files, as nodes of a cluster do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

_NETWORK = "10.77.0"
_PORT = 8786
#: Seconds for a process to go, and for a cluster to be there.
_GONE, _THERE = 10.0, 120.0
#: How `fusionflow` and `dask` of this very environment are called.
_PROGRAMS = Path(sys.executable).parent


def why_not() -> str | None:
    """Return the reason why there can be no hosts here, after an attempt to install what lacks."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        if not shutil.which("apt-get"):
            return "no ip and tc (iproute2) here"
        for words in (["update", "-qq"], ["install", "-y", "-qq", "iproute2"]):
            subprocess.run(["apt-get", *words], capture_output=True, check=False, timeout=200)
        if not (shutil.which("ip") and shutil.which("tc")):
            return "iproute2 cannot be installed here"
    with contextlib.suppress(subprocess.CalledProcessError), Hosts() as hosts:
        hosts.add("probe")
        return None
    return "no network namespaces, bridges or veth here"


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, timeout=20)


class Host:
    """A host with an address and a cable to the switch.

    Attributes
    ----------
    name, address : str
        Of it.
    """

    def __init__(self, name: str, address: str, space: str, switch: str, port: str) -> None:
        self.name, self.address = name, address
        self._space, self._switch, self._port = space, switch, port
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, log: Path, program: str, *words: object, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a program of this environment on the host; its output goes to a file."""
        command = ["ip", "netns", "exec", self._space, str(_PROGRAMS / program), *map(str, words)]
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def pids(self) -> set[int]:
        """Return all processes that run on it."""
        found: set[int] = set()
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                found |= {parent.pid, *(child.pid for child in parent.children(recursive=True))}
        return found

    def unplug(self) -> None:
        """Pull the cable: nothing comes through, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def plug(self) -> None:
        """Put the cable back."""
        _ip("-n", self._switch, "link", "set", self._port, "up")

    def slow_down(self, rate: str) -> None:
        """Let so much through the cable, either way (``1mbit``)."""
        for space, link in ((self._switch, self._port), (self._space, "eth0")):
            subprocess.run(
                ["ip", "netns", "exec", space, "tc", "qdisc", "add", "dev", link, "root", "tbf",
                 "rate", rate, "burst", "32kbit", "latency", "400ms"],
                check=True, capture_output=True, timeout=20,
            )  # fmt: skip

    def kill(self) -> None:
        """End every process on it, as when its power fails."""
        left = []
        for pid in self.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                process.kill()
                left.append(process)
        for process in self.processes:
            process.wait(_GONE)
        psutil.wait_procs(left, timeout=_GONE)
        self.processes.clear()


class Hosts:
    """A switch, and the hosts on it; as a context, all is gone in the end whatever happens."""

    def __init__(self) -> None:
        self._prefix = f"fusionflow-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._spaces: list[str] = []
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Hosts:
        self._space(self._switch)
        try:
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.kill()
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, timeout=20)

    def _space(self, name: str) -> None:
        _ip("netns", "add", name)
        self._spaces.append(name)

    def add(self, name: str) -> Host:
        """Return a new host."""
        number = len(self.hosts) + 1
        space, port = f"{self._prefix}-{name}", f"port{number}"
        address = f"{_NETWORK}.{number}"
        self._space(space)
        _ip("-n", self._switch, "link", "add", port, "type", "veth",
            "peer", "name", "eth0", "netns", space)  # fmt: skip
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", space, "link", "set", link, "up")
        self.hosts[name] = Host(name, address, space, self._switch, port)
        return self.hosts[name]


class Cluster:
    """A scheduler and two workers with certificates, and a client, on four hosts.

    Parameters
    ----------
    hosts : Hosts
        The switch.
    folder : Path
        For logs and what workers spill.
    tls : sequence of str
        How Dask's commands are told of certificates.
    environment : mapping
        Of the scheduler and the workers.
    """

    def __init__(
        self, hosts: Hosts, folder: Path, tls: Iterable[str], environment: Mapping[str, str]
    ) -> None:
        self.folder, self._tls, self._environment = folder, tuple(tls), dict(environment)
        folder.mkdir()
        self.scheduler, self.one, self.two, self.client = (
            hosts.add(name) for name in ("scheduler", "one", "two", "client")
        )
        self.address = f"tls://{self.scheduler.address}:{_PORT}"
        self.scheduler.start(
            self.log("scheduler"), "dask", "scheduler", "--host", self.scheduler.address,
            "--port", _PORT, "--protocol", "tls", "--no-dashboard", *self._tls,
            **self._environment,
        )  # fmt: skip
        for worker in (self.one, self.two):
            self.start_worker(worker)
        self.wait_for_words("scheduler", "Register worker", 2)

    def log(self, name: str) -> Path:
        """Return where a host's programs write what they say."""
        return self.folder / f"{name}.log"

    def start_worker(self, host: Host) -> None:
        """Start a worker, as ``dask worker`` does, with a nanny."""
        host.start(
            self.log(host.name), "dask", "worker", self.address, "--host", host.address,
            "--protocol", "tls", "--nthreads", 1, "--no-dashboard", "--name", host.name,
            "--memory-limit", "2GB", "--local-directory", self.folder, *self._tls,
            **self._environment,
        )  # fmt: skip

    def wait_for_words(self, name: str, words: str, times: int) -> None:
        """Wait until a log says something so many times."""
        until = time.monotonic() + _THERE
        while not self.log(name).exists() or self.log(name).read_text().count(words) < times:
            if time.monotonic() > until:
                raise TimeoutError(f"{name} does not say {words!r}:\n{self.log(name).read_text()}")
            time.sleep(0.1)

    def run(self, log: str, *words: Any, **environment: str) -> subprocess.Popen[bytes]:
        """Start ``fusionflow run`` on the client's host."""
        return self.client.start(self.log(log), "fusionflow", "run", *words, **environment)


@contextlib.contextmanager
def cluster_on_hosts(
    folder: Path, tls: Iterable[str], environment: Mapping[str, str]
) -> Iterator[Cluster]:
    """Have hosts and a cluster on them."""
    with Hosts() as hosts:
        yield Cluster(hosts, folder, tls, environment)
