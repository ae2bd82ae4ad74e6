"""One run at a time in an output folder, whoever dies, sleeps, or shares it from elsewhere."""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from fusionflow import runlock
from fusionflow.errors import LockedError, StoreError
from fusionflow.runlock import Holder, RunLock, _started, living_holder, read_holder

HOLD = """
import sys
from pathlib import Path
from fusionflow import runlock
runlock.HEARTBEAT = float(sys.argv[2])
with runlock.RunLock(Path(sys.argv[1]), "other-run"):
    print("held", flush=True)
    sys.stdin.readline()
"""

#: Waits for a word, tries once, says what came of it, and holds on until the next word.
RACE = """
import sys
from pathlib import Path
from fusionflow.errors import LockedError
from fusionflow.runlock import RunLock
for line in sys.stdin:
    try:
        with RunLock(Path(line.strip()), "racer"):
            print("got", flush=True)
            sys.stdin.readline()
        print("let go", flush=True)
    except LockedError:
        print("refused", flush=True)
        sys.stdin.readline()
        print("nothing", flush=True)
"""


def python(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def holding(path, heartbeat=10.0):
    """Let another process hold a lock."""
    with python(HOLD, path, heartbeat) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that does not lock."""

    def refuse(descriptor, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def no_links(monkeypatch):
    """A file system without hard links."""

    def refuse(one, other):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture
def short(monkeypatch):
    """Seconds instead of a minute."""
    monkeypatch.setattr(runlock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(runlock, "PATIENCE", 1.0)


def left_by(path, *, age=0.0, **changes):
    """Write the lock of a holder that is not here."""
    above = psutil.Process(os.getppid())  # a process that lives and is another's
    me = replace(Holder.me("old-run"), pid=above.pid, process_started=_started(above))
    holder = replace(me, **changes)
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - age
    os.utime(path, (then, then))
    return holder


def of_the_dead(path):
    """Write the lock of a process of this machine that ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return left_by(path, pid=process.pid)


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


def wait_for(condition, seconds=20):
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.01)


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
            "from fusionflow.runlock import Holder, RunLock\n"
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


class TestPoorFileSystems:
    def test_without_hard_links(self, path, no_links):
        with RunLock(path, "run") as lock:
            lock.check()
            with pytest.raises(LockedError):
                RunLock(path, "other").__enter__()
            assert os.listdir(path.parent) == ["run.lock"]
        assert os.listdir(path.parent) == []

    def test_without_locks(self, path, no_flock):
        with RunLock(path, "run") as lock:
            lock.check()
            with pytest.raises(LockedError, match=f"process {os.getpid()}"):
                RunLock(path, "other").__enter__()
        assert os.listdir(path.parent) == []

    def test_without_either(self, path, no_flock, no_links):
        of_the_dead(path)
        with RunLock(path, "run") as lock:
            lock.check()
            with pytest.raises(LockedError):
                RunLock(path, "other").__enter__()
        with RunLock(path, "run") as lock:
            lock.check()

    @pytest.mark.parametrize("stale", [True, False])
    @pytest.mark.parametrize("without", ["locks", "links", "either"])
    def test_one_of_many_gets_it(self, path, request, without, stale):
        """Each file is moved over the others' then; a second look says whose it is."""
        for fixture in {"locks": ["no_flock"], "links": ["no_links"]}.get(
            without, ["no_flock", "no_links"]
        ):
            request.getfixturevalue(fixture)
        if stale:
            of_the_dead(path)
        together = threading.Barrier(4)

        def race(number):
            together.wait()
            lock = RunLock(path, f"run-{number}")
            try:
                return lock.__enter__()
            except LockedError:
                return None

        with ThreadPoolExecutor(4) as pool:
            (lock,) = (x for x in pool.map(race, range(4)) if x is not None)
        lock.check()
        assert read_holder(path).run == lock.run
        lock.__exit__(None, None, None)
        assert os.listdir(path.parent) == []


class TestRaces:
    @pytest.mark.parametrize("stale", [True, False], ids=["stale", "free"])
    def test_exactly_one_of_two_processes_gets_it(self, tmp_path, stale):
        of_the_dead(tmp_path / "left")
        with python(RACE) as one, python(RACE) as two:

            def both(word):
                for process in (one, two):
                    process.stdin.write(f"{word}\n")
                    process.stdin.flush()
                return sorted(process.stdout.readline() for process in (one, two))

            for number in range(40):
                path = tmp_path / f"{number}" / "run.lock"
                path.parent.mkdir()
                if stale:
                    shutil.copy(tmp_path / "left", path)
                assert both(path) == ["got\n", "refused\n"]
                assert both("") == ["let go\n", "nothing\n"]
                assert os.listdir(path.parent) == []
            for process in (one, two):
                process.stdin.close()

    def test_threads_that_take_turns_never_overlap(self, path):
        """Taking, refusing, letting go, over and over."""
        inside, overlaps, entered = [], [], []
        until = time.monotonic() + 3

        def work(number):
            while time.monotonic() < until:
                try:
                    with RunLock(path, f"run-{number}") as lock:
                        inside.append(number)
                        overlaps.extend([list(inside)] if len(inside) > 1 else [])
                        lock.check()
                        entered.append(number)
                        inside.remove(number)
                except LockedError:
                    continue

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert overlaps == []
        assert entered
        assert os.listdir(path.parent) == []
