"""NIfTI in: from the orientation of a file to RAS+ arrays.

Images are read to the closest RAS+ orientation by flips and permutations only, so that every voxel
keeps its value; `fusionflow.io.nifti_write` takes them back. They are read block by block, hashed
and checked on the way, so that reading takes the memory of the volume that is returned and little
more. Everything that is wrong with a file is an `ImageError` that names the file and the mend.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fusionflow.errors import ImageError
from fusionflow.io.nifti_header import (
    AGAIN,
    GET,
    HEADER_BYTES,
    Affine,
    ImageHeader,
    Orientation,
    parse_header,
)
from fusionflow.untrusted import open_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "Affine",
    "ImageHeader",
    "Orientation",
    "Volume",
    "grid_of",
    "read_header",
    "read_volume",
]

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 22
#: Voxels that are read at a time.
_BLOCK = 1 << 20
#: Bytes that may follow the voxels, beyond as many as those are themselves.
_MOST_AFTER = 1 << 22


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3-D image in RAS+.

    Attributes
    ----------
    data : ndarray, (x, y, z) float32
        Finite values in the file's units, in Fortran order: ``data.T`` is C-contiguous (z, y, x).
    affine : ndarray, (4, 4) float64
        Voxel indices (x, y, z) -> world mm (RAS+).
    orientation : Orientation
        The layout of the file that it was read from.
    sha256 : str
        Checksum of the file's bytes.
    nonfinite : int
        Voxels that held NaN or infinity and are now 0.
    notes : tuple of str
        What a person should know about it.
    """

    data: npt.NDArray[np.float32]
    affine: Affine
    orientation: Orientation
    sha256: str
    nonfinite: int = 0
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Volume:
        """Where it lies, with zeros for voxels, which take no memory."""
        return replace(self, data=np.broadcast_to(np.float32(0), self.data.shape))


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read and check the header of an image; its voxels are left alone.

    Parameters
    ----------
    path : path-like
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.

    Returns
    -------
    ImageHeader

    Raises
    ------
    ImageError
        If the file cannot be read, is not a single-file NIfTI, or claims something impossible.
    """
    path = Path(path)
    with _saying_what_is_wrong(path), open_file(path) as stored:
        return _header_of(path, stored)[1]


def grid_of(header: ImageHeader) -> Volume:
    """Return an image without its voxels: where they would lie. It takes no memory."""
    orientation = header.orientation
    nothing = np.broadcast_to(np.float32(0), orientation.ras_shape)
    return Volume(nothing, orientation.ras_affine, orientation, "")


def _header_of(path: Path, stored: BinaryIO) -> tuple[BinaryIO, ImageHeader]:
    """Return a stream of the uncompressed bytes of an open file, and its header."""
    stream, compressed = _content(stored)
    size = os.fstat(stored.fileno()).st_size
    return stream, parse_header(path, stream.read(HEADER_BYTES), size, compressed)


def read_volume(
    path: str | os.PathLike[str], *, frame_weights: Sequence[float] | None = None
) -> Volume:
    """Read an image as one RAS+ volume; frames of a 4-D image are averaged.

    Parameters
    ----------
    path : path-like
        A NIfTI-1 or NIfTI-2 file, ``.nii`` or ``.nii.gz``.
    frame_weights : sequence of float, optional
        Of each frame, as `fusionflow.frames.frame_weights` gives them; by default all are equal.

    Returns
    -------
    Volume

    Raises
    ------
    ImageError
        If the file cannot be read or holds no usable volume, or if there are not as many weights
        as frames.
    """
    path = Path(path)
    nonfinite, lowest, highest = 0, math.inf, -math.inf
    with _saying_what_is_wrong(path), open_file(path) as file:
        _, header = _header_of(path, file)  # before anything is read that takes room
        weights, notes = _checked_weights(path, header, frame_weights)
        orientation = header.orientation
        data = np.empty(orientation.ras_shape, dtype=np.float32, order="F")
        stored = orientation.as_stored(data)
        file.seek(0)
        hashed = _Hashed(file)
        stream, _ = _content(file, io.BufferedReader(hashed, _CHUNK))
        _skip(stream, header.offset)
        # A value beyond float32 becomes infinite, and is counted with those that were.
        with np.errstate(over="ignore", invalid="ignore"):
            for planes, values in _mean_frame(stream, header, weights):
                finite = np.isfinite(values)
                nonfinite += values.size - int(np.count_nonzero(finite))
                lowest = min(lowest, float(values.min(where=finite, initial=np.inf)))
                highest = max(highest, float(values.max(where=finite, initial=-np.inf)))
                values[~finite] = 0
                stored[:, :, planes] = values
        _read_to_end(path, stream, header.data_bytes + _MOST_AFTER)

    if nonfinite == data.size:
        raise ImageError(f"{path} holds no finite value: every voxel is NaN or infinite", AGAIN)
    if nonfinite:
        notes += (f"{nonfinite} of {data.size} voxels held NaN or infinity and were set to 0",)
    if lowest == highest:
        raise ImageError(
            f"{path} is constant: every voxel is {lowest:g}", "Check how it was exported"
        )
    return Volume(
        data=data,
        affine=orientation.ras_affine,
        orientation=orientation,
        sha256=hashed.sha256.hexdigest(),
        nonfinite=nonfinite,
        notes=header.notes + notes,
    )


@contextlib.contextmanager
def _saying_what_is_wrong(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is read into an `ImageError` with a mend."""
    try:
        yield
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ImageError(f"{path} is a link to content that is not here", GET) from error
        raise ImageError(f"{path} is not there", "Check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{path} is truncated or damaged: {error}", AGAIN) from error
    except MemoryError as error:
        raise ImageError(
            f"{path} does not fit in the memory of this machine",
            "Check that its size is meant, and give each worker more memory",
        ) from error
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read: {error.strerror or error}",
            "Check that it is a file that you may read",
        ) from error


