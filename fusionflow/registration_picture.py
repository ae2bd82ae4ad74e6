"""How a registration looks: the outlines of the PET over the MRI, before and after, with words."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fusionflow.alignment import Alignment
from fusionflow.io.nifti import Affine, Volume

__all__ = ["contours", "picture_of"]

_LEVELS = (0.25, 0.6)  # of the PET's 99.5th percentile
_GREY_PERCENTILES = (0.5, 99.5)
_LOOK_AT = 1_000_000  # voxels, for percentiles
_BEFORE, _AFTER = (255, 96, 64), (64, 224, 96)
_PLANES = (
    (("L", "axial", "R"), 0, 1),
    (("L", "coronal", "R"), 0, 2),
    (("back", "sagittal", "front"), 1, 2),
)

_MARGIN = 4
_TEXT = 14
_LINE = _TEXT + _MARGIN
_INK, _MARK = (235, 235, 235), (150, 150, 150)
_WIDTH = 560  # of the words, at least
_SHADES, _TONES = 64, 32


def contours(
    pet: Volume,
    mri: Volume,
    matrix: npt.ArrayLike,
    mask: npt.NDArray[np.uint8] | None = None,
    height: int = 260,
) -> Image.Image:
    """Draw the outlines of a PET over the MRI, before and after it is moved.

    Parameters
    ----------
    pet, mri : Volume
    matrix : array-like, (4, 4)
        World mm of the PET -> world mm of the MRI.
    mask : ndarray, (z, y, x) uint8, optional
        1 within the head, whose middle is shown; by default the middle of the frame.
    height : int
        Pixels of each plane, the shared scale being set by the longest axis.

    Returns
    -------
    PIL.Image.Image
        RGB. Above, red: as the header has it; below, green: moved; each half of the height. From
        left to right: axial (front up), coronal and sagittal (top up, front right); the subject's
        left is on the left. Lines are where the PET is 25 % and 60 % of its 99.5th percentile.
    """
    shape = mri.data.shape
    sizes = np.linalg.norm(mri.affine[:3, :3], axis=0)
    where = None if mask is None or not mask.any() else mask.T > 0
    middle = [n // 2 for n in shape] if where is None else _middle(where)
    black, white = _window(mri.data, where)
    full = _full(pet.data)
    scale = height / float(np.max(np.multiply(shape, sizes)))
    rows: list[list[npt.NDArray[np.uint8]]] = [[], []]
    for words, across, up in _PLANES:
        at = _plane(shape, middle, sizes, (across, up), scale)
        grey = ndimage.map_coordinates(mri.data, at, order=1, mode="nearest")
        plain = np.repeat(_levels((grey - black) / (white - black))[..., None], 3, axis=2)
        titled = np.asarray(_titled(_padded(plain, height), words))
        for row, ink, move in zip(
            rows, (_BEFORE, _AFTER), (np.eye(4), np.asarray(matrix, np.float64)), strict=True
        ):
            outline = _padded(_outline(pet, move, mri.affine, at, full), height)
            outline = np.pad(outline, ((_LINE, 0), (0, 0)))
            row.append(np.where(outline[..., None], np.array(ink, np.uint8), titled))
    return Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))


def picture_of(outlines: Image.Image, alignment: Alignment, label: str) -> bytes:
    """Return the outlines with words, as a PNG: the same bytes for the same input.

    Parameters
    ----------
    outlines : PIL.Image.Image
        As `contours` draws them.
    alignment : Alignment
        What was made of the registration, with its figures.
    label : str
        Scan.
    """
    found: dict[str, Any] = alignment.registration or {}
    look = "LOOK AT THE ALIGNMENT. " if alignment.flagged else ""
    used = "as registered (below)" if alignment.mode == "rigid" else "as the header has it (above)"
    width = max(outlines.width, _WIDTH)
    half = outlines.height // 2
    parts: list[tuple[list[str], tuple[int, int, int], int | None]] = [
        (
            [
                label,
                *_wrapped(f"{look}Used: {used}; {alignment.reason}", width),
                f"Lines: PET at {_LEVELS[0]:.0%} and {_LEVELS[1]:.0%} of its 99.5th percentile, "
                "on the MRI",
            ],
            _INK,
            None,
        ),
        (
            _wrapped(
                f"As the header has it: mutual information {found['metric_before']:.3f} nats, "
                f"{found['overlap_before']:.0%} of the head in the PET",
                width,
            ),
            _BEFORE,
            0,
        ),
        (
            _wrapped(
                f"As registered: moved by {found['displacement_mm']:.1f} mm on average, turned by "
                f"{found['rotation_deg']:.1f} degrees; mutual information "
                f"{found['metric_after']:.3f} nats, {found['overlap']:.0%} of the head in the PET",
                width,
            ),
            _AFTER,
            half,
        ),
    ]
    words = sum(len(lines) for lines, _, _ in parts)
    canvas = Image.new("RGB", (width, outlines.height + words * _LINE + 4 * _MARGIN))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=_TEXT)
    top = _MARGIN
    for lines, ink, row in parts:
        for line in lines:
            draw.text((_MARGIN, top), line, fill=ink, font=font)
            top += _LINE
        if row is not None:
            canvas.paste(outlines.crop((0, row, outlines.width, row + half)), (0, top))
            top += half
        top += _MARGIN
    packed = io.BytesIO()
    _small(canvas).save(packed, "PNG")
    return packed.getvalue()


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines that fit."""
    font = ImageFont.load_default(size=_TEXT)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _middle(where: npt.NDArray[np.bool_]) -> list[int]:
    """Return the voxel nearest to the centre of mass of a mask."""
    middle = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        count = where.sum(axis=others)
        middle.append(round(float((count * np.arange(count.size)).sum() / count.sum())))
    return middle


