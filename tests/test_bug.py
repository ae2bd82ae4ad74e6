"""What a person sees of what nobody expected: a line, and the rest only if it is asked for."""

import json
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner

from fusionflow import dry_run, logs
from fusionflow.cli import main

BIN = Path(sys.executable).parent


@pytest.fixture
def fails(monkeypatch, tmp_path):
    """A dry run that meets an error which nobody expected."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fails(error, *options):
        def look(*arguments, **selection):
            raise error

        monkeypatch.setattr(dry_run, "look", look)
        (tmp_path / "bids").mkdir(exist_ok=True)
        return CliRunner().invoke(
            main, ["run", str(tmp_path / "bids"), str(tmp_path / "out"), "--dry-run", *options]
        )

    return fails


class TestABug:
    def test_is_a_line_that_says_what_to_send(self, fails, tmp_path):
        result = fails(ZeroDivisionError("division\nby zero"))
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "This is a bug in fusionflow" in line
        assert "(ZeroDivisionError: division by zero)" in line
        (path,) = tmp_path.glob("fusionflow-bug-*.txt")
        assert str(path) in line
        account = path.read_text()
        assert "Traceback (most recent call last)" in account
        assert re.search(r"fusionflow \d.*, Python \d.*, dask \d", account)

    def test_is_said_where_no_file_can_be_written(self, fails, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
        (line,) = fails(ZeroDivisionError("x")).stderr.splitlines()
        assert line.endswith("Please report it with the command and what it says with -v")

    def test_has_a_traceback_if_somebody_asks(self, fails):
        result = fails(ZeroDivisionError("x"), "-v")
        assert "Traceback (most recent call last)" in result.stderr
        assert "in look" in result.stderr

    def test_is_a_json_object_where_all_is(self, fails):
        result = fails(ZeroDivisionError("x"), "--json-logs")
        (line,) = map(json.loads, result.stderr.splitlines())
        assert (line["event"], line["level"], line["exit_code"]) == ("error", "error", 1)
        assert line["message"].startswith("This is a bug")

    def test_is_not_what_the_machine_refuses(self, fails):
        assert "This is a bug" in fails(TimeoutError()).stderr  # says nothing of itself
        result = fails(PermissionError(13, "Permission denied", "/data/x"))
        assert result.exit_code == 4
        assert result.stderr == "Error: /data/x: Permission denied\n"
        assert "This is a bug" in fails(OSError(22, "Invalid argument")).stderr

    def test_is_a_pipe_too_that_is_not_our_output(self, fails):
        result = fails(BrokenPipeError(32, "Broken pipe"))
        assert result.exit_code == 1
        assert "This is a bug" in result.stderr

    def test_is_not_that_the_memory_is_used_up(self, fails):
        result = fails(MemoryError())
        assert result.exit_code == 4
        assert "There is no more memory" in result.stderr


def test_nobody_who_reads_on_is_no_error(tmp_path):
    """As `fusionflow run --list-methods | head -1` may end."""
    ours, theirs = os.pipe()
    os.close(ours)
    ended = subprocess.run(
        [BIN / "fusionflow", "run", "--list-methods"],
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (ended.returncode, ended.stderr) == (141, "")  # as of any program: 128 + SIGPIPE


def shell(command, folder, **environment):
    """Run a line of a shell."""
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, capture_output=True, timeout=60, check=False,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("columns", [40, 200])  # more and less than is written at a time
def test_no_room_for_what_it_prints_is_no_bug(tmp_path, columns):
    command = f"COLUMNS={columns} fusionflow run --list-methods > /dev/full"
    ended = shell(command, tmp_path)
    assert ended.returncode == 4
    assert ended.stderr.startswith(b"Error: No space left on device")
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("options", ["", "--json-logs"])
def test_it_works_without_a_standard_error_stream(tmp_path, options):
    (tmp_path / "empty").mkdir()
    assert shell(f"fusionflow run empty out {options} 2>&-", tmp_path).returncode == 4


def test_nothing_else_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os; from fusionflow.logs import mend_streams; mend_streams(); "
        "open('data', 'wb'); print(os.readlink('/proc/self/fd/2'))"
    )
    assert shell(f'{sys.executable} -c "{code}" 2>&-', tmp_path).stdout == b"/dev/null\n"


def test_paths_that_are_no_text_are_printed(tmp_path):
    code = "from fusionflow.logs import mend_streams; mend_streams(); print('r\\udce4um')"
    ended = shell(f'{sys.executable} -c "{code}"', tmp_path, PYTHONIOENCODING="utf-8:strict")
    assert ended.stdout == b"r\\udce4um\n"


class TestWarningsOfLibraries:
    @pytest.fixture(autouse=True)
    def _as_in_a_command(self):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logs.set_up(0)
            yield

    def test_are_short_and_said_once(self, capsys):
        for _ in range(3):
            warnings.warn("the codec\nis " + "old " * 200, UserWarning, stacklevel=1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "WARNING fusionflow.warnings: UserWarning of test_bug: the codec is old"
        )
        assert len(line) < 300

    def test_name_the_package(self, capsys):
        path = "/x/lib/python3.12/site-packages/zarr/core/array.py"
        warnings.showwarning(UserWarning("old"), UserWarning, path, 1)
        assert "UserWarning of zarr: old" in capsys.readouterr().err


def test_what_others_log_is_json_where_all_is(capsys):
    before = logging.getLogger().handlers[:]
    theirs = logging.getLogger("distributed.made_up")
    theirs.propagate = False
    theirs.addHandler(logging.StreamHandler())
    try:
        logs.set_up(0, as_json=True)
        with logs.others_as_json():
            theirs.warning("worker %s went", "a")
            theirs.error("at once", exc_info=ZeroDivisionError("x"))
        assert type(theirs.handlers[0]) is logging.StreamHandler
    finally:
        logging.getLogger().handlers[:] = before
        theirs.handlers.clear()
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["logger"] == "distributed.made_up"
    assert (first["event"], first["level"]) == ("log", "warning")
    assert first["message"] == "worker a went"
    assert "ZeroDivisionError" in second["traceback"]


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),  # not a terminal
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
    ],
)
def test_colours_of_an_error(tmp_path, environment, coloured):
    unset = {"NO_COLOR": None, "FORCE_COLOR": None, "TERM": "xterm"}
    result = CliRunner(env={**unset, **environment}).invoke(
        main, ["run", str(tmp_path), str(tmp_path / "out"), "--method", "nope"]
    )
    assert result.exit_code == 2
    assert ("\x1b[31m" in result.stderr) == coloured
