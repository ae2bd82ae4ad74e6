"""A package of a backbone, a rule and a method, installed into an environment of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from fusionflow.ledger import OutputPaths, read_published
from fusionflow.phantom import write_cohort

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
PACKAGE = HERE / "plugin_package"
#: They would be found in this process's folders: what the environment has is to decide.
_OURS = ("PYTHONPATH", "FUSIONFLOW_WEIGHTS_DIR", "VIRTUAL_ENV")


class Environment:
    """A fresh environment that borrows what this one has, but for the package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(venv, check=True, timeout=120)
        self.python = folder / "bin" / "python"
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        borrowed = [HERE.parent, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        (site / "borrowed.pth").write_text("\n".join(dict.fromkeys(map(str, borrowed))))

    def run(self, *command: object, rc: int = 0, cwd: Path | None = None) -> str:
        """Run a module in it, and return what it says."""
        variables = {key: value for key, value in os.environ.items() if key not in _OURS}
        ran = subprocess.run(
            [str(self.python), "-m", *map(str, command)],
            capture_output=True, text=True, check=False, timeout=240, cwd=cwd or self.folder,
            env={**variables, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"},
        )  # fmt: skip
        assert ran.returncode == rc, f"{command}: {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout if rc == 0 else ran.stdout + ran.stderr

    def install(self, package: Path) -> None:
        offline = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
        self.run("pip", "install", *offline, "--disable-pip-version-check", package)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the sources: building writes beside them."""
    folder = tmp_path_factory.mktemp("sources") / "gabor-fusion"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def environment(package, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("fresh") / "env")
    environment.install(package)
    return environment


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin") / "bids"
    write_cohort(folder, shape=(40, 48, 40))
    return folder


@pytest.fixture(scope="module")
def fused(environment, cohort, tmp_path_factory):
    """One subject, fused by a method that the package offers."""
    out = tmp_path_factory.mktemp("plugin") / "out"
    report = environment.run("fusionflow", "run", *asked(cohort, out), "--json")
    return out, json.loads(report)


def asked(cohort, out):
    return (
        cohort, out, "--method", "dwt-gabor", "--registration", "header", "--n-workers", 1,
        "--participant-label", "01",
    )  # fmt: skip


def standings(environment, cohort, out):
    """Return the state of each scan, and why, as a dry run says."""
    told = environment.run("fusionflow", "run", *asked(cohort, out), "--dry-run", "--json")
    return {(item["state"], item["why"]) for item in json.loads(told)}


def test_passes_the_kit_there(environment, package):
    told = environment.run("pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert "passed" in told
    assert "skipped" not in told


def test_adds_a_method_that_is_listed(environment):
    told = environment.run("fusionflow", "run", "--list-methods")
    (line,) = [line for line in told.splitlines() if line.startswith("dwt-gabor")]
    assert "l1-vote" in line
    assert "gabor edges, texture" in line


def test_fuses_a_cohort_and_says_whose_parts_did(fused, environment, cohort):
    out, report = fused
    assert report["counts"]["fused"] >= 1
    assert report["counts"]["failed"] == 0
    paths = OutputPaths(out)
    for label in (item.name for item in paths.scans.iterdir()):
        record = read_published(paths, label)
        assert record.method["name"] == "dwt-gabor"
        assert record.software["gabor-fusion"] == "1.0"
        assert record.weights.startswith("gabor.safetensors (sha256 ")
    assert standings(environment, cohort, out) == {("done", "")}


def test_another_version_makes_scans_anew_and_says_why(fused, environment, package, cohort):
    out, _ = fused
    project = package / "pyproject.toml"
    project.write_text(project.read_text().replace('version = "1.0"', 'version = "1.1"'))
    environment.install(package)
    why = "made with gabor-fusion 1.0, installed is 1.1"
    assert standings(environment, cohort, out) == {("stale", why)}


def test_without_the_package_the_method_is_missed_by_name(fused, environment, cohort):
    out, _ = fused
    environment.run("pip", "uninstall", "--yes", "--quiet", "gabor-fusion")
    told = environment.run("fusionflow", "run", *asked(cohort, out), rc=2)
    assert "No method is called 'dwt-gabor'" in told
    assert "A method of another package needs that installed" in told
    assert "Traceback" not in told
