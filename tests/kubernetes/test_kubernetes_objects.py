"""What a run becomes: which words, which pods, which rights."""

import pytest
import yaml
from click.testing import CliRunner
from kube_runs import (
    CASES,
    GPU_GROUP,
    case,
    containers_of,
    environment_of,
    made,
    run_config,
    the,
)  # fmt: skip

from fusionflow.cli import main
from fusionflow.clusters.kubernetes_objects import dask_cluster
from fusionflow.config import METHODS, RunConfig
from fusionflow.errors import ConfigurationError
from fusionflow.submission.kubernetes import as_yaml

ADDRESS = "tcp://fusionflow-scheduler:8786"


def words_of(objects):
    """Return the words of each container, by its last name."""
    return {where.split("/")[-1]: box["args"] for where, box in containers_of(objects).items()}


def refused(config=None, **how):
    with pytest.raises(ConfigurationError) as error:
        made(config, **how)
    return str(error.value)


class TestCommands:
    def test_without_tls_say_so(self):
        words = words_of(made(arguments=["--participant-label", "01", "02"]))
        assert words["runner"] == [
            "fusionflow", "run", "/data/bids", "/data/fused", "--participant-label", "01", "02",
            "--config", "/etc/fusionflow/run.yaml", "--cluster", ADDRESS, "--allow-plain-tcp",
        ]  # fmt: skip
        assert words["scheduler"][:4] == ["dask", "scheduler", "--host", "0.0.0.0"]
        assert words["worker"][:3] == ["dask", "worker", ADDRESS]

    def test_with_tls_nothing_is_in_the_clear(self):
        found = case("tls")
        for where, box in containers_of(found).items():
            assert "--allow-plain-tcp" not in box["args"]
            assert "tcp://" not in str(box), where
            environment = environment_of(box)
            assert environment["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
            assert {"name": "tls", "mountPath": "/etc/fusionflow-tls", "readOnly": True} in (
                box["volumeMounts"]
            )
        runner = containers_of(found)["DaskJob/fusionflow/runner"]
        key = environment_of(runner)["DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"]
        assert key == "/etc/fusionflow-tls/tls.key"
        for words in (words_of(found)["scheduler"], words_of(found)["worker"]):
            assert words[-6:] == [
                "--tls-ca-file", "/etc/fusionflow-tls/ca.crt",
                "--tls-cert", "/etc/fusionflow-tls/tls.crt",
                "--tls-key", "/etc/fusionflow-tls/tls.key",
            ]  # fmt: skip

    def test_never_use_what_dask_no_longer_has(self):
        for name in CASES:
            for box in containers_of(case(name)).values():
                assert not {"dask-scheduler", "dask-worker", "dask-cuda-worker"} & {*box["args"]}

    def test_use_the_address_that_the_operator_would_not_make_another(self):
        for name in ("plain", "tls", "everything"):
            for where, box in containers_of(case(name)).items():
                if where.split("/")[-1] in ("runner", "worker"):
                    assert environment_of(box)["DASK_SCHEDULER_ADDRESS"] in box["args"]

    def test_run_as_many_tasks_as_there_are_cores(self):
        cores = {"groups": {"a": {"cores": 6}}}
        assert option(made(run_config(cores)), "--nthreads") == "6"
        assert option(made(run_config(cores, threads_per_worker=3)), "--nthreads") == "3"
        found = [dask_cluster(run_config(cores).cluster, "x", torch_threads=2)]
        assert option(found, "--nthreads") == "3"
        for cores, threads in ((1, "2"), (4, "4"), (64, "8")):
            group = {**GPU_GROUP, "cores": cores}
            assert option(made(run_config({"groups": {"a": group}})), "--nthreads") == threads

    def test_have_variables_that_nobody_may_set(self):
        for box in [*containers_of(case("plain")).values(), *containers_of(case("tls")).values(),
                    *containers_of(case("adaptive")).values()]:  # fmt: skip
            for name in environment_of(box):
                with pytest.raises(ConfigurationError, match=f"{name} is set by the run"):
                    run_config({"environment": {name: "x"}})

    def test_leave_memory_for_what_is_beside_the_worker(self):
        found = made(run_config({"groups": {"a": {"memory": "10G"}}}))
        assert option(found, "--memory-limit") == "9000000000"


def option(objects, name):
    words = words_of(objects)["worker"]
    return words[words.index(name) + 1]


class TestGpus:
    def test_are_of_gpu_workers_alone_and_text(self):
        boxes = containers_of(case("gpu-and-cpu"))
        for where, box in boxes.items():
            amounts = box["resources"]
            if where == "DaskWorkerGroup/fusionflow-gpu/worker":
                assert amounts["limits"]["nvidia.com/gpu"] == "1"
                assert amounts["requests"] == amounts["limits"]
                assert box["args"][:3] == ["dask", "cuda", "worker"]
                assert "GPU=1" in box["args"]
            else:
                assert "nvidia" not in str(amounts), where
                assert "GPU=1" not in box["args"]

    def test_are_then_required(self):
        for name, expected in (("gpu", ["--gpu", "required"]), ("plain", [])):
            words = words_of(case(name))["runner"]
            assert words[words.index("--allow-plain-tcp") + 1 :] == expected
        never = made(run_config({"groups": {"gpu": GPU_GROUP}}, gpu="never"))
        assert words_of(never)["runner"][-2:] == ["--gpu", "never"]

    def test_that_no_group_has_cannot_be_required(self):
        assert "no group of pods has one" in refused(run_config(gpu="required"))

    def test_nodes_of_their_own(self):
        group = the("DaskWorkerGroup", case("gpu-and-cpu"))["spec"]["worker"]["spec"]
        assert group["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert group["tolerations"] == [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]


class TestGroups:
    def test_the_first_is_the_clusters_own(self):
        found = case("gpu-and-cpu")
        assert the("DaskJob", found)["spec"]["cluster"]["spec"]["worker"]["replicas"] == 3
        group = the("DaskWorkerGroup", found)
        assert group["metadata"]["name"] == "fusionflow-gpu"
        assert group["spec"]["cluster"] == "fusionflow"
        assert group["spec"]["worker"]["replicas"] == 2

    def test_that_follow_the_work(self):
        found = case("adaptive")
        spec = the("DaskAutoscaler", found)["spec"]
        assert spec == {"cluster": "fusionflow", "minimum": 2, "maximum": 9}
        scheduler = containers_of(found)["DaskJob/fusionflow/scheduler"]
        routes = environment_of(scheduler)["DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES"]
        assert "distributed.http.scheduler.api" in routes
        assert "distributed.http.health" in routes
        assert "HTTP__ROUTES" not in str(case("plain"))

    def test_that_are_left_behind_are_removed_by_the_operator(self):
        cluster = dask_cluster(run_config().cluster, "x")
        assert cluster["spec"]["idleTimeout"] == 3600
        patient = dask_cluster(run_config(patience=7200).cluster, "x")
        assert patient["spec"]["idleTimeout"] == 7800
        assert "distributed.http.scheduler.api" in str(cluster["spec"]["scheduler"])

    @pytest.mark.parametrize("option", ["n_workers", "memory_mb", "work_dir"])
    def test_options_of_other_clusters_mean_nothing(self, option):
        words = refused(run_config(**{option: "/x" if option == "work_dir" else 512}))
        assert f"cluster.{option} means nothing for pods" in words


class TestPaths:
    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ({"bids": "/elsewhere/bids"}, "The input /elsewhere/bids is on no volume"),
            ({"bids": "bids"}, "The input bids is on no volume"),
            ({"bids": "/database"}, "is on no volume that pods mount (/data)"),
            ({"bids": "/data/../etc"}, "is on no volume"),
            ({"out": "/fused"}, "The output /fused is on no volume"),
        ],
    )
    def test_that_pods_would_not_find(self, how, words):
        assert words in refused(**how)
        assert "cluster.kubernetes.volumes" in refused(**how)

    def test_that_pods_may_only_read_take_no_output(self):
        volumes = [{"claim": "a", "path": "/data", "read_only": True}, {"claim": "b", "path": "/o"}]
        config = run_config({"volumes": volumes})
        assert "may only read" in refused(config)
        assert made(config, out="/o")

    def test_a_volume_inside_another_counts_by_itself(self):
        volumes = [
            {"claim": "a", "path": "/data", "read_only": True},
            {"claim": "a", "path": "/data/out", "sub_path": "out"},
        ]
        found = made(run_config({"volumes": volumes}), out="/data/out/x")
        mounts = containers_of(found)["DaskJob/fusionflow/worker"]["volumeMounts"]
        assert mounts[1:] == [
            {"name": "data-0", "mountPath": "/data", "readOnly": True},
            {"name": "data-0", "mountPath": "/data/out", "subPath": "out"},
        ]

    def test_of_the_configuration_as_well(self):
        config = run_config()
        content = config.model_dump(mode="json")
        content["input"]["derivatives"] = ["/home/me/petprep"]
        assert "input.derivatives" in refused(RunConfig.model_validate(content))
        content["input"]["derivatives"] = ["/data/petprep"]
        content["conform"]["space"] = "/home/me/mni.nii.gz"
        assert "conform.space" in refused(RunConfig.model_validate(content))
        content["conform"]["space"] = None
        for weights in ("/home/me/vgg19.pth", "vgg19.pth"):
            content["method"]["weights"] = weights
            assert "method.weights (--weights)" in refused(RunConfig.model_validate(content))
        for weights in ("/data/vgg19.pth", "auto", "torchvision", "random:0"):
            content["method"]["weights"] = weights
            assert made(RunConfig.model_validate(content))


