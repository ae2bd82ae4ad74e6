"""An input that is watched: scans come in as scanners and networks bring them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import LABELS, config, leftovers, small_cohort

import fusionflow as ff
from fusionflow import runner
from fusionflow.errors import ConfigurationError, LockedError, NoScansError
from fusionflow.events import RunReport, Waiting
from fusionflow.history import read_runs
from fusionflow.ledger import OutputPaths, read_attempt
from fusionflow.runlock import RunLock
from fusionflow.watch import watch

pytestmark = pytest.mark.faults

BIN = Path(sys.executable).parent
#: Seconds over which the twelve scans are dropped in.
DROP = float(os.environ.get("FUSIONFLOW_DROP_SECONDS", "30"))


class Watcher:
    """A real ``fusionflow watch``, and what it said so far."""

    def __init__(self, bids, out, *options, every="2s", settle="2s"):
        command = [
            BIN / "fusionflow", "watch", bids, out, "--every", every, "--settle", settle,
            "--method", "average", "--registration", "header", "--n-workers", "1", *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=-1, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def said(self):
        return "\n".join(self.lines)

    def count(self, pattern):
        return len(re.findall(pattern, self.said, re.MULTILINE))

    def wait_for(self, pattern, times=1, seconds=90):
        until = time.monotonic() + seconds
        while self.count(pattern) < times:
            assert time.monotonic() < until, f"{pattern!r} was not said: {self.said}"
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def end(self, number=signal.SIGTERM):
        """Return its exit code, and wait for its last word."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        finally:
            self.close()

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()


@contextmanager
def watching(*arguments, **options):
    watcher = Watcher(*arguments, **options)
    try:
        yield watcher
    finally:
        watcher.close()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("watched") / "cohort")


@pytest.fixture
def bids(tmp_path):
    folder = tmp_path / "bids"
    folder.mkdir()
    return folder


def drop(cohort, bids, number, seconds=0.0):
    """Copy a scan in, its files in pieces over some time."""
    subject, session = LABELS[number % 4].split("_")
    label = f"sub-{number:02}"
    pieces = []
    for kind in ("anat", "pet"):
        (bids / label / kind).mkdir(parents=True)
        for path in sorted((cohort / subject / session / kind).iterdir()):
            target = bids / label / kind / path.name.replace(f"{subject}_{session}", label)
            if path.suffix == ".gz" and seconds:
                content = path.read_bytes()
                step = len(content) // 8 + 1
                pieces += [(target, content[i : i + step]) for i in range(0, len(content), step)]
            else:
                shutil.copyfile(path, target)
    streams = {target: target.open("wb", buffering=0) for target in dict(pieces)}
    for target, piece in pieces:  # neither is whole before the last piece
        time.sleep(seconds / len(pieces))
        streams[target].write(piece)
    for stream in streams.values():
        stream.close()
    return label


