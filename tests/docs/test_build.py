"""The pages are built without a warning, hold what the code has, and ask nobody for anything."""

import inspect
import os
import re
import subprocess
import sys

import pytest
from snippets import ROOT

import fusionflow
from fusionflow import metrics, quality
from fusionflow.cli import main
from fusionflow.config import METHODS, RunConfig

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built strictly."""
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        [*command, "-f", "workflows/docs/mkdocs.yml", "-d", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    said = built.stdout + built.stderr
    assert built.returncode == 0, said
    assert not said.strip(), said
    return folder


def page(site, name):
    return (site / f"{name}.html").read_text()


def test_every_command_and_option_is_there(site):
    text = page(site, "reference/commands")
    for name, command in main.commands.items():
        assert f"fusionflow {name}" in text
        for param in command.params:
            shown = param.opts[-1] if param.param_type_name == "option" else param.metavar
            assert (shown or param.name.upper()) in text, f"{name} {param.opts}"


def test_every_option_of_the_configuration_is_there(site):
    text = page(site, "reference/configuration")
    names = set(re.findall(r"<td><code>(\w+)</code></td>", text))
    assert names >= set(RunConfig.model_fields)
    for model in RunConfig.model_json_schema()["$defs"].values():
        assert names >= set(model["properties"]), model["title"]


def test_all_that_is_public_is_there(site):
    text = page(site, "reference/python")
    for name in fusionflow.__all__:
        if name == "__version__":
            continue
        assert re.search(rf'<h2[^>]*id="fusionflow\.\w+\.{name}"', text), name
        first = (inspect.getdoc(getattr(fusionflow, name)) or "").split(".")[0]
        assert first.split("\n")[0].split(",")[0].split("`")[0] in text, name


def test_every_method_and_metric_is_there(site):
    methods, figures = page(site, "reference/methods"), page(site, "reference/metrics")
    for name in METHODS:
        assert f"<code>{name}</code>" in methods
    declared = [item.name for item in (*metrics.PAIR_METRICS, *metrics.IMAGE_METRICS)]
    for name in [*declared, *(key for item in quality.QUALITIES for key in item.keys)]:
        assert f"<code>{name}</code>" in figures
    assert figures.count("<math") > 5


def test_nothing_is_fetched_from_elsewhere(site):
    loads = re.compile(r"(?:src|href)=[\"']?((?:https?:)?//[^\"' >]+)")
    for path in site.rglob("*.html"):
        links = {
            found for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", path.read_text())
            for found in loads.findall(tag)
        }  # fmt: skip
        assert not links, f"{path.relative_to(site)} loads {links}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//|@import", path.read_text()), path


def test_no_mark_is_left(site):
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>", "", path.read_text(), flags=re.DOTALL)
        for mark in ("generated:", "$$", ":math:", r"\frac"):
            assert mark not in text, f"{path.relative_to(site)} holds {mark}"
