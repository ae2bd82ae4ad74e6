"""A scan's group: whole slabs in whole shards, read back by zarr and by xarray alike."""

from __future__ import annotations

import contextlib
import doctest
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import volume_shapes

from fusionflow.errors import StoreError
from fusionflow.io import store
from fusionflow.io.store import (
    Layout,
    Small,
    create_group,
    finish_group,
    read_rows,
    write_rows,
)
from fusionflow.schema import FUSED, MASK, MRI, PET

VOLUMES = {item.name: item for item in (MRI, PET, MASK, FUSED)}
MIB = 2**20


def tiles(runs, slices):
    """Whether runs cover every slice once, in order."""
    return [z for start, stop in runs for z in range(start, stop)] == list(range(slices))


class TestLayout:
    @given(volume_shapes)
    def test_slabs_and_shards_tile_the_volume(self, shape):
        layout = Layout.of_shape(shape)
        assert tiles(layout.slabs, shape[0])
        assert tiles(layout.shards, shape[0])

    @given(volume_shapes)
    def test_a_shard_is_whole_slabs(self, shape):
        layout = Layout.of_shape(shape)
        assert layout.shard % layout.slab == 0
        assert {start for start, _ in layout.shards} <= {start for start, _ in layout.slabs}

    @given(volume_shapes)
    def test_there_are_at_most_four_slabs_unless_bytes_force_more(self, shape):
        layout = Layout.of_shape(shape)
        slice_bytes = 4 * shape[1] * shape[2]
        fitting = max(1, 64 * MIB // slice_bytes)
        assert len(layout.slabs) <= max(4, ceil(shape[0] / fitting))

    @given(volume_shapes)
    def test_a_slab_holds_64_mib_unless_one_slice_is_larger(self, shape):
        layout = Layout.of_shape(shape)
        slice_bytes = 4 * shape[1] * shape[2]
        assert layout.slab == 1 or layout.slab * slice_bytes <= 64 * MIB

    @given(volume_shapes)
    def test_a_shard_holds_128_mib_unless_one_slab_is_larger(self, shape):
        layout = Layout.of_shape(shape)
        assert layout.shard == layout.slab or layout.shard * 4 * shape[1] * shape[2] <= 128 * MIB

    @given(volume_shapes)
    def test_a_small_volume_is_one_shard(self, shape):
        layout = Layout.of_shape(shape)
        if 4 * layout.slab * len(layout.slabs) * shape[1] * shape[2] <= 128 * MIB:
            assert len(layout.shards) == 1

    @given(st.integers(1, 16))
    def test_few_small_slices_are_one_slab(self, slices):
        assert Layout.of_shape((slices, 64, 64)).slabs == ((0, slices),)

    @given(st.integers(7, 600))
    def test_large_slices_keep_several_workers_busy(self, slices):
        assert len(Layout.of_shape((slices, 256, 256)).slabs) in (3, 4)

    def test_no_slices_are_no_slabs(self):
        assert Layout.of_shape((0, 64, 64)).slabs == ()

    @given(st.integers(17, 400), st.integers(16, 256))
    def test_slabs_are_alike(self, slices, side):
        lengths = [stop - start for start, stop in Layout.of_shape((slices, side, side)).slabs]
        assert len(lengths) > 1
        assert max(lengths) - min(lengths) <= len(lengths)

    @given(volume_shapes)
    def test_follows_from_the_shape_alone(self, shape):
        assert Layout.of_shape(shape) == Layout.of_shape(tuple(int(n) for n in shape))
        assert Layout.of_shape(shape).shape == shape

    @pytest.mark.parametrize(
        ("shape", "slabs", "shards"),
        [
            ((1, 8, 8), 1, 1),
            ((17, 8, 8), 2, 1),
            ((94, 256, 256), 4, 1),
            ((256, 256, 256), 4, 1),
            ((512, 512, 512), 8, 4),
            ((3, 4096, 4096), 3, 2),
            ((6, 8192, 8192), 6, 6),
        ],
    )
    def test_of_known_volumes(self, shape, slabs, shards):
        layout = Layout.of_shape(shape)
        assert (len(layout.slabs), len(layout.shards)) == (slabs, shards)

    def test_examples_in_docstrings_are_true(self):
        result = doctest.testmod(store)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.fixture
def layout():
    """Three shards of two slabs, the last of each incomplete, small enough to write."""
    return Layout((11, 6, 7), slab=2, shard=4)


@pytest.fixture
def group(tmp_path, layout):
    create_group(tmp_path / "scan", layout, VOLUMES.values())
    return tmp_path / "scan"


def volume(layout, seed=0):
    return np.random.default_rng(seed).normal(size=layout.shape).astype(np.float32)


class TestWriting:
    def test_shards_written_one_by_one_are_the_volume(self, group, layout):
        wanted = volume(layout)
        for start, stop in reversed(layout.shards):
            write_rows(group, "fused", start, wanted[start:stop], layout)
        assert_array_equal(read_rows(group, "fused", 0, 11), wanted)

    @pytest.mark.parametrize(("start", "stop"), [(0, 11), (4, 11), (0, 8), (8, 11), (0, 0)])
    def test_whole_shards_are_taken(self, group, layout, start, stop):
        wanted = np.zeros(layout.shape, np.float32)
        wanted[start:stop] = volume(layout)[start:stop]
        write_rows(group, "fused", start, wanted[start:stop], layout)
        assert_array_equal(read_rows(group, "fused", 0, 11), wanted)

    @given(st.integers(-4, 12), st.integers(1, 12))
    @example(start=8, count=4)  # a whole shard, were the volume longer
    @example(start=-4, count=4)
    @settings(max_examples=60)
    def test_what_is_no_whole_shards_is_refused(self, tmp_path_factory, start, count):
        layout = Layout((11, 6, 7), slab=2, shard=4)
        stop = start + count
        whole = start in {a for a, _ in layout.shards} and stop in {b for _, b in layout.shards}
        group = tmp_path_factory.mktemp("store") / "scan"
        create_group(group, layout, (FUSED,))
        rows = np.ones((count, 6, 7), np.float32)
        if whole:
            write_rows(group, "fused", start, rows, layout)
        else:
            with pytest.raises(StoreError, match="not whole shards"):
                write_rows(group, "fused", start, rows, layout)
            assert not read_rows(group, "fused", 0, 11).any()

    @pytest.mark.parametrize("shape", [(11, 1, 7), (11, 6, 1), (11, 5, 7), (11, 6), (11, 1, 1)])
    def test_slices_of_another_size_are_refused_and_not_spread(self, group, layout, shape):
        with pytest.raises((StoreError, ValueError, IndexError)):
            write_rows(group, "fused", 0, np.ones(shape, np.float32), layout)
        assert not read_rows(group, "fused", 0, 11).any()

    def test_a_group_is_never_written_over(self, group, layout):
        write_rows(group, "mri", 0, volume(layout), layout)
        with pytest.raises(FileExistsError):
            create_group(group, layout, VOLUMES.values())
        assert_array_equal(read_rows(group, "mri", 0, 11), volume(layout))

    def test_a_part_is_read_without_the_rest(self, group, layout):
        write_rows(group, "pet", 0, volume(layout), layout)
        assert_array_equal(read_rows(group, "pet", 3, 9), volume(layout)[3:9])


class TestReadingBack:
    @pytest.fixture
    def written(self, group, layout):
        arrays = {
            "mri": volume(layout, 1),
            "pet": volume(layout, 2),
            "fused": volume(layout, 3),
            "mask": (volume(layout, 4) > 0).astype(np.uint8),
        }
        for name, values in arrays.items():
            write_rows(group, name, 0, values, layout)
        metrics = np.random.default_rng(5).normal(size=(11, 2, 3))
        metrics[4] = np.nan
        metrics[5, 0, 0] = np.inf
        arrays["metrics"] = metrics
        small = (
            Small("metrics", metrics, ("z", "source", "metric")),
            Small("source", ("mri", "pet"), ("source",)),
            Small("metric", np.array(["mse", "psnr", "größe"]), ("metric",)),
        )
        finish_group(group, small, {"made": "by a test"})
        return arrays

    def test_zarr_reads_what_was_written(self, group, written):
        opened = zarr.open_group(group, mode="r")
        for name, values in written.items():
            assert_array_equal(opened[name][...], values)

    @pytest.mark.parametrize("consolidated", [True, False, None])
    def test_plain_xarray_reads_it_without_a_warning(self, group, written, consolidated):
        with xr.open_zarr(group, consolidated=consolidated) as scan:
            for name, values in written.items():
                assert_array_equal(scan[name].values, values)
                assert scan[name].dtype == values.dtype

    def test_dimensions_units_and_meaning_are_there(self, group, written):
        with xr.open_zarr(group) as scan:
            for name, variable in VOLUMES.items():
                assert scan[name].dims == variable.dims
                assert scan[name].dtype == variable.dtype
                assert scan[name].attrs["units"] == variable.units
                assert scan[name].attrs["long_name"] == variable.doc

    def test_chunks_are_slabs_and_shards_hold_them(self, group, written, layout):
        with xr.open_zarr(group, chunks={}) as scan:
            lengths = tuple(stop - start for start, stop in layout.slabs)
            assert scan.fused.chunks == (lengths, (6,), (7,))
        array = zarr.open_array(group / "fused", mode="r")
        assert (array.chunks, array.shards) == ((2, 6, 7), (4, 6, 7))
        assert len(list((group / "fused" / "c").glob("*/0/0"))) == len(layout.shards)

    def test_labels_are_text_of_any_length(self, group, written):
        with xr.open_zarr(group) as scan:
            assert list(scan["source"].values) == ["mri", "pet"]
            assert list(scan["metric"].values) == ["mse", "psnr", "größe"]
            assert scan["metrics"].sel(source="pet", metric="größe").shape == (11,)
            assert scan["source"].dtype.kind in "OT"

    def test_small_arrays_are_one_chunk(self, group, written):
        opened = zarr.open_group(group, mode="r")
        for name in ("metrics", "source", "metric"):
            assert opened[name].chunks == opened[name].shape

    def test_attributes_are_there(self, group, written):
        assert dict(zarr.open_group(group, mode="r").attrs) == {"made": "by a test"}

    def test_a_finished_group_is_finished_again(self, group, written):
        other = np.zeros((11, 2, 3))
        finish_group(group, [Small("metrics", other, ("z", "source", "metric"))], {"made": "anew"})
        with xr.open_zarr(group) as scan:
            assert scan.attrs == {"made": "anew"}
            assert_array_equal(scan["metrics"].values, other)
            assert_array_equal(scan["fused"].values, written["fused"])
            assert list(scan["metric"].values) == ["mse", "psnr", "größe"]

    @pytest.mark.parametrize("files", range(8))
    def test_finishing_that_was_cut_short_is_done_again(self, group, monkeypatch, files):
        small = [Small("metric", ["mse", "größe"], ("metric",))]
        whole, left = Path.write_bytes, iter(range(files))

        def cut_short(path, content):
            if next(left, None) is None:
                whole(path, content[: len(content) // 2])
                raise KeyboardInterrupt
            return whole(path, content)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "write_bytes", cut_short)
            finish_group(group, small, {"made": "by a test"})
        finish_group(group, small, {"made": "by a test"})
        with xr.open_zarr(group) as scan:
            assert list(scan["metric"].values) == ["mse", "größe"]
            assert scan.attrs == {"made": "by a test"}
        assert not list(group.rglob("*.part"))

    def test_one_read_opens_a_consolidated_group(self, group, written):
        metadata = zarr.open_group(group, mode="r").metadata.consolidated_metadata
        assert set(metadata.metadata) == {*written, "source", "metric"}


def test_an_empty_small_array_is_written(tmp_path, layout):
    create_group(tmp_path / "scan", layout, ())
    finish_group(tmp_path / "scan", [Small("metrics", np.zeros((0, 2)), ("z", "metric"))], {})
    assert zarr.open_array(tmp_path / "scan" / "metrics", mode="r").shape == (0, 2)
