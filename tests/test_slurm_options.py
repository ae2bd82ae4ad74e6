"""What a person may write of SLURM's jobs, and what jobs come of it; no SLURM is needed."""

import shlex
import subprocess
import sys

import dask
import pytest
from pydantic import ValidationError

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters import keep_waiting, slurm_commands
from fusionflow.clusters.slurm import slurm
from fusionflow.clusters.slurm_certificates import security_of_all_sides, write_certificates
from fusionflow.clusters.slurm_shapes import lifetime_exports, shapes_of
from fusionflow.clusters.slurm_site import log_folder, python_of, seconds_of, shared_folder
from fusionflow.errors import ClusterError, ConfigurationError, MissingExtraError
from fusionflow.options import explained
from fusionflow.slurm_options import SlurmOptions, SlurmPool, walltime_seconds

pytest.importorskip("dask_jobqueue", reason="the extra slurm is not installed")


def cluster(threads=None, **pools):
    return ClusterOptions(
        kind="slurm",
        threads_per_worker=threads,
        slurm=SlurmOptions.model_validate({"pools": pools}),
    )


def python(script):
    """Run a script in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


class TestOptions:
    def test_have_one_pool_of_one_job(self):
        (pool,) = SlurmOptions().pools.items()
        assert pool == ("cpu", SlurmPool())
        assert (pool[1].jobs, pool[1].most, pool[1].gpus) == (1, 1, 0)

    @pytest.mark.parametrize(
        ("wrong", "place", "said"),
        [
            ({"pools": {}}, "pools", "at least 1 item"),
            ({"pools": {"a b": {}}}, "pools", "pattern"),
            ({"pools": {"cpu": {"core": 1}}}, "pools.cpu.core", "not permitted"),
            ({"pools": {"cpu": {"jobs": 0}}}, "pools.cpu.jobs", "greater than or equal to 1"),
            ({"pools": {"cpu": {"jobs": 3, "jobs_most": 2}}}, "pools.cpu.jobs_most", "jobs: 3"),
            ({"pools": {"cpu": {"memory": "much"}}}, "pools.cpu.memory", "16GB"),
            ({"pools": {"cpu": {"memory": "16"}}}, "pools.cpu.memory", "16GB"),
            ({"pools": {"cpu": {"walltime": 43200}}}, "pools.cpu.walltime", "in quotes"),
            ({"pools": {"cpu": {"walltime": "60"}}}, "pools.cpu.walltime", "two ways"),
            ({"pools": {"cpu": {"walltime": "10:00"}}}, "pools.cpu.walltime", "two ways"),
            ({"pools": {"cpu": {"walltime": "00:61:00"}}}, "pools.cpu.walltime", "no time limit"),
            ({"pools": {"cpu": {"walltime": "00:00:00"}}}, "pools.cpu.walltime", "no time limit"),
            ({"pools": {"cpu": {"partition": "a b"}}}, "pools.cpu.partition", "pattern"),
            ({"pools": {"cpu": {"partition": "-x"}}}, "pools.cpu.partition", "pattern"),
            ({"pools": {"gpu-1": {}}}, "pools.gpu-1", "write gpu1 or gpu-a"),
            ({"pools": {"cpu": {"directives": ["--array=1-3"]}}}, "directives", "use jobs"),
            ({"pools": {"cpu": {"directives": ["-n4"]}}}, "directives", "use jobs"),
            ({"pools": {"cpu": {"directives": ["--qos=a --mem 4G"]}}}, "directives", "use memory"),
            ({"pools": {"gpu": {"gpus": 1, "directives": ["--gres=gpu:2"]}}}, "directives", "gpus"),
            ({"pools": {"cpu": {"account": "a\nb"}}}, "pools.cpu.account", "pattern"),
            ({"pools": {"cpu": {"directives": ["#SBATCH -p x"]}}}, "directives", "--qos=long"),
            ({"pools": {"cpu": {"prologue": ["a\nb"]}}}, "pools.cpu.prologue", "one line"),
            ({"interface": "ib 0"}, "interface", "pattern"),
            ({"log_directory": "/a b"}, "log_directory", "no blanks"),
            ({"look_every": 0}, "look_every", "greater than or equal to 1"),
        ],
    )
    def test_that_mean_nothing_are_refused_by_name(self, wrong, place, said):
        with pytest.raises(ValidationError) as refused:
            SlurmOptions.model_validate(wrong)
        assert place in explained(refused.value)
        assert said in explained(refused.value)

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("60", 3600), ("10:30", 630), ("01:00:00", 3600), ("100:00:00", 360000),
            ("1-00:00:00", 86400), ("1-12:30", 131400), ("2-0", 172800),
        ],
    )  # fmt: skip
    def test_read_time_limits_as_slurm_does(self, text, seconds):
        assert walltime_seconds(text) == seconds

    @pytest.mark.parametrize(("gpus", "has"), [(0, False), (2, True)])
    def test_know_whether_there_are_gpus(self, gpus, has):
        options = cluster(cpu={}, other={"gpus": gpus})
        assert options.slurm.has_gpus == options.starts_gpus == options.needs_gpu == has


class TestShapes:
    @pytest.mark.parametrize(
        ("cores", "torch", "threads", "workers"),
        [(8, 1, None, 8), (8, 2, None, 4), (8, 3, None, 2), (1, 4, None, 1), (8, 2, 2, 2)],
    )
    def test_of_processors_have_a_worker_for_each_share_of_threads(
        self, cores, torch, threads, workers
    ):
        shape = shapes_of(cluster(threads, cpu={"cores": cores, "memory": "8GB"}), torch)["cpu"]
        assert (shape.workers, shape.threads, shape.cores) == (workers, threads or 1, cores)
        assert shape.keywords()["job_cpu"] == cores
        assert shape.keywords()["worker_command"] == "distributed.cli.dask_worker"

    def test_of_gpus_have_a_worker_for_each(self):
        pool = {"cores": 16, "memory": "64GB", "gpus": 2, "directives": ["--qos=long"]}
        shape = shapes_of(cluster(gpu=pool), 1)["gpu"]
        assert (shape.workers, shape.threads, shape.slots) == (2, 8, 2)
        assert shape.command == "dask_cuda.cli"
        assert shape.arguments == ("--resources GPU=1", "--device-memory-limit 0")
        assert shape.directives == ["--gres=gpu:2", "--qos=long"]

    @pytest.mark.parametrize("missing", ["cores", "memory"])
    def test_must_say_how_large_they_are(self, missing):
        pool = {name: value for name, value in {"cores": 1, "memory": "2GB"}.items()
                if name != missing}  # fmt: skip
        with pytest.raises(ConfigurationError, match=rf"cluster\.slurm\.pools\.x\.{missing}"):
            shapes_of(cluster(x=pool), 1)

    def test_take_what_is_not_given_from_dask(self, tmp_path):
        site = {
            "queue": "long", "cores": 4, "memory": "8GB", "python": "/opt/python",
            "walltime": "04:00:00",
            "job-script-prologue": ["module load cuda"], "job-extra-directives": ["--qos=short"],
            "log-directory": str(tmp_path / "logs"), "shared-temp-directory": str(tmp_path / "s"),
        }  # fmt: skip
        with dask.config.set({"jobqueue.slurm": site}):
            options = cluster(cpu={}, own={"cores": 2, "prologue": [], "directives": []})
            shapes = shapes_of(options, 1)
            assert (shapes["cpu"].cores, shapes["cpu"].memory) == (4, 8 * 10**9)
            assert shapes["cpu"].keywords()["queue"] == "long"
            assert shapes["cpu"].prologue == ("module load cuda",)
            assert shapes["cpu"].directives == ["--qos=short"]
            assert shapes["own"].cores == 2
            assert (shapes["own"].prologue, shapes["own"].directives) == ((), [])
            assert python_of(options.slurm) == "/opt/python"
            assert log_folder(options.slurm) == tmp_path / "logs"
            assert shared_folder(options.slurm) == tmp_path / "s"
            assert "'13800 s'" in lifetime_exports(shapes["cpu"].seconds)[0]

    @pytest.mark.parametrize(
        ("walltime", "lifetime", "stagger"),
        [("00:01:00", 40, 5), ("01:00:00", 3240, 90), ("2-00:00:00", 172200, 150)],
    )
    def test_leave_before_their_walltime(self, walltime, lifetime, stagger):
        lines = lifetime_exports(seconds_of(walltime))
        assert lines == [
            f"export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION='{lifetime} s'",
            f"export DASK_DISTRIBUTED__WORKER__LIFETIME__STAGGER='{stagger} s'",
        ]
        assert lifetime + stagger < walltime_seconds(walltime)

    @pytest.mark.parametrize("walltime", [None, "", "UNLIMITED", "infinite", "0"])
    def test_stay_where_there_is_no_walltime(self, walltime):
        site = {"walltime": walltime, "worker-extra-args": None, "job-extra-directives": None}
        with dask.config.set({"jobqueue.slurm": site}):
            shape = shapes_of(cluster(cpu={"cores": 1, "memory": "2GB"}), 1)["cpu"]
            assert lifetime_exports(shape.seconds) == []
            assert (shape.seconds, shape.arguments, shape.directives) == (None, (), [])
            assert shape.keywords()["walltime"] == (walltime or None)

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("walltime", 43200, "in quotes"),
            ("walltime", "soon", "no time limit"),
            ("memory", "much", "16GB"),
            ("cores", "four", "valid integer"),
            ("queue", "a b", "pattern"),
            ("worker-extra-args", "--nanny", "no list of texts"),
            ("job-extra-directives", "--qos=a", "valid tuple"),
            ("job-extra-directives", ["--time=1"], "use walltime"),
            ("job-script-prologue", [1], "valid string"),
        ],
    )
    def test_name_what_is_wrong_in_the_configuration_of_dask(self, key, value, said):
        with (
            dask.config.set({"jobqueue.slurm": {"cores": 1, "memory": "2GB", key: value}}),
            pytest.raises(ConfigurationError, match=rf"jobqueue\.slurm\.{key} .*{said}"),
        ):
            shapes_of(cluster(cpu={}), 1)

    @pytest.mark.parametrize("option", ["n_workers", "memory_mb"])
    def test_are_not_those_of_this_machine(self, option):
        options = ClusterOptions(kind="slurm", **{option: 1000})
        with pytest.raises(ConfigurationError, match=rf"cluster\.{option}"):
            shapes_of(options, 1)

    def test_are_scripts_that_bash_reads(self, tmp_path):
        from fusionflow.clusters.slurm_pools import SlurmPools

        folder = tmp_path / "an 'odd' $name"
        folder.mkdir()
        pools = {
            "cpu": {"cores": 4, "memory": "8GB", "prologue": ["module load x"],
                    "local_directory": "$TMPDIR/dask"},
            "gpu": {"cores": 8, "memory": "32GB", "gpus": 2, "partition": "a100"},
        }  # fmt: skip
        with SlurmPools(
            shapes_of(cluster(**pools), 2), 3600, interface="lo", silence_logs=50,
            log_directory=str(tmp_path), python=shlex.quote(sys.executable),
            security=security_of_all_sides(write_certificates(folder)),
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
        ) as pools_of_jobs:  # fmt: skip
            cpu, gpu = (pools_of_jobs.script_of(name) for name in ("cpu", "gpu"))
        for script in (cpu, gpu):
            done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True,
                                  check=False, timeout=30)  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            words = shlex.split(script.splitlines()[-1])
            assert words[words.index("--tls-key") + 1] == str(folder / "key.pem")
        assert "#SBATCH --cpus-per-task=4\n" in cpu
        assert "#SBATCH --mem=7630M\n" in cpu
        assert "--nthreads 1 --memory-limit 3.35GiB --nworkers 2 --nanny" in cpu
        assert "--local-directory $TMPDIR/dask" in cpu
        assert "module load x\nexport ZARR_ASYNC__CONCURRENCY=4\n" in cpu
        assert "GPU" not in cpu
        assert "#SBATCH --gres=gpu:2\n" in gpu
        assert "#SBATCH -p a100\n" in gpu
        assert "-m dask_cuda.cli tls://127.0.0.1:" in gpu
        assert "--resources GPU=1" in gpu


class TestWhatIsMissing:
    def test_jobqueue_is_named_with_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
        with (
            pytest.raises(MissingExtraError, match=r"pip install 'fusionflow\[slurm\]'"),
            slurm(cluster(cpu={"cores": 1, "memory": "1GB"}), on_wait=keep_waiting),
        ):
            pass

    def test_the_main_thread_is_asked_for(self):
        """Where dask-jobqueue sets a handler of signals."""
        script = """if True:
            import threading
            from fusionflow.clusters.slurm_site import require_jobqueue
            from fusionflow.errors import ClusterError
            def load():
                try:
                    require_jobqueue()
                except ClusterError as error:
                    print(error)
            thread = threading.Thread(target=load)
            thread.start()
            thread.join()
        """
        assert "in its main thread" in python(script)

    def test_slurm_itself_is_said_to_be(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ClusterError, match=r"no command squeue.*login node"):
            slurm_commands.my_jobs()

    def test_a_command_that_does_not_answer_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(slurm_commands, "PATIENCE", 0.2)
        with pytest.raises(ClusterError, match=r"no answer within 0\.2 s.*scontrol ping"):
            slurm_commands.command(["sleep", "30"])


def test_ctrl_c_goes_on_to_mean_what_it_meant():
    """dask-jobqueue makes it end Python, with exit code 0."""
    script = """if True:
        import signal
        from fusionflow.clusters.slurm_site import require_jobqueue
        before = signal.getsignal(signal.SIGINT)
        require_jobqueue()
        import dask_jobqueue
        print(signal.getsignal(signal.SIGINT) is before)
    """
    assert python(script) == "True\n"


def test_certificates_are_for_this_user_alone(tmp_path):
    files = write_certificates(tmp_path)
    for path in (files.ca_file, files.cert, files.key):
        assert path.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE KEY" in files.key.read_bytes()
    sides = security_of_all_sides(files)
    assert sides.require_encryption
    assert sides.tls_worker_key == sides.tls_client_key == sides.tls_scheduler_key
