"""One of many gets the lock, also where the file system knows no locks or links."""

import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from locks import of_the_dead, python

from fusionflow.errors import LockedError
from fusionflow.holder import read_holder
from fusionflow.runlock import RunLock

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
    @pytest.mark.slow
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
