"""What the C library is told to keep; `workflows/benchmarks/README.md` says what that brings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
from dask.callbacks import Callback
from runs import config, job_of

from fusionflow import graph, malloc
from fusionflow.io.inputs import discover
from fusionflow.malloc import kept_memory


class TestKeptMemory:
    lifted: ClassVar = [(-1, 24 << 20), (-3, 12 << 20)]
    put_back: ClassVar = [(-1, 65536), (-3, 1 << 17), "trim"]

    @pytest.fixture
    def told(self, monkeypatch):
        """What the C library of a process below a nanny is told."""
        for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
        said = []
        library = SimpleNamespace(
            mallopt=lambda what, value: said.append((what, value)),
            malloc_trim=lambda pad: said.append("trim"),
        )
        monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: library)
        return said

    def test_it_is_kept_for_as_long_as_a_task_goes_on(self, told):
        with kept_memory():
            assert told == self.lifted
        assert told == self.lifted + self.put_back

    def test_the_last_of_several_tasks_gives_it_back(self, told):
        with kept_memory():
            with kept_memory():
                pass
            assert told == self.lifted * 2
        assert told == self.lifted * 2 + self.put_back

    def test_it_is_given_back_after_a_failure(self, told):
        with pytest.raises(ValueError, match="x"), kept_memory():
            raise ValueError("x")
        assert told == self.lifted + self.put_back

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MALLOC_TRIM_THRESHOLD_", "65537"),
            ("MALLOC_TRIM_THRESHOLD_", None),
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
            ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"),
        ],
    )
    def test_who_set_another_value_meant_it(self, told, monkeypatch, name, value):
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
        with kept_memory():
            pass
        assert told == []

    def test_another_c_library_is_left_alone(self, told, monkeypatch):
        monkeypatch.setattr(malloc.ctypes, "CDLL", lambda name: SimpleNamespace())
        with kept_memory():
            pass

    def test_every_task_of_a_scan_keeps_it(self, told, phantom_bids, tmp_path):
        scan, how = discover(phantom_bids).scans[0], config("dwt-max", weights=None)
        of_tasks = {}

        def after(key, *_):
            of_tasks[key] = told.copy()
            told.clear()

        with Callback(posttask=after):
            graph.scan_graph(job_of(scan, phantom_bids, tmp_path, how)).compute(scheduler="sync")
        assert len(of_tasks) > 4
        for lines in of_tasks.values():
            assert lines[:2] == self.lifted
            assert lines[-3:] == self.put_back
            assert lines.count("trim") == 1
