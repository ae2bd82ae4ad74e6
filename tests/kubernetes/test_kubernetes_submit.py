"""Creating a run's objects, against an API in memory: what is asked of it, and what it refuses."""

import contextlib
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from kube_api import api_in_memory, write_config
from kube_runs import CASES, case, created_later, made, run_config, the

from fusionflow.errors import ClusterError, LockedError, MissingExtraError
from fusionflow.submission import kubernetes as submission
from fusionflow.submission.kubernetes import as_yaml, submit


@pytest.fixture
def api(tmp_path, monkeypatch):
    with api_in_memory(tmp_path, monkeypatch) as api:
        api.install_operator()
        yield api


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("fusionflow.clusters.kubernetes_api._PATIENCE", 20.0)
    monkeypatch.setattr("fusionflow.clusters.kubernetes_api._LOOK", 0.05)


@contextlib.contextmanager
def operator(api, *, namespace="lab", collects=True):
    """Make clusters of jobs, and remove what hangs on those that are gone, as others would."""
    done = threading.Event()

    def work():
        while not done.is_set():
            time.sleep(0.02)
            job = api.get("daskjobs", "fusionflow", namespace)
            if job and "status" not in job:
                if api.get("daskclusters", "fusionflow", namespace) is None:
                    api.put("daskclusters", "fusionflow", namespace=namespace)
            elif collects and job is None:
                for kind, name in (
                    ("daskclusters", "fusionflow"), ("pods", "fusionflow-runner"),
                ):  # fmt: skip
                    if api.get(kind, name):
                        api.remove(kind, name)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def old_job(api, status):
    api.put("daskjobs", "fusionflow", {"status": {"jobStatus": status}})
    api.put("daskclusters", "fusionflow")
    api.put("pods", "fusionflow-runner")


def posts(api):
    return [line.rpartition("/")[2] for line in api.asked if line.startswith("POST")]


class TestCreation:
    def test_of_everything_in_order(self, api):
        with operator(api):
            said = submit(case("gpu-and-cpu"), "lab")
        assert said == "Submitted DaskJob fusionflow: kubectl -n lab logs -f fusionflow-runner"
        assert posts(api) == [
            "networkpolicies", "networkpolicies", "networkpolicies", "configmaps", "daskjobs",
            "daskworkergroups",
        ]  # fmt: skip
        sent = api.get("daskjobs", "fusionflow")
        assert sent["spec"] == the("DaskJob", case("gpu-and-cpu"))["spec"]
        assert sent["metadata"]["namespace"] == "lab"

    def test_in_the_namespace_that_objects_name(self, api):
        objects = made(run_config({"namespace": "study"}))
        with operator(api, namespace="study"):
            submit(objects, None)
        assert api.get("daskjobs", "fusionflow", "study")
        assert not [line for line in api.asked if "/namespaces/lab/" in line]

    def test_in_that_of_the_context_otherwise(self, api):
        with operator(api):
            submit(case("plain"), None)
        assert api.get("daskjobs", "fusionflow", "lab")

    def test_of_a_schedule(self, api):
        submit(made(run_config({"namespace": "lab"}), schedule="@daily"), "lab")
        kinds = ["serviceaccounts", "roles", "rolebindings", "cronjobs"]
        assert [kind for kind in posts(api) if kind in kinds] == kinds

    def test_brings_what_is_there_up_to_date_but_leaves_claims_alone(self, api):
        api.put("configmaps", "fusionflow", {"data": {"run.yaml": "old"}})
        api.put("persistentvolumeclaims", "study")
        api.emulator["put", api.resource("configmaps")] << {}
        volumes = [{"claim": "study", "path": "/data", "size": "1Gi"}]
        objects = made(run_config({"volumes": volumes}))
        with operator(api):
            submit(objects, "lab")
        [sent] = api.sent("PUT", "configmaps")
        assert sent["metadata"]["resourceVersion"] == "7"
        assert sent["data"] == the("ConfigMap", objects)["data"]
        assert not {"configmaps", "persistentvolumeclaims"} & {*posts(api)}
        assert not api.sent("PUT", "persistentvolumeclaims")


class TestTheRunBefore:
    @pytest.mark.parametrize("status", ["Successful", "Failed"])
    def test_makes_room_once_it_ended(self, api, status):
        old_job(api, status)
        with operator(api):
            submit(case("plain"), "lab")
        [policy] = api.sent("DELETE", "daskjobs")
        assert policy == {"propagationPolicy": "Foreground"}
        assert "status" not in api.get("daskjobs", "fusionflow")
        place = api.asked.index(
            "DELETE /apis/kubernetes.dask.org/v1/namespaces/lab/daskjobs/fusionflow"
        )
        created = api.asked.index("POST /apis/kubernetes.dask.org/v1/namespaces/lab/daskjobs")
        assert place < created

    @pytest.mark.parametrize("status", ["JobCreated", "ClusterCreated", "Running"])
    def test_is_left_alone_while_it_runs(self, api, status):
        old_job(api, status)
        with pytest.raises(LockedError, match=rf"has not ended \({status}\)") as error:
            submit(case("plain"), "lab")
        assert "kubectl delete daskjob fusionflow" in str(error.value)
        assert not [line for line in api.asked if not line.startswith("GET")]

    def test_must_be_gone_before_the_next_begins(self, api, monkeypatch):
        """Or the operator would take the pod of the last run for that of this one."""
        monkeypatch.setattr("fusionflow.clusters.kubernetes_api._PATIENCE", 0.5)
        old_job(api, "Failed")
        with operator(api, collects=False), pytest.raises(ClusterError, match="does not go within"):
            submit(case("plain"), "lab")
        assert "daskjobs" not in posts(api)


