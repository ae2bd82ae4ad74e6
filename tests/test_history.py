"""What the logs of runs tell, whole or cut short, and how a file is traced to its run."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import published

from fusionflow.errors import ScanNotFoundError, StoreError
from fusionflow.history import (
    RunLog,
    new_run,
    published_line,
    read_last_run,
    read_runs,
    trace,
    write_last_run,
)
from fusionflow.ledger import OutputPaths
from fusionflow.records import OutputFile

START = {"input": "/data/bids", "fusionflow": "0.1.0", "config": {"method": {"name": "average"}}}


@pytest.fixture
def paths(tmp_path):
    return OutputPaths(tmp_path / "out")


@pytest.fixture
def made(paths):
    """A fused volume in its place."""
    path = paths.root / "sub-01/fused/sub-01_fused.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"voxels")
    return path


@pytest.fixture
def line(made):
    """What the log says of it."""
    outputs = (OutputFile.whole(made, "sub-01/fused/sub-01_fused.nii.gz"),)
    return published_line(published(outputs=outputs, worker="node-7"), "new")


def log_of(paths, run, *lines, end=True):
    log = RunLog(paths, run, START)
    for content in lines:
        log.add("publish", **content)
    if end:
        log.end(state="done", seconds=1.5)
    return log


@contextmanager
def files_limited_to(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestWriting:
    def test_a_run_that_does_nothing_writes_no_log(self, paths):
        RunLog(paths, "r-1", START).end(state="done")
        assert list(read_runs(paths)) == []
        assert not paths.logs.exists()

    def test_the_first_line_says_who_and_with_what(self, paths, line):
        log_of(paths, "r-1", line)
        start, publish, end = map(json.loads, (paths.logs / "r-1.jsonl").read_text().splitlines())
        assert [x["event"] for x in (start, publish, end)] == ["start", "publish", "end"]
        assert start["pid"] == os.getpid()
        assert start["input"] == "/data/bids"
        assert {"host", "user", "time"} <= start.keys()
        assert publish["files"][0]["sha256"] == line["files"][0]["sha256"]

    def test_lines_reach_the_file_at_once(self, paths, line):
        """A run that is killed leaves all it did."""
        log = log_of(paths, "r-1", line, end=False)
        assert len(log.path.read_text().splitlines()) == 2

    def test_a_log_that_cannot_be_written_stops_nothing_and_is_said_once(self, paths, line, caplog):
        paths.root.mkdir(parents=True, exist_ok=True)
        paths.logs.write_text("in the way")
        log_of(paths, "r-1", line, line)
        (message,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
        assert "r-1.jsonl" in message

    def test_a_full_disk_costs_only_the_line_that_did_not_fit(self, paths, line, caplog):
        log = log_of(paths, "r-1", line, end=False)
        whole = log.path.stat().st_size
        with files_limited_to(whole + 10):
            log.add("publish", **{**line, "label": "sub-02"})
        assert "Cannot write the log" in caplog.text
        log.add("publish", **{**line, "label": "sub-03"})
        (run,) = read_runs(paths)
        assert [x["label"] for x in run.published] == ["sub-01", "sub-03"]

    def test_names_of_runs_sort_by_time_and_differ(self, monkeypatch):
        names = {new_run() for _ in range(100)}
        assert len(names) == 100
        assert all(len(name) == len("20260102T030405Z-abcdef") for name in names)


class TestReading:
    def test_tells_runs_oldest_first(self, paths, line):
        for run in ("20260201T000000Z-a", "20260101T000000Z-b", "20261201T000000Z-c"):
            log_of(paths, run, line)
        assert [run.run[-1] for run in read_runs(paths)] == ["b", "a", "c"]

    def test_of_a_folder_without_logs_is_none(self, paths):
        assert list(read_runs(paths)) == []

    def test_a_run_that_was_killed_has_no_end_and_tells_what_it_did(self, paths, line):
        log_of(paths, "r-1", line, end=False)
        (run,) = read_runs(paths)
        assert (run.end, run.seconds) == (None, None)
        assert len(run.published) == 1

    def test_a_last_line_that_was_cut_anywhere_is_left_out(self, paths, line):
        log = log_of(paths, "r-1", line)
        content = log.path.read_bytes()
        starts = [i + 1 for i, letter in enumerate(content) if letter == 10]
        for cut in range(starts[0] + 1, len(content) - 1, 7):
            log.path.write_bytes(content[:cut])
            (run,) = read_runs(paths)
            assert run.start["input"] == "/data/bids"
            assert len(run.published) == (cut >= starts[1] - 1)
            assert run.end is None

    @given(st.binary(max_size=200) | st.just(b"[" * 50_000) | st.just(b'{"event": "publish"}'))
    def test_lines_that_are_none_are_passed_over(self, tmp_path_factory, garbage):
        paths = OutputPaths(tmp_path_factory.mktemp("log"))
        log = RunLog(paths, "r-1", START)
        log.add("failed", label="sub-01")
        with log.path.open("ab") as stream:
            stream.write(garbage + b"\n")
        log.add("failed", label="sub-02")
        (run,) = read_runs(paths)
        assert [x["label"] for x in run.failed] == ["sub-01", "sub-02"]

    @pytest.mark.parametrize(
        "change",
        [
            {"files": None}, {"files": [1]}, {"files": [{}]}, {"files": "x"}, {"inputs": 3},
            {"label": None}, {"version": 1}, {"label": ["sub-01"]}, {"time": 0},
        ],
        ids=repr,
    )  # fmt: skip
    def test_a_line_that_lacks_what_traces_it_is_passed_over(self, paths, line, made, change):
        log_of(paths, "r-1", line, {**line, **change})
        assert len(trace(paths, str(made))) == len(trace(paths, "sub-01")) == 1

    def test_a_log_that_cannot_be_read_is_named(self, paths):
        (paths.logs / "r-1.jsonl").mkdir(parents=True)
        with pytest.raises(StoreError, match=r"Cannot read .*r-1\.jsonl"):
            list(read_runs(paths))

    def test_a_clock_that_was_set_back_or_a_line_without_time_stops_nothing(self, paths):
        paths.logs.mkdir(parents=True)
        for name, start in (("a", "2026-01-02T00:00:00+00:00"), ("b", None), ("c", "soon")):
            lines = [
                {"event": "start", "time": start},
                {"event": "end", "time": "2026-01-01T00:00:00+00:00"},
            ]
            text = "\n".join(map(json.dumps, lines))
            (paths.logs / f"{name}.jsonl").write_text(text)
        assert [run.seconds for run in read_runs(paths)] == [-86_400, None, None]


class TestTracing:
    @pytest.fixture
    def logs(self, paths, line):
        log_of(paths, "r-1", line)
        log_of(paths, "r-2", {**line, "label": "sub-02", "version": "v-2", "files": []})
        return paths

    def test_by_label_and_by_version(self, logs, line):
        (origin,) = trace(logs, "sub-01")
        assert (origin.run.run, origin.scan["worker"]) == ("r-1", "node-7")
        assert origin.run.start["input"] == "/data/bids"
        assert trace(logs, line["version"]) == (origin,)
        (other,) = trace(logs, "v-2")
        assert other.run.run == "r-2"

    def test_by_a_file_wherever_it_is_and_whatever_it_is_called(self, logs, made, tmp_path):
        copy = shutil.copy(made, tmp_path / "for the paper, final(2).nii.gz")
        made.unlink()
        (origin,) = trace(logs, copy)
        assert (origin.scan["label"], origin.run.run) == ("sub-01", "r-1")

    def test_not_by_a_file_of_that_name_with_other_content(self, logs, made):
        made.write_bytes(b"other voxels")
        with pytest.raises(ScanNotFoundError, match="No run of"):
            trace(logs, str(made))

    def test_a_file_called_like_a_label_is_the_file(self, logs, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "sub-02").write_text("something else")
        with pytest.raises(ScanNotFoundError):
            trace(logs, "sub-02")

    def test_an_empty_checksum_is_no_match(self, paths, line, made):
        files = [{"path": "x", "sha256": ""}]
        log_of(paths, "r-1", {**line, "files": files})
        with pytest.raises(ScanNotFoundError):
            trace(paths, str(made))

    @pytest.mark.parametrize("what", ["sub-1", "", ".", "..", "v-", "a\0b", "x" * 5000])
    def test_what_no_run_tells_of_is_said(self, logs, what):
        with pytest.raises((ScanNotFoundError, StoreError)):
            trace(logs, what)

    def test_all_that_made_it_are_told_oldest_first(self, paths, line):
        for run in ("r-2", "r-1"):
            log_of(paths, run, line)
        assert [origin.run.run for origin in trace(paths, "sub-01")] == ["r-1", "r-2"]


class TestLastRun:
    def test_comes_back(self, paths):
        assert read_last_run(paths) is None
        for number in (1, 2):
            write_last_run(paths, {"run": number})
        assert read_last_run(paths) == {"run": 2}
        assert os.listdir(paths.logs) == ["last_run.json"]

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"[" * 50_000])
    def test_a_damaged_one_is_named(self, paths, content):
        paths.logs.mkdir(parents=True)
        (paths.logs / "last_run.json").write_bytes(content)
        with pytest.raises(StoreError, match=r"last_run\.json"):
            read_last_run(paths)
