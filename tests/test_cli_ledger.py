"""What a person or a scheduler asks of an output: what stands where, what was done, again, away."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import LABELS, leftovers

import fusionflow as ff
from fusionflow import clusters
from fusionflow.cli import main
from fusionflow.ledger import OutputPaths, read_attempt, read_published, write_attempt
from fusionflow.phantom import write_cohort
from fusionflow.runlock import RunLock
from fusionflow.survey import new_attempt

BIN = Path(sys.executable).parent
#: Of the scan that has trouble in these tests.
BAD = "sub-02_ses-baseline"


def pet_of(bids, label=BAD):
    return next(Path(bids, *label.split("_"), "pet").glob("*_pet.nii.gz"))


def cut(path):
    """Cut a file short, as a copy that is still on its way; return how it is mended."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return lambda: path.write_bytes(whole)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """The images of a cohort."""
    folder = tmp_path_factory.mktemp("cohort") / "bids"
    write_cohort(folder, shape=(40, 48, 40))
    return folder


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def states(result):
    return {item["label"]: item["state"] for item in json.loads(result.stdout)}


def last_run(out):
    return json.loads((out / "logs/last_run.json").read_text())


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
        monkeypatch.setattr(clusters, "_PATIENCE", 1)
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

    def test_of_a_run_that_was_interrupted_says_so(self, bids, tmp_path):
        out = tmp_path / "out"
        command = [BIN / "fusionflow", "run", bids, out, "--weights", "random:0", "--n-workers", 1]
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


class TestStatus:
    def test_of_all_that_is_done(self, call, out, bids):
        result = call("status", out)
        lines = result.stdout.splitlines()
        assert lines[0] == f"Against {bids} as it is now"
        assert [line.split()[:3] for line in lines[1:5]] == [[x, "done", "average"] for x in LABELS]
        assert lines[-1] == "4 done"

    def test_of_each_state_at_once(self, call, bids, out):
        write_cohort_scan(bids, "sub-04")  # new
        write_cohort_scan(bids, "sub-05")  # failed
        write_cohort_scan(bids, "sub-06")  # running
        cut(pet_of(bids, LABELS[0]))  # stale
        shutil.rmtree(bids / "sub-03")  # removed
        cut(pet_of(bids))  # quarantined
        paths, last = OutputPaths(out), last_run(out)
        scans = {scan.label: scan for scan in ff.io.bids.discover(bids).scans}
        for label, state, run in (
            ("sub-05", "failed", "r-0"), ("sub-06", "running", "r-1"), (BAD, "quarantined", "r-0"),
        ):  # fmt: skip
            attempt = new_attempt(scans[label], bids, last["request"])
            attempt = replace(attempt, state=state, run=run, reason=f"why of {label}", started="t")
            write_attempt(paths, attempt)
        expected = {
            LABELS[0]: "stale", LABELS[1]: "done", BAD: "quarantined", LABELS[3]: "removed",
            "sub-04": "new", "sub-05": "failed", "sub-06": "running",
        }  # fmt: skip
        with RunLock(paths.run_lock, "r-1"):
            result = call("status", out, "--json")
            assert states(result) == expected
            table = call("status", out).stdout
            assert "A run is at work: r-1" in table
            for label, state in expected.items():
                assert f"{label:24} {state}" in table
            assert table.count("why of") == 2
            assert "2 " not in table.splitlines()[-1]
        # When that run is dead, what it was making failed.
        assert states(call("status", out, "--json")) == {**expected, "sub-06": "failed"}
        found = {item["label"]: item for item in json.loads(result.stdout)}
        assert found[BAD]["attempt"]["reason"] == f"why of {BAD}"
        assert found[BAD]["published"]["method"] == "average"
        assert found[LABELS[3]]["published"]["version"]
        assert "published" not in found["sub-04"]

    def test_of_a_scan_that_is_excluded_tells_of_what_is_published(self, call, bids, out):
        t1w = next((bids / "sub-02/ses-baseline/anat").glob("*_T1w.nii.gz"))
        t1w.rename(t1w.with_name("mine.nii.gz"))
        t1w.with_name("sub-09_T1w.nii.gz").write_text("x")
        found = {x["label"]: x for x in json.loads(call("status", out, "--json").stdout)}
        assert found[BAD]["state"] == "quarantined"
        assert found[BAD]["published"]["method"] == "average"

    @pytest.mark.parametrize("how", ["gone", "empty"])
    def test_of_an_input_that_is_not_mounted_says_what_the_records_say(self, call, bids, out, how):
        cut(pet_of(bids))
        call("run", bids, out, code=3)
        shutil.rmtree(bids)
        if how == "empty":
            bids.mkdir()
        result = call("status", out)
        assert result.stdout.startswith("As the records say: ")
        assert str(bids) in result.stdout.splitlines()[0]
        expected = {label: "quarantined" if label == BAD else "done" for label in LABELS}
        assert states(call("status", out, "--json")) == expected

    def test_by_the_records_tells_what_runs_and_what_was_cut_off(self, call, bids, out):
        (scan, *_) = ff.io.bids.discover(bids).scans
        attempt = replace(new_attempt(scan, bids, "x"), run="r-1", started="then")
        write_attempt(OutputPaths(out), replace(attempt, label="sub-77"))
        shutil.rmtree(bids)
        assert states(call("status", out, "--json"))["sub-77"] == "failed"
        with RunLock(out / "run.lock", "r-1"):
            assert states(call("status", out, "--json"))["sub-77"] == "running"

    def test_against_another_input(self, call, bids, out, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(bids / "sub-01", other / "sub-01")
        shutil.copy(bids / "participants.tsv", other)  # it tells the weight
        found = states(call("status", out, "--input", other, "--json"))
        assert found == {
            LABELS[0]: "done", LABELS[1]: "done", BAD: "removed", LABELS[3]: "removed",
        }  # fmt: skip

    @pytest.mark.parametrize("last", [None, "{", "[]", '{"input": 3, "request": []}', "{}"])
    def test_without_a_good_word_of_the_last_run(self, call, out, last):
        path = out / "logs/last_run.json"
        path.unlink() if last is None else path.write_text(last)
        assert set(states(call("status", out, "--json")).values()) == {"done"}

    def test_of_a_folder_that_is_no_output(self, call, tmp_path):
        assert "no fused cohort" in call("status", tmp_path, code=4).output
        assert os.listdir(tmp_path) == []

    def test_changes_nothing(self, call, out, bids):
        cut(pet_of(bids))
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        for options in ([], ["--json"], ["-v"]):
            call("status", out, *options)
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def write_cohort_scan(bids, label):
    """Add a scan: that of subject 3, under another name."""
    for kind in ("anat", "pet"):
        (bids / label / kind).mkdir(parents=True)
        for path in (bids / "sub-03/ses-baseline" / kind).iterdir():
            name = path.name.replace("sub-03_ses-baseline", label)
            shutil.copy(path, bids / label / kind / name)


class TestHistory:
    def test_lists_the_runs_that_did_something(self, call, bids, out):
        cut(pet_of(bids))
        call("run", bids, out, code=3)
        call("run", bids, out, code=3)  # which finds nothing to do
        first, second = call("history", out).stdout.splitlines()
        assert "done" in first
        assert "4 fused, 0 failed  average (fusionflow" in first
        assert "0 fused, 1 failed" in second
        assert str(bids) in second
        told = json.loads(call("history", out, "--json").stdout)
        assert [len(run["published"]) for run in told] == [4, 0]
        assert told[1]["failed"][0]["label"] == BAD

    def test_of_a_scan_by_label_and_version(self, call, bids, out):
        version = read_published(OutputPaths(out), BAD).version
        for what in (BAD, version):
            told = call("history", out, what).stdout
            assert told.startswith(f"{BAD}  version {version}")
            assert "method   average" in told
            assert "weights  none" in told
            for kind in ("input", "file"):
                assert f"  {kind} " in told
        content = json.loads(call("history", out, BAD, "--json").stdout)
        assert content[0]["scan"]["version"] == version

    def test_of_a_fused_volume_that_was_copied_and_renamed(self, call, out, tmp_path):
        fused = out / f"sub-02/ses-baseline/fused/{BAD}_fused.nii.gz"
        copy = shutil.copyfile(fused, tmp_path / "figure 3 (final).nii.gz")
        shutil.rmtree(out / "sub-02")
        assert call("history", out, copy).stdout.startswith(BAD)
        copy.write_bytes(copy.read_bytes()[:-1])
        assert "No run of" in call("history", out, copy, code=4).output

    def test_of_a_run_that_was_killed_and_a_line_that_was_cut(self, call, out):
        (log,) = (out / "logs").glob("*.jsonl")
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:3]) + lines[3][:20])
        (told,) = call("history", out).stdout.splitlines()
        assert "killed" in told
        assert "2 fused" in told
        with RunLock(out / "run.lock", log.stem):
            assert "running" in call("history", out).stdout

    def test_of_nothing(self, call, tmp_path):
        assert "No run did anything" in call("history", tmp_path).stdout
        assert json.loads(call("history", tmp_path, "--json").stdout) == []

    def test_cannot_command_a_terminal(self, call, out):
        (log,) = (out / "logs").glob("*.jsonl")
        log.write_text(log.read_text().replace('"user": "', '"user": "\\u001b[2J'))
        for what in ((), (BAD,)):
            assert "\x1b[2J" not in call("history", out, *what).stdout


class TestPrune:
    @pytest.fixture
    def twice(self, call, bids, out):
        """An output in which one scan has an old version."""
        before = read_published(OutputPaths(out), BAD).version
        pet = pet_of(bids, LABELS[3])
        shutil.copyfile(pet, pet_of(bids))
        call("run", bids, out)
        assert read_published(OutputPaths(out), BAD).version != before
        return out, before

    def test_removes_old_versions_and_readers_find_the_rest(self, call, twice):
        out, before = twice
        would = call("prune", out, "--dry-run").stdout
        assert f"scans/{BAD}/{before}" in would
        assert "would be removed" in would
        assert (out / "scans" / BAD / before).is_dir()
        assert f"scans/{BAD}/{before}" in call("prune", out).stdout
        assert not (out / "scans" / BAD / before).exists()
        for label in LABELS:
            ff.open_cohort(out).scan(label).fused.load()
        assert set(states(call("status", out, "--json")).values()) == {"done"}
        assert call("prune", out).stdout == "0.0 MB removed\n"

    def test_removes_what_the_input_no_longer_has(self, call, bids, out):
        shutil.rmtree(bids / "sub-03")
        result = call("run", bids, out)
        assert "1 are no longer in the input and were kept" in result.stdout
        assert "sub-03" not in call("prune", out).stdout
        call("prune", out, "--removed")
        assert ff.open_cohort(out).labels == tuple(LABELS[:3])
        assert not (out / "sub-03").exists()
        assert "3 unchanged" in call("run", bids, out).stdout

    def test_refuses_when_the_input_is_not_there(self, call, bids, out):
        shutil.rmtree(bids)
        assert str(bids) in call("prune", out, "--removed", code=2).stderr
        bids.mkdir()
        assert "perhaps it is not mounted" in call("prune", out, "--removed", code=2).stderr
        assert ff.open_cohort(out).labels == tuple(LABELS)


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
from fusionflow.cli_options import interrupt
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
