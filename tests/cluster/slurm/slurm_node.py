"""A SLURM of two nodes on loopback: its own key, ports, configuration and folder, real daemons."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

#: Debian's packages, and the commands that they bring.
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
COMMANDS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")
#: Devices that stand for GPUs: SLURM counts them and hands them out, nothing opens them.
DEVICES = ("/dev/null", "/dev/zero")
#: What each node says it has, whatever the machine has.
CORES, MEMORY_MB = 4, 16000
#: Seconds for a command, and for a daemon to come up or go.
PATIENCE = 30

CONFIG = """\
ClusterName=fusionflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=10
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=DEFAULT CPUs={cores} RealMemory={memory}
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu_port}
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu_port} Gres=gpu:{gpus}
PartitionName=cpu Nodes=cpu1 Default=YES MaxTime=1-00:00:00 OverSubscribe=NO
PartitionName=gpu Nodes=gpu1 MaxTime=1-00:00:00 OverSubscribe=NO
"""


def install() -> str | None:
    """Install SLURM's packages where they are missing; return why that is not possible."""
    if os.getuid() != 0:
        return "SLURM's daemons are started by root"
    if all(shutil.which(name) for name in COMMANDS):
        return None
    if shutil.which("apt-get") is None:
        return "SLURM is not installed, and there is no apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update", "-qq"], words):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            return f"SLURM cannot be installed: {done.stderr[-300:]}"
    return None


class Slurm:
    """A running SLURM; commands reach it through ``SLURM_CONF``.

    Parameters
    ----------
    folder : Path
        For all its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.config = folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start munge, controller and node, and wait until jobs can come."""
        for name in ("state", "spool", "spool/cpu1", "spool/gpu1"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, cpu_port, gpu_port = _free_ports(3)
        self.config.write_text(
            CONFIG.format(
                host=self.host, folder=self.folder, controller=controller, cpu_port=cpu_port,
                gpu_port=gpu_port, cores=CORES, memory=MEMORY_MB, gpus=len(DEVICES),
            )
        )  # fmt: skip
        lines = [f"NodeName=gpu1 Name=gpu File={device}\n" for device in DEVICES]
        (self.folder / "gres.conf").write_text("".join(lines))
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2",
            *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")),
            f"--socket={self.folder}/munge.socket",
        )  # fmt: skip
        _until((self.folder / "munge.socket").exists, "munge")
        self._daemon("slurmctld", "-D", "-f", self.config)
        for node in ("cpu1", "gpu1"):
            self._daemon("slurmd", "-D", "-f", self.config, "-N", node)
        states = ("sinfo", "-h", "-N", "-o", "%T")
        _until(lambda: self.command(*states, check=False).split() == ["idle"] * 2, "the nodes")

    def _daemon(self, *words: object) -> None:
        with (self.folder / f"{words[0]}{len(self._daemons)}.out").open("wb") as log:
            daemon = subprocess.Popen(
                [str(word) for word in words], stdout=log, stderr=log, start_new_session=True
            )
        self._daemons.append(daemon)

    def stop(self) -> None:
        """End every job and every daemon."""
        try:
            self.end_all_jobs()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in self._daemons:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(timeout=PATIENCE)
                daemon.kill()
                daemon.wait()

    def command(self, *words: str, check: bool = True) -> str:
        """Run a command of SLURM and return what it printed, errors as well."""
        done = subprocess.run(
            words,
            env={**os.environ, "SLURM_CONF": str(self.config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def jobs(self, state: str | None = None, name: str | None = None) -> list[str]:
        """Return the numbers of jobs that have not ended, of a state or a name."""
        words = ["squeue", "-h", "-o", "%A", "-S", "i"]
        words += ["-t", state] if state else []
        words += ["-n", name] if name else []
        return self.command(*words).split()

    def end_all_jobs(self) -> None:
        """Cancel what is left, and wait until the node is free."""
        for job in self.jobs():
            self.command("scancel", job, check=False)
        _until(lambda: not self.jobs(), "the end of all jobs")

    def field(self, job: str, name: str) -> str:
        """Return what ``scontrol show job`` says of a job, until SLURM has forgotten it."""
        shown = self.command("scontrol", "show", "job", job, "-d")
        found = re.search(rf"\b{name}=(\S*)", shown)
        assert found is not None, shown
        return found[1]

    def await_end(self, job: str, seconds: float) -> str:
        """Wait until a job has ended, and return its state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        _until(lambda: self.field(job, "JobState") in ended, f"job {job}", seconds)
        return self.field(job, "JobState")


def _until(done, what: str, seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
