"""One run at a time in an output folder, and it is known who it is."""

import getpass
import json
import os
import signal
import socket
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from locks import holding, left_by, python, wait_for

from fusionflow.errors import LockedError, StoreError
from fusionflow.holder import Holder, read_holder
from fusionflow.runlock import RunLock, living_holder


class TestHolding:
    def test_the_file_says_who_where_and_since_when(self, path):
        with RunLock(path, "this-run"):
            holder = read_holder(path)
            assert holder.run == "this-run"
            assert holder.pid == os.getpid()
            assert holder.host == socket.gethostname()
            assert holder.user in (getpass.getuser(), str(os.getuid()))
            assert holder.since.endswith("+00:00")
            assert holder.is_alive_here()
            assert living_holder(path) == holder

    def test_leaves_no_file(self, path):
        with RunLock(path, "run") as lock:
            assert lock.taken_from is None
            assert os.listdir(path.parent) == ["run.lock"]
        assert os.listdir(path.parent) == []
        assert living_holder(path) is None

    def test_leaves_no_file_after_an_error(self, path):
        with pytest.raises(ZeroDivisionError), RunLock(path, "run"):
            1 / 0  # noqa: B018
        assert os.listdir(path.parent) == []

    def test_again_after_it_was_let_go(self, path):
        for _ in range(3):
            with RunLock(path, "run") as lock:
                lock.check()
                assert lock.taken_from is None

    def test_gives_signs_of_life_and_stops_at_the_end(self, path, short):
        with RunLock(path, "run") as lock:
            os.utime(path, (0, 0))
            wait_for(lambda: path.stat().st_mtime > 0)
            assert time.time() - path.stat().st_mtime < 60
            assert lock._heart.is_alive()
        assert not lock._heart.is_alive()

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(StoreError, match=r"Cannot write .*run\.lock"):
            RunLock(tmp_path / "out" / "run.lock", "run").__enter__()
        with pytest.raises(StoreError, match=r"Cannot write .*run\.lock"):
            RunLock(tmp_path / "absent" / "run.lock", "run").__enter__()

    @pytest.mark.parametrize("what", ["folder", "dangling link"])
    def test_what_can_never_be_a_lock_is_an_error_and_not_a_loop(self, path, what):
        if what == "folder":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
        with pytest.raises(StoreError, match=r"run\.lock"):
            RunLock(path, "run").__enter__()
        assert os.listdir(path.parent) == ["run.lock"]


class TestAnotherProcess:
    def test_is_refused_while_the_first_lives_and_told_who_it_is(self, path):
        with holding(path) as process:
            with pytest.raises(LockedError) as error:
                RunLock(path, "run").__enter__()
            holder = read_holder(path)
            assert holder.pid == process.pid
            for part in (holder.user, holder.host, str(process.pid), holder.since, "being written"):
                assert part in str(error.value)
            assert living_holder(path) == holder
            assert os.listdir(path.parent) == ["run.lock"]

    def test_gets_it_when_the_first_ends(self, path):
        with holding(path) as process:
            process.communicate("\n", timeout=20)
        assert not path.exists()
        with RunLock(path, "run") as lock:
            assert lock.taken_from is None

    def test_takes_over_at_once_from_one_that_was_killed(self, path):
        with holding(path) as process:
            process.kill()
            process.wait()
            assert path.exists()
            assert living_holder(path) is None
            waits = []
            with RunLock(path, "run", on_wait=lambda *what: waits.append(what)) as lock:
                assert lock.taken_from.run == "other-run"
                assert lock.taken_from.pid == process.pid
                assert read_holder(path).run == "run"
            assert waits == []
        assert os.listdir(path.parent) == []

    def test_takes_over_from_a_zombie(self, path, no_flock):
        """Killed, and nobody asked yet what it ended with."""
        with holding(path) as process:
            process.kill()
            wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
            with RunLock(path, "run") as lock:
                assert lock.taken_from.pid == process.pid

    def test_is_refused_while_the_first_is_stopped(self, path, short):
        """The kernel still holds its lock, however long it gives no sign of life."""
        with holding(path, 0.1) as process:
            process.send_signal(signal.SIGSTOP)
            os.utime(path, (0, 0))
            with pytest.raises(LockedError, match=str(process.pid)):
                RunLock(path, "run").__enter__()
            process.send_signal(signal.SIGCONT)

    def test_a_child_of_the_holder_does_not_hold_it(self, path):
        script = (
            "import subprocess, sys\nfrom pathlib import Path\n"
            "from fusionflow.runlock import RunLock\n"
            "RunLock(Path(sys.argv[1]), 'parent').__enter__()\n"
            "child = subprocess.Popen(['sleep', '60'], close_fds=False)\n"
            "print(child.pid, flush=True)\nsys.stdin.readline()\n"
        )
        with python(script, path) as process:
            child = psutil.Process(int(process.stdout.readline()))
            process.kill()
            process.wait()
            try:
                assert child.is_running()
                with RunLock(path, "run") as lock:
                    assert lock.taken_from.run == "parent"
            finally:
                child.kill()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
    def test_the_lock_of_another_user_is_told_as_such(self):
        """In a folder that both may write the file itself is its owner's alone."""
        script = (
            "import os, sys\nfrom pathlib import Path\n"
            "from fusionflow.holder import Holder\nfrom fusionflow.runlock import RunLock\n"
            "Holder.me('')  # what is imported late, somebody else may not read\n"
            "os.setuid(65534)\n"
            "try:\n    RunLock(Path(sys.argv[1]), 'run').__enter__()\n"
            "except Exception as error:\n    print(type(error).__name__, error)\n"
        )
        with tempfile.TemporaryDirectory() as shared:
            os.chmod(shared, 0o777)
            path = Path(shared, "run.lock")
            with RunLock(path, "of-root"), python(script, path) as process:
                said = process.communicate(timeout=60)[0]
        assert said.startswith("LockedError")
        assert f"process {os.getpid()}" in said