def _window(
    data: npt.NDArray[np.float32], where: npt.NDArray[np.bool_] | None
) -> tuple[float, float]:
    """Return what is shown black, of the frame, and what white, of the head."""
    some = _some(data)
    inside = some if where is None else some[_some(where)]
    black = float(np.percentile(some, _GREY_PERCENTILES[0]))
    white = float(np.percentile(inside if inside.size else some, _GREY_PERCENTILES[1]))
    return black, white if white > black else black + 1


def _full(data: npt.NDArray[np.float32]) -> float:
    """Return the 99.5th percentile of what is above 0."""
    some = _some(data)
    seen = some[some > 0]
    return float(np.percentile(seen, _GREY_PERCENTILES[1])) if seen.size else 1.0


def _some(data: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return every voxel, or every second, third ... along each axis, about a million."""
    step = max(1, int(np.ceil((data.size / _LOOK_AT) ** (1 / 3))))
    return data[::step, ::step, ::step]


def _plane(
    shape: tuple[int, ...],
    middle: list[int],
    sizes: npt.NDArray[np.float64],
    axes: tuple[int, int],
    scale: float,
) -> Affine:
    """Return the voxel coordinates (3, rows, columns) of a picture of a plane, top row first."""
    across, up = axes
    columns = max(1, round(shape[across] * sizes[across] * scale))
    rows = max(1, round(shape[up] * sizes[up] * scale))
    at = np.empty((3, rows, columns))
    at[:] = np.reshape(middle, (3, 1, 1))
    at[across] = np.linspace(0, shape[across] - 1, columns)
    at[up] = np.linspace(shape[up] - 1, 0, rows)[:, None]
    return at


def _outline(
    pet: Volume, move: Affine, of_mri: Affine, at: Affine, full: float
) -> npt.NDArray[np.bool_]:
    """Return the lines of a PET in a plane, (rows, columns)."""
    to_pet = np.linalg.inv(move @ pet.affine) @ of_mri
    there = np.tensordot(to_pet[:3, :3], at, axes=1) + to_pet[:3, 3, None, None]
    uptake = ndimage.gaussian_filter(
        ndimage.map_coordinates(pet.data, there, order=1, mode="constant"), 1.0
    )
    lines = np.zeros(uptake.shape, bool)
    for level in _LEVELS:
        inside = uptake > level * full
        lines |= inside & ~ndimage.binary_erosion(inside)
    return lines


def _levels(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return 0 to 1 as 0 to 255."""
    return np.asarray(np.clip(grey, 0, 1) * 255 + 0.5, dtype=np.uint8)


def _padded(picture: npt.NDArray[Any], height: int) -> npt.NDArray[Any]:
    """Return a picture of a given height, with a margin around it."""
    spare = height - picture.shape[0]
    edges = [(_MARGIN + spare // 2, _MARGIN + spare - spare // 2), (_MARGIN, _MARGIN)]
    return np.pad(picture, edges + [(0, 0)] * (picture.ndim - 2))


def _titled(picture: npt.NDArray[np.uint8], words: tuple[str, str, str]) -> Image.Image:
    """Return a plane below a line that names its left side, itself and its right side."""
    rows, columns = picture.shape[:2]
    image = Image.new("RGB", (columns, rows + _LINE))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_TEXT)
    places = ((_MARGIN, "la"), (columns // 2, "ma"), (columns - _MARGIN, "ra"))
    for word, (x, anchor) in zip(words, places, strict=True):
        if columns > _WIDTH // 4 or anchor == "ma":
            draw.text((x, 0), word, fill=_MARK, font=font, anchor=anchor)
    image.paste(Image.fromarray(picture), (0, _LINE))
    return image


def _small(canvas: Image.Image) -> Image.Image:
    """Return a picture of grey and the two inks by a palette: a byte a pixel, fewer greys."""
    pixels = np.asarray(canvas).astype(np.intp)
    grey = (pixels[..., :1] == pixels).all(axis=-1)
    of_ink = [pixels.max(axis=-1) * (_TONES - 1) // max(ink) for ink in (_BEFORE, _AFTER)]
    reddish = pixels[..., 0] > pixels[..., 1]
    levels = np.where(reddish, _SHADES + of_ink[0], _SHADES + _TONES + of_ink[1])
    levels = np.where(grey, (pixels[..., 0] * (_SHADES - 1) + 127) // 255, levels)
    shades = np.repeat(np.linspace(0, 255, _SHADES)[:, None], 3, axis=1)
    tones = [np.linspace(0, 1, _TONES)[:, None] * ink for ink in (_BEFORE, _AFTER)]
    small = Image.fromarray(levels.astype(np.uint8), "P")
    small.putpalette(np.rint(np.concatenate([shades, *tones])).astype(np.uint8).tobytes())
    return small
