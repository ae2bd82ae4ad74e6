"""Where the work runs, as a person chooses it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from fusionflow.kubernetes_options import KubernetesOptions
from fusionflow.options import Options
from fusionflow.slurm_options import SlurmOptions

__all__ = ["ClusterOptions", "TlsFiles"]

_MOST = 2**31 - 1


class TlsFiles(Options):
    """Certificates of this side, as files in PEM.

    Attributes
    ----------
    ca_file : Path
        Whose signature the other side's certificate must have.
    cert : Path
        The certificate of this side.
    key : Path
        Its key.
    """

    ca_file: Path
    cert: Path
    key: Path

    @field_validator("ca_file", "cert", "key")
    @classmethod
    def _are_found_from_anywhere(cls, value: Path) -> Path:
        return value.expanduser().absolute()


class ClusterOptions(Options):
    """A cluster to start or to use, and how a run behaves on it.

    Attributes
    ----------
    kind : {"local", "cuda", "slurm", "kubernetes"}
        What to start if there is no `address` and no `scheduler_file`: workers of this machine, or
        one for each of its NVIDIA GPUs; jobs of SLURM; pods of Kubernetes.
    address : str or None
        A running scheduler (``tcp://...``, ``tls://...``).
    scheduler_file : Path or None
        The file that a running scheduler wrote (``dask scheduler --scheduler-file``). It is waited
        for.
    tls : TlsFiles or None
        Certificates for a scheduler at a ``tls://`` address; None takes those of Dask's own
        configuration (``distributed.comm.tls``).
    shared : bool or None
        Whether others work on the cluster as well: then no worker is restarted. None means so
        unless the run started the cluster.
    priority : int
        Where this run's tasks stand beside those of others on the same cluster; more is sooner.
    slurm : SlurmOptions
        Jobs, for ``kind: slurm``.
    kubernetes : KubernetesOptions
        Pods, for ``kind: kubernetes``.
    gpu : {"auto", "required", "never"}
        Whether networks run on workers that advertise a GPU: where there are some when the run
        starts; only there, waiting for one; or nowhere. Where this starts workers with GPUs
        ``auto`` means required.
    n_workers : int or None
        Worker processes of a local cluster, GPUs of a cuda one; None follows cores and memory, or
        takes all GPUs.
    threads_per_worker : int or None
        Tasks that a worker runs at a time; None takes one, and beside a GPU its share of the cores,
        2 to 8.
    memory_mb : int or None
        Memory for all workers together, in MB; None takes what the machine has.
    work_dir : Path or None
        Where workers spill to disk; None lets Dask choose.
    window : int or None
        Scans in flight; None takes two for each task that can run at a time.
    time_limit : float or None
        Seconds that a scan may be in flight before its workers are restarted; None for no limit.
    allow_plain_tcp : bool
        Whether a scheduler on another machine may be reached without TLS.
    patience : float
        Seconds to wait for a worker that can do the work (with a GPU, where one is needed): for the
        first one, and when the last one is gone.
    scheduler_patience : float or None
        Seconds to go on trying to reach the scheduler at `address`, where it may still be on its
        way; None tries once, which takes up to half a minute.
    performance_report : bool
        Whether Dask's own report of the run is written, ``logs/<run>.performance.html``: some
        megabytes. On a cluster that is shared it shows the tasks of others, too.
    """

    kind: Literal["local", "cuda", "slurm", "kubernetes"] = "local"
    address: str | None = None
    scheduler_file: Path | None = None
    tls: TlsFiles | None = None
    shared: bool | None = None
    priority: int = Field(strict=True, default=0, ge=-1000, le=1000)
    slurm: SlurmOptions = SlurmOptions()
    kubernetes: KubernetesOptions = KubernetesOptions()
    gpu: Literal["auto", "required", "never"] = "auto"
    n_workers: int | None = Field(strict=True, default=None, ge=1, le=_MOST)
    threads_per_worker: int | None = Field(strict=True, default=None, ge=1, le=1024)
    memory_mb: int | None = Field(strict=True, default=None, ge=256, le=_MOST)
    work_dir: Path | None = None
    window: int | None = Field(strict=True, default=None, ge=1, le=_MOST)
    time_limit: float | None = Field(default=7200, gt=0, allow_inf_nan=False)
    allow_plain_tcp: bool = False
    patience: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    scheduler_patience: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    performance_report: bool = False

    @field_validator("scheduler_file")
    @classmethod
    def _one_scheduler(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("address") is not None:
            raise ValueError("address names a scheduler as well: give one of the two")
        return None if value is None else value.expanduser().absolute()

    @property
    def starts_a_cluster(self) -> bool:
        """Whether the run starts workers of its own, rather than using what is there."""
        return self.address is None and self.scheduler_file is None

    @property
    def needs_gpu(self) -> bool:
        """Whether the work cannot be done without a GPU."""
        return self.gpu == "required" or (self.gpu == "auto" and self.starts_gpus)

    @property
    def starts_gpus(self) -> bool:
        """Whether this starts workers that have GPUs."""
        if not self.starts_a_cluster:
            return False
        return (
            self.kind == "cuda"
            or (self.kind == "slurm" and self.slurm.has_gpus)
            or (self.kind == "kubernetes" and self.kubernetes.has_gpus)
        )
