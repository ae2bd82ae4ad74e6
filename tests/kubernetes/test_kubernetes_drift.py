"""Manifests, objects, commands and the container image stay in step with each other."""

import copy
import functools
import re
import shutil
import subprocess

import click
import pytest
import yaml
from kube_kustomize import build, read, read_one
from kube_runs import (
    CASES,
    DEPLOY,
    GPU_GROUP,
    MANIFESTS,
    case,
    containers_of,
    created_later,
    environment_of,
    made,
    pods_of,
)  # fmt: skip
from kube_words import Stand, understood, unknown_settings

from fusionflow.config import load_config
from fusionflow.kubernetes_options import KubernetesOptions

OVERLAYS = ("base", "gpu", "scheduled", "tls")
ALL = [*CASES, *(f"{folder}/" for folder in OVERLAYS)]


@functools.cache
def objects_of(name):
    """Return the objects of a case or a folder of manifests, with what CronJobs create."""
    if name in CASES:
        return case(name)
    objects = build(MANIFESTS / name.removesuffix("/"))
    return objects + created_later(objects)


def options(**kubernetes):
    """Return the configuration beside the manifests, with other options of pods."""
    config = load_config(MANIFESTS / "options.yaml")
    content = config.model_dump(mode="json")
    content["cluster"]["kubernetes"] |= kubernetes
    return type(config).model_validate(content)


def by_name(objects):
    """Return objects by kind and name, without the order of lists that has no meaning."""
    found = {}
    for item in copy.deepcopy(objects):
        item["metadata"].pop("namespace", None)
        for pod in pods_of([item]).values():
            pod["volumes"].sort(key=lambda volume: volume["name"])
            for box in pod["containers"]:
                box["volumeMounts"].sort(key=lambda mount: mount["mountPath"])
                box["env"].sort(key=lambda variable: variable["name"])
        found[item["kind"], item["metadata"]["name"]] = item
    return found