class TestRefusals:
    def test_without_the_operator(self, tmp_path, monkeypatch):
        with api_in_memory(tmp_path, monkeypatch) as api:
            with pytest.raises(ClusterError, match="a look for the Dask operator") as error:
                submit(case("plain"), "lab")
            assert "Install the operator" in str(error.value)
            assert not posts(api)

    def test_with_an_operator_that_does_nothing(self, api, monkeypatch):
        monkeypatch.setattr("fusionflow.clusters.kubernetes_api._PATIENCE", 0.5)
        with pytest.raises(ClusterError, match="the operator did not begin with it") as error:
            submit(case("plain"), "lab")
        assert "kubectl delete daskjob fusionflow" in str(error.value)

    @pytest.mark.parametrize(
        ("status", "words", "mend"),
        [
            (403, 'User "me" cannot create resource "daskjobs"', "kubectl auth can-i"),
            (403, "exceeded quota: compute, requested: limits.cpu=16", "Ask for less"),
            (401, "Unauthorized", "Log in again"),
            (409, "the object has been modified", "another name"),
            (422, "spec.job: Required value", "Required value"),
        ],
    )
    def test_are_in_the_words_of_the_api(self, api, status, words, mend):
        api.refuse("post", "daskjobs", status, words)
        with pytest.raises(ClusterError) as error:
            submit(case("plain"), "lab")
        assert f"Kubernetes refuses DaskJob fusionflow: {words}" in str(error.value)
        assert mend in str(error.value)

    def test_of_a_look_already(self, api):
        api.refuse("get", "daskjobs", 403, "daskjobs is forbidden")
        with pytest.raises(ClusterError, match="daskjobs is forbidden"):
            submit(case("plain"), "lab")
        assert not posts(api)

    def test_nobody_there(self, tmp_path, monkeypatch):
        write_config(tmp_path / "config", "http://127.0.0.1:9")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        with pytest.raises(ClusterError, match="No API of Kubernetes answers"):
            submit(case("plain"), "lab")

    @pytest.mark.parametrize("text", [None, "", "clusters: [", "kind: Config", "- 1"])
    def test_no_configuration_of_use(self, text, tmp_path, monkeypatch):
        path = tmp_path / "config"
        if text is not None:
            path.write_text(text)
        monkeypatch.setenv("KUBECONFIG", str(path))
        with pytest.raises(ClusterError, match="cannot be reached as configured") as error:
            submit(case("plain"), "lab")
        assert "KUBECONFIG" in str(error.value)

    def test_without_a_client(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "kr8s", None)
        with pytest.raises(MissingExtraError, match=r"fusionflow\[kubernetes\]"):
            submit(case("plain"), "lab")


class TestThePodOfACronJob:
    """What it runs: python -m fusionflow.submission.kubernetes FILE --namespace NAME."""

    @pytest.fixture
    def file(self, tmp_path):
        config = run_config({**CASES["gpu-and-cpu"][0], "namespace": "lab"})
        objects = created_later(made(config, schedule="@daily"))
        (tmp_path / "job.yaml").write_text(as_yaml(objects))
        return str(tmp_path / "job.yaml")

    def call(self, *words):
        return CliRunner().invoke(submission.main, [*words])

    def test_creates_what_a_file_holds(self, api, file):
        with operator(api):
            result = self.call(file, "--namespace", "lab")
        assert result.exit_code == 0, result.output
        assert posts(api) == ["daskjobs", "daskworkergroups"]

    def test_needs_no_more_rights_than_it_is_given(self, api, file):
        """Every request is one that the Role allows."""
        old_job(api, "Failed")
        with operator(api):
            assert self.call(file, "--namespace", "lab").exit_code == 0
        rules = the("Role", case("scheduled"))["rules"]
        allowed = {
            (group, kind, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for kind in rule["resources"]
            for verb in rule["verbs"]
        }
        assert {asked for line in api.asked if (asked := right(line))} <= allowed

    def test_leaves_a_run_alone_that_is_not_over(self, api, file):
        old_job(api, "Running")
        result = self.call(file, "--namespace", "lab")
        assert result.exit_code == 0
        assert "Left alone: DaskJob fusionflow is there and has not ended" in result.output

    def test_fails_where_it_is_refused(self, api, file):
        api.refuse("post", "daskjobs", 403, "exceeded quota")
        result = self.call(file, "--namespace", "lab")
        assert result.exit_code == 1
        assert "exceeded quota" in result.output

    @pytest.mark.parametrize("text", ["a: [", "\tb", b"\xff\xfe"])
    def test_names_a_file_that_is_none(self, text, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        result = self.call(str(path))
        assert result.exit_code == 1
        assert "job.yaml" in result.output


def right(line):
    """Return which right a request takes: group, kind, verb."""
    method, path = line.split(" ")
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return None  # of everybody
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    kind, *name = rest[2:]
    verbs = {"GET": "get" if name else "list", "POST": "create", "DELETE": "delete"}
    return group, kind, verbs.get(method, method)
