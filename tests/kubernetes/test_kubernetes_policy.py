"""What pods may do: nothing that they do not need."""

import copy
import re

import pytest
from kube_kustomize import build
from kube_runs import CASES, MANIFESTS, case, pods_of, the


def violations(pod):
    """Return what the restricted Pod Security Standard, and more, has against a pod."""
    found = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or security.get("runAsUser", 0) < 1:
        found.append("may be root")
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("any system call")
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    found += ["hostPath" for volume in pod["volumes"] if "hostPath" in volume]
    found += [
        "scratch without an end"
        for volume in pod["volumes"]
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]
    ]
    for box in pod["containers"] + pod.get("initContainers", []):
        own = box.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("privileges")
        if own.get("readOnlyRootFilesystem") is not True:
            found.append("root file system")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
        limits = box.get("resources", {}).get("limits", {})
        if not {"cpu", "memory"} <= limits.keys() or limits != box["resources"].get("requests"):
            found.append("limits")
        if not all(isinstance(amount, str) for amount in limits.values()):
            found.append("amounts are text")
        if not re.search(r":[\w.-]+$|@sha256:[0-9a-f]{64}$", box["image"]) or ":latest" in str(box):
            found.append("image")
        words = " ".join(box.get("args", []))
        if re.search(r"\b(sudo|sh -c|bash)\b", words):
            found.append("shell")
        if {"name": "scratch", "mountPath": "/tmp"} not in box["volumeMounts"]:
            found.append("nowhere to write")
    return found


def everything():
    yield from ((name, case(name)) for name in CASES)
    for folder in ("base", "gpu", "scheduled", "tls"):
        yield folder, build(MANIFESTS / folder)


def test_no_pod_has_more_rights_than_it_needs():
    looked_at = 0
    for name, objects in everything():
        for where, pod in pods_of(objects).items():
            assert violations(pod) == [], (name, where)
            looked_at += 1
    assert looked_at > 30


def test_only_pods_that_create_objects_get_a_token():
    for name, objects in everything():
        for where, pod in pods_of(objects).items():
            creates = where.startswith("CronJob/")
            assert pod["automountServiceAccountToken"] is creates, (name, where)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("may be root", lambda pod: pod["securityContext"].update(runAsNonRoot=False)),
        ("may be root", lambda pod: pod["securityContext"].update(runAsUser=0)),
        ("any system call", lambda pod: pod["securityContext"].pop("seccompProfile")),
        ("hostNetwork", lambda pod: pod.update(hostNetwork=True)),
        ("hostPath", lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
        ("scratch without an end", lambda pod: pod["volumes"][0].update(emptyDir={})),
        ("privileges", lambda pod: own(pod).update(allowPrivilegeEscalation=True)),
        ("privileges", lambda pod: own(pod).update(privileged=True)),
        ("root file system", lambda pod: own(pod).pop("readOnlyRootFilesystem")),
        ("capabilities", lambda pod: own(pod)["capabilities"].update(add=["NET_ADMIN"])),
        ("limits", lambda pod: pod["containers"][0]["resources"].pop("limits")),
        ("limits", lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory")),
        ("image", lambda pod: pod["containers"][0].update(image="a/fusionflow:latest")),
        ("image", lambda pod: pod["containers"][0].update(image="a/fusionflow")),
        ("nowhere to write", lambda pod: pod["containers"][0].update(volumeMounts=[])),
    ],
)
def test_this_would_notice(what, change):
    pod = copy.deepcopy(next(iter(pods_of(case("plain")).values())))
    change(pod)
    assert what in violations(pod)


def own(pod):
    return pod["containers"][0]["securityContext"]


def test_a_number_of_gpus_would_be_noticed():
    pod = copy.deepcopy(pods_of(case("gpu"))["DaskJob/fusionflow/worker"])
    for amounts in pod["containers"][0]["resources"].values():
        amounts["nvidia.com/gpu"] = 1
    assert violations(pod) == ["amounts are text"]


class TestNetwork:
    def rules(self, name="plain"):
        return {
            item["metadata"]["name"]: item["spec"]
            for item in case(name)
            if item["kind"] == "NetworkPolicy"
        }

    def test_nobody_reaches_a_pod_who_is_not_let_in(self):
        spec = self.rules()["fusionflow"]
        assert spec["podSelector"] == {"matchLabels": {"dask.org/cluster-name": "fusionflow"}}
        assert (spec["policyTypes"], spec["ingress"]) == (["Ingress"], [])

    def test_the_dashboard_is_for_the_operator_alone(self):
        among, operator = self.rules("everything")["study-7-scheduler"]["ingress"]
        assert [port["port"] for port in among["ports"]] == [8786]
        [peer] = operator["from"]
        assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "dask"}
        assert "podSelector" in peer

    def test_workers_are_reached_by_pods_of_their_cluster(self):
        [rule] = self.rules()["fusionflow-workers"]["ingress"]
        members = {"matchLabels": {"dask.org/cluster-name": "fusionflow"}}
        assert rule["from"] == [{"podSelector": members}]

    def test_the_labels_are_those_that_the_operator_gives(self):
        controller = pytest.importorskip("dask_kubernetes.operator.controller.controller")
        cluster = the("DaskJob", case("plain"))["spec"]["cluster"]["spec"]
        scheduler = controller.build_scheduler_deployment_spec(
            "fusionflow", cluster["scheduler"]["spec"], {}, {}
        )
        worker = controller.build_worker_deployment_spec(
            "fusionflow-default", "lab", "fusionflow", "0", cluster["worker"]["spec"], {}, {}
        )
        runner = controller.build_job_pod_spec(
            "fusionflow", "fusionflow", "lab", the("DaskJob", case("plain"))["spec"]["job"]["spec"],
            {}, {},
        )  # fmt: skip
        for name, made in (("scheduler", scheduler), ("workers", worker)):
            wanted = self.rules()[f"fusionflow-{name}"]["podSelector"]["matchLabels"]
            assert wanted.items() <= made["spec"]["template"]["metadata"]["labels"].items()
        everyone = self.rules()["fusionflow"]["podSelector"]["matchLabels"]
        assert everyone.items() <= runner["metadata"]["labels"].items()
        # And our address is not replaced by one without TLS.
        [box] = worker["spec"]["template"]["spec"]["containers"]
        addresses = [e["value"] for e in box["env"] if e["name"] == "DASK_SCHEDULER_ADDRESS"]
        assert addresses == ["tcp://fusionflow-scheduler:8786"]
