"""Pages and pictures that lie elsewhere in the repository, and links from one to the other.

A link in a page leads to the file where it lies, so that it works where the repository is browsed.
Here it is turned to the page that the file becomes, or else to the file's name.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[3]
#: Become pages of the same path.
PAGES = (
    "deploy/containers.md", "deploy/kubernetes.md", "deploy/shared-cluster.md", "deploy/slurm.md",
    "fusionflow/models/README.md", "workflows/benchmarks/README.md",
)  # fmt: skip
#: Other names of pages.
_STANDS_FOR = {"README.md": "index.md", "deploy/README.md": "howto/clusters.md"}
_LINK = re.compile(r"(?P<shown>!?\[[^\]]*\])\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """Add what lies elsewhere."""
    for name in (*PAGES, *_pictures()):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Turn links out of the folder of pages."""
    name = page.file.src_uri
    pages = Path(config.docs_dir).relative_to(ROOT)
    here = Path(name).parent if name in PAGES else pages / Path(name).parent
    places = {name: name for name in (*PAGES, *_pictures())} | _STANDS_FOR

    def turned(found: re.Match[str]) -> str:
        path, _, anchor = found["target"].partition("#")
        if not path or ":" in path:
            return found[0]
        path = os.path.normpath(here / path)
        if Path(path).is_relative_to(pages):
            return found[0]
        if path not in places:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{name}: {found['target']} leads nowhere")
            said = found["shown"].strip("![]")
            return said if said.strip("`") in path else f"{said} (`{path}`)"
        target = os.path.relpath(places[path], Path(name).parent)
        kept = f"#{anchor}" if anchor and path not in _STANDS_FOR else ""
        return f"{found['shown']}({target}{kept})"

    return _LINK.sub(turned, markdown)


def _pictures() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in (ROOT / "workflows/figures").glob("*.png")]