class TestManifests:
    """deploy/kubernetes has what a submission would create, written by hand."""

    def check(self, folder, config, *, schedule=None):
        written = by_name(build(MANIFESTS / folder))
        account = written.pop(("ServiceAccount", "fusionflow"))
        assert account["automountServiceAccountToken"] is False
        wanted = by_name(made(config, schedule=schedule))
        assert written.keys() == wanted.keys()
        for name, item in wanted.items():
            if name == ("ConfigMap", "fusionflow-job"):
                [job] = yaml.safe_load_all(item["data"]["job.yaml"])
                [there] = yaml.safe_load_all(written[name]["data"]["job.yaml"])
                assert there == job
            elif name == ("ConfigMap", "fusionflow"):
                [there], [text] = written[name]["data"].values(), item["data"].values()
                assert yaml.safe_load(there) == yaml.safe_load(text)
            else:
                assert written[name] == item, name

    def test_base(self):
        self.check("base", options())

    def test_gpu(self):
        workers = options().cluster.kubernetes.groups["workers"].model_dump(mode="json")
        self.check("gpu", options(groups={"workers": workers, "gpu": GPU_GROUP}))

    def test_tls(self):
        self.check("tls", options(tls_secret="fusionflow-tls"))

    def test_scheduled(self):
        self.check("scheduled", options(namespace="fusionflow"), schedule="0 2 * * *")

    def test_the_job_of_the_schedule_is_that_of_base(self):
        base, scheduled = MANIFESTS / "base/daskjob.yaml", MANIFESTS / "scheduled/job.yaml"
        assert read_one(base) == read_one(scheduled)

    def test_a_change_in_one_place_is_noticed(self, tmp_path):
        shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
        path = tmp_path / "kubernetes/base/daskjob.yaml"
        path.write_text(path.read_text().replace("memory: 2Gi", "memory: 3Gi"))
        written = by_name(build(tmp_path / "kubernetes/base"))
        assert written["DaskJob", "fusionflow"] != by_name(made(options()))["DaskJob", "fusionflow"]

    @pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl to compare with")
    @pytest.mark.parametrize("folder", OVERLAYS)
    def test_kustomize_itself_makes_the_same_of_them(self, folder):
        done = subprocess.run(
            ["kubectl", "kustomize", str(MANIFESTS / folder)],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert by_name(list(yaml.safe_load_all(done.stdout))) == by_name(build(MANIFESTS / folder))

    def test_no_file_is_forgotten(self):
        for folder in OVERLAYS:
            plan = read_one(MANIFESTS / folder / "kustomization.yaml")
            named = {*plan["resources"], *(item.get("path") for item in plan.get("patches", []))}
            for item in plan.get("configMapGenerator", []):
                named |= {*item["files"]}
            there = {path.name for path in (MANIFESTS / folder).iterdir()}
            assert there - {"kustomization.yaml"} == named - {"../base", None}
            for name in there:
                assert read(MANIFESTS / folder / name)


class TestCommands:
    @pytest.mark.parametrize("name", ALL)
    def test_take_the_words_that_they_are_given(self, name, tmp_path):
        objects = objects_of(name)
        for where, pod in pods_of(objects).items():
            stand = Stand(tmp_path / where)
            stand.mount(pod, objects)
            assert understood(pod["containers"][0]["args"], stand), where

    def test_mean_what_they_should(self, tmp_path):
        objects = case("gpu-and-cpu")
        pods = pods_of(objects)
        stand = Stand(tmp_path)
        stand.mount(pods["DaskJob/fusionflow/runner"], objects)
        found = {where: understood(pod["containers"][0]["args"], stand)
                 for where, pod in pods.items()}  # fmt: skip
        runner = found["DaskJob/fusionflow/runner"]
        assert runner["bids_dir"] == stand.place("/data/bids")
        assert runner["cluster"] == "tcp://fusionflow-scheduler:8786"
        assert (runner["gpu"], runner["allow_plain_tcp"]) == ("required", True)
        gpu = found["DaskWorkerGroup/fusionflow-gpu/worker"]
        assert (gpu["resources"], gpu["nthreads"]) == ("GPU=1", 8)
        assert gpu["scheduler"] == "tcp://fusionflow-scheduler:8786"
        assert found["DaskJob/fusionflow/scheduler"]["port"] == "8786"

    @pytest.mark.parametrize("name", ["gpu-and-cpu", "everything", "scheduled/", "tls/"])
    def test_a_renamed_option_is_noticed(self, name, tmp_path):
        objects = objects_of(name)
        tried = 0
        for where, pod in pods_of(objects).items():
            stand = Stand(tmp_path / where)
            stand.mount(pod, objects)
            words = pod["containers"][0]["args"]
            for place, word in enumerate(words):
                if word.startswith("--"):
                    renamed = [*words[:place], f"{word}-x", *words[place + 1 :]]
                    with pytest.raises(click.UsageError):
                        understood(renamed, stand)
                    tried += 1
        assert tried > 10

    @pytest.mark.parametrize(
        "words",
        [
            ["fusionflow", "run", "/data/bids"],
            ["fusionflow", "run", "/data/missing", "/data/fused"],
            ["fusionflow", "run", "/data/bids", "/data/fused", "--gpu", "always"],
            ["dask-worker", "tcp://x:8786"],
            ["dask", "worker", "tcp://x:8786", "--nthreads", "many"],
            ["dask", "scheduler", "--tls-cert", "/etc/fusionflow-tls/other.crt"],
            ["python", "-m", "fusionflow.submission.kubernetes", "/etc/fusionflow/other.yaml"],
        ],
    )
    def test_wrong_words_are_noticed(self, words, tmp_path):
        with pytest.raises(click.UsageError):
            understood(words, Stand(tmp_path))

    @pytest.mark.parametrize("name", ALL)
    def test_settings_of_dask_are_settings(self, name):
        for box in containers_of(objects_of(name)).values():
            assert unknown_settings(environment_of(box)) == []

    def test_an_unknown_setting_is_noticed(self):
        wrong = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTIN": "True"}
        assert unknown_settings(wrong) == ["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTIN"]


class TestImage:
    @pytest.fixture
    def recipe(self):
        path = DEPLOY / "Containerfile"
        if not path.is_file():
            pytest.skip("no deploy/Containerfile")
        return path.read_text()

    def test_has_the_user_that_pods_run_as(self, recipe):
        [user] = re.findall(r"^USER (.+)$", recipe, re.MULTILINE)
        pods = KubernetesOptions()
        assert user == f"{pods.user_id}:{pods.group_id}"

    def test_leaves_the_command_to_the_pods(self, recipe):
        """The operator gives `args`, which an entry point would take as its own words."""
        assert not re.findall(r"^ENTRYPOINT", recipe, re.MULTILINE)
