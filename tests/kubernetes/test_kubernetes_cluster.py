"""A cluster that a run starts: created, reached (by TLS as well), deleted, and what goes wrong.

The API is one in memory, and what the operator does is done here; scheduler and worker are real,
and run as their pods would.
"""

import contextlib
import socket
import sys
import threading
import time

import distributed
import pytest
from distributed.security import Security
from kube_api import api_in_memory, write_config
from kube_pods import running
from kube_runs import GPU_GROUP, run_config

from fusionflow import clusters
from fusionflow.cluster_options import ClusterOptions
from fusionflow.errors import ClusterError, ConfigurationError, MissingExtraError

ALL_GROUPS = {"prepare": {"replicas": 3}, "gpu": GPU_GROUP}


@pytest.fixture
def api(tmp_path, monkeypatch):
    pytest.importorskip("dask_kubernetes")
    with api_in_memory(tmp_path, monkeypatch) as api:
        api.install_operator()
        yield api


@pytest.fixture
def names_of_pods(monkeypatch):
    """Let names that only pods know lead to this machine."""
    ask = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        inside = isinstance(host, str) and host.endswith("-scheduler.lab")
        return ask("127.0.0.1" if inside else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Files as they are in a Secret of cert-manager, of one authority for both sides."""
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("certificates")
    made = Security.temporary()
    for name, text in (
        ("ca.crt", made.tls_ca_file), ("tls.crt", made.tls_client_cert),
        ("tls.key", made.tls_client_key),
    ):  # fmt: skip
        (folder / name).write_text(text)
    return folder


@contextlib.contextmanager
def operator(api, port, *, pod=None):
    """Do for a DaskCluster what the operator would, with a scheduler that is there already."""
    done = threading.Event()
    ready = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
    status = pod or {"phase": "Running", "conditions": ready}
    ports = [{"name": "tcp-comm", "port": port}, {"name": "http-dashboard", "port": port}]

    def work():
        while not done.is_set():
            time.sleep(0.05)
            for resource, namespace, name in list(api.emulator.objects):
                there = api.get("daskclusters", name, namespace)
                if resource.plural != "daskclusters" or there is None or "status" in there:
                    continue
                api.emulator.objects[resource, namespace, name].patch(
                    {"status": {"phase": "Running"}}
                )
                service = {"spec": {"type": "ClusterIP", "ports": ports}}
                api.put("services", f"{name}-scheduler", service)
                api.put("pods", f"{name}-scheduler-0", {"status": status})

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


@pytest.fixture(scope="module")
def plain():
    """The port of a scheduler with one worker, as their pods would run them."""
    with running(options()) as port:
        yield port


def made(api, kind):
    return [
        api.emulator.objects[key].last.raw for key in api.emulator.objects if key[0].plural == kind
    ]


def left(api):
    """Return the names of clusters that are still there."""
    return [
        name
        for resource, namespace, name in api.emulator.objects
        if resource.plural == "daskclusters" and api.get("daskclusters", name, namespace)
    ]


def options(kubernetes=None, **cluster):
    return run_config(kubernetes, **{"patience": 90, **cluster}).cluster


class TestCluster:
    def test_is_created_used_and_deleted(self, api, names_of_pods, plain):
        wanted = options({"groups": ALL_GROUPS})
        with operator(api, plain), clusters.connect(wanted) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            [cluster] = made(api, "daskclusters")
            assert left(api) == [cluster["metadata"]["name"]]
        assert left(api) == []
        assert cluster["metadata"]["name"].startswith("fusionflow-")
        assert cluster["metadata"]["namespace"] == "lab"
        assert cluster["spec"]["worker"]["replicas"] == 3
        [group] = made(api, "daskworkergroups")
        assert group["spec"]["cluster"] == cluster["metadata"]["name"]
        assert group["spec"]["worker"]["spec"]["containers"][0]["args"][1] == "cuda"

    def test_by_tls(self, api, names_of_pods, certificates):
        files = {"ca_file": "ca.crt", "cert": "tls.crt", "key": "tls.key"}
        tls = {name: str(certificates / file) for name, file in files.items()}
        wanted = options({"tls_secret": "x"}, allow_plain_tcp=False, tls=tls)
        with (
            running(wanted, certificates=certificates) as port,
            operator(api, port),
            clusters.connect(wanted) as client,
        ):
            assert client.scheduler.address.startswith("tls://fusionflow-")
            assert client.submit(sum, [1, 2]).result() == 3
            workers = client.scheduler_info()["workers"]
            assert [address[:6] for address in workers] == ["tls://"]
        assert left(api) == []

    def test_is_deleted_after_an_error_as_well(self, api, names_of_pods, plain):
        with operator(api, plain):
            with pytest.raises(ZeroDivisionError), clusters.connect(options()):
                raise ZeroDivisionError
            assert left(api) == []

    def test_that_cannot_be_deleted_is_named(self, api, names_of_pods, plain, caplog):
        with operator(api, plain), clusters.connect(options()):
            api.refuse("get", "daskclusters", 403, "you may not")
        [cluster] = made(api, "daskclusters")
        assert f"kubectl delete daskcluster {cluster['metadata']['name']}" in caplog.text
        assert "you may not" in caplog.text

    def test_that_follows_the_work(self, api, names_of_pods, plain):
        groups = {"workers": {"replicas": 2, "replicas_most": 9}}
        with operator(api, plain), clusters.connect(options({"groups": groups})):
            pass
        [autoscaler] = made(api, "daskautoscalers")
        [cluster] = made(api, "daskclusters")
        expected = {"cluster": cluster["metadata"]["name"], "minimum": 2, "maximum": 9}
        assert autoscaler["spec"] == expected


class TestARunInAPod:
    """It begins when the scheduler's image may still be on its way to a node."""

    def test_waits_for_the_scheduler(self, monkeypatch):
        monkeypatch.setattr("fusionflow.clusters.connection._PATIENCE", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        late = []
        begin = threading.Timer(2, lambda: late.append(distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1",
            scheduler_port=port, dashboard_address="127.0.0.1:0", silence_logs=50,
        )))  # fmt: skip
        begin.start()
        try:
            address = f"tcp://127.0.0.1:{port}"
            wanted = ClusterOptions(address=address, scheduler_patience=60)
            with clusters.connect(wanted) as client:
                assert client.submit(sum, [1, 2]).result() == 3
        finally:
            begin.join()
            late[0].close()

    def test_does_not_wait_for_ever(self, monkeypatch):
        monkeypatch.setattr("fusionflow.clusters.connection._PATIENCE", 0.2)
        wanted = ClusterOptions(address="tcp://127.0.0.1:9", scheduler_patience=1)
        begun = time.monotonic()
        with pytest.raises(ClusterError, match="No Dask scheduler"), clusters.connect(wanted):
            pass
        assert 1 <= time.monotonic() - begun < 10


class TestWhatGoesWrong:
    def refused(self, wanted=None):
        with pytest.raises(ClusterError) as error, clusters.connect(wanted or options()):
            pass
        return str(error.value)

    def test_a_pod_that_does_not_start_is_told_of(self, api):
        waiting = {"reason": "ImagePullBackOff", "message": "no such image: fusionflow:0.1.0"}
        pod = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
        with operator(api, 1, pod=pod):
            words = self.refused(options(patience=1.5))
        assert "No scheduler came up in a pod within 1.5 s" in words
        assert "is Pending (ImagePullBackOff no such image: fusionflow:0.1.0)" in words
        assert left(api) == []

    def test_a_pod_that_fits_nowhere(self, api):
        unmet = {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient memory",
        }  # fmt: skip
        pod = {"phase": "Pending", "conditions": [unmet]}
        with operator(api, 1, pod=pod):
            words = self.refused(options(patience=1.5))
        assert "Unschedulable 0/3 nodes are available: 3 Insufficient memory" in words

    def test_an_operator_that_does_nothing(self, api):
        words = self.refused(options(patience=1))
        assert "there is no pod; check that the operator runs" in words
        assert left(api) == []

    def test_no_operator(self, tmp_path, monkeypatch):
        with api_in_memory(tmp_path, monkeypatch):
            assert "Install the operator" in self.refused()

    def test_no_right(self, api):
        said = 'daskclusters.kubernetes.dask.org is forbidden: User "me" cannot create'
        api.refuse("post", "daskclusters", 403, said)
        words = self.refused()
        assert said in words
        assert "kubectl auth can-i" in words

    def test_nobody_there(self, tmp_path, monkeypatch):
        pytest.importorskip("dask_kubernetes")
        write_config(tmp_path / "config", "http://127.0.0.1:9")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        assert "No API of Kubernetes answers" in self.refused()

    def test_no_configuration(self, tmp_path, monkeypatch):
        pytest.importorskip("dask_kubernetes")
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
        assert "Kubernetes cannot be reached as configured" in self.refused()

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dask_kubernetes", None)
        extra = r"fusionflow\[kubernetes\]"
        with pytest.raises(MissingExtraError, match=extra), clusters.connect(options()):
            pass

    @pytest.mark.parametrize(
        ("kubernetes", "cluster", "words"),
        [
            ({}, {"allow_plain_tcp": False}, "tls_secret is not given"),
            ({}, {"n_workers": 3}, "cluster.n_workers means nothing for pods"),
            ({"tls_secret": "x"}, {}, "this side has no certificate"),
            ({"tls_secret": "x"}, {"tls": {"ca_file": "/a", "cert": "/b", "key": "/c"}}, "read /a"),
            ({"image": None}, {}, "image is not given"),
        ],
    )
    def test_options_are_looked_at_before_anything_is_asked(self, api, kubernetes, cluster, words):
        wanted = options(kubernetes, **cluster)
        with pytest.raises(ConfigurationError, match=words), clusters.connect(wanted):
            pass
        assert api.asked == []