class TestAcceptance:
    def test_twelve_scans_dropped_in_some_slowly_and_one_truncated(self, cohort, bids, tmp_path):
        """All are handled as promised, however they come in.

        Here they come in over half a minute. Over two minutes, as somebody would copy them::

            FUSIONFLOW_DROP_SECONDS=120 pytest tests/test_watch.py -k twelve --timeout 600
        """
        out, truncated = tmp_path / "out", "sub-07"
        pause = DROP / 12
        with watching(bids, out) as watcher:
            watcher.wait_for("no subject with both")  # an input that is still empty
            droppers = []
            for number in range(12):
                slow = pause * 1.5 if number % 3 == 0 else 0.0  # each piece before it settles
                if number == 7:
                    drop(cohort, bids, number)
                    pet = next((bids / truncated / "pet").glob("*.nii.gz"))
                    whole = pet.read_bytes()
                    pet.write_bytes(whole[: len(whole) // 2])
                elif slow:
                    dropper = threading.Thread(target=drop, args=(cohort, bids, number, slow))
                    dropper.start()
                    droppers.append(dropper)
                else:
                    drop(cohort, bids, number)
                time.sleep(pause)
            for dropper in droppers:
                dropper.join()
            watcher.wait_for(r"^fused", times=11)
            watcher.wait_for(rf"^failed {truncated}")
            paths = OutputPaths(out)
            looks = watcher.count("next look in")
            watcher.wait_for("next look in", times=looks + 2)
            # Quarantined once, told once, and the lock is free for other runs.
            assert watcher.count(f"{truncated}  .*{pet.name}") == 1
            attempt = read_attempt(paths, truncated)
            assert (attempt.state, attempt.attempt) == ("quarantined", 1)
            assert watcher.count("11 unchanged, 1 quarantined") >= 1
            with RunLock(paths.run_lock, "another"):
                watcher.wait_for(rf"is being written by .*process {os.getpid()}")
            # It is fused when it is whole.
            pet.write_bytes(whole)
            watcher.wait_for(rf"^fused  {truncated}")
            watcher.wait_for("12 unchanged")
            assert watcher.end() == 0
        for number in range(12):  # a line a scan
            assert watcher.count(rf"^fused  sub-{number:02} ") == 1, watcher.said
        assert watcher.count("^failed") == 1
        assert watcher.count("^quarantined|^wait|^same|^alone|^again|Traceback|Exception") == 0
        failed = [line["label"] for run in read_runs(paths) for line in run.failed]
        assert failed == [truncated]  # none was read while its files still grew
        published = [line["label"] for run in read_runs(paths) for line in run.published]
        assert sorted(published) == [f"sub-{number:02}" for number in range(12)]
        assert leftovers(out) == []
        cohort_now = ff.open_cohort(out)
        assert len(cohort_now.labels) == 12
        assert ff.run(bids, out, config("average", weights=None)).unchanged == list(
            cohort_now.labels
        )


class TestEnding:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_in_the_pause(self, cohort, bids, tmp_path, number):
        drop(cohort, bids, 1)
        with watching(bids, tmp_path / "out", every="1h", settle="0") as watcher:
            watcher.wait_for("next look in 3600 s")
            assert watcher.end(number) == 0
        assert watcher.lines[-1].endswith("ended")
        assert "Traceback" not in watcher.said
        assert leftovers(tmp_path / "out") == []
        assert not (tmp_path / "out/run.lock").exists()

    def test_in_mid_run(self, cohort, bids, tmp_path):
        for number in range(8):
            drop(cohort, bids, number)
        out = tmp_path / "out"
        with watching(bids, out, every="1h", settle="0") as watcher:
            watcher.wait_for("^fused")
            assert watcher.end() == 0
        assert watcher.lines[-1].endswith("ended")
        assert "Traceback" not in watcher.said
        assert leftovers(out) == []
        assert not (out / "run.lock").exists()
        published = ff.open_cohort(out).labels
        assert published
        # One that was just being planned may say that it was in the making; none that it failed.
        attempts = [read_attempt(OutputPaths(out), f"sub-{number:02}") for number in range(8)]
        assert {attempt.state for attempt in attempts if attempt} <= {"running"}
        again = ff.run(bids, out, config("average", weights=None))
        assert len(again.fused) == 8 - len(published)

    def test_in_mid_run_by_one_interrupt_when_what_is_in_flight_is_finished(
        self, cohort, bids, tmp_path
    ):
        for number in range(8):
            drop(cohort, bids, number)
        out = tmp_path / "out"
        with watching(bids, out, every="1h", settle="0") as watcher:
            watcher.wait_for("^fused")
            assert watcher.end(signal.SIGINT) == 0
        assert re.search("^Finishing .* in flight", watcher.said, re.MULTILINE)
        assert watcher.lines[-2].endswith("; ending")
        assert watcher.lines[-1].endswith("ended")
        assert leftovers(out) == []
        published = ff.open_cohort(out).labels
        assert len(published) == watcher.count("^fused")
        attempts = [read_attempt(OutputPaths(out), f"sub-{number:02}") for number in range(8)]
        assert not any(attempts)

    def test_with_every_process_of_it_at_once(self, cohort, bids, tmp_path):
        """As `systemctl stop` does unless it is told to spare the workers."""
        for number in range(8):
            drop(cohort, bids, number)
        out = tmp_path / "out"
        with watching(bids, out, every="1h", settle="0") as watcher:
            watcher.wait_for("^fused")
            os.killpg(watcher.process.pid, signal.SIGTERM)
            assert watcher.process.wait(timeout=60) == 0
        assert "Traceback" not in watcher.said
        assert watcher.count("^failed") == 0
        assert leftovers(out) == []
        assert not (out / "run.lock").exists()


class TestTrouble:
    def test_an_input_that_goes_away_and_comes_back(self, cohort, bids, tmp_path):
        """A mount that is lost for a while."""
        drop(cohort, bids, 1)
        with watching(bids, tmp_path / "out", every="1s", settle="0") as watcher:
            watcher.wait_for("^fused")
            away = bids.rename(tmp_path / "away")
            watcher.wait_for("cannot be listed")
            bids.mkdir()
            watcher.wait_for("no subject with both")
            bids.rmdir()
            drop(cohort, away, 2)
            away.rename(bids)
            watcher.wait_for("^fused", times=2)
            assert watcher.end() == 0

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--every", "0"], "more than 0"),
            (["--method", "nope"], "No method is called"),
            (["--every", "often"], "is no time"),
        ],
    )
    def test_what_can_never_work_ends_at_once_with_2(self, bids, tmp_path, options, said):
        with watching(bids, tmp_path / "out", *options) as watcher:
            assert watcher.process.wait(timeout=60) == 2
        assert said in watcher.said
        assert not (tmp_path / "out").exists()

    def test_an_input_that_was_never_there_ends_at_once_with_2(self, bids, tmp_path):
        with watching(bids / "typo", tmp_path / "out") as watcher:
            assert watcher.process.wait(timeout=60) == 2
        assert "cannot be listed" in watcher.said


