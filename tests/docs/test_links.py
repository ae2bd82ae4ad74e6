"""Links of README, pages and deploy lead somewhere, in the repository as it is browsed."""

import re

import pytest
from snippets import ROOT, pages

_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
ALL = [*pages(), ROOT / "CONTRIBUTING.md"]


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(path):
    lost = []
    for target in _LINK.findall(_CODE.sub("", path.read_text())):
        if ":" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        is_heading = not anchor or anchor in anchors(file.read_text()) if file.is_file() else True
        if not (file.exists() and file.is_relative_to(ROOT) and is_heading):
            lost.append(target)
    assert not lost, f"{path.relative_to(ROOT)}: {lost} lead nowhere"


def test_pages_name_the_figures_that_are_there():
    text = "\n".join(path.read_text() for path in pages())
    unused = [p.name for p in (ROOT / "workflows/figures").glob("*.png") if p.name not in text]
    assert not unused, f"no page shows {unused}"
