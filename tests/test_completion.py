"""Completion as shells do it: a real bash, and zsh and fish where they are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusionflow.cli import main

BIN = Path(sys.executable).parent
#: Completes the last of the words as bash does when somebody presses the tabulator.
BASH = """
source <(fusionflow completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_fusionflow_completion fusionflow
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def place(tmp_path):
    for folder in ("sub-01/ses-a", "sub-01/ses-b", "sub-02/ses-a", "code"):
        (tmp_path / "bids" / folder).mkdir(parents=True)
    (tmp_path / "scans.tsv").write_text("participant_id\tt1w\tpet\n07\ta\tb\nsub-08\tc\td\n")
    (tmp_path / "run.yaml").touch()
    return tmp_path


@pytest.fixture
def complete(place):
    def complete(*words):
        environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
        ended = subprocess.run(
            ["bash", "-c", BASH, "bash", "fusionflow", *words],
            cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert ended.stderr == ""
        return ended.stdout.split()

    return complete


class TestBash:
    @pytest.mark.parametrize(
        ("words", "offered"),
        [
            (["st"], ["status"]),
            (["run", "--retry"], ["--retry-failed"]),
            (["run", "bids", "out", ""], ["participant", "group"]),
            (["run", "bids", "out", "--method", "dwt-vgg16"], ["dwt-vgg16-l1"]),
            (["run", "bids", "out", "--method=lapl"], ["laplacian"]),
            (["run", "bids", "out", "--cluster", ""], ["local", "cuda", "slurm", "kubernetes"]),
            (["run", "bids", "out", "--participant-label", ""], ["01", "02"]),
            (["run", "bids", "out", "--participant-label", "sub"], ["sub-01", "sub-02"]),
            (
                ["run", "bids", "out", "--participant-label", "01", ""],
                ["02", "participant", "group"],
            ),
            (["watch", "bids", "out", "--participant-label", "02", ""], ["01"]),
            (["plan", "bids", "--session-label", ""], ["a", "b"]),
            (["run", "scans.tsv", "out", "--participant-label", ""], ["07", "08"]),
            (["run", "gone", "out", "--participant-label", ""], []),
            (["completion", ""], ["bash", "zsh", "fish"]),
        ],
    )
    def test_offers_what_there_is(self, complete, words, offered):
        assert complete(*words) == offered

    def test_every_method(self, complete):
        methods = CliRunner().invoke(main, ["run", "--list-methods"]).output.splitlines()
        names = complete("run", "bids", "out", "--method", "")
        assert names == [line.split()[0] for line in methods]


@pytest.mark.parametrize(
    "words", ["run bids out --config ", "run bids out --cluster ./sch", "run "]
)
def test_leaves_files_to_the_shell(place, words):
    ended = subprocess.run(
        [BIN / "fusionflow"],
        env={
            **os.environ,
            "_FUSIONFLOW_COMPLETE": "bash_complete",
            "COMP_WORDS": f"fusionflow {words}",
            "COMP_CWORD": str(len(f"fusionflow {words}".split(" ")) - 1),
        },
        cwd=place, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout.startswith(("file,", "dir,"))


def test_is_quick_for_it_imports_neither_torch_nor_dask(place):
    script = """
import sys
from fusionflow.cli import main
try:
    main(prog_name="fusionflow")
except SystemExit:
    print(sorted({"torch", "distributed", "xarray", "zarr"} & set(sys.modules)))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "_FUSIONFLOW_COMPLETE": "bash_complete",
            "COMP_WORDS": "fusionflow run bids out --method dwt-max",
            "COMP_CWORD": "5",
        },
        cwd=place, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert ended.stdout == "plain,dwt-max\n[]\n"


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])]
)
def test_what_it_prints_is_a_script_of_the_shell(shell, check, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(main, ["completion", shell]).output)
    assert "_FUSIONFLOW_COMPLETE" in script.read_text()
    subprocess.run([shell, *check, script], check=True, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_says_where_to_put_it(shell):
    shown = CliRunner().invoke(main, ["completion", "--help"]).output
    assert f"fusionflow completion {shell} > ~/." in shown
    assert "_fusionflow_completion" in CliRunner().invoke(main, ["completion", shell]).output