class TestLoop:
    """How long it pauses and what stops it, without the runs between."""

    @pytest.fixture
    def looks(self, monkeypatch):
        """Look as often as there are outcomes, each the report or the error of a run."""

        def look(*outcomes, **options):
            left, seen, stop = list(outcomes), [], threading.Event()

            def run(*arguments, **selection):
                outcome = left.pop(0)
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome

            def tell(looked):
                seen.append(looked)
                if not left:
                    stop.set()

            monkeypatch.setattr(runner, "run", run)
            watch("bids", "out", stop=stop.is_set, on_look=tell, **{"every": 0.01, **options})
            return seen

        return look

    def test_looks_again_as_soon_as_files_can_have_settled(self, looks):
        waiting = RunReport(waiting=[Waiting("sub-01", "changed 1 s ago")])
        (looked,) = looks(waiting, every=900, settle=60)
        assert looked.pause == 60
        (looked,) = looks(waiting, every=30, settle=60)
        assert looked.pause == 30
        (looked,) = looks(waiting, every=900, settle=0.001)
        assert looked.pause == 1
        (looked,) = looks(RunReport(), every=900, settle=60)
        assert looked.pause == 900

    @pytest.mark.parametrize("error", [NoScansError("none yet"), LockedError("by another")])
    def test_the_first_look_may_find_nothing_or_a_lock(self, looks, error):
        first, second = looks(error, RunReport())
        assert first.trouble == str(error)
        assert second.report is not None

    @pytest.mark.parametrize(
        "error", [ConfigurationError("cannot be listed"), OSError(116, "Stale file handle")]
    )
    def test_later_looks_survive_what_the_first_does_not(self, looks, error):
        with pytest.raises(type(error)):
            looks(error)
        _, second, third = looks(RunReport(), error, RunReport())
        assert second.trouble == str(error)
        assert third.trouble == ""

    def test_a_fault_of_its_own_is_not_hidden(self, looks):
        with pytest.raises(ZeroDivisionError):
            looks(RunReport(), ZeroDivisionError())

    def test_ends_before_the_first_look_if_it_is_told_to(self):
        watch("bids", "out", stop=lambda: True)
