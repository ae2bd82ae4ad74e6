"""A cohort, its output, and copies of both to be spoilt."""

import json
import shutil

import pytest
from click.testing import CliRunner
from runs import small_cohort

from fusionflow.cli import main


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """The images of a cohort."""
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


@pytest.fixture(scope="session")
def call(client):
    """Call a command here; a run works on the cluster of these tests."""

    def call(command, *arguments, code=0):
        arguments = [command, *map(str, arguments)]
        if command == "run":
            arguments += ["--method", "average", "--cluster", client.scheduler.address]
        result = CliRunner().invoke(main, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture(scope="session")
def made(cohort, call, tmp_path_factory):
    """An output of the whole cohort."""
    out = tmp_path_factory.mktemp("made") / "out"
    call("run", cohort, out)
    return out


@pytest.fixture
def bids(cohort, tmp_path):
    """A copy of the images, to be spoilt."""
    return shutil.copytree(cohort, tmp_path / "bids")


@pytest.fixture
def out(made, tmp_path, bids):
    """A copy of the output, made from the copy of the images."""
    folder = shutil.copytree(made, tmp_path / "out")
    path = folder / "logs/last_run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "input": str(bids)}))
    return folder
