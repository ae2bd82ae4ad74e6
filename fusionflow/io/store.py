"""The Zarr group of a scan: how it is laid out, written and read.

A variable is one shard per scan (several for a large volume), its inner chunks are slabs.
Writes are whole shards, each by one writer: a shard that two write loses data, and nothing
in Zarr would say so.
"""

from __future__ import annotations

import functools
import threading
import uuid
import warnings
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from fusionflow.errors import StoreError
from fusionflow.io.nifti_write import Slices
from fusionflow.schema import Variable

#: A scan has at most this many slabs, unless memory asks for more: a task costs milliseconds.
MOST_SLABS = 4
#: Slices that fill a slab, and fewer do if they are large: these pixels keep a network busy for
#: half a second, beside which a task's milliseconds are little.
FULL_SLAB = 16
FULL_SLAB_PIXELS = 2**17
#: float32 bytes of one variable in a slab.
MOST_SLAB_BYTES = 64 * 2**20
#: float32 bytes of one shard.
MOST_SHARD_BYTES = 128 * 2**20

#: Bytes of the chunks that are made ready to be written at a time; one of any size is.
MOST_AT_ONCE_BYTES = 32 * 2**20

#: Voxels of a scan that is written while other work on it goes on, which then has to be held
#: longer: for so few, memory is no matter.
SMALL_SCAN = 2**23

#: What a `MemoryStore` holds: content by path.
Files: TypeAlias = MutableMapping[str, Buffer]

_METADATA: Final = "zarr.json"

_writing = threading.Lock()


