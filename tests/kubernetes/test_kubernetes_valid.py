"""Every object is one that Kubernetes and the operator take; broken ones are found out."""

import copy

import pytest
from kube_kustomize import build
from kube_runs import CASES, MANIFESTS, case, containers_of, pods_of, run_config, the
from kube_schemas import faults

from fusionflow.clusters.kubernetes_objects import autoscaler, dask_cluster, worker_groups

OVERLAYS = ("base", "gpu", "scheduled", "tls")


@pytest.mark.parametrize("name", CASES)
def test_objects_of_runs(name):
    for manifest in case(name):
        assert faults(manifest) == [], manifest["kind"]


@pytest.mark.parametrize("name", CASES)
def test_objects_of_clusters_that_a_run_starts(name):
    kubernetes, cluster, _ = CASES[name]
    options = run_config(kubernetes, **cluster).cluster
    for manifest in (
        dask_cluster(options, "live-1"),
        *worker_groups(options, "live-1"),
        *autoscaler(options.kubernetes, "live-1"),
    ):
        assert faults(manifest) == [], manifest["kind"]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_manifests(folder):
    for manifest in build(MANIFESTS / folder):
        assert faults(manifest) == [], manifest["kind"]


def test_names_are_short_enough_for_what_the_operator_adds():
    """Labels hold 63 letters; the operator refuses clusters with longer names than 53."""
    from dask_kubernetes.operator.validation import validate_cluster_name

    kubernetes = {"name": "x" * 32, "groups": {"a": {}, "y" * 20: {}}}
    options = run_config(kubernetes).cluster
    name = "x" * 32 + "-01234567"
    [group] = worker_groups(options, name)
    assert len(group["metadata"]["name"]) <= 63
    validate_cluster_name(dask_cluster(options, name)["metadata"]["name"])


def runner(job):
    return job["spec"]["job"]["spec"]


def worker(job):
    return job["spec"]["cluster"]["spec"]["worker"]["spec"]


BROKEN = {
    "gpu-as-a-number": lambda job: worker(job)["containers"][0]["resources"]["limits"].update(
        {"nvidia.com/gpu": 1}
    ),
    "no-environment": lambda job: worker(job)["containers"][0].update(env=None),
    "number-in-environment": lambda job: runner(job)["containers"][0]["env"].append(
        {"name": "A", "value": 1}
    ),
    "misspelt-security": lambda job: worker(job)["securityContext"].update(runAsNonroot=True),
    "misspelt-probe": lambda job: worker(job)["containers"][0].update(livenesProbe={}),
    "misspelt-volume": lambda job: runner(job)["volumes"].append(
        {"name": "x", "persistentVolumeClaim": {"claim": "x"}}
    ),
    "replicas-as-text": lambda job: job["spec"]["cluster"]["spec"]["worker"].update(replicas="2"),
    "no-scheduler": lambda job: job["spec"]["cluster"]["spec"].pop("scheduler"),
    "no-service": lambda job: job["spec"]["cluster"]["spec"]["scheduler"].pop("service"),
    "metadata-of-the-cluster": lambda job: job["spec"]["cluster"].update(metadata={}),
    "unknown-seccomp": lambda job: worker(job)["securityContext"].update(
        seccompProfile={"types": "RuntimeDefault"}
    ),
    "no-containers": lambda job: runner(job).pop("containers"),
    "no-spec": lambda job: job.pop("spec"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_jobs_are_found_out(how):
    job = copy.deepcopy(the("DaskJob", case("plain")))
    BROKEN[how](job)
    assert faults(job)


BROKEN_CORE = {
    "CronJob": lambda item: item["spec"].update(concurrencypolicy="Forbid"),
    "NetworkPolicy": lambda item: item["spec"].update(ingress=[{"from": [{"pods": {}}]}]),
    "ConfigMap": lambda item: item["data"].update({"run.yaml": 1}),
    "Role": lambda item: item["rules"][0].update(verb=["get"]),
    "RoleBinding": lambda item: item.pop("roleRef"),
    "ServiceAccount": lambda item: item.update(automount=False),
}


@pytest.mark.parametrize("kind", BROKEN_CORE)
def test_broken_others_are_found_out(kind):
    found = [item for item in case("scheduled") if item["kind"] == kind]
    item = copy.deepcopy(found[0])
    BROKEN_CORE[kind](item)
    assert faults(item)


def test_every_kind_is_looked_at():
    kinds = {item["kind"] for name in CASES for item in case(name)}
    assert kinds == {
        "PersistentVolumeClaim", "NetworkPolicy", "ConfigMap", "DaskJob", "DaskWorkerGroup",
        "DaskAutoscaler", "ServiceAccount", "Role", "RoleBinding", "CronJob",
    }  # fmt: skip
    assert len(pods_of(case("everything"))) == len(containers_of(case("everything"))) == 5
