"""The examples for systemd and cron: what they name exists, with the options that it has."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from fusionflow.cli import main
from fusionflow.events import EXIT_DONE, EXIT_LOCKED, EXIT_QUARANTINED, EXIT_USAGE

FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "scheduled"
UNITS = sorted(path.name for path in FOLDER.glob("*.[st]*e*r*"))
#: One of the five fields of a time in a crontab.
FIELD = r"(?:\*|\d+(?:-\d+)?)(?:/\d+)?(?:,(?:\*|\d+(?:-\d+)?)(?:/\d+)?)*"


def unit(name):
    """Read a unit; where a setting is given twice, it is a mistake."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string((FOLDER / name).read_text())
    return parser


def commands():
    """Every command of fusionflow in the examples."""
    for name in UNITS:
        if name.endswith(".service"):
            yield name, unit(name)["Service"]["ExecStart"]
    for line in cron_lines():
        yield "crontab", line.split(maxsplit=5)[5].partition(">>")[0]


def cron_lines():
    lines = (FOLDER / "crontab").read_text().splitlines()
    return [line for line in lines if line and not re.match(r"#|\w+=", line)]


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """Parse a command as the command line itself does; its folders are placeholders."""

    def parse(text):
        program, command, *arguments = shlex.split(text)
        assert Path(program).is_absolute()
        assert Path(program).name == "fusionflow"
        places = {"/data/bids": tmp_path, "/data/fused": tmp_path / "fused"}
        assert arguments[:2] == list(places)
        arguments = [str(places.get(word, word)) for word in arguments]
        return command, main.commands[command].make_context(command, arguments).params

    return parse


def test_there_are_a_service_with_its_timer_a_watch_and_a_crontab():
    assert UNITS == ["fusionflow-watch.service", "fusionflow.service", "fusionflow.timer"]
    assert len(list(commands())) == 3


@pytest.mark.parametrize(("name", "text"), list(commands()), ids=lambda value: value.split("/")[0])
class TestCommands:
    def test_are_taken_by_the_command_line(self, parsed, name, text):
        command, options = parsed(text)
        assert command == ("watch" if "watch" in name else "run")
        assert options["settle"] == 300
        assert os.environ["FUSIONFLOW_OFFLINE"] == "1"
        if command == "watch":
            assert options["every"] == 900

    def test_with_an_option_that_does_not_exist_would_be_refused(self, parsed, name, text):
        with pytest.raises(click.UsageError):
            parsed(f"{text} --no-such-option")


class TestUnits:
    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
    def test_systemd_finds_no_fault(self, tmp_path):
        """With a program and a user that exist here; the mounts are placeholders."""
        for name in UNITS:
            text = (
                (FOLDER / name).read_text().replace("/opt/fusionflow/bin/fusionflow", "/bin/true")
            )
            (tmp_path / name).write_text(text.replace("User=fusionflow", "User=root"))
        paths = [str(tmp_path / name) for name in UNITS]
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert verified.returncode == 0, verified.stderr
        assert str(tmp_path) not in verified.stderr

    def test_a_run_that_leaves_scans_in_quarantine_or_finds_a_lock_is_no_failure(self):
        codes = unit("fusionflow.service")["Service"]["SuccessExitStatus"].split()
        assert set(map(int, codes)) == {EXIT_QUARANTINED, EXIT_LOCKED}

    def test_wrong_usage_is_not_tried_again(self):
        service = unit("fusionflow-watch.service")["Service"]
        assert service["Restart"] == "on-failure"
        assert int(service["RestartPreventExitStatus"]) == EXIT_USAGE
        assert EXIT_DONE == 0

    @pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
    def test_the_run_itself_tells_its_workers_to_end(self, name):
        service = unit(name)["Service"]
        assert service["KillMode"] == "mixed"
        assert service["TimeoutStopSec"] == "2min"

    def test_the_timer_starts_the_service_of_its_name(self):
        timer = unit("fusionflow.timer")
        assert "Unit" not in timer["Timer"]
        assert timer["Timer"]["OnCalendar"] == "*:0/15"
        assert timer["Install"]["WantedBy"] == "timers.target"

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze")
    def test_the_timer_goes_every_quarter_of_an_hour(self):
        when = unit("fusionflow.timer")["Timer"]["OnCalendar"]
        said = subprocess.run(
            ["systemd-analyze", "calendar", when], capture_output=True, text=True, check=True
        ).stdout
        assert "*-*-* *:00/15:00" in said


class TestCrontab:
    def test_each_line_is_five_fields_and_a_command(self):
        for line in cron_lines():
            assert re.fullmatch(rf"(?:{FIELD} +){{5}}/\S.*", line), line

    def test_nothing_in_it_means_a_new_line_to_cron(self):
        assert all("%" not in line for line in cron_lines())