class TestConfiguration:
    def test_a_run_in_a_pod_reads_the_same(self, tmp_path):
        content = run_config(priority=5, time_limit=None).model_dump(mode="json")
        content["method"] = METHODS["dwt-vgg19-l1"].model_dump(mode="json") | {"window": 5}
        content["region"] = "mask"
        content["conform"]["pet_window"] = [0, 12]
        config = RunConfig.model_validate(content)
        [text] = the("ConfigMap", made(config))["data"].values()
        read = RunConfig.model_validate(yaml.safe_load(text))
        for part in ("method", "conform", "region", "input"):
            assert getattr(read, part) == getattr(config, part)
        assert (read.cluster.priority, read.cluster.time_limit) == (5, None)
        assert read.cluster.shared is False

    def test_names_a_known_method(self):
        [text] = the("ConfigMap", made())["data"].values()
        cluster = {"shared": False, "scheduler_patience": 300.0}
        assert yaml.safe_load(text) == {"method": "dwt-vgg19", "cluster": cluster}

    def test_has_what_words_of_a_command_line_would_say_again(self, tmp_path):
        content = {"cluster": run_config().model_dump(mode="json")["cluster"]}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
        given = ["/data/bids", "/data/fused", "--config", str(tmp_path / "run.yaml"), "--print"]
        more = ["participant", "--pet-window", "0", "12", "--participant-label", "01", "02",
                "--method=average", "--force", "-v", "--settle=60s", "--preflight"]  # fmt: skip
        result = CliRunner().invoke(main, ["submit", *given, *more])
        assert result.exit_code == 0, result.output
        found = [*yaml.safe_load_all(result.output)]
        words = words_of(found)["runner"]
        assert words[4 : words.index("--config")] == [
            "participant", "--participant-label=01", "--participant-label=02", "--verbose",
            "--preflight", "--force", "--settle=60s",
        ]  # fmt: skip
        [text] = the("ConfigMap", found)["data"].values()
        read = yaml.safe_load(text)
        assert (read["method"], read["conform"]) == ("average", {"pet_window": [0.0, 12.0]})
        result = CliRunner().invoke(main, ["submit", *given, "--job-name", "x"])
        assert result.exit_code == 2
        assert "Give cluster.kubernetes.name" in result.output

    def test_an_image_is_needed(self):
        config = run_config()
        pods = config.cluster.kubernetes.model_copy(update={"image": None})
        cluster = config.cluster.model_copy(update={"kubernetes": pods})
        words = refused(config.model_copy(update={"cluster": cluster}))
        assert "cluster.kubernetes.image is not given" in words

    def test_plain_tcp_is_never_taken_unasked(self):
        words = refused(run_config(allow_plain_tcp=False))
        assert "tls_secret is not given" in words
        assert "--allow-plain-tcp" in words


