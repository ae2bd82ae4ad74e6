"""NIfTI in and out: RAS+ arrays inside, the file's own orientation outside.

Images are read to the closest RAS+ orientation by flips and permutations only, so that every voxel
keeps its value, and are written back in the orientation of the file they belong to. Everything that
is wrong with a file is an `ImageError` that names the file and the mend.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, ornt_transform

from fusionflow.errors import GridError, ImageError, StoreError
from fusionflow.io.nifti_header import (
    AGAIN,
    GET,
    HEADER_BYTES,
    Affine,
    ImageHeader,
    Orientation,
    header_like,
    parse_header,
)
from fusionflow.untrusted import open_file

__all__ = [
    "Affine",
    "ImageHeader",
    "Orientation",
    "Volume",
    "read_header",
    "read_volume",
    "write_rgb",
    "write_volume",
]

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 22
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
    with _saying_what_is_wrong(path), open_file(path) as file:
        stream, header = _header_of(path, file)  # before anything is read that takes room
        weights, notes = _checked_weights(path, header, frame_weights)
        file.seek(0)
        stored = file.read()
        stream, _ = _content(io.BytesIO(stored))
        stream.seek(header.offset)
        values = _mean_frame(stream, header, weights)
        _read_to_end(path, stream, header.data_bytes + _MOST_AFTER)

    finite = np.isfinite(values)
    nonfinite = values.size - int(np.count_nonzero(finite))
    if nonfinite == values.size:
        raise ImageError(f"{path} holds no finite value: every voxel is NaN or infinite", AGAIN)
    if nonfinite:
        notes += (f"{nonfinite} of {values.size} voxels held NaN or infinity and were set to 0",)
    lowest = values.min(where=finite, initial=np.inf)
    highest = values.max(where=finite, initial=-np.inf)
    if lowest == highest:
        raise ImageError(
            f"{path} is constant: every voxel is {lowest:g}", "Check how it was exported"
        )
    values[~finite] = 0

    orientation = header.orientation
    return Volume(
        data=np.asfortranarray(apply_orientation(values, orientation.to_ras)),
        affine=orientation.ras_affine,
        orientation=orientation,
        sha256=hashlib.sha256(stored).hexdigest(),
        nonfinite=nonfinite,
        notes=header.notes + notes,
    )


def write_volume(
    path: str | os.PathLike[str],
    data_ras: npt.ArrayLike,
    like: Orientation,
    *,
    description: str = "fusionflow",
) -> None:
    """Write a RAS+ array as NIfTI-1 in the layout of a file on disk.

    The file is float32 with ``like``'s shape, affine, qform, sform and codes, so that every viewer
    lays it over that file. Where both codes are 0 the affine becomes an sform with code 2
    (aligned). The same array gives the same bytes. The file appears whole or not at all.

    Parameters
    ----------
    path : path-like
        Where to write; gzip-compressed if the name ends in ``.gz``.
    data_ras : array-like, (x, y, z)
        Values on the RAS+ grid of ``like``; cast to float32.
    like : Orientation
        The layout to write, mostly ``read_volume(t1w).orientation``.
    description : str
        Text for the header's ``descrip``, at most 79 ASCII characters.

    Raises
    ------
    GridError
        If the array does not have the shape of ``like`` in RAS+.
    StoreError
        If the file cannot be written.
    """
    data = np.asarray(data_ras, dtype="<f4")
    if data.shape != like.ras_shape:
        raise GridError(
            f"An array of shape {data.shape} cannot be written to {path}, "
            f"whose grid is {like.ras_shape} in RAS+",
            "Write arrays in (x, y, z) order, on the grid of the T1w image",
        )
    _write(Path(path), data, like, header_like(like, description))


def write_rgb(path: str | os.PathLike[str], data_ras: npt.ArrayLike, like: Orientation) -> None:
    """Write colours as NIfTI-1 of type RGB24, in the layout of a file on disk.

    Parameters
    ----------
    path : path-like
        As in `write_volume`.
    data_ras : array-like, (x, y, z, 3) uint8
        sRGB on the RAS+ grid of ``like``.
    like : Orientation
        As in `write_volume`.

    Raises
    ------
    GridError, StoreError
        As `write_volume`.
    """
    colours = np.ascontiguousarray(data_ras, dtype=np.uint8)
    if colours.shape != (*like.ras_shape, 3):
        raise GridError(f"Colours of shape {colours.shape} cannot be written to {path}")
    data = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    _write(Path(path), data, like, header_like(like, "PET on MRI", data.dtype))


def _write(path: Path, data: npt.NDArray[Any], like: Orientation, header: Any) -> None:  # noqa: ANN401
    """Write a RAS+ array behind a header, whole or not at all."""
    stored = apply_orientation(data, ornt_transform(_RAS, like.to_ras))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with contextlib.ExitStack() as files:
            sink: Any = files.enter_context(temporary.open("wb"))
            if path.name.endswith(".gz"):
                # No file name and no time in the gzip header: the same array, the same bytes.
                sink = files.enter_context(gzip.GzipFile("", "wb", 1, sink, mtime=0))
            sink.write(header.binaryblock + bytes(4))
            for k in range(stored.shape[2]):
                sink.write(stored[:, :, k].tobytes(order="F"))
        temporary.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}",
            "Check that the folder exists, is yours to write and has room",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


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


def _content(stored: BinaryIO) -> tuple[BinaryIO, bool]:
    """Return a stream of the uncompressed bytes, and whether they were compressed."""
    magic = stored.read(2)
    stored.seek(0)
    if magic == _GZIP_MAGIC:
        return gzip.GzipFile(fileobj=stored, mode="rb"), True  # type: ignore[return-value]
    return stored, False


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
    return list(weights), ()


def _mean_frame(
    stream: BinaryIO, header: ImageHeader, weights: list[float]
) -> npt.NDArray[np.float32]:
    """Read frame after frame, so that memory holds one of them, and average."""
    shape, dtype = header.shape[:3], header.dtype
    plain = header.slope == 1 and header.intercept == 0 and np.can_cast(dtype, np.float32)
    total: npt.NDArray[Any] | None = None
    # A value beyond float32 becomes infinite, and is counted with those that were.
    with np.errstate(over="ignore", invalid="ignore"):
        for weight in weights:
            frame = _array(stream, math.prod(shape), dtype).reshape(shape, order="F")
            if weight == 0:  # even where it holds no number
                continue
            if plain and len(weights) == 1:
                return frame.astype(np.float32)
            values = frame.astype(np.float64)
            values *= header.slope
            values += header.intercept
            values *= weight
            total = values if total is None else total + values
        return np.asarray(total).astype(np.float32)


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
