"""What a person asks of an output: what stands where, what was done, away with the old."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from outputs import BAD, cut, last_run, pet_of, states
from runs import LABELS

import fusionflow as ff
from fusionflow.ledger import OutputPaths, read_published, write_attempt
from fusionflow.runlock import RunLock
from fusionflow.survey import new_attempt


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
