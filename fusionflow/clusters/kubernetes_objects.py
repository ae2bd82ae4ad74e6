"""Objects of Kubernetes and of the Dask operator that a cluster and a submitted run consist of.

A DaskJob has a DaskCluster of the same name, and that the first group of workers; other groups
are DaskWorkerGroups, which the operator makes part of the cluster once it is there. All is gone
with the DaskJob or DaskCluster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.kubernetes_pods import (
    DASHBOARD_PORT,
    SCHEDULER_PORT,
    runner_pod,
    scheduler_pod,
    worker_pod,
)
from fusionflow.errors import ConfigurationError
from fusionflow.kubernetes_options import KubernetesGroup, KubernetesOptions

DASK_API = "kubernetes.dask.org/v1"
LABELS = {"app.kubernetes.io/name": "fusionflow"}
#: What the operator gives all pods of a cluster.
CLUSTER_LABEL, COMPONENT_LABEL = "dask.org/cluster-name", "dask.org/component"
_OPERATOR_LABELS = {"app.kubernetes.io/name": "dask-kubernetes-operator"}
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"
#: Least seconds without work until a cluster counts as left behind, and those beyond the time that
#: a run waits for workers.
_IDLE_TIMEOUT, _IDLE_MARGIN = 3600, 600


def check_kubernetes(options: ClusterOptions) -> None:
    """Refuse options that mean nothing for pods, or that send images in the clear unasked.

    Raises
    ------
    ConfigurationError
        If there are such.
    """
    for name, instead in (
        ("n_workers", "groups.NAME.replicas"),
        ("memory_mb", "groups.NAME.memory"),
        ("work_dir", "scratch, the size of each pod's /tmp"),
    ):
        if getattr(options, name) is not None:
            raise ConfigurationError(
                f"cluster.{name} means nothing for pods of Kubernetes",
                f"Leave it out, and use cluster.kubernetes.{instead}",
            )
    pods = options.kubernetes
    if pods.tls_secret is None and not options.allow_plain_tcp:
        raise ConfigurationError(
            "cluster.kubernetes.tls_secret is not given: images and code would travel between "
            "nodes in the clear",
            "Name a Secret with ca.crt, tls.crt and tls.key, or, in a network that you trust, give "
            "--allow-plain-tcp (cluster.allow_plain_tcp: true)",
        )


def dask_cluster(options: ClusterOptions, name: str, torch_threads: int = 1) -> dict[str, Any]:
    """Return the DaskCluster: a scheduler, its service, and the first group of workers.

    The operator removes it when it had no work for an hour: whoever started it may be gone. A run
    that waits longer for its workers is given that time.
    """
    idle = max(_IDLE_TIMEOUT, math.ceil(options.patience) + _IDLE_MARGIN)
    spec = _cluster_spec(options, name, torch_threads, answers_operator=True)
    return {
        **head(DASK_API, "DaskCluster", name, options.kubernetes),
        "spec": {"idleTimeout": idle, **spec},
    }


def worker_groups(
    options: ClusterOptions, name: str, torch_threads: int = 1
) -> list[dict[str, Any]]:
    """Return the groups of workers beyond the first."""
    _, *others = options.kubernetes.groups.items()
    return [
        {
            **head(DASK_API, "DaskWorkerGroup", f"{name}-{group_name}", options.kubernetes),
            "spec": {"cluster": name, "worker": _worker(options, group, name, torch_threads)},
        }
        for group_name, group in others
    ]


def autoscaler(options: KubernetesOptions, name: str) -> list[dict[str, Any]]:
    """Return what makes the first group follow the work, if that is wanted."""
    group = first_group(options)
    if group.replicas_most is None:
        return []
    spec = {"cluster": name, "minimum": group.replicas, "maximum": group.replicas_most}
    return [{**head(DASK_API, "DaskAutoscaler", name, options), "spec": spec}]


def dask_job(
    options: ClusterOptions,
    name: str,
    words: Sequence[str],
    config_map: str,
    torch_threads: int = 1,
) -> dict[str, Any]:
    """Return the DaskJob: a cluster, and the pod with the run that ends with it."""
    adapts = first_group(options.kubernetes).replicas_most is not None
    cluster = _cluster_spec(options, name, torch_threads, answers_operator=adapts)
    return {
        **head(DASK_API, "DaskJob", name, options.kubernetes),
        "spec": {
            "job": {"spec": runner_pod(options.kubernetes, name, words, config_map)},
            "cluster": {"spec": cluster},
        },
    }


def config_map(options: KubernetesOptions, name: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Return files as a ConfigMap."""
    return {**head("v1", "ConfigMap", name, options), "data": dict(files)}


