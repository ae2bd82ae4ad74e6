"""What the C library is told to keep; `workflows/benchmarks/README.md` says what that brings."""

from __future__ import annotations

import itertools
import pickle
import platform
from collections import defaultdict
from math import ceil
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import psutil
import pytest
from dask.callbacks import Callback
from numpy.testing import assert_array_equal
from runs import config, job_of

from fusionflow import clusters, graph, malloc, stages
from fusionflow.config import ClusterOptions
from fusionflow.io import store
from fusionflow.io.inputs import discover
from fusionflow.io.nifti import read_header
from fusionflow.malloc import apart, kept_memory

#: Before tests put another in its place.
HAS_NANNY = malloc._has_nanny


def use(monkeypatch, library):
    """Let that be the C library; of this module alone, for torch reads others."""
    of_ctypes = SimpleNamespace(CDLL=lambda name: library, c_void_p=None, c_size_t=None)
    monkeypatch.setattr(malloc, "ctypes", of_ctypes)


class TestKeptMemory:
    lifted: ClassVar = [(-1, 24 << 20), (-3, 12 << 20)]
    cut: ClassVar = [(-1, 65536), "free"]
    put_back: ClassVar = [*cut, (-3, 1 << 17), "trim"]

    @pytest.fixture
    def told(self, monkeypatch):
        """What the C library of a process below a nanny is told."""
        for name in ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
        monkeypatch.setattr(malloc, "_has_nanny", lambda: True)
        said = []
        library = SimpleNamespace(
            mallopt=lambda what, value: said.append((what, value)),
            malloc_trim=lambda pad: said.append("trim"),
            malloc=lambda size: size,  # what is set on functions is set on these
            free=lambda block: said.append("free"),
        )
        use(monkeypatch, library)
        return said

    def test_it_is_kept_for_as_long_as_a_task_goes_on(self, told):
        with kept_memory():
            assert told == self.lifted
        assert told == self.lifted + self.put_back

    def test_the_last_of_several_tasks_gives_it_back(self, told):
        with kept_memory():
            with kept_memory():
                pass
            # What the thread of the first to end has is cut, and the other goes on.
            assert told == [*self.lifted * 2, *self.cut, self.lifted[0]]
            told.clear()
        assert told == self.put_back

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

    def test_a_process_without_a_nanny_is_left_alone(self, told, monkeypatch):
        monkeypatch.setattr(malloc, "_has_nanny", HAS_NANNY)
        with kept_memory():
            pass
        assert told == []

    def test_another_c_library_is_left_alone(self, told, monkeypatch):
        use(monkeypatch, SimpleNamespace())
        with kept_memory():
            pass

    @pytest.mark.parametrize("shards", [1, 3])
    def test_every_task_of_a_scan_keeps_it(self, shards, told, phantom_bids, tmp_path, monkeypatch):
        scan = discover(phantom_bids).scans[0]
        how = config("dwt-max", weights=None)
        x, y, z = read_header(scan.t1w).orientation.ras_shape
        if shards > 1:
            monkeypatch.setattr(store, "MOST_SHARD_BYTES", 4 * x * y * ceil(z / shards))
            monkeypatch.setattr(store, "MOST_SLAB_BYTES", 4 * x * y)
        job = job_of(scan, phantom_bids, tmp_path, how)
        assert len(job.layout.shards) == shards
        of_stages = defaultdict(list)

        def after(key, *_):
            of_stages[key[0].split("-")[1]].append(told.copy())
            told.clear()

        with Callback(posttask=after):
            graph.scan_graph(job).compute(scheduler="sync")
        assert ("write" in of_stages) == (shards > 1)
        for lines in itertools.chain.from_iterable(of_stages.values()):
            assert lines[:2] == self.lifted
            assert lines[-4:] == self.put_back
            assert lines.count("trim") == 1
        for stage in ("decompose", "reconstruct"):  # reading from the store, too
            assert all(lines[:4] == self.lifted * 2 for lines in of_stages[stage])


def test_arrays_are_set_apart_below_a_nanny_alone(monkeypatch):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    monkeypatch.setattr(malloc, "_library", lambda: None)
    assert apart(array) is array
    monkeypatch.setattr(malloc, "_library", SimpleNamespace)
    copy = apart(array[:, ::2, ::-1])
    assert_array_equal(copy, array[:, ::2, ::-1])
    assert (copy.dtype, copy.flags.writeable, copy.flags.c_contiguous) == (np.float32, True, True)
    assert_array_equal(pickle.loads(pickle.dumps(copy, 5)), copy)
    assert apart(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_worker_gives_back_what_dask_releases():
    recipe = graph.make_recipe(config("dwt-vgg19-l1", taps=("relu1_1",)).method)

    def grown(recipe, slabs):  # travels by value, for workers do not know this file
        """Return by how many MB a worker grows with so many slabs, and without them again."""

        def resident():
            return psutil.Process().memory_info().rss / 1e6

        mri, pet = np.random.default_rng(0).random((2, 12, 256, 256), np.float32)

        def all_stages():
            bands = stages.decompose_slab(mri, pet, recipe)
            fused = stages.fuse_slab(bands, recipe)
            return bands, fused, stages.reconstruct_slab(fused, mri, pet, None, recipe)

        all_stages()
        before = resident()
        results = [all_stages() for _ in range(slabs)]
        held = resident() - before
        results.clear()
        return held, resident() - before

    with clusters.connect(ClusterOptions(n_workers=1)) as client:
        assert client.submit(lambda: malloc._library() is not None).result()
        held, released = client.submit(grown, recipe, 6).result()
    assert held > 40
    assert released < held / 4
