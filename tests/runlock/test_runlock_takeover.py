"""A lock whose holder is on another machine, and one that was taken over."""

import os
import threading

import pytest
from locks import left_by, wait_for

from fusionflow import runlock
from fusionflow.errors import LockedError
from fusionflow.holder import read_holder
from fusionflow.runlock import RunLock, living_holder


class TestAnotherMachine:
    def test_that_is_silent_is_taken_over_after_a_wait(self, path, short):
        holder = left_by(path, machine="elsewhere")
        waits = []
        with RunLock(path, "run", on_wait=lambda *what: waits.append(what)) as lock:
            assert lock.taken_from == holder
            lock.check()
        ((whom, seconds),) = waits
        assert whom == holder
        assert 0 < seconds <= runlock.PATIENCE

    def test_that_was_silent_for_long_is_taken_over_at_once(self, path, short):
        left_by(path, machine="elsewhere", age=5)
        waits = []
        with RunLock(path, "run", on_wait=lambda *what: waits.append(what)):
            assert waits == []

    def test_whose_clock_is_ahead_is_not_waited_for_longer(self, path, short):
        left_by(path, machine="elsewhere", age=-86_400)
        waits = []
        with RunLock(path, "run", on_wait=lambda *what: waits.append(what)):
            assert waits[0][1] <= runlock.PATIENCE

    def test_that_gives_a_sign_of_life_is_refused(self, path, short):
        left_by(path, machine="elsewhere", host="node-7")
        started = threading.Event()

        def beat():
            assert started.wait(20)
            os.utime(path, (1, 1))

        heart = threading.Thread(target=beat)
        heart.start()
        with pytest.raises(LockedError, match="node-7"):
            RunLock(path, "run", on_wait=lambda *what: started.set()).__enter__()
        heart.join()
        assert os.listdir(path.parent) == ["run.lock"]

    def test_that_lets_go_while_it_is_waited_for(self, path, short):
        left_by(path, machine="elsewhere")
        with RunLock(path, "run", on_wait=lambda *what: path.unlink()) as lock:
            lock.check()

    def test_is_waited_for_by_one_and_the_others_are_refused(self, path, short):
        left_by(path, machine="elsewhere")
        refused = []

        def another(*_):
            with pytest.raises(LockedError) as error:
                RunLock(path, "second").__enter__()
            refused.append(error.value)

        with RunLock(path, "run", on_wait=another):
            assert len(refused) == 1

    def test_the_wait_is_said_when_nobody_asked_to_be_told(self, path, short, caplog):
        left_by(path, machine="elsewhere", host="node-7")
        with RunLock(path, "run"):
            assert "node-7" in caplog.text
            assert "Waiting 1 s" in caplog.text

    def test_counts_as_living_as_long_as_it_gave_signs_lately(self, path):
        holder = left_by(path, machine="elsewhere", age=runlock.PATIENCE / 2)
        assert living_holder(path) == holder
        left_by(path, machine="elsewhere", age=runlock.PATIENCE * 2)
        assert living_holder(path) is None


class TestTakenOver:
    """From a holder that slept for so long that it seemed gone."""

    @pytest.fixture
    def sleeper(self, path):
        """A holder that was taken over, and who has it now."""
        with RunLock(path, "sleeper") as lock:
            lock.check()
            other = path.with_name("other")
            left_by(other, run="other-run", machine="elsewhere", host="node-7")
            os.replace(other, path)
            yield lock

    def test_it_finds_out_who_has_it(self, sleeper):
        with pytest.raises(LockedError, match=r"taken over by .*node-7") as error:
            sleeper.check()
        assert "Nothing is lost" in str(error.value)

    def test_it_leaves_the_other_its_lock(self, path):
        with RunLock(path, "sleeper"):
            other = path.with_name("other")
            left_by(other, run="other-run")
            os.replace(other, path)
        assert read_holder(path).run == "other-run"

    def test_it_does_not_keep_the_other_alive(self, path, short):
        with RunLock(path, "sleeper") as lock:
            other = path.with_name("other")
            left_by(other, machine="elsewhere", age=100)
            os.replace(other, path)
            before = path.stat().st_mtime_ns
            os.utime(lock._descriptor, (1, 1))
            wait_for(lambda: os.fstat(lock._descriptor).st_mtime > 1)  # its heart beats on
            assert path.stat().st_mtime_ns == before

    def test_a_lock_that_was_removed_by_hand_is_missed(self, path):
        with RunLock(path, "run") as lock:
            path.unlink()
            with pytest.raises(LockedError, match=r"run\.lock removed"):
                lock.check()
        assert os.listdir(path.parent) == []

    def test_a_folder_that_was_removed_is_missed(self, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        with RunLock(out / "run.lock", "run") as lock:
            (out / "run.lock").unlink()
            out.rmdir()
            with pytest.raises(LockedError):
                lock.check()