class TestSchedules:
    @pytest.mark.parametrize("schedule", ["0 2 * * *", "*/15 8-18 1,15 * mon-fri", "@daily"])
    def test_of_cron(self, schedule):
        found = made(run_config({"namespace": "lab"}), schedule=schedule)
        spec = the("CronJob", found)["spec"]
        assert (spec["schedule"], spec["concurrencyPolicy"]) == (schedule, "Forbid")

    @pytest.mark.parametrize("schedule", ["", "daily", "0 2 * *", "0 2 * * * *", "@reboot", "0\n2"])
    def test_that_are_none(self, schedule):
        config = run_config({"namespace": "lab"})
        assert "no schedule of a CronJob" in refused(config, schedule=schedule)

    def test_need_a_namespace(self):
        assert "namespace is not given" in refused(schedule="@daily")

    def test_create_what_would_be_created_now(self):
        kubernetes = CASES["gpu-and-cpu"][0]
        now = made(run_config(kubernetes))
        later = case_of_schedule(kubernetes)
        kinds = ("DaskJob", "DaskWorkerGroup")
        assert later == [item for item in now if item["kind"] in kinds]

    def test_only_the_pod_that_creates_has_a_token(self):
        tokens = {
            where: pod["automountServiceAccountToken"] for where, pod in pods("scheduled").items()
        }
        assert tokens.pop("CronJob/fusionflow/submit") is True
        assert len(tokens) == 3
        assert not any(tokens.values())

    def test_rights_are_of_one_account_and_few(self):
        found = case("scheduled")
        rules = the("Role", found)["rules"]
        assert all("*" not in rule["verbs"] + rule["resources"] for rule in rules)
        assert not {"secrets", "roles"} & {name for rule in rules for name in rule["resources"]}
        [subject] = the("RoleBinding", found)["subjects"]
        assert subject["name"] == the("ServiceAccount", found)["metadata"]["name"]
        assert subject["namespace"] == "petmri"


def pods(name):
    from kube_runs import pods_of

    return pods_of(case(name))


def case_of_schedule(kubernetes):
    from kube_runs import created_later

    config = run_config({**kubernetes, "namespace": "lab"})
    return created_later(made(config, schedule="@daily"))


def test_yaml_gives_the_same_objects():
    for name in CASES:
        found = case(name)
        assert list(yaml.safe_load_all(as_yaml(found))) == found
        assert "&id" not in as_yaml(found)
