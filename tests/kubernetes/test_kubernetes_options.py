"""What a person may say of pods, and what is refused before anything is sent."""

import pytest
from kube_runs import run_config

from fusionflow.cluster_options import ClusterOptions
from fusionflow.errors import ConfigurationError
from fusionflow.kubernetes_options import KubernetesOptions, bytes_of

GPU = {"replicas": 2, "gpus": 1}


def refused(**kubernetes):
    with pytest.raises(ConfigurationError) as error:
        run_config(kubernetes)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "Fusion"}, "no name in Kubernetes"),
        ({"name": "fusion_flow"}, "no name in Kubernetes"),
        ({"name": "-fusion"}, "no name in Kubernetes"),
        ({"name": "fusion\n"}, "no name in Kubernetes"),
        ({"name": "x" * 33}, "up to 32"),
        ({"namespace": "Pet MRI"}, "no name in Kubernetes"),
        ({"service_account": "../admin"}, "no name in Kubernetes"),
        ({"secrets": ["token", "To Ken"]}, "secrets.1"),
        ({"config_maps": [""]}, "config_maps.0"),
        ({"image_pull_secrets": ["a..b"]}, "image_pull_secrets.0"),
        ({"tls_secret": "a/b"}, "tls_secret"),
        ({"operator_namespace": ""}, "operator_namespace"),
        ({"image": "fusionflow"}, "may be another image tomorrow"),
        ({"image": "fusionflow:latest"}, "may be another image tomorrow"),
        ({"image": "registry:5000/fusionflow"}, "may be another image tomorrow"),
        ({"image": "fusion flow:1"}, "no name of an image"),
        ({"image": ""}, "no name of an image"),
        ({"image_pull_policy": "Sometimes"}, "image_pull_policy"),
        ({"scratch": "10"}, "512Mi, 8Gi or 16G"),
        ({"scratch": "10gb"}, "512Mi, 8Gi or 16G"),
        ({"scratch": "-1Gi"}, "512Mi, 8Gi or 16G"),
        ({"scheduler": {"memory": "1Mi"}}, "256Mi at least"),
        ({"scheduler": {"cores": 0}}, "scheduler.cores"),
        ({"runner": {"cores": "1"}}, "runner.cores"),
        ({"user_id": 0}, "user_id"),
        ({"group_id": 0}, "group_id"),
        ({"environment": {"A-B": "1"}}, "no name of an environment variable"),
        ({"environment": {"DASK_SCHEDULER_ADDRESS": "tcp://x:1"}}, "is set by the run"),
        ({"environment": {"DASK_distributed__comm__require_encryption": "0"}}, "is set by the run"),
        ({"environment": {"A": 1}}, "environment.A"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(options, words):
    assert words in refused(**options)


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ({"claim": "Study", "path": "/data"}, "no name in Kubernetes"),
        ({"claim": "study", "path": "data"}, "no folder to mount at"),
        ({"claim": "study", "path": "/"}, "no folder to mount at"),
        ({"claim": "study", "path": "/data/../etc"}, "no folder to mount at"),
        ({"claim": "study", "path": "/da:ta"}, "no folder to mount at"),
        ({"claim": "study", "path": "/tmp"}, "in the way of /tmp"),
        ({"claim": "study", "path": "/etc"}, "in the way of /etc/fusionflow"),
        ({"claim": "study", "path": "/etc/fusionflow/x"}, "in the way of /etc/fusionflow"),
        ({"claim": "study", "path": "/data", "sub_path": "/a"}, "no folder inside"),
        ({"claim": "study", "path": "/data", "sub_path": "a/../../b"}, "no folder inside"),
        ({"claim": "study", "path": "/usr/local/data"}, "in the way of /usr"),
        ({"claim": "study", "path": "/opt"}, "in the way of /opt/fusionflow"),
        ({"claim": "study", "path": "/data", "size": "lots"}, "no amount"),
        ({"path": "/data"}, "volumes.0.claim"),
        ({"claim": "study", "path": "/data", "readonly": True}, "volumes.0.readonly"),
    ],
)
def test_volumes_that_cannot_be_mounted(volume, words):
    assert words in refused(volumes=[volume])


def test_two_volumes_at_one_path():
    volumes = [{"claim": "a", "path": "/data"}, {"claim": "b", "path": "/data/"}]
    assert "two volumes at one path" in refused(volumes=volumes)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ({}, "at least one group"),
        ({"Workers": {}}, "no name in Kubernetes"),
        ({"x" * 21: {}}, "up to 20"),
        ({"a": {}, "default": {}}, "calls the first group default"),
        ({"a": {"replicas": 0}}, "groups.a.replicas"),
        ({"a": {"gpus": 2}}, "raise replicas instead"),
        ({"a": {"gpus": True}}, "groups.a.gpus"),
        ({"a": {"replicas": 3, "replicas_most": 2}}, "at least replicas, 3"),
        ({"a": {"replicas_most": 2}, "b": {}}, "one group alone"),
        ({"a": {"memory": "16"}}, "no amount of memory"),
        ({"a": {"node_selector": {"k e y": "v"}}}, "no label of a node"),
        ({"a": {"node_selector": {"zone": "a b"}}}, "no label of a node"),
        ({"a": {"tolerations": [{"key": "bad key"}]}}, "no key of a taint"),
        ({"a": {"tolerations": [{"operator": "Equal"}]}}, "needs a key"),
        ({"a": {"tolerations": [{"key": "k", "operator": "Exists", "value": "v"}]}}, "no value"),
        ({"a": {"tolerations": [{"key": "k", "effect": "Never"}]}}, "effect"),
    ],
)
def test_groups_that_make_no_sense(groups, words):
    assert words in refused(groups=groups)


def test_an_image_by_digest_or_tag():
    for image in ("fusionflow:0.1.0", "host:5000/a/b:1", "a/b@sha256:" + "0" * 64):
        assert run_config({"image": image}).cluster.kubernetes.image == image


def test_amounts_are_bytes():
    found = [bytes_of(text) for text in ("256Mi", "16Gi", "1Ti", "500M", "16G", "1T")]
    assert found == [256 << 20, 16 << 30, 1 << 40, 500 * 10**6, 16 * 10**9, 10**12]


def test_gpus_of_pods_are_needed_where_pods_are_started():
    some = KubernetesOptions(groups={"a": {}, "b": GPU})
    none = KubernetesOptions(groups={"a": {}})
    assert some.has_gpus
    assert not none.has_gpus
    assert ClusterOptions(kind="kubernetes", kubernetes=some).needs_gpu
    assert not ClusterOptions(kind="kubernetes", kubernetes=none).needs_gpu
    assert not ClusterOptions(kind="local", kubernetes=some).needs_gpu
    assert not ClusterOptions(kind="kubernetes", gpu="never", kubernetes=some).needs_gpu
