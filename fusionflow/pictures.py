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
_INK = 235
_PAPER = 0


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
) -> Image.Image:
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
    """
    font = ImageFont.load_default(size=_TEXT)
    rows = {
        name: [shown(volume[z], voxel_size[1:]) for z in slices] for name, volume in volumes.items()
    }
    width, height = next(iter(rows.values()))[0].size
    label_width = max(int(font.getlength(name)) for name in rows) + 2 * _MARGIN
    top = 2 * (_TEXT + _MARGIN) + _MARGIN
    column_width = max(width, int(font.getlength("slice 0000"))) + _MARGIN
    size = (
        max(label_width + len(slices) * column_width, int(font.getlength(title)) + 2 * _MARGIN),
        top + len(rows) * (height + _MARGIN),
    )
    canvas = Image.new("RGB", size, (_PAPER,) * 3)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, fill=(_INK,) * 3, font=font)
    for column, z in enumerate(slices):
        left = label_width + column * column_width
        draw.text((left, _MARGIN * 2 + _TEXT), f"slice {z}", fill=(_INK,) * 3, font=font)
        for row, pictures in enumerate(rows.values()):
            canvas.paste(pictures[column], (left, top + row * (height + _MARGIN)))
    for row, name in enumerate(rows):
        middle = top + row * (height + _MARGIN) + height // 2
        draw.text((_MARGIN, middle), name, fill=(_INK,) * 3, font=font, anchor="lm")
    if width > 4 * _TEXT:
        middle = top + height // 2
        draw.text((label_width + 3, middle), "L", fill=(_INK,) * 3, font=font, anchor="lm")
        draw.text((label_width + width - 3, middle), "R", fill=(_INK,) * 3, font=font, anchor="rm")
    return canvas
