"""What a run writes, and the phantom that it reads, pass the BIDS validator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from runs import config

import fusionflow as ff
from fusionflow.config import ConformOptions

COMMAND = shutil.which(
    "bids-validator-deno", path=f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
)

pytestmark = pytest.mark.skipif(
    COMMAND is None, reason="no bids-validator-deno: pip install 'fusionflow[dev]'"
)

#: What the validator recommends and a simulation, or a program as author, has not.
ACCEPTED = {"JSON_KEY_RECOMMENDED", "SIDECAR_KEY_RECOMMENDED", "TOO_FEW_AUTHORS"}


@pytest.fixture(scope="module")
def validate(tmp_path_factory):
    """Return a function from a dataset to the validator's findings of a severity, counted."""
    cache = tmp_path_factory.mktemp("deno")
    # The schema comes with the command: a download would fail here, and say so.
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "DENO_DIR": str(cache), "DENO_NO_UPDATE_CHECK": "1"}
    for name in ("BIDS_SCHEMA", "NO_PROXY", "no_proxy", "http_proxy", "https_proxy"):
        environment.pop(name, None)

    def run(dataset, severity):
        done = subprocess.run(
            [COMMAND, str(dataset), "--format", "json"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)["issues"]["issues"]
        return Counter(
            issue["code"] if severity == "warning" else (issue["code"], issue.get("location"))
            for issue in found
            if issue["severity"] == severity
        )

    return run


@pytest.fixture(scope="module", params=[("dwt-max", "header"), ("average", "auto")], ids="-".join)
def derivatives(request, phantom_bids, client, tmp_path_factory):
    """The output of a run."""
    method, registration = request.param
    out = tmp_path_factory.mktemp("derivatives") / "out"
    conform = ConformOptions(registration=registration)
    how = config(method, weights=None).model_copy(update={"conform": conform})
    report = ff.run(phantom_bids, out, how, client=client)
    assert len(report.fused) == 4
    assert bool(list(out.rglob("*_registration.png"))) == (registration == "auto")
    return out


def test_the_output_of_a_run(derivatives, validate):
    assert not validate(derivatives, "error")
    assert validate(derivatives, "warning").keys() <= {"TOO_FEW_AUTHORS"}


def test_the_phantom_cohort(phantom_bids, validate):
    assert not validate(phantom_bids, "error")
    assert validate(phantom_bids, "warning").keys() <= ACCEPTED


def test_what_is_no_bids_is_found(phantom_bids, validate, tmp_path):
    """The validator reads the files, and nothing that we say to it makes it silent."""
    bids = shutil.copytree(phantom_bids, tmp_path / "bids")
    (bids / "notes.txt").write_text("of a person\n")
    sidecar = next(bids.rglob("sub-02*_pet.json"))
    content = json.loads(sidecar.read_text())
    del content["TracerName"]
    sidecar.write_text(json.dumps(content))
    codes = {code for code, _ in validate(bids, "error")}
    assert codes == {"NOT_INCLUDED", "SIDECAR_KEY_REQUIRED"}