class Small(NamedTuple):
    """A small array of a group, one chunk; text becomes ``string``."""

    name: str
    values: npt.ArrayLike
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How the slices of a volume are grouped. It follows from the shape alone.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x).
    slab : int
        Slices in a slab (an inner chunk); the last slab may have fewer.
    shard : int
        Slices in a shard, a whole number of slabs.
    """

    shape: tuple[int, int, int]
    slab: int
    shard: int

    @classmethod
    def of_shape(cls, shape: tuple[int, int, int]) -> Layout:
        """Return the layout of volumes of that shape.

        Examples
        --------
        >>> Layout.of_shape((94, 256, 256))
        Layout(shape=(94, 256, 256), slab=24, shard=96)
        >>> Layout.of_shape((14, 256, 256)).slabs
        ((0, 4), (4, 8), (8, 12), (12, 14))
        """
        slices, rows, columns = shape
        slice_bytes = rows * columns * 4
        full = min(FULL_SLAB, ceil(FULL_SLAB_PIXELS / (rows * columns)))
        slab = ceil(slices / max(1, min(MOST_SLABS, ceil(slices / full))))
        slab = max(1, min(slab, MOST_SLAB_BYTES // slice_bytes))
        slabs = ceil(slices / slab)
        in_shard = max(1, min(slabs, MOST_SHARD_BYTES // (slab * slice_bytes)))
        return cls(shape, slab, slab * in_shard)

    @property
    def slabs(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each slab."""
        return self._runs(self.slab)

    @property
    def shards(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of each shard."""
        return self._runs(self.shard)

    def _runs(self, length: int) -> tuple[tuple[int, int], ...]:
        slices = self.shape[0]
        return tuple((start, min(start + length, slices)) for start in range(0, slices, length))


def create_group(path: Path, layout: Layout, variables: Iterable[Variable]) -> None:
    """Make a new group with empty volumes.

    Parameters
    ----------
    path : Path
        Must not exist; the folder above it must.
    layout : Layout
        Shape and chunks of the volumes.
    variables : iterable of Variable
        Those with dims (z, y, x).

    Raises
    ------
    OSError
        If it cannot be made.
    """
    path.mkdir()
    write_files(path, _empty_group(layout, tuple(variables)))


@functools.lru_cache(maxsize=16)
def _empty_group(layout: Layout, variables: tuple[Variable, ...]) -> Files:
    """Return the files of a group with empty volumes; the scans of a cohort are often alike."""
    files: Files = {}
    group = zarr.open_group(MemoryStore(files), mode="w", zarr_format=3)
    for variable in variables:
        group.create_array(
            variable.name,
            shape=layout.shape,
            chunks=(layout.slab, *layout.shape[1:]),
            shards=(layout.shard, *layout.shape[1:]),
            dtype=variable.dtype,
            # The checksum makes a reader notice damage that leaves the size as it was.
            compressors=(
                BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),
                Crc32cCodec(),
            ),
            dimension_names=variable.dims,
            attributes={"units": variable.units, "long_name": variable.doc},
        )
    return files


def write_rows(path: Path, name: str, start: int, rows: npt.NDArray[Any], layout: Layout) -> None:
    """Write whole shards of a volume.

    Raises
    ------
    StoreError
        If `rows` do not fit the volume, or do not begin and end with a shard: two writers of one
        shard lose data.
    """
    stop = start + len(rows)
    inside = 0 <= start <= stop <= layout.shape[0] and rows.shape[1:] == layout.shape[1:]
    if not inside or start % layout.shard or (stop % layout.shard and stop != layout.shape[0]):
        raise StoreError(
            f"Slices {start} to {stop} of {name} in {path}, {rows.shape} of {layout.shape}, are "
            "not whole shards"
        )
    array = zarr.open_array(path / name, mode="r+", zarr_format=3)
    # Zarr holds a copy of each chunk that it is at, and two of what it becomes; so large ones go
    # one after the other. The setting is the process's, so that what reads meanwhile does as well;
    # it gives the same bytes.
    chunk = max(1, layout.slab * prod(layout.shape[1:]) * rows.itemsize)
    with _writing, zarr.config.set({"async.concurrency": max(1, MOST_AT_ONCE_BYTES // chunk)}):
        array[start:stop] = rows


def read_rows(path: Path, name: str, start: int, stop: int) -> npt.NDArray[Any]:
    """Return slices `start` to `stop` of a volume, (stop - start, y, x)."""
    return np.asarray(open_volume(path, name)[start:stop])


def open_volume(path: Path, name: str) -> Slices:
    """Return a volume that is read when its slices are asked for."""
    array: Slices = zarr.open_array(path / name, mode="r", zarr_format=3)
    return array


def finish_group(path: Path, small: Iterable[Small], attributes: Mapping[str, Any]) -> None:
    """Add small arrays and attributes to a group, and gather its metadata in one file.

    All of it is made in memory first, for Zarr takes a millisecond or two for every file that it
    touches. A group that was finished before is finished again.

    Parameters
    ----------
    path : Path
        The group.
    small : iterable of Small
        Arrays beside its volumes.
    attributes : mapping
        What JSON can hold.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    for part in path.rglob("*.part"):  # of a first run that was cut short
        part.unlink(missing_ok=True)
    in_memory = default_buffer_prototype().buffer.from_bytes
    files: Files = {
        place.relative_to(path).as_posix(): in_memory(place.read_bytes())
        for place in (path / _METADATA, *path.glob(f"*/{_METADATA}"))
    }
    memory = MemoryStore(files)
    group = zarr.open_group(memory, mode="r+", zarr_format=3, use_consolidated=False)
    for array in small:
        _add_small(group, array)
    group.update_attributes(dict(attributes))  # at once: `attrs.update` writes them one by one
    with warnings.catch_warnings():
        # It is an extension that zarr-python and xarray both read; others ignore it.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(memory, zarr_format=3)  # a group opens with one read then
    write_files(path, files)


def _add_small(group: zarr.Group, small: Small) -> None:
    """Write a small array as one chunk, over one that is there."""
    values = np.asarray(small.values)
    text = values.dtype.kind in "UTO"
    array = group.create_array(
        small.name,
        shape=values.shape,
        chunks=tuple(max(1, length) for length in values.shape),
        dtype="string" if text else values.dtype,
        overwrite=True,
        dimension_names=small.dims,
        config={"write_empty_chunks": True},  # one of zeros goes over one that is there, too
    )
    array[...] = values.astype(object) if text else values


def write_files(folder: Path, files: Files) -> None:
    """Write what a `MemoryStore` was given to keep its files in; fails as files do.

    Each is whole once it has its name, so that work that was cut short can be done again, and two
    who do it at the same time do not meet.
    """
    for parent in {(folder / name).parent for name in files}:
        parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
        part.write_bytes(content.to_bytes())
        part.replace(path)
