"""The built pages in a real browser: no request, no complaint, readable by everybody."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
LOOKED_AT = ("index", "explanation/method", "reference/configuration")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages, built."""
    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", str(folder)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    config = ["-f", str(ROOT / "workflows/docs/mkdocs.yml")]
    subprocess.run([*command, *config], check=True, env=variables, timeout=240)
    return folder


@pytest.fixture(scope="module")
def served(site):
    """The address of the pages, served on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing."""

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_page_opens_from_a_folder(page, site):
    # 404.html is a server's, which shows it at any address: its links begin at the root.
    for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        page.open(path)
        assert page.do("return document.querySelectorAll('h1').length") == 1, path
        broken = page.do("return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert not broken, path
        assert page.requests() == [], path
        assert page.complaints() == [], path


@pytest.mark.parametrize("name", LOOKED_AT)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(page, site, name, scheme):
    page.open(site / f"{name}.html", scheme=scheme)
    page.do("localStorage.clear()")  # the scheme that an earlier visit had
    page.open(site / f"{name}.html", scheme=scheme)
    ground = page.do("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    page.picture(f"docs-{name.replace('/', '-')}-{scheme}")
    assert page.violations() == []


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_phone_shows_it(page, site, name):
    """Wide tables and formulas scroll by themselves; the page does not."""
    page.open(site / f"{name}.html", size="phone")
    page.picture(f"docs-{name.replace('/', '-')}-phone")
    assert page.do("return document.documentElement.scrollWidth <= innerWidth")


def test_a_served_page_can_be_searched(page, served):
    page.open(f"{served}/index.html")
    page.find(".md-search__input").send_keys("quarantine")
    page.wait("document.querySelectorAll('.md-search-result__item').length > 0")
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith(served)] == []
