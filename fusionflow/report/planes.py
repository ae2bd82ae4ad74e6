"""What a report shows of a volume: slices in three planes and a smaller copy, 8 bit.

Both come of one pass over the slabs of the volume, which is never held whole.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusionflow.io.nifti_write import Slices

Levels: TypeAlias = npt.NDArray[np.uint8]
Range: TypeAlias = tuple[int, int]

_MOST_SLICES = 40  # of a plane
_LEAST_SLICES = 16
_MOST_PIXELS = 1_600_000  # of all slices of a plane
_MOST_SIDE = 512  # pixels of a slice
_MOST_VOXELS = 128  # of the smaller copy, along an axis
_QUALITY = 75


@dataclass(frozen=True)
class Plane:
    """A plane that slices lie in.

    Attributes
    ----------
    name : str
        ``axial``, ``coronal`` or ``sagittal``.
    axis : int
        Axis of (z, y, x) that it is across.
    left, right : str
        What is on the left and the right side of its slices.
    """

    name: str
    axis: int
    left: str
    right: str


#: Front up, or top up; the subject's left on the left, or the front on the right.
PLANES = (
    Plane("axial", 0, "L", "R"),
    Plane("coronal", 1, "L", "R"),
    Plane("sagittal", 2, "back", "front"),
)


@dataclass(frozen=True)
class Choice:
    """What is shown of the volumes of a scan.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x) of the volumes.
    places : tuple of range
        Slice numbers along each axis of (z, y, x).
    block : tuple of int
        Voxels along (z, y, x) that become one of the smaller copy.
    """

    shape: tuple[int, int, int]
    places: tuple[range, range, range]
    block: tuple[int, int, int]

    @classmethod
    def of_head(cls, shape: tuple[int, int, int], box: tuple[Range, Range, Range]) -> Choice:
        """Choose every n-th slice of the head, and the size of the smaller copy.

        Parameters
        ----------
        shape : tuple of int
            (z, y, x).
        box : tuple of (first, last)
            Where the head is along each axis.

        Examples
        --------
        >>> choice = Choice.of_head((256, 256, 256), ((3, 250), (20, 240), (40, 215)))
        >>> choice.places[0], choice.block
        (range(5, 251, 11), (2, 2, 2))
        """
        places = []
        for axis, (first, last) in enumerate(box):
            pixels = int(np.prod(shape)) // shape[axis]
            most = max(_LEAST_SLICES, min(_MOST_SLICES, _MOST_PIXELS // pixels))
            count = last - first + 1
            step = -(-count // most)
            places.append(range(first + (count - 1) % step // 2, last + 1, step))
        block = [-(-length // _MOST_VOXELS) for length in shape]
        return cls(shape, (places[0], places[1], places[2]), (block[0], block[1], block[2]))

    @property
    def middle(self) -> tuple[int, int, int]:
        """Which of the places of each axis is in the middle."""
        z, y, x = (len(places) // 2 for places in self.places)
        return z, y, x


@dataclass(frozen=True, eq=False)
class Shown:
    """What is shown of a volume.

    Attributes
    ----------
    slices : mapping of str to ndarray, (slice, rows, columns) uint8
        By the name of the plane, as a reader sees them: the top row first.
    small : ndarray, (z', y', x') uint8
        Means of blocks.
    """

    slices: Mapping[str, Levels]
    small: Levels


def head_box(mask: Slices, slab: int) -> tuple[Range, Range, Range]:
    """Return the first and last slice of the head along each axis; of the frame if it is empty.

    Parameters
    ----------
    mask : Slices
        (z, y, x), 1 inside the head.
    slab : int
        Slices of it that are read at a time.
    """
    hits = [np.zeros(length, bool) for length in mask.shape]
    for start in range(0, mask.shape[0], slab):
        rows = mask[start : start + slab] != 0
        hits[0][start : start + len(rows)] = rows.any(axis=(1, 2))
        hits[1] |= rows.any(axis=(0, 2))
        hits[2] |= rows.any(axis=(0, 1))
    inside = [np.flatnonzero(hit) for hit in hits]
    z, y, x = (
        (int(at[0]), int(at[-1])) if len(at) else (0, len(hit) - 1)
        for at, hit in zip(inside, hits, strict=True)
    )
    return z, y, x


def look(volume: Slices, choice: Choice, slab: int) -> Shown:
    """Read a volume once, and return what is shown of it.

    Parameters
    ----------
    volume : Slices
        (z, y, x) float; 0 is shown black and 1 white, what is beyond is cut.
    choice : Choice
        Of its shape.
    slab : int
        Slices that are held at a time.
    """
    depth, height, width = choice.shape
    axial, coronal, sagittal = choice.places
    of_z = np.empty((len(axial), height, width), np.uint8)
    of_y = np.empty((depth, len(coronal), width), np.uint8)
    of_x = np.empty((depth, height, len(sagittal)), np.uint8)
    sums = np.zeros([-(-n // b) for n, b in zip(choice.shape, choice.block, strict=True)], "f4")
    for start in range(0, depth, slab):
        for z, image in enumerate(volume[start : start + slab], start):
            shown = levels(image)
            if z in axial:
                of_z[axial.index(z)] = shown
            of_y[z] = shown[coronal]
            of_x[z] = shown[:, sagittal]
            sums[z // choice.block[0]] += _sums(np.clip(image, 0, 1), choice.block[1:])
    counts = [
        np.minimum(b, n - np.arange(0, n, b))
        for n, b in zip(choice.shape, choice.block, strict=True)
    ]
    sums /= np.einsum("z,y,x->zyx", *counts)
    slices = {"axial": of_z, "coronal": of_y.swapaxes(0, 1), "sagittal": of_x.transpose(2, 0, 1)}
    seen = {name: _halved(found[:, ::-1]) for name, found in slices.items()}
    return Shown(seen, levels(sums))


def levels(image: npt.NDArray[np.floating[Any]]) -> Levels:
    """Return 0 to 1 as 0 to 255, what is beyond cut."""
    return np.floor(np.clip(image, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _sums(image: npt.NDArray[np.floating[Any]], block: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the sums over blocks of a slice, (y', x'); the last blocks may be smaller."""
    for axis, length in enumerate(block):
        if length > 1:
            image = np.add.reduceat(image, range(0, image.shape[axis], length), axis=axis)
    return image


def _halved(slices: Levels) -> Levels:
    """Return slices of at most so many pixels a side: means of blocks of larger ones."""
    by = -(-max(slices.shape[1:]) // _MOST_SIDE)
    if by == 1:
        return slices
    count = [np.diff([*range(0, n, by), n]) for n in slices.shape[1:]]
    area = np.outer(*count)
    means = [_sums(image.astype(np.float32), (by, by)) / area + 0.5 for image in slices]
    return np.array(means).astype(np.uint8)


def webp(picture: Levels) -> bytes:
    """Return a picture, (rows, columns) or (rows, columns, 3) uint8, as a small WebP."""
    content = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.save(content, "WEBP", quality=_QUALITY, method=4)
    return content.getvalue()


def png(picture: Levels, palette: Levels | None = None) -> bytes:
    """Return a picture, (rows, columns) or (rows, columns, 3) uint8, as a PNG.

    With a palette, (level, 3) uint8, levels are places in it.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    if palette is not None:
        image.putpalette(palette.tobytes())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()
