"""Every benchmark runs on phantoms and random weights, at sizes that say nothing of speed."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "workflows" / "benchmarks"

#: Benchmark -> what its figures must be about, among others.
FIGURES = {
    "naive": ("script / run", "PSNR of script and run", "levers: script / the stages"),
    "overhead": ("run / bare, all in", "run less conform and commit", "bare convolutions"),
    "scaling": ("speed-up of ff.run", "ceiling", "speed-up / ceiling"),
    "per_scan": ("ms a scan", "reading and writing alone", "Dask tasks a scan", "open_cohort"),
    "memory": ("client: kB a scan", "scheduler: kB a scan", "worker: volumes kept"),
    "many_workers": ("scheduler: ms a scan", "client: scans a second at most"),
    "compiled": ("as it is / taps compiled",),
    "peers": ("dwt-vgg19: seconds a pair", "dwt-max: times dwt-max"),
}
pytestmark = pytest.mark.bench


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module", params=FIGURES)
def content(request, folder):
    """What a benchmark wrote that found neither data nor weights."""
    if request.param == "compiled" and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile needs a C++ compiler")
    nowhere = str(folder / "nowhere")
    options = ["--quick", "--out", str(folder), "--data", nowhere, "--weights", nowhere]
    command = [sys.executable, str(SCRIPTS / f"{request.param}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"{request.param}.json").read_text())


def numbers(cell):
    """Yield the numbers of a figure, a table or a goal."""
    if isinstance(cell, dict | list):
        for item in cell.values() if isinstance(cell, dict) else cell:
            yield from numbers(item)
    elif isinstance(cell, int | float):
        yield cell


def test_it_says_what_it_found_where_and_when(content):
    assert content["quick"]
    assert content["machine"]["cores"] >= 1
    assert {"fusionflow", "torch", "dask", "python"} <= content["versions"].keys()
    assert content["figures"]
    assert content["tables"]
    assert all(math.isfinite(number) for number in numbers(content["figures"]))
    for wanted in FIGURES[content["benchmark"]]:
        assert any(wanted in name for name in content["figures"]), wanted
    for table in content["tables"]:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_goal_is_among_the_figures(content):
    for goal in content["goals"]:
        assert goal["value"] == content["figures"][goal["what"]]
        assert goal["met"] in (True, False)


def test_what_is_missing_is_said(content):
    if content["benchmark"] in ("naive", "overhead", "scaling", "peers"):
        assert any("phantom" in why for why in content["skipped"])


def test_the_page_joins_them(content, folder):
    command = [sys.executable, str(SCRIPTS / "page.py"), str(folder)]
    subprocess.run(command, check=True, capture_output=True, env=environment())
    page = (folder / "results.md").read_text()
    assert f"## {content['benchmark']}" in page
    assert "(quick: says nothing)" in page
