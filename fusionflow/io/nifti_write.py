"""NIfTI out: RAS+ volumes in the orientation of the file that they belong to.

A volume is written slab by slab as it is read from where it lies, so that it need never be in
memory as a whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from isal import igzip

from fusionflow.errors import GridError, StoreError
from fusionflow.io.nifti_header import Orientation, header_like

__all__ = ["Slices", "write_slices", "write_volume"]


class Slices(Protocol):
    """A volume (z, y, x), or (z, y, x, 3) in colour, that gives the slices it is asked for.

    Arrays do, in memory or in a Zarr store.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x), and 3 for colours."""

    def __getitem__(self, where: Any, /) -> Any:  # noqa: ANN401
        """Return a slice by its number, or several as ``[start:stop]``."""


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
    write_slices(path, np.asarray(data_ras).T, like, description=description)


def write_slices(
    path: str | os.PathLike[str],
    slices: Slices,
    like: Orientation,
    *,
    slab: int | None = None,
    description: str = "fusionflow",
) -> None:
    """Write a volume as `write_volume` does, reading it slab by slab in the order of the file.

    Where the planes of the file are not axial slices, all of the volume is held at once.

    Parameters
    ----------
    path : path-like
        As in `write_volume`.
    slices : Slices
        (z, y, x) on the RAS+ grid of ``like``, cast to float32; or (z, y, x, 3) uint8, sRGB, which
        becomes a file of type RGB24.
    like : Orientation
        As in `write_volume`.
    slab : int, optional
        Slices that are read from `slices` at a time, however many are held; by default all.
    description : str
        As in `write_volume`.

    Raises
    ------
    GridError, StoreError
        As `write_volume`.
    """
    path = Path(path)
    colour = len(slices.shape) == 4
    if slices.shape != (*like.ras_shape[::-1], 3)[: 4 if colour else 3]:
        raise GridError(
            f"An array of shape {slices.shape[2::-1] + slices.shape[3:]} cannot be written to "
            f"{path}, whose grid is {like.ras_shape} in RAS+",
            "Write arrays on the grid of the T1w image, (x, y, z) or slices of them (z, y, x)",
        )
    dtype: Any = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")] if colour else "<f4")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with contextlib.ExitStack() as files:
            sink: Any = files.enter_context(temporary.open("wb"))
            if path.name.endswith(".gz"):
                # No file name and no time in the gzip header: the same array, the same bytes.
                sink = files.enter_context(igzip.GzipFile("", "wb", 1, sink, mtime=0))
            sink.write(header_like(like, description, dtype).binaryblock + bytes(4))
            for start, stop in _slabs(like, slab):
                part = _read(slices, start, stop, slab, np.uint8 if colour else dtype)
                if colour:
                    part = np.ascontiguousarray(part).view(dtype)[..., 0]
                stored = like.as_stored(part.T)
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


def _read(
    slices: Slices, start: int, stop: int, thick: int | None, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return slices, read a slab at a time: Zarr holds the files of all that it is asked for."""
    if thick is None or stop - start <= thick:
        return np.asarray(slices[start:stop], dtype=dtype)
    part = np.empty((stop - start, *slices.shape[1:]), dtype=dtype)
    for at in range(start, stop, thick):
        part[at - start : at - start + thick] = slices[at : min(at + thick, stop)]
    return part


def _slabs(like: Orientation, thick: int | None) -> list[tuple[int, int]]:
    """Return (start, stop) along z of what is read at a time, in the order of the file."""
    depth = like.ras_shape[2]
    axis, direction = like.to_ras[2]
    if thick is None or axis != 2:  # a plane of the file crosses all slices
        return [(0, depth)]
    slabs = [(start, min(start + thick, depth)) for start in range(0, depth, thick)]
    return slabs if direction > 0 else slabs[::-1]
