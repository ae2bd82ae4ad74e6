"""Pictures of slices, as a reader sees them: front up, the subject's left on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]

_MARGIN = 6
_TEXT = 14
_INK = "#ebebeb"


def shown(
    image: npt.NDArray[Any], pixel_size: tuple[float, float] = (1.0, 1.0), height: int = 220
) -> Image.Image:
    """Return an axial slice as a picture with square pixels.

    Parameters
    ----------
    image : ndarray, (y, x) float or (y, x, 3) uint8
        RAS+ slice; 0 is shown black and 1 white; or in colour.
    pixel_size : tuple of float
        Size of a voxel along (y, x), mm.
    height : int
        Pixels of the picture.
    """
    levels = image if image.dtype == np.uint8 else np.floor(np.clip(image, 0, 1) * 255 + 0.5)
    levels = levels.astype(np.uint8)
    rows, columns = image.shape[:2]
    width = max(1, round(height * columns * pixel_size[1] / (rows * pixel_size[0])))
    picture = Image.fromarray(np.ascontiguousarray(levels[::-1]))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def slices_to_show(mask: npt.NDArray[Any], count: int = 6) -> list[int]:
    """Return axial slices spread over the head, (z, y, x) mask in, slice numbers out."""
    inside = np.flatnonzero(mask.any(axis=(1, 2)))
    first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, len(mask) - 1)
    places = np.linspace(first, last, count + 2)[1:-1]
    return sorted({round(place) for place in places})


class Planes(Protocol):
    """Axial slices by number."""

    def __getitem__(self, place: int, /) -> npt.NDArray[Any]:
        """Return a slice."""
        ...


def mosaic(
    volumes: Mapping[str, Planes],
    slices: Sequence[int],
    title: str,
    voxel_size: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> npt.NDArray[np.uint8]:
    """Return a row of axial slices for each volume.

    Parameters
    ----------
    volumes : mapping of str to Planes
        Name of a row -> its slices by number, (y, x) float, 0 black and 1 white, or (y, x, 3)
        uint8: a volume, or those of one that are shown.
    slices : sequence of int
        Slice numbers, one a column.
    title : str
        Text above the rows.
    voxel_size : tuple of float
        Along (z, y, x), mm.

    Returns
    -------
    ndarray, (y, x, 3) uint8
        Red, green, blue.
    """
    font = ImageFont.load_default(size=_TEXT)
    rows = {
        name: [shown(volume[z], voxel_size[1:]) for z in slices] for name, volume in volumes.items()
    }
    first = next(iter(rows.values()))[0]
    width, height = first.size
    if width > 4 * _TEXT:
        draw = ImageDraw.Draw(first)
        draw.text((3, height // 2), "L", fill=_INK, font=font, anchor="lm")
        draw.text((width - 3, height // 2), "R", fill=_INK, font=font, anchor="rm")
    left = max(int(font.getlength(name)) for name in rows) + 2 * _MARGIN
    top = 2 * (_TEXT + _MARGIN) + _MARGIN
    column_width = max(width, int(font.getlength("slice 0000"))) + _MARGIN
    row_height = height + _MARGIN
    columns = max(left + len(slices) * column_width, int(font.getlength(title)) + 2 * _MARGIN)
    # Text is drawn on small pictures, and only they and the tiles are copied: a worker gives
    # memory back to the system at once, and takes long to get it again.
    head, side = Image.new("L", (columns, top)), Image.new("L", (left, len(rows) * row_height))
    draw = ImageDraw.Draw(head)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    for column, z in enumerate(slices):
        at = (left + column * column_width, _MARGIN * 2 + _TEXT)
        draw.text(at, f"slice {z}", fill=_INK, font=font)
    draw = ImageDraw.Draw(side)
    for row, name in enumerate(rows):
        at = (_MARGIN, row * row_height + height // 2)
        draw.text(at, name, fill=_INK, font=font, anchor="lm")
    canvas = np.zeros((top + len(rows) * row_height, columns, 3), np.uint8)
    _paste(head, canvas[:top])
    _paste(side, canvas[top:, :left])
    for row, tiles in enumerate(rows.values()):
        for column, tile in enumerate(tiles):
            y, x = top + row * row_height, left + column * column_width
            _paste(tile, canvas[y : y + height, x : x + width])
    return canvas


def _paste(picture: Image.Image, place: npt.NDArray[np.uint8]) -> None:
    """Write a picture, grey or in colour, to a place of its size, (y, x, 3)."""
    levels = np.asarray(picture)
    for channel in range(3):  # several times as fast as all of them at once
        place[..., channel] = levels if levels.ndim == 2 else levels[..., channel]
