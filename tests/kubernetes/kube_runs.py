"""Runs on Kubernetes that tests look at, and the pods in what they become."""

from pathlib import Path

import yaml

from fusionflow.config import validated
from fusionflow.submission.kubernetes import objects

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
IMAGE = "registry.example.org/fusionflow:0.1.0"
GPU_GROUP = {
    "replicas": 2,
    "cores": 8,
    "memory": "32Gi",
    "gpus": 1,
    "node_selector": {"nvidia.com/gpu.present": "true"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
}

#: Options of pods, options of the cluster, a schedule.
CASES = {
    "plain": ({}, {}, None),
    "tls": ({"tls_secret": "certificates"}, {"allow_plain_tcp": False}, None),
    "gpu": ({"groups": {"gpu": GPU_GROUP}}, {}, None),
    "gpu-and-cpu": ({"groups": {"prepare": {"replicas": 3}, "gpu": GPU_GROUP}}, {}, None),
    "adaptive": ({"groups": {"workers": {"replicas": 2, "replicas_most": 9}}}, {}, None),
    "scheduled": ({"namespace": "petmri"}, {}, "*/30 1-5 * * mon-fri"),
    "everything": (
        {
            "name": "study-7",
            "namespace": "petmri",
            "image": "registry.example.org:5000/lab/fusionflow@sha256:" + "ab" * 32,
            "image_pull_policy": "Always",
            "image_pull_secrets": ["registry"],
            "service_account": "pods",
            "volumes": [
                {"claim": "study", "path": "/data", "read_only": True, "sub_path": "raw/bids"},
                {"claim": "study", "path": "/out", "sub_path": "fused"},
                {"claim": "weights", "path": "/models", "size": "10Gi", "storage_class": "nfs"},
            ],
            "environment": {"FUSIONFLOW_WEIGHTS_DIR": "/models"},
            "secrets": ["tokens"],
            "config_maps": ["site"],
            "tls_secret": "certificates",
            "groups": {"prepare": {"replicas": 3}, "gpu": GPU_GROUP},
            "user_id": 1234,
            "group_id": 5678,
            "scratch": "50Gi",
            "operator_namespace": "dask",
        },
        {"allow_plain_tcp": False, "priority": 5, "patience": 60},
        "@daily",
    ),
}


def run_config(kubernetes=None, **cluster):
    """Return a run on pods with one volume at /data."""
    pods = {"image": IMAGE, "volumes": [{"claim": "study", "path": "/data"}], **(kubernetes or {})}
    cluster = {"kind": "kubernetes", "allow_plain_tcp": True, **cluster}
    return validated({"cluster": {**cluster, "kubernetes": pods}}, "test")


def made(config=None, *, bids="/data/bids", out="/data/fused", arguments=(), schedule=None):
    return objects(Path(bids), Path(out), arguments, config or run_config(), schedule=schedule)


def case(name):
    """Return the objects of a case, and those that its CronJob creates."""
    kubernetes, cluster, schedule = CASES[name]
    out = "/out/all" if name == "everything" else "/data/fused"
    found = made(run_config(kubernetes, **cluster), out=out, schedule=schedule)
    return found + created_later(found)


def created_later(objects):
    """Return what is in ConfigMaps to be created by a CronJob."""
    return [
        item
        for manifest in objects
        if manifest["kind"] == "ConfigMap" and "job.yaml" in manifest["data"]
        for item in yaml.safe_load_all(manifest["data"]["job.yaml"])
    ]


def the(kind, objects, name=None):
    """Return the one object of a kind (and name)."""
    [found] = [
        item
        for item in objects
        if item["kind"] == kind and name in (None, item["metadata"]["name"])
    ]
    return found


def pods_of(objects):
    """Return the specifications of all pods, by whose they are."""
    return {
        f"{item['kind']}/{item['metadata']['name']}/{part}": spec
        for item in objects
        for part, spec in _pods_of_one(item)
    }


def _pods_of_one(item):
    spec = item.get("spec", {})
    if item["kind"] == "DaskJob":
        yield "runner", spec["job"]["spec"]
        spec = spec["cluster"]["spec"]
    if item["kind"] in ("DaskJob", "DaskCluster"):
        yield "scheduler", spec["scheduler"]["spec"]
    if item["kind"] in ("DaskJob", "DaskCluster", "DaskWorkerGroup"):
        yield "worker", spec["worker"]["spec"]
    if item["kind"] == "CronJob":
        yield "submit", spec["jobTemplate"]["spec"]["template"]["spec"]


def containers_of(objects):
    """Return the one container of each pod, by whose it is."""
    found = {}
    for where, pod in pods_of(objects).items():
        [found[where]] = pod["containers"]
    return found


def environment_of(container):
    return {item["name"]: item.get("value") for item in container["env"]}