class _Hashed(io.RawIOBase):
    """The bytes of a file in their order, hashed as they are read, so that none need be kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        got: int = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.sha256.update(memoryview(buffer)[:got])
        return got


def _content(stored: BinaryIO, stream: BinaryIO | None = None) -> tuple[BinaryIO, bool]:
    """Return a stream of the uncompressed bytes, and whether they were compressed.

    They are read through `stream`, where it is given, which is to be at the start of `stored`.
    """
    magic = stored.read(2)
    stored.seek(0)
    if magic == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=stream or stored, mode="rb"), True  # type: ignore[return-value]
    return stream or stored, False


def _skip(stream: BinaryIO, count: int) -> None:
    """Read on by so many bytes; what is hashed cannot be jumped over."""
    while count > 0 and (got := len(stream.read(min(count, _CHUNK)))):
        count -= got


def _read_to_end(path: Path, stream: BinaryIO, most: int) -> None:
    """Read what follows the voxels, so that gzip checks its checksum, but not without end."""
    while got := len(stream.read(_CHUNK)):
        most -= got
        if most < 0:
            raise ImageError(f"{path} goes on long after its last voxel", AGAIN)


def _checked_weights(
    path: Path, header: ImageHeader, weights: Sequence[float] | None
) -> tuple[list[float], tuple[str, ...]]:
    """Return one weight per frame, and what to note about them."""
    n = header.n_frames
    if weights is None:
        notes = (f"plain mean of {n} frames",) if n > 1 else ()
        return [1 / n] * n, notes
    if len(weights) != n:
        raise ImageError(f"{path} has {n} frames, but {len(weights)} weights are given")
    if not any(weights):
        raise ImageError(f"{path} has {n} frames, and none of them has a weight")
    return list(weights), ()


def _mean_frame(
    stream: BinaryIO, header: ImageHeader, weights: list[float]
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Read the frames and yield their mean, block by block: which planes, and their voxels.

    One frame goes by as it is read; several take the memory of their sum.
    """
    dtype, (rows, columns, depth) = header.dtype, header.shape[:3]
    plain = header.slope == 1 and header.intercept == 0 and np.can_cast(dtype, np.float32)
    used = [number for number, weight in enumerate(weights) if weight]
    total = np.empty((rows, columns, depth) if len(used) > 1 else 0, dtype=np.float64, order="F")
    thick = max(1, _BLOCK // (rows * columns))
    for number, weight in enumerate(weights):
        for k in range(0, depth, thick):
            planes = slice(k, min(k + thick, depth))
            shape = (rows, columns, planes.stop - k)
            block = _array(stream, math.prod(shape), dtype).reshape(shape, order="F")
            if weight == 0:  # even where it holds no number
                continue
            if plain and len(weights) == 1:
                yield planes, block.astype(np.float32)
                continue
            values = block.astype(np.float64)
            values *= header.slope
            values += header.intercept
            values *= weight
            if number != used[0]:
                values += total[:, :, planes]
            if number == used[-1]:
                yield planes, values.astype(np.float32)
            else:
                total[:, :, planes] = values


def _array(stream: BinaryIO, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Read so many numbers; memory is touched only as far as there are bytes to fill it."""
    array = np.empty(count, dtype=dtype)
    room = memoryview(array.view(np.uint8).data)
    done = 0
    while done < len(room):
        got = stream.readinto(room[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not got:
            raise EOFError("it ends before its last voxel")
        done += got
    return array