def claims(options: KubernetesOptions) -> list[dict[str, Any]]:
    """Return the claims for storage that are to be made."""
    wanted: dict[str, dict[str, Any]] = {}
    for volume in options.volumes:
        if volume.size is None or volume.claim in wanted:
            continue
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteMany"],  # pods of all nodes write results
            "resources": {"requests": {"storage": volume.size}},
        }
        if volume.storage_class:
            spec["storageClassName"] = volume.storage_class
        wanted[volume.claim] = {
            **head("v1", "PersistentVolumeClaim", volume.claim, options), "spec": spec,
        }  # fmt: skip
    return list(wanted.values())


def network_policies(options: KubernetesOptions, name: str) -> list[dict[str, Any]]:
    """Return who may talk to the pods of a cluster: they to scheduler and workers.

    Nobody else may but the operator, to the scheduler. The dashboard is reached with ``kubectl
    port-forward``.
    """
    members = {"matchLabels": {CLUSTER_LABEL: name}}
    operator = {
        "namespaceSelector": {"matchLabels": {_NAMESPACE_LABEL: options.operator_namespace}},
        "podSelector": {"matchLabels": dict(_OPERATOR_LABELS)},
    }
    from_members = {"from": [{"podSelector": members}]}
    of_scheduler, of_operator = (
        [{"protocol": "TCP", "port": port} for port in ports]
        for ports in ((SCHEDULER_PORT,), (SCHEDULER_PORT, DASHBOARD_PORT))
    )
    rules: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
        name: (members, []),
        f"{name}-scheduler": (
            {"matchLabels": {CLUSTER_LABEL: name, COMPONENT_LABEL: "scheduler"}},
            [
                {**from_members, "ports": of_scheduler},
                {"from": [operator], "ports": of_operator},
            ],
        ),
        f"{name}-workers": (  # at ports of their own choice
            {"matchLabels": {CLUSTER_LABEL: name, COMPONENT_LABEL: "worker"}},
            [{**from_members, "ports": [{"protocol": "TCP"}]}],
        ),
    }
    return [
        {
            **head("networking.k8s.io/v1", "NetworkPolicy", policy, options),
            "spec": {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": allowed},
        }
        for policy, (pods, allowed) in rules.items()
    ]


def first_group(options: KubernetesOptions) -> KubernetesGroup:
    """Return the group that the operator makes with the cluster."""
    return next(iter(options.groups.values()))


def _cluster_spec(
    options: ClusterOptions, name: str, torch_threads: int, *, answers_operator: bool
) -> dict[str, Any]:
    return {
        "scheduler": {
            "spec": scheduler_pod(options, answers_operator=answers_operator),
            "service": {
                "type": "ClusterIP",
                "selector": {CLUSTER_LABEL: name, COMPONENT_LABEL: "scheduler"},
                "ports": [
                    {"name": port_name, "protocol": "TCP", "port": port, "targetPort": port_name}
                    for port_name, port in (
                        ("tcp-comm", SCHEDULER_PORT), ("http-dashboard", DASHBOARD_PORT),
                    )
                ],
            },
        },
        "worker": _worker(options, first_group(options.kubernetes), name, torch_threads),
    }  # fmt: skip


def _worker(
    options: ClusterOptions, group: KubernetesGroup, name: str, torch_threads: int
) -> dict[str, Any]:
    return {"replicas": group.replicas, "spec": worker_pod(options, group, name, torch_threads)}


def head(version: str, kind: str, name: str, options: KubernetesOptions) -> dict[str, Any]:
    """Return what all objects begin with."""
    metadata: dict[str, Any] = {"name": name, "labels": dict(LABELS)}
    if options.namespace:
        metadata["namespace"] = options.namespace
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
