"""CITATION.cff has what the format asks for, and says the same as the package."""

import re
import tomllib

import pytest
import yaml
from snippets import ROOT


@pytest.fixture(scope="module")
def citation():
    """What CITATION.cff holds."""
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_required_fields(citation):
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"] == "fusionflow"
    assert citation["type"] == "software"
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])


def test_it_agrees_with_the_package(citation):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in project["authors"]
    ]


def test_the_paper_is_cited(citation):
    (paper,) = [item for item in citation["references"] if item["type"] == "article"]
    assert [author["family-names"] for author in paper["authors"]] == ["Panesar", "Ganatra"]
    assert paper["year"] == 2024
    assert re.fullmatch(r"\d{4}-\d{3}[\dX]", paper["issn"])
    assert paper["title"] in " ".join((ROOT / "workflows/docs/pages/explanation/method.md")
                                      .read_text().split())  # fmt: skip
