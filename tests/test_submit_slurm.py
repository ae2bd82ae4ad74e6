"""The script of a run that is a job of SLURM; no SLURM is needed."""

import os
import shlex
import subprocess

import dask
import pytest
import yaml
from click.testing import CliRunner

from fusionflow.cli import main
from fusionflow.config import METHODS, load_config
from fusionflow.tenancy import Tenancy

pytest.importorskip("dask_jobqueue", reason="the extra slurm is not installed")

#: What a path may hold that a shell could take for something else.
ODD = 'it\'s "$HOME" `id` & %j\\ ünï; #'
POOL = {"cores": 2, "memory": "4GB", "walltime": "01:00:00"}


@pytest.fixture
def submit(tmp_path, monkeypatch):
    """Prints the script of a submission: ``submit(*words, **pools)``."""
    bids = tmp_path / ODD
    bids.mkdir()
    monkeypatch.chdir(tmp_path)

    def printed(*words, code=0, print_it=True, **pools):
        slurm = {"shared_directory": f"{tmp_path}/{ODD}/shared", "pools": pools or {"cpu": POOL},
                 "log_directory": f"{tmp_path}/logs"}  # fmt: skip
        cluster = {"kind": "slurm", "slurm": slurm}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"cluster": cluster}))
        given = ["submit", ODD, "out", "--config", "run.yaml", *words]
        result = CliRunner().invoke(main, [*given, "--print"] if print_it else given)
        assert result.exit_code == code, result.output
        return result.output

    return printed


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines()
            if line.startswith("#SBATCH")]  # fmt: skip


def command_of(script):
    """Return the words of the run, as bash makes them."""
    joined = script.replace("\\\n", " ")
    (line,) = (line for line in joined.splitlines() if "-m fusionflow run" in line)
    line = line.replace('"$private/scheduler.json"', "FILE")
    return shlex.split(line.removesuffix("&").replace('"$private/run.yaml"', "CONFIG"))


def config_of(script, folder):
    """Return the configuration that the job writes, by its own lines."""
    lines = script.splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith('cat > "$private/run.yaml'))
    last = lines.index("FUSIONFLOW_END_OF_FILE", first)
    subprocess.run(["bash", "-eu"], input="\n".join(lines[first : last + 1]) + "\n", text=True,
                   env={**os.environ, "private": str(folder)}, check=True, timeout=30)  # fmt: skip
    return load_config(folder / "run.yaml")


def assert_bash_reads(script):
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False,
                          timeout=30)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_hands_on_what_the_command_line_says(submit, tmp_path):
    script = submit(
        "participant", "--method", "dwt-max", "--participant-label", "01", "02", "--pet-window",
        "-1", "12.5", "--pet-units", "suv", "--derivatives", ODD, "--patience", "3m", "-vv",
        "--cluster", "slurm", "--retry-failed", "--allow-plain-tcp",
    )  # fmt: skip
    assert_bash_reads(script)
    words = command_of(script)
    bids = str(tmp_path / ODD)
    assert words[words.index("run") + 1 :][:2] == [bids, str(tmp_path / "out")]
    assert words[words.index("run") + 3 :] == [
        "participant", "--participant-label=01", "--participant-label=02", "--verbose",
        "--verbose", "--retry-failed", "--config", "CONFIG", "--cluster", "FILE",
    ]  # fmt: skip
    config = config_of(script, tmp_path)
    assert config.method == METHODS["dwt-max"]
    assert config.input.derivatives == (tmp_path / ODD,)
    assert (config.conform.pet_units, config.conform.pet_window) == ("suv", (-1.0, 12.5))
    assert config.cluster.patience == 180


def test_has_the_cluster_for_itself(submit, tmp_path):
    """So its workers are restarted where a scan takes longer than the time limit."""
    config = config_of(submit("--time-limit", "20m"), tmp_path)
    given = config.cluster.model_copy(update={"scheduler_file": tmp_path / "scheduler.json"})
    assert not Tenancy.of("x", given, None).shared
    assert (given.time_limit, given.gpu) == (1200, "auto")


def test_finds_weights_from_any_folder(submit, tmp_path):
    for given, found in (("a'b.pth", f"{tmp_path}/a'b.pth"), ("random:3", "random:3")):
        script = submit("--method", "dwt-vgg19", "--weights", given)
        assert config_of(script, tmp_path).method.weights == found


def test_makes_no_folders_to_print(submit, tmp_path):
    submit()
    assert sorted(path.name for path in tmp_path.iterdir()) == [ODD, "run.yaml"]
    assert list((tmp_path / ODD).iterdir()) == []


@pytest.mark.parametrize(
    ("walltime", "notice"),
    [("00:01:00", 15), ("00:04:00", 60), ("00:10:00", 120), ("2-00:00:00", 120)],
)
def test_is_told_before_the_walltime(submit, walltime, notice):
    assert f"--signal=B:TERM@{notice}" in directives(submit(cpu={**POOL, "walltime": walltime}))


def test_takes_what_is_not_given_from_dask(submit):
    site = {
        "queue": "long", "account": "lab42", "walltime": "2-0", "interface": "ib0",
        "local-directory": "$TMPDIR",
    }  # fmt: skip
    with dask.config.set({"jobqueue.slurm": site}):
        script = submit(cpu={"cores": 2, "memory": "4GB"})
    assert {"--partition=long", "--account=lab42", "--time=2-0"} <= {*directives(script)}
    assert script.count(" --interface ib0") == 2
    assert "--local-directory $TMPDIR" in script


