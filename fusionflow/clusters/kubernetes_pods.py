"""Pods of a cluster: scheduler, workers, and the run itself.

Everything in them runs as a user without rights, on a root file system that cannot be written,
within limits. What is written goes to ``/tmp``, which is the pod's own, and to volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.local import scheduler_settings
from fusionflow.clusters.worker_settings import (
    WORKER_SETTINGS,
    WORKER_SHARE,
    ZARR_CONCURRENCY,
    dask_variables,
    gpu_threads,
)
from fusionflow.errors import ConfigurationError
from fusionflow.kubernetes_options import (
    KubernetesGroup,
    KubernetesOptions,
    PodSize,
    bytes_of,
)
from fusionflow.placement import RESOURCE

CONFIG_FOLDER = "/etc/fusionflow"
#: Not inside the folder of the configuration: nothing can be mounted into what is read-only.
TLS_FOLDER = "/etc/fusionflow-tls"
CA_FILE, CERT, KEY = (f"{TLS_FOLDER}/{name}" for name in ("ca.crt", "tls.crt", "tls.key"))
SCHEDULER_PORT, DASHBOARD_PORT, WORKER_DASHBOARD_PORT = 8786, 8787, 8788
#: Where the operator asks how many workers are wanted, which can go, and how long none had work.
_API_ROUTES = "distributed.http.scheduler.api"
_SCRATCH = "/tmp"
#: Seconds that a worker waits for its scheduler, and that a run has to undo what is half done.
_DEATH_TIMEOUT = 300
_RUNNER_GRACE = 120


def scheduler_address(options: KubernetesOptions, name: str) -> str:
    """Return where pods of the namespace find a cluster's scheduler, by the name of its service."""
    return f"{protocol(options)}://{name}-scheduler:{SCHEDULER_PORT}"


def protocol(options: KubernetesOptions) -> str:
    """Return how parts of a cluster talk."""
    return "tls" if options.tls_secret else "tcp"


def scheduler_pod(options: ClusterOptions, *, answers_operator: bool) -> dict[str, Any]:
    """Return the specification of a scheduler's pod; the operator may ask it things by HTTP."""
    pods = options.kubernetes
    words = ["dask", "scheduler", "--host", "0.0.0.0"]  # a pod has an address of its own
    words += ["--port", str(SCHEDULER_PORT), "--dashboard-address", f":{DASHBOARD_PORT}"]
    words += ["--protocol", protocol(pods), *_tls_options(pods)]
    probe = {"httpGet": {"path": "/health", "port": "http-dashboard"}}
    environment = _tls_variables(pods, client=False) | dask_variables(scheduler_settings(options))
    if answers_operator:
        environment |= _operator_routes()
    container = _container(pods, "scheduler", words, pods.scheduler, environment)
    container |= {
        "ports": [
            {"name": "tcp-comm", "containerPort": SCHEDULER_PORT, "protocol": "TCP"},
            {"name": "http-dashboard", "containerPort": DASHBOARD_PORT, "protocol": "TCP"},
        ],
        "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": 90},
        "readinessProbe": {**probe, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {
            **probe, "periodSeconds": 20, "timeoutSeconds": 20, "failureThreshold": 6,
        },
    }  # fmt: skip
    return _pod(pods, container, data=False)


def worker_pod(
    options: ClusterOptions, group: KubernetesGroup, name: str, torch_threads: int = 1
) -> dict[str, Any]:
    """Return the specification of a pod with one worker of the cluster `name`."""
    pods = options.kubernetes
    words = ["dask", "cuda", "worker"] if group.gpus else ["dask", "worker"]
    words += [scheduler_address(pods, name), "--name", "$(DASK_WORKER_NAME)"]
    words += ["--nthreads", str(_threads(options, group, torch_threads))]
    words += ["--memory-limit", str(int(bytes_of(group.memory) * WORKER_SHARE))]
    words += ["--local-directory", _SCRATCH, "--death-timeout", str(_DEATH_TIMEOUT)]
    words += ["--dashboard-address", f":{WORKER_DASHBOARD_PORT}", *_tls_options(pods)]
    if group.gpus:
        # What is on a device does not outlive a task: nothing to spill.
        words += ["--resources", f"{RESOURCE}=1", "--device-memory-limit", "0"]
    environment = {
        "DASK_SCHEDULER_ADDRESS": scheduler_address(pods, name),
        **_tls_variables(pods, client=False),
        **dask_variables(WORKER_SETTINGS),
        "ZARR_ASYNC__CONCURRENCY": str(ZARR_CONCURRENCY),
    }
    container = _container(pods, "worker", words, group, environment)
    if group.gpus:  # as text: the API server refuses a number here
        for amounts in container["resources"].values():
            amounts["nvidia.com/gpu"] = str(group.gpus)
    probe = {"httpGet": {"path": "/health", "port": "http-dashboard"}}
    container |= {
        "ports": [
            {"name": "http-dashboard", "containerPort": WORKER_DASHBOARD_PORT, "protocol": "TCP"}
        ],
        "startupProbe": {**probe, "periodSeconds": 5, "failureThreshold": 120},
        # Its nanny restarts a worker by itself, which may take a while.
        "livenessProbe": {
            **probe, "periodSeconds": 30, "timeoutSeconds": 20, "failureThreshold": 10,
        },
    }  # fmt: skip
    pod = _pod(pods, container)
    if group.node_selector:
        pod["nodeSelector"] = dict(group.node_selector)
    if group.tolerations:
        pod["tolerations"] = [
            toleration.model_dump(exclude_none=True) for toleration in group.tolerations
        ]
    return pod


