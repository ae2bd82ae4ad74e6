"""``--json-logs``: what a run tells, as machines read it."""

import json
import logging
import os
import re
import shutil
import typing
from datetime import UTC, datetime, timedelta

import pytest
from outputs import BAD, pet_of

from fusionflow import events, progress_json
from fusionflow.config import METHODS
from fusionflow.records import Attempt

#: What the documentation says: event -> fields.
DOCUMENTED = {
    found[1]: set(re.findall(r"``(\w+)``", found[2].partition(":")[0]))
    for found in re.finditer(
        r"^``(\w+)`` +(.*(?:\n {5,}.*)*)", progress_json.__doc__ or "", re.MULTILINE
    )
}


@pytest.fixture(autouse=True)
def _root_logger():
    """Take away what the command adds."""
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


def lines_of(result):
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_every_line_is_an_object_with_the_same_three_names(call, bids, tmp_path):
    shutil.rmtree(bids / "sub-03/ses-baseline/pet")
    os.truncate(pet_of(bids), 1000)
    before = datetime.now(UTC) - timedelta(seconds=1)
    lines = lines_of(call("run", bids, tmp_path / "out", "--json-logs", code=3))
    for line in lines:
        assert before <= datetime.fromisoformat(line.pop("time")) <= datetime.now(UTC)
        assert line.pop("level") in ("debug", "info", "warning", "error")
        assert line.keys() - {"event"} <= DOCUMENTED[line["event"]]
    often = ("begun", "fused", "log", "staffed")
    assert [line["event"] for line in lines if line["event"] not in often] == [
        "planned", "skipped", "started", "preflight", "failed", "ended",
    ]  # fmt: skip
    by_event = {line["event"]: line for line in lines}
    assert by_event["planned"]["scans"] == 3
    assert by_event["skipped"]["label"] == "sub-03_ses-baseline"
    assert by_event["failed"]["label"] == BAD
    assert pet_of(bids).name in by_event["failed"]["reason"]
    assert by_event["begun"]["slices"] == 40
    assert sum(line["event"] == "fused" for line in lines) == 2
    assert by_event["staffed"]["memory_bytes"] > 1e6
    assert by_event["ended"]["state"] == "done"
    assert by_event["ended"]["exit_code"] == 3
    assert by_event["ended"]["counts"]["fused"] == 2


def test_what_a_person_reads_stays_on_the_standard_output(call, bids, out):
    result = call("run", bids, out, "--json-logs")
    assert "0 fused, 4 unchanged" in result.stdout
    assert [line["event"] for line in lines_of(result)] == [
        "planned", *["unchanged"] * 4, "ended",
    ]  # fmt: skip


def test_why_a_command_ends_is_a_line_as_well(call, bids, tmp_path):
    (line,) = lines_of(call("run", bids, tmp_path, "--json-logs", "--frames=soon", code=2))
    assert (line["event"], line["level"], line["exit_code"]) == ("error", "error", 2)
    assert "soon" in line["message"]


MADE_UP = {
    events.Again: events.Again("sub-01", "why", alone=True),
    events.PutOff: events.PutOff("sub-01", "why"),
    events.Waiting: events.Waiting("sub-01", "why"),
    events.LeftOut: events.LeftOut("sub-01", "why"),
    events.Stopping: events.Stopping(2),
    events.Quarantined: events.Quarantined(Attempt("sub-01", "quarantined", "why", "Kind")),
}


@pytest.mark.parametrize("kind", MADE_UP, ids=lambda kind: kind.__name__)
def test_rarer_events_have_the_documented_fields(kind):
    ((name, fields),) = progress_json.fields_of(MADE_UP[kind], METHODS["average"])
    assert fields.keys() == DOCUMENTED[name]


def test_every_event_is_documented_and_in_the_help(call):
    names = {
        re.sub(r"(?<=.)([A-Z])", r"_\1", kind.__name__).lower()
        for kind in typing.get_args(events.Event)
    }
    assert names <= DOCUMENTED.keys()
    shown = " ".join(call("watch", "--help").output.split())
    assert all(re.search(rf"[( ]{name}[,)]", shown) for name in DOCUMENTED)
