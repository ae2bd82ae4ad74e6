"""What a run tells a scheduler: what it would do, what failed, its summary, how it ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from outputs import BAD, cut, last_run, pet_of, states
from runs import LABELS, leftovers

from fusionflow import clusters
from fusionflow.cli import main
from fusionflow.ledger import OutputPaths, read_attempt, read_published
from fusionflow.runlock import RunLock

BIN = Path(sys.executable).parent


class TestDryRun:
    def test_says_why_of_each_and_writes_nothing_at_all(self, call, bids, tmp_path):
        result = call("run", bids, tmp_path / "out", "--dry-run")
        for label in LABELS:
            assert f"{label:24} new" in result.stdout
        assert result.stdout.splitlines()[-1] == "4 new"
        assert not (tmp_path / "out").exists()

    def test_tells_every_state_with_its_reason(self, call, bids, out):
        cut(pet_of(bids, LABELS[0]))
        shutil.rmtree(bids / "sub-03")
        (out / f"scans/{LABELS[1]}/current.json").unlink()
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        result = call("run", bids, out, "--dry-run", "--json")
        found = {item["label"]: item for item in json.loads(result.stdout)}
        assert {label: item["state"] for label, item in found.items()} == {
            LABELS[0]: "stale", LABELS[1]: "new", BAD: "done", LABELS[3]: "removed",
        }  # fmt: skip
        assert found[LABELS[0]]["why"].endswith("_pet.nii.gz changed")
        assert found[LABELS[3]]["why"] == "the input no longer has it"
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before

    def test_then_the_run_does_just_that(self, call, bids, out):
        cut_back = cut(pet_of(bids))
        cut_back()
        os.utime(pet_of(bids), (0, 0))  # touched, with the content that it had
        assert set(states(call("run", bids, out, "--dry-run", "--json")).values()) == {"done"}
        assert "0 fused, 4 unchanged" in call("run", bids, out).stdout

    def test_of_files_that_are_on_their_way(self, call, bids, out, tmp_path):
        new = call("run", bids, tmp_path / "new", "--dry-run", "--json", "--settle", "1h")
        assert set(states(new).values()) == {"waiting"}
        done = call("run", bids, out, "--dry-run", "--json", "--settle", "1h")
        assert set(states(done).values()) == {"done"}

    def test_is_refused_like_a_run(self, call, tmp_path):
        (tmp_path / "bids").mkdir()
        assert (
            "no subject"
            in call("run", tmp_path / "bids", tmp_path / "o", "--dry-run", code=4).output
        )
        assert not (tmp_path / "o").exists()

    def test_goes_on_while_a_run_holds_the_output(self, call, bids, out):
        with RunLock(out / "run.lock", "r"):
            assert set(states(call("run", bids, out, "--dry-run", "--json")).values()) == {"done"}


class TestQuarantine:
    def test_ends_with_3_again_until_something_changes(self, call, bids, out):
        cut(pet_of(bids))
        first = call("run", bids, out, code=3)
        assert "failed" in first.stderr
        assert str(pet_of(bids)) in first.stderr
        attempt = read_attempt(OutputPaths(out), BAD)
        assert (attempt.state, attempt.attempt) == ("quarantined", 1)
        again = call("run", bids, out, code=3)
        assert "1 in quarantine (--retry-failed tries them again)" in again.stdout
        assert "0 fused, 3 unchanged, 0 failed" in again.stdout
        assert read_attempt(OutputPaths(out), BAD) == attempt
        assert states(call("status", out, "--json"))[BAD] == "quarantined"
        shutil.copyfile(pet_of(bids, LABELS[3]), pet_of(bids))
        assert "1 fused, 3 unchanged" in call("run", bids, out).stdout
        assert read_attempt(OutputPaths(out), BAD) is None

    def test_is_tried_again_on_request_and_counted(self, call, bids, out):
        cut(pet_of(bids))
        call("run", bids, out, code=3)
        result = call("run", bids, out, "--retry-failed", code=3)
        assert "0 fused, 3 unchanged, 1 failed" in result.stdout
        assert read_attempt(OutputPaths(out), BAD).attempt == 2

    def test_of_an_input_that_cannot_be_a_scan(self, call, bids, out):
        """Refused before it is read; told, and told again, but tried never."""
        anat = bids / "sub-02/ses-baseline/anat"
        t1w = next(anat.glob("*_T1w.nii.gz"))
        wrong = t1w.rename(anat / t1w.name.replace("sub-02", "sub-09"))
        for _ in range(2):
            assert "rename it" in call("run", bids, out, "--retry-failed", code=3).stderr
            assert states(call("status", out, "--json"))[BAD] == "quarantined"
        wrong.rename(t1w)
        assert "4 unchanged" in call("run", bids, out).stdout
        assert states(call("status", out, "--json"))[BAD] == "done"

    def test_force_makes_all_again_and_tries_it_too(self, call, bids, out):
        cut(pet_of(bids))
        call("run", bids, out, code=3)
        result = call("run", bids, out, "--force", code=3)
        assert "3 fused, 0 unchanged, 1 failed" in result.stdout
        assert "made again: asked for again" in result.stderr

    def test_a_scan_that_waits_is_no_error(self, call, bids, out):
        pet = pet_of(bids)
        pet.write_bytes(pet.read_bytes() + b"\0")
        result = call("run", bids, out, "--settle", "1h")
        assert "1 left until their files settle" in result.stdout
        assert "0 fused, 3 unchanged" in result.stdout


class TestSummaryForMachines:
    def test_is_printed_and_kept(self, call, bids, out):
        cut(pet_of(bids))
        result = call("run", bids, out, "--json", code=3)
        printed, kept = json.loads(result.stdout), last_run(out)
        assert printed.items() <= kept.items()
        assert kept["state"] == "done"
        assert kept["counts"] == {
            "fused": 0, "unchanged": 3, "failed": 1, "quarantined": 0, "waiting": 0, "skipped": 0,
            "removed": 0,
        }  # fmt: skip
        (failure,) = kept["failed"]
        assert (failure["label"], failure["state"]) == (BAD, "quarantined")
        assert str(pet_of(bids)) in failure["reason"]
        assert (kept["input"], kept["output"]) == (str(bids), str(out))
        assert kept["started"] <= kept["ended"]
        assert kept["seconds"] >= 0
        assert kept["config"]["method"]["name"] == "average"

    def test_of_a_run_that_did_nothing_is_there_without_a_log(self, call, bids, out):
        logs = sorted(os.listdir(out / "logs"))
        call("run", bids, out)
        assert sorted(os.listdir(out / "logs")) == logs
        assert last_run(out)["counts"]["unchanged"] == 4

    def test_of_a_run_that_could_not_go_on_says_why(self, bids, out, monkeypatch):
        """No cluster answers: exit code 4, and the scan is as it was."""
        monkeypatch.setattr(clusters.connection, "_PATIENCE", 1)
        os.truncate(pet_of(bids), 1000)
        result = CliRunner().invoke(
            main,
            ["run", str(bids), str(out), "--method", "average", "--cluster", "tcp://127.0.0.1:9"],
        )
        assert result.exit_code == 4, result.output
        kept = last_run(out)
        assert kept["state"] == "stopped"
        assert "No Dask scheduler answers" in kept["stopped"]
        assert read_published(OutputPaths(out), BAD) is not None
        assert not (out / "run.lock").exists()

    @pytest.mark.slow
    def test_of_a_run_that_was_interrupted_says_so(self, bids, tmp_path):
        out = tmp_path / "out"
        command = [
            BIN / "fusionflow",
            "run",
            bids,
            out,
            "--method",
            "dwt-vgg19-l1",
            "--weights",
            "random:0",
            "--n-workers",
            1,
        ]
        with subprocess.Popen(list(map(str, command)), stderr=-1, text=True) as process:
            for line in process.stderr:
                if line.startswith("fused"):
                    process.send_signal(signal.SIGTERM)
                    break
            rest = process.stderr.read()
            assert process.wait(timeout=60) == 130, rest
        kept = last_run(out)
        assert kept["state"] == "interrupted"
        assert kept["counts"]["fused"] == len(kept["fused"]) >= 1
        assert leftovers(out) == []
        assert "interrupted" in CliRunner().invoke(main, ["history", str(out)]).stdout


class TestLocked:
    def test_ends_with_5_and_says_who(self, call, bids, out):
        with RunLock(out / "run.lock", "r"):
            before = last_run(out)
            result = call("run", bids, out, code=5)
            assert f"process {os.getpid()}" in result.stderr
            assert last_run(out) == before
            assert "removed" not in call("prune", out, code=5).stdout


@pytest.mark.parametrize("text", ["-1", "soon", "1 fortnight", "nan", "inf", "1e400", ""])
def test_a_time_that_is_none_is_refused(call, bids, tmp_path, text):
    result = call("run", bids, tmp_path / "out", f"--settle={text}", code=2)
    assert "write 90, 30s, 15m or 2h" in result.output


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("30s", 30), ("15m", 900), ("2h", 7200)]
)
def test_times_as_people_write_them(text, seconds):
    context = main.commands["run"].make_context("run", [".", "out", "--settle", text])
    assert context.params["settle"] == seconds


class TestInterrupting:
    """A signal may come at any moment, also where Python would not let an error pass."""

    SCRIPT = """
import os, signal, sys, time, weakref
from fusionflow.signals import interrupt
signal.signal(signal.SIGTERM, interrupt)

def tidy():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(100):
        pass

class Thing:
    def __del__(self):
        tidy()

try:
    {code}
    time.sleep(20)
    print("it was lost")
except KeyboardInterrupt:
    print("interrupted")
"""

    @pytest.mark.parametrize(
        "code",
        ["tidy()", "Thing()", "x = set(); weakref.finalize(x, tidy); del x"],
        ids=["anywhere", "in a destructor", "in a finalizer"],
    )
    def test_is_never_lost(self, code):
        ended = subprocess.run(
            [sys.executable, "-c", self.SCRIPT.replace("{code}", code)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ended.stdout == "interrupted\n"
        assert ended.stderr == ""