def runner_pod(
    options: KubernetesOptions, name: str, words: Sequence[str], config_map: str
) -> dict[str, Any]:
    """Return the specification of the pod that a run of the cluster `name` is in."""
    environment = {
        "DASK_SCHEDULER_ADDRESS": scheduler_address(options, name),
        **_tls_variables(options, client=True),
    }
    container = _container(options, "runner", words, options.runner, environment)
    pod = _pod(options, container, config_map=config_map)
    # The next run goes on where one that failed stopped; to start it again and again does not help.
    return {**pod, "restartPolicy": "Never", "terminationGracePeriodSeconds": _RUNNER_GRACE}


def submitter_pod(
    options: KubernetesOptions, words: Sequence[str], config_map: str
) -> dict[str, Any]:
    """Return the specification of a pod that creates objects: the one with a token."""
    container = _container(options, "submit", words, PodSize(memory="512Mi"), {})
    container["env"].append(
        {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}
    )
    pod = _pod(options, container, config_map=config_map, data=False)
    return {**pod, "automountServiceAccountToken": True, "restartPolicy": "Never"}


def required_image(options: KubernetesOptions) -> str:
    """Return the image of all pods.

    Raises
    ------
    ConfigurationError
        If none is named.
    """
    if options.image is None:
        raise ConfigurationError(
            "cluster.kubernetes.image is not given, and pods need an image with fusionflow",
            "Build one (deploy/containers.md), push it where the nodes find it, and name it",
        )
    return options.image


def _container(
    options: KubernetesOptions,
    name: str,
    words: Sequence[str],
    size: PodSize,
    environment: dict[str, str],
) -> dict[str, Any]:
    """Return a container without rights, within limits."""
    amounts = {"cpu": str(size.cores), "memory": size.memory}
    variables = {
        "HOME": _SCRATCH,
        "TMPDIR": _SCRATCH,
        "DASK_TEMPORARY_DIRECTORY": _SCRATCH,
        **environment,
        **options.environment,
    }
    container: dict[str, Any] = {
        "name": name,
        "image": required_image(options),
        "imagePullPolicy": options.image_pull_policy,
        "args": list(words),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if options.secrets or options.config_maps:
        container["envFrom"] = [
            *({"configMapRef": {"name": name}} for name in options.config_maps),
            *({"secretRef": {"name": name}} for name in options.secrets),
        ]
    return container


def _pod(
    options: KubernetesOptions,
    container: dict[str, Any],
    *,
    config_map: str | None = None,
    data: bool = True,
) -> dict[str, Any]:
    """Return a pod with one container and what it mounts."""
    mounts: list[dict[str, Any]] = [{"name": "scratch", "mountPath": _SCRATCH}]
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": options.scratch}}
    ]
    if config_map:
        mounts.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
        volumes.append({"name": "config", "configMap": {"name": config_map}})
    if options.tls_secret:
        mounts.append({"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True})
        secret = {"secretName": options.tls_secret, "defaultMode": 0o440}
        volumes.append({"name": "tls", "secret": secret})
    if data:
        claims = list(dict.fromkeys(volume.claim for volume in options.volumes))
        volumes += [
            {"name": f"data-{number}", "persistentVolumeClaim": {"claimName": claim}}
            for number, claim in enumerate(claims)
        ]
        for volume in options.volumes:
            mount: dict[str, Any] = {
                "name": f"data-{claims.index(volume.claim)}", "mountPath": volume.path,
            }  # fmt: skip
            if volume.read_only:
                mount["readOnly"] = True
            if volume.sub_path:
                mount["subPath"] = volume.sub_path
            mounts.append(mount)
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a service called dask-... would become Dask's settings
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": options.user_id,
            "runAsGroup": options.group_id,
            "fsGroup": options.group_id,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [{**container, "volumeMounts": mounts}],
        "volumes": volumes,
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    return pod


def _threads(options: ClusterOptions, group: KubernetesGroup, torch_threads: int) -> int:
    """Return how many tasks a worker is to run at a time."""
    if options.threads_per_worker is not None:
        return options.threads_per_worker
    if group.gpus:
        return gpu_threads(group.cores, torch_threads)
    return max(1, group.cores // torch_threads)


def _operator_routes() -> dict[str, str]:
    """Return the setting that adds to a dashboard what the operator asks."""
    import dask
    import distributed  # noqa: F401 - brings its settings along

    routes = [*dask.config.get("distributed.scheduler.http.routes"), _API_ROUTES]
    return {"DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": repr(routes)}


def _tls_options(options: KubernetesOptions) -> list[str]:
    if not options.tls_secret:
        return []
    return ["--tls-ca-file", CA_FILE, "--tls-cert", CERT, "--tls-key", KEY]


def _tls_variables(options: KubernetesOptions, *, client: bool) -> dict[str, str]:
    """Return the variables that refuse to talk in the clear, and tell a client its certificates."""
    if not options.tls_secret:
        return {}
    settings: dict[str, Any] = {"distributed.comm.require-encryption": True}
    if client:
        settings |= {
            "distributed.comm.tls.ca-file": CA_FILE,
            "distributed.comm.tls.client.cert": CERT,
            "distributed.comm.tls.client.key": KEY,
        }
    return dask_variables(settings)


def is_mounted(options: KubernetesOptions, path: str, *, to_write: bool = False) -> bool:
    """Whether pods find a path of theirs on a volume, and may write there."""
    inside = [
        volume for volume in options.volumes if PurePosixPath(path).is_relative_to(volume.path)
    ]
    if not inside:
        return False
    nearest = max(inside, key=lambda volume: len(PurePosixPath(volume.path).parts))
    return not (to_write and nearest.read_only)
