"""Pods of Kubernetes, as a person chooses them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from fusionflow.options import Options

__all__ = [
    "KubernetesGroup",
    "KubernetesOptions",
    "KubernetesToleration",
    "KubernetesVolume",
    "PodSize",
    "bytes_of",
]

#: Kubernetes allows 63 letters in a name; what is made of these has more words.
_LONGEST_NAME = 32
_LONGEST_GROUP = 20
_LEAST_BYTES = 256 << 20
_UNITS = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_QUANTITY = re.compile(r"([1-9][0-9]{0,8})(Mi|Gi|Ti|M|G|T)")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(rf"({_SUBDOMAIN.pattern}/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,255}(@sha256:[0-9a-f]{64})?")
#: What pods get from fusionflow and the operator.
_OUR_FOLDERS = ("/tmp", "/etc/fusionflow", "/etc/fusionflow-tls")
#: What the image brings along, and the node: programs, libraries, devices.
_SYSTEM_FOLDERS = (
    "/opt/fusionflow", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev",
)  # fmt: skip
_OUR_VARIABLES = (
    "HOME", "TMPDIR", "NAMESPACE", "DASK_TEMPORARY_DIRECTORY", "DASK_SCHEDULER_ADDRESS",
    "DASK_WORKER_NAME", "DASK_INTERNAL_INHERIT_CONFIG", "ZARR_ASYNC__CONCURRENCY",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES",
    "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING_INTERVAL",
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES",
    "DASK_DISTRIBUTED__WORKER__PROFILE__INTERVAL",
    "DASK_DISTRIBUTED__WORKER__PROFILE__CYCLE",
)  # fmt: skip
#: How variables begin that say how parts of a cluster talk: whether in the clear.
_OUR_PREFIX = "DASK_DISTRIBUTED__COMM__"


def _name(pattern: re.Pattern[str], most: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not pattern.fullmatch(value) or len(value) > most:
            raise ValueError(
                f"{value!r} is no name in Kubernetes: up to {most} small letters, digits and -, "
                "with a letter or digit at both ends"
            )
        return value

    return check


def _quantity(value: str) -> str:
    if not _QUANTITY.fullmatch(value):
        raise ValueError(f"{value!r} is no amount of memory: write 512Mi, 8Gi or 16G")
    if bytes_of(value) < _LEAST_BYTES:
        raise ValueError(f"{value} is less than anything of this can work in: 256Mi at least")
    return value


Name: TypeAlias = Annotated[str, AfterValidator(_name(_LABEL, _LONGEST_NAME))]
GroupName: TypeAlias = Annotated[str, AfterValidator(_name(_LABEL, _LONGEST_GROUP))]
Namespace: TypeAlias = Annotated[str, AfterValidator(_name(_LABEL, 63))]
ObjectName: TypeAlias = Annotated[str, AfterValidator(_name(_SUBDOMAIN, 253))]
Quantity: TypeAlias = Annotated[str, AfterValidator(_quantity)]


def bytes_of(quantity: str) -> int:
    """Return how many bytes an amount stands for.

    >>> bytes_of("2Gi"), bytes_of("500M")
    (2147483648, 500000000)
    """
    match = _QUANTITY.fullmatch(quantity)
    assert match is not None, quantity
    return int(match[1]) * _UNITS[match[2]]


class KubernetesVolume(Options):
    """A claim for storage, as pods see it.

    Attributes
    ----------
    claim : str
        Name of the PersistentVolumeClaim.
    path : str
        Where all pods see it.
    read_only : bool
        Whether pods may only read there.
    sub_path : str or None
        The folder of the volume that they see; None for all of it.
    size : str or None
        What to claim if the claim is to be made, such as ``500Gi``; None means that it is there.
    storage_class : str or None
        Of a claim that is to be made; None takes the site's default.
    """

    claim: ObjectName
    path: str
    read_only: bool = False
    sub_path: str | None = None
    size: Quantity | None = None
    storage_class: ObjectName | None = None

    @field_validator("path")
    @classmethod
    def _is_a_folder_of_its_own(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or ":" in value:
            raise ValueError(f"{value!r} is no folder to mount at: write one such as /data")
        for taken in _OUR_FOLDERS + _SYSTEM_FOLDERS:
            if path.is_relative_to(taken) or PurePosixPath(taken).is_relative_to(path):
                raise ValueError(f"{value} is in the way of {taken}, which pods get anyway")
        return str(path)

    @field_validator("sub_path")
    @classmethod
    def _is_inside_the_volume(cls, value: str | None) -> str | None:
        if value is not None:
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"{value!r} is no folder inside the volume")
        return value


class KubernetesToleration(Options):
    """A taint of nodes that pods put up with; the names are those of Kubernetes.

    Attributes
    ----------
    key, value : str or None
        Of the taint.
    operator : {"Exists", "Equal"}
        Whether its value matters.
    effect : {"NoSchedule", "PreferNoSchedule", "NoExecute"} or None
        What the taint does; None means any.
    """

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = Field(default=None, validate_default=True)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @field_validator("key")
    @classmethod
    def _key_of_a_taint(cls, value: str | None) -> str | None:
        if value is not None and not _LABEL_KEY.fullmatch(value):
            raise ValueError(f"{value!r} is no key of a taint: write one such as nvidia.com/gpu")
        return value

    @field_validator("value")
    @classmethod
    def _fits_the_operator(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("operator") == "Exists" and value is not None:
            raise ValueError("operator Exists looks at no value: leave it out, or take Equal")
        if info.data.get("operator") == "Equal" and info.data.get("key") is None:
            raise ValueError("operator Equal needs a key: name one, or take Exists")
        return value


class PodSize(Options):
    """What a pod asks for, and gets no more of.

    Attributes
    ----------
    cores : int
        Cores.
    memory : str
        Memory, such as ``8Gi``.
    """

    cores: int = Field(strict=True, default=1, ge=1, le=1024)
    memory: Quantity = "2Gi"


class KubernetesGroup(PodSize):
    """Worker pods of one kind; each holds one worker.

    Attributes
    ----------
    replicas : int
        Pods.
    replicas_most : int or None
        Up to how many pods there may be where the work asks for them; `replicas` is then the
        least. None means always as many. Only where it is the only group.
    gpus : int
        GPUs of a pod, 0 or 1.
    node_selector : dict
        Labels that nodes must have.
    tolerations : tuple of KubernetesToleration
        Taints of nodes that do not keep these pods away.
    """

    cores: int = Field(strict=True, default=4, ge=1, le=1024)
    memory: Quantity = "16Gi"
    replicas: int = Field(strict=True, default=1, ge=1, le=10_000)
    replicas_most: int | None = Field(strict=True, default=None, ge=1, le=10_000)
    gpus: int = Field(strict=True, default=0, ge=0)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[KubernetesToleration, ...] = ()

    @field_validator("gpus")
    @classmethod
    def _one_worker_one_gpu(cls, value: int) -> int:
        if value > 1:
            raise ValueError("a pod holds one worker, and a worker one GPU: raise replicas instead")
        return value

    @field_validator("replicas_most")
    @classmethod
    def _most_is_not_least(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value < info.data.get("replicas", 1):
            raise ValueError(f"must be at least replicas, {info.data['replicas']}")
        return value

    @field_validator("node_selector")
    @classmethod
    def _labels_of_nodes(cls, value: dict[str, str]) -> dict[str, str]:
        for key, wanted in value.items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(wanted):
                raise ValueError(f"{key!r}: {wanted!r} is no label of a node")
        return value


class KubernetesOptions(Options):
    """Groups of pods, and what they have in common.

    Attributes
    ----------
    name : str
        What all that is made is called, or begins with.
    namespace : str or None
        Where; None takes that of the current context.
    image : str or None
        Container image with fusionflow (deploy/containers.md), with a tag or digest. Needed.
    image_pull_policy : {"IfNotPresent", "Always", "Never"}
        Whether nodes fetch it.
    image_pull_secrets : tuple of str
        Secrets with which they may.
    service_account : str or None
        As whom pods run. They get no token of it.
    volumes : tuple of KubernetesVolume
        Storage, the same for all pods.
    environment : dict
        Environment variables.
    secrets, config_maps : tuple of str
        Secrets and ConfigMaps whose entries become environment variables.
    tls_secret : str or None
        Secret with ``ca.crt``, ``tls.crt`` and ``tls.key`` (as cert-manager makes it), for
        scheduler, workers and runs. None talks in the clear, which must be allowed
        (``cluster.allow_plain_tcp``).
    groups : dict of str to KubernetesGroup
        Workers, by a name.
    scheduler : PodSize
        The scheduler's pod.
    runner : PodSize
        The pod that a submitted run is in.
    user_id, group_id : int
        As which user and group everything runs; never root.
    scratch : str
        Most that a pod may write into its ``/tmp``, where workers spill.
    operator_namespace : str
        Where the operator runs, which may talk to the scheduler's dashboard.
    """

    name: Name = "fusionflow"
    namespace: Namespace | None = None
    image: str | None = None
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[ObjectName, ...] = ()
    service_account: ObjectName | None = None
    volumes: tuple[KubernetesVolume, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[ObjectName, ...] = ()
    config_maps: tuple[ObjectName, ...] = ()
    tls_secret: ObjectName | None = None
    groups: dict[GroupName, KubernetesGroup] = Field(
        default_factory=lambda: {"workers": KubernetesGroup()}
    )
    scheduler: PodSize = PodSize()
    runner: PodSize = PodSize(memory="4Gi")
    user_id: int = Field(strict=True, default=10001, ge=1, le=2**31 - 1)
    group_id: int = Field(strict=True, default=10001, ge=1, le=2**31 - 1)
    scratch: Quantity = "10Gi"
    operator_namespace: Namespace = "dask-operator"

    @field_validator("image")
    @classmethod
    def _says_which_image(cls, value: str | None) -> str | None:
        if value is None:
            return value
        match = _IMAGE.fullmatch(value)
        if match is None:
            raise ValueError(f"{value[:40]!r} is no name of an image")
        if match[1]:
            return value
        tag = value.rpartition("/")[2].partition(":")[2]
        if tag in ("", "latest"):
            raise ValueError(
                f"{value} may be another image tomorrow: give a tag (not latest) or a digest"
            )
        return value

    @field_validator("volumes")
    @classmethod
    def _each_path_once(cls, value: tuple[KubernetesVolume, ...]) -> tuple[KubernetesVolume, ...]:
        paths = [volume.path for volume in value]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(f"{', '.join(twice)}: two volumes at one path")
        return value

    @field_validator("environment")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
            said = name.upper()  # Dask reads its variables in any case
            if said in _OUR_VARIABLES or said.startswith(_OUR_PREFIX):
                raise ValueError(f"{name} is set by the run: leave it out")
        return value

    @field_validator("groups")
    @classmethod
    def _groups_make_sense(cls, value: dict[str, KubernetesGroup]) -> dict[str, KubernetesGroup]:
        if not value:
            raise ValueError("name at least one group of workers")
        adaptive = [name for name, group in value.items() if group.replicas_most is not None]
        if adaptive and len(value) > 1:
            raise ValueError(
                f"{adaptive[0]}.replicas_most: the operator's autoscaler takes any worker away, of "
                "other groups as well; have one group alone, or a fixed number of replicas"
            )
        if "default" in list(value)[1:]:
            raise ValueError("the operator calls the first group default: call others otherwise")
        return value

    @property
    def has_gpus(self) -> bool:
        """Whether a group's pods have GPUs."""
        return any(group.gpus for group in self.groups.values())
