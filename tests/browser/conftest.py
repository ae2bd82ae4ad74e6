"""A real browser: headless Chromium, which reaches no host, and axe-core."""

import json
import os
import shutil
from pathlib import Path

import pytest

SIZES = {"desktop": (1400, 1000), "phone": (390, 844)}


@pytest.fixture(scope="session")
def chromium():
    """Headless Chromium, one for all tests; a name of any host is an error in it."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("There is no chromium with chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars",
        "--enable-unsafe-swiftshader",  # WebGL without a graphics card
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """An open page, and what may be asked of it."""

    def __init__(self, browser, folder: Path) -> None:
        self.browser = browser
        self.folder = folder

    def open(self, path: Path, *, size: str = "desktop", scheme: str = "light") -> None:
        """Show a file; `scheme` is light or dark."""
        wide, high = SIZES[size]
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": size == "phone"},
        )
        self.browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        for kind in ("browser", "performance"):
            self.browser.get_log(kind)
        self.browser.get(path.resolve().as_uri() if isinstance(path, Path) else path)

    def do(self, script: str, *arguments):
        """Run JavaScript; what it returns."""
        return self.browser.execute_script(script, *arguments)

    def find(self, css: str):
        """Return the one element that a selector names."""
        (found,) = self.browser.find_elements("css selector", css)
        return found

    def wait(self, script: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, seconds, 0.1).until(
            lambda b: b.execute_script(f"return {script}")
        )

    def picture(self, name: str) -> Path:
        """Take a picture of the whole page; FUSIONFLOW_PICTURES keeps it."""
        import base64

        shot = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
        )
        path = self.folder / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def complaints(self) -> list[str]:
        """What the browser's console says, but for what it tells of itself."""
        return [
            entry["message"] for entry in self.browser.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING") and "GPU stall" not in entry["message"]
        ]  # fmt: skip

    def requests(self) -> list[str]:
        """Addresses that the page asked for, beside itself and what is in it."""
        sent = (
            json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")
        )
        asked = (
            message["params"]["request"]["url"] for message in sent
            if message["method"] == "Network.requestWillBeSent"
        )  # fmt: skip
        return [url for url in asked if not url.startswith(("data:", "blob:", "file:"))]

    def violations(self) -> list[str]:
        """What axe-core finds, serious or worse, as lines that say where."""
        axe = os.environ.get("FUSIONFLOW_AXE")
        if not axe:
            pytest.skip("FUSIONFLOW_AXE names no axe.min.js (make browser fetches it)")
        self.do(Path(axe).read_text())
        found = self.browser.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then(done)"
        )
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
            for rule in found["violations"] if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]  # fmt: skip


@pytest.fixture
def page(chromium, tmp_path):
    """An empty page of the browser."""
    kept = os.environ.get("FUSIONFLOW_PICTURES")
    folder = Path(kept) if kept else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return Page(chromium, folder)