def test_has_no_walltime_where_dask_says_none(submit):
    with dask.config.set({"jobqueue.slurm.walltime": None}):
        script = submit(cpu={"cores": 2, "memory": "4GB"})
    assert "--time" not in script
    assert "--signal=B:TERM@120" in directives(script)


def test_refuses_a_prologue_that_would_end_a_file(submit):
    assert_bash_reads(submit(cpu={**POOL, "prologue": ["END"]}))
    said = submit(cpu={**POOL, "prologue": ["FUSIONFLOW_END_OF_FILE"]}, code=2)
    assert "Write the line otherwise" in said


def test_asks_for_one_allocation(submit, tmp_path):
    script = submit(cpu={**POOL, "jobs": 3, "partition": "short", "directives": ["--qos=q"]})
    assert directives(script) == [
        "--job-name=fusionflow", f"--output={tmp_path}/logs/fusionflow-%j.log",
        "--open-mode=append", "--requeue", "--signal=B:TERM@120", "--ntasks=3",
        "--cpus-per-task=2", "--mem-per-cpu=1908M", "--partition=short", "--time=01:00:00",
        "--qos=q",
    ]  # fmt: skip
    assert "--nworkers 2 --nanny --nthreads 1 --memory-limit 1.68GiB" in script
    assert "srun --ntasks=3 --cpus-per-task=2 --mem-per-cpu=1908M --kill-on-bad-exit=0" in script
    assert "LIFETIME" not in script  # nobody would take the place of a worker that leaves


def test_has_a_component_for_each_pool(submit, tmp_path):
    gpu = {**POOL, "cores": 8, "gpus": 2, "jobs": 2, "prologue": ["module load cuda"]}
    script = submit(cpu=POOL, gpu=gpu)
    assert_bash_reads(script)
    asked = directives(script)
    second = asked[asked.index("hetjob") + 1 :]
    assert second == ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8",
                      "--mem-per-cpu=477M", "--time=01:00:00", "--gres=gpu:2"]  # fmt: skip
    assert "srun --het-group=0 --ntasks=1" in script
    assert (
        "srun --het-group=1 --ntasks=2 --cpus-per-task=8 --mem-per-cpu=477M --gres=gpu:2" in script
    )
    assert "module load cuda\nexport ZARR" in script
    assert "-m dask_cuda.cli --scheduler-file" in script
    assert config_of(script, tmp_path).cluster.gpu == "required"


@pytest.mark.parametrize("gpu", ["never", "required"])
def test_leaves_the_word_on_gpus_to_who_gave_one(submit, gpu, tmp_path):
    script = submit("--gpu", gpu, gpu={**POOL, "gpus": 1})
    assert config_of(script, tmp_path).cluster.gpu == gpu


def test_loads_modules_before_it_is_strict(submit):
    script = submit(cpu={**POOL, "prologue": ["module load python"]})
    assert 0 < script.index("module load python") < script.index("set -euo pipefail")


@pytest.mark.parametrize(
    ("words", "directive"),
    [
        (("--dependency", "123"), "--dependency=afterany:123"),
        (("--dependency", "afterok:1:2,afternotok:3"), "--dependency=afterok:1:2,afternotok:3"),
        (("--begin", "2027-01-02T03:04:05"), "--begin=2027-01-02T03:04:05"),
        (("--job-name", "study-1"), "--job-name=study-1"),
    ],
)
def test_says_when(submit, words, directive):
    assert directive in directives(submit(*words))


def test_submits_itself_again_but_not_when_it_is_requeued(submit):
    script = submit("--every", "1d", "--job-name", "nightly")
    assert_bash_reads(script)
    assert 'sbatch --begin=now+86400 --dependency=singleton "$0"' in script
    assert 'if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ]' in script
    assert "scancel --name=nightly" in script
    assert "sbatch" not in submit("--job-name", "nightly").replace("`sbatch`", "")


def test_prints_a_line_for_scrontab(submit, tmp_path):
    lines = submit("--schedule", "0 2 * * 1-5", "--cluster", "slurm", "--force").splitlines()
    assert lines[0].startswith("#SCRON --job-name=")
    assert lines[1].startswith("0 2 * * 1-5 /")
    assert len(lines) == 2
    words = shlex.split(lines[1].replace("\\%", "%").removeprefix("0 2 * * 1-5 "))
    assert words[1:6] == ["-m", "fusionflow", "submit", str(tmp_path / ODD), str(tmp_path / "out")]
    assert words[6:] == [f"--config={tmp_path}/run.yaml", "--cluster=slurm", "--force"]
    assert "%" not in lines[1].replace("\\%", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--dependency", "1\n#SBATCH -p x"), "--dependency"),
        (("--begin", "now; rm"), "--begin"),
        (("--job-name", "a b"), "--job-name"),
        (("--every", "5s"), "--every"),
        (("--schedule", "daily"), "five fields"),
        (("--schedule", "0 2 * * *", "--every", "1d"), "Give one of the two"),
        (("--schedule", "0 2 * * *", "--begin", "now+1hour"), "--begin and --schedule"),
        (("--schedule", "0 2 * * *", "--dependency", "1"), "--dependency and --schedule"),
        (("--cluster", "local"), "nobody to submit it to"),
        (("--cluster", "tls://h:1"), "nobody to submit it to"),
        (("--n-workers", "2"), "cluster.n_workers"),
        (("--method", "nope"), "No method"),
    ],
)
def test_refuses_what_would_fail_later(submit, words, said):
    assert said in submit(*words, code=2)


def test_says_that_there_is_no_slurm(submit, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no command sbatch here" in submit(code=4, print_it=False)