class TestIdsOfProcesses:
    def test_one_that_was_given_out_again_is_not_the_holder(self, path, no_flock):
        left_by(path, process_started=Holder.me("x").process_started - 100)
        assert living_holder(path) is None
        with RunLock(path, "run") as lock:
            assert lock.taken_from.pid == os.getppid()

    def test_one_that_lives_is_the_holder_even_where_nothing_locks(self, path, no_flock):
        holder = left_by(path, age=10_000)
        assert living_holder(path) == holder
        with pytest.raises(LockedError, match=f"process {os.getppid()}"):
            RunLock(path, "run").__enter__()

    def test_a_clock_that_is_set_changes_nothing(self, path, no_flock, monkeypatch):
        """What the kernel says since boot counts, not the time of the day."""
        left_by(path)
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
        assert living_holder(path) is not None


GARBAGE = {
    "empty": b"",
    "cut": b'{"run": "x", "us',
    "not text": b"\xff\xfe\x00",
    "no object": b"[1, 2]",
    "something else": b'{"pid": 1}',
    "deep": b"[" * 50_000,
    "large": b" " * 10_000_000,
}


class TestUnreadable:
    @pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
    def test_a_file_that_names_nobody_is_taken_over(self, path, content):
        path.write_bytes(content)
        assert read_holder(path) is None
        assert living_holder(path) is None
        with RunLock(path, "run") as lock:
            lock.check()
            assert read_holder(path).run == "run"

    @pytest.mark.parametrize(
        "changes",
        [
            {"pid": "1; rm"}, {"pid": None}, {"pid": 1.5}, {"pid": True}, {"pid": [1]},
            {"process_started": "yesterday"}, {"process_started": None}, {"machine": 3},
            {"user": ["x"]}, {"host": {}}, {"since": 0}, {"run": None},
        ],
        ids=repr,
    )  # fmt: skip
    def test_one_with_values_that_cannot_be_is_taken_over(self, path, changes):
        path.write_text(json.dumps({**asdict(Holder.me("x")), **changes}))
        assert read_holder(path) is None
        with RunLock(path, "run") as lock:
            lock.check()

    @pytest.mark.parametrize("pid", [0, -1, 2**31, 2**63, 10**40])
    def test_an_id_that_no_process_has_is_not_alive(self, path, pid):
        left_by(path, pid=pid)
        assert living_holder(path) is None
        with RunLock(path, "run") as lock:
            assert lock.taken_from.pid == pid

    def test_a_file_that_somebody_locks_is_respected_whatever_it_says(self, path):
        with holding(path):
            path.write_bytes(b"")
            with pytest.raises(LockedError, match="by another run"):
                RunLock(path, "run").__enter__()

    def test_names_cannot_command_a_terminal(self, path, no_flock):
        left_by(path, user="\x1b[2Jroot\n")
        with pytest.raises(LockedError) as error:
            RunLock(path, "run").__enter__()
        assert "\x1b" not in str(error.value)
        assert "\x1b" not in str(read_holder(path))
