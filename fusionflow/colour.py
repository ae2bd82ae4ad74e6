"""Colour: uptake out of published pseudo-colours, and colour onto what was fused.

Published PET slices are pseudo-coloured. Fusing their luminance and putting the chroma back, as
is usual, darkens the hottest uptake, since luminance rises to yellow and falls again to red and
magenta. Here the table of colours is recognised (:func:`recognise`), the uptake it stands for is
recovered (:func:`uptake`) and fused, and the result is coloured so that hue reads as uptake and
lightness carries the fused image (:func:`colourise`). The usual way is :func:`luminance` and
:func:`with_chroma`.

References
----------
B. Ottosson, "A perceptual color space for image processing", 2020 (Oklab and its matrices).
IEC 61966-2-1 (sRGB). ITU-R BT.601 (luminance and chroma).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates

from fusionflow.errors import ImageError, InputError
from fusionflow.lutfit import fit_table
from fusionflow.luts import (
    TABLES,
    ByteImage,
    ColourTable,
    FloatArray,
    colour_pixels,
    distinct_colours,
    read_table,
)

__all__ = [
    "HEAT",
    "TABLES",
    "ColourTable",
    "Recognition",
    "colourise",
    "fit_table",
    "is_grey",
    "luminance",
    "read_table",
    "recognise",
    "uptake",
    "with_chroma",
]

NEAR: Final = 24.0  # 8-bit units a resampled or compressed colour may lie off its table
EXPLAINED: Final = 0.9  # share of the coloured pixels that must be that near
GREY_SPREAD: Final = 2  # 8-bit levels by which the channels of a grey pixel may differ
LIFT: Final = 0.2  # lightness added to black at full uptake, as a share of the whole range
FADE: Final = 0.12  # uptake below which colour fades to grey
_LIGHTNESS_STEPS: Final = 129
_UPTAKE_STEPS: Final = 257


# --- recognising a table, recovering uptake


@dataclass(frozen=True)
class Recognition:
    """A table that explains an image.

    Parameters
    ----------
    table : ColourTable
        The table whose curve lies nearest to the colours.
    residual : float
        Mean distance of the pixels from the curve, 8-bit sRGB units.
    share : float
        Share of the pixels within 24 units of the curve. For both, pixels of the background (the
        most frequent colour) do not count.
    also : tuple of str
        Names of other tables that explain the image within half a unit as well: an image that
        uses only a part of a table can fit several.
    """

    table: ColourTable
    residual: float
    share: float
    also: tuple[str, ...] = ()


def is_grey(rgb: ByteImage) -> bool:
    """Tell whether an image, (y, x, 3) or (y, x) and uint8, holds no colour.

    >>> is_grey(np.full((4, 4, 3), 90, np.uint8))
    True
    """
    rgb = np.asarray(rgb)
    if rgb.ndim == 2 or rgb.shape[-1] == 1:
        return True
    channels = rgb[..., :3].astype(np.int16)
    return bool((channels.max(axis=-1) - channels.min(axis=-1)).max(initial=0) <= GREY_SPREAD)


def recognise(rgb: ByteImage, tables: Iterable[ColourTable] | None = None) -> Recognition:
    """Find the table that an image was pseudo-coloured with.

    Parameters
    ----------
    rgb : ndarray, (..., 3), uint8
        One image, or several of one table stacked: the more of its colours are seen, the surer.
    tables : iterable of ColourTable, optional
        The tables to choose from, all of :data:`TABLES` unless given.

    Raises
    ------
    InputError
        No table comes near enough; it says which is nearest, and how far that is.
    ImageError
        No 8-bit colour image.
    """
    candidates = list(TABLES.values() if tables is None else tables)
    if not candidates:
        raise InputError("No colour tables to choose from")
    colours, _, counts = distinct_colours(rgb)
    if is_grey(rgb):
        grey = [table for table in candidates if is_grey(_bytes(table.colours))]
        if grey:
            return Recognition(grey[0], 0.0, 1.0)
    off_background = np.linalg.norm(colours - colours[counts.argmax()], axis=1) > NEAR / 2
    weights = np.where(off_background, counts, 0) if off_background.any() else counts
    found: list[Recognition] = []
    for table in candidates:
        _, distances = table.nearest(colours)
        residual = float(np.average(distances, weights=weights))
        share = float(np.average(distances <= NEAR, weights=weights))
        found.append(Recognition(table, residual, share))
    best = min(found, key=lambda fit: fit.residual)
    if best.share < EXPLAINED:
        raise InputError(
            f"No known colour table explains the image: {best.table.name} is nearest, with "
            f"{best.share:.0%} of the coloured pixels within {NEAR:.0f} of 255 of it "
            f"({best.residual:.0f} on average; {EXPLAINED:.0%} are needed)",
            "Use --colour luminance, or give its table with --lut FILE",
        )
    also = tuple(
        fit.table.name
        for fit in found
        if fit is not best and fit.share >= EXPLAINED and fit.residual <= best.residual + 0.5
    )
    return Recognition(best.table, best.residual, best.share, also)


def uptake(rgb: ByteImage, table: ColourTable) -> NDArray[np.float32]:
    """Recover the uptake that pseudo-colours stand for.

    Each pixel gets the level of the nearest point, in sRGB, on the curve of straight lines through
    the table. Colours of the table give their level exactly. Of a resampled image most pixels lie
    on the curve or, where it bends, beside it; an edge so sharp that one pixel blends colours far
    apart along the curve can give any level.

    Parameters
    ----------
    rgb : ndarray, (y, x, 3), uint8
    table : ColourTable

    Returns
    -------
    ndarray, (y, x), float32
        0 at the first level of the table and 1 at the last.

    >>> table = TABLES["harvard-pet"]
    >>> uptake(np.array([[[0, 0, 0], [255, 255, 0], [255, 0, 255]]], np.uint8), table) * 127
    array([[  0.,  63., 127.]], dtype=float32)
    """
    colours, inverse, _ = distinct_colours(rgb)
    levels, _ = table.nearest(colours)
    return levels[inverse].reshape(np.shape(rgb)[:-1]).astype(np.float32)


# --- the published convention


def luminance(rgb: ByteImage) -> NDArray[np.float32]:
    """Return the luminance of an image, (y, x) and 0..1: ITU-R BT.601, rounded to 8 bits.

    Parameters
    ----------
    rgb : ndarray, (y, x, 3), uint8
    """
    return np.asarray(_picture(rgb).convert("L"), np.float32) / np.float32(255)


def with_chroma(fused: NDArray[np.floating[Any]], rgb: ByteImage) -> ByteImage:
    """Put the chroma of an image onto a fused luminance: the published convention.

    Cb and Cr (BT.601) stay as they are and Y is replaced, so colours that do not exist are cut to
    the nearest byte, and the hottest uptake of a table that ends in red is dark.

    Parameters
    ----------
    fused : ndarray, (y, x)
        0..1; what is beyond is cut.
    rgb : ndarray, (y, x, 3), uint8

    Returns
    -------
    ndarray, (y, x, 3), uint8
    """
    ycc = np.array(_picture(rgb).convert("YCbCr"))
    ycc[..., 0] = _bytes(_unit("fused", fused, ycc.shape[:2]))
    return np.asarray(Image.fromarray(ycc, mode="YCbCr").convert("RGB"))


# --- colour that reads as uptake


def colourise(
    fused: NDArray[np.floating[Any]],
    uptake: NDArray[np.floating[Any]],
    table: ColourTable | None = None,
    *,
    lift: float = LIFT,
) -> ByteImage:
    r"""Colour a fused image by its uptake: hue is uptake, lightness is the fused image.

    In Oklab, the lightness is that of the fused image as a grey, :math:`L_f`, raised with uptake u
    to :math:`L = L_f + \lambda u (1 - L_f)`, so that it grows with both and is never lower for
    more uptake; hue and chroma are those of the table at u, chroma reduced to what the display can
    show at that lightness. Where there is no uptake the result is the fused image in grey.

    Parameters
    ----------
    fused : ndarray, (y, x)
        0..1; what is beyond is cut.
    uptake : ndarray, (y, x)
        0..1; what is beyond is cut.
    table : ColourTable, optional
        Where hue and chroma come from; :data:`HEAT` unless given. Its lightness is not used.
    lift : float
        :math:`\lambda`, 0..1: how much uptake brightens. With 0 lightness is the fused image's.

    Returns
    -------
    ndarray, (y, x, 3), uint8

    Raises
    ------
    InputError
        Shapes that differ, values that are not finite, or a lift outside 0..1.
    """
    if not 0 <= lift <= 1:
        raise InputError(f"lift is {lift}, not a number from 0 to 1")
    grey = _unit("fused", fused, np.shape(fused))
    level = _unit("uptake", uptake, grey.shape)
    return _bytes(_coloured(grey, level, HEAT if table is None else table, lift))


def _coloured(fused: FloatArray, uptake: FloatArray, table: ColourTable, lift: float) -> FloatArray:
    """Return sRGB, not cut to 0..1."""
    light = np.cbrt(_linear(fused))
    light += lift * uptake * (1 - light)
    plane = _plane(table)
    places = np.stack([uptake * (_UPTAKE_STEPS - 1), light * (_LIGHTNESS_STEPS - 1)])
    room = map_coordinates(_room(table), places, order=1, mode="nearest")
    a, b = (
        map_coordinates(plane[:, axis], places[:1], order=1, mode="nearest") for axis in range(2)
    )
    return _srgb(np.stack([light, a * room, b * room], axis=-1))


@lru_cache(maxsize=16)
def _plane(table: ColourTable) -> FloatArray:
    """Return Oklab's a and b of a table, (uptake, 2), fading to grey at no uptake."""
    levels = np.linspace(0, 1, _UPTAKE_STEPS)
    plane = _oklab(table.colour_at(levels))[:, 1:]
    faded = np.clip(levels / FADE, 0, 1)
    return plane * (faded * faded * (3 - 2 * faded))[:, None]


@lru_cache(maxsize=16)
def _room(table: ColourTable) -> FloatArray:
    """Return the share of a table's chroma that fits into sRGB, (uptake, lightness)."""
    plane = _plane(table)[:, None, :]
    light = np.broadcast_to(
        np.linspace(0, 1, _LIGHTNESS_STEPS)[None, :, None], (len(plane), _LIGHTNESS_STEPS, 1)
    )
    low, high = np.zeros(light.shape), np.ones(light.shape)
    for _ in range(16):
        middle = (low + high) / 2
        colour = _srgb(np.concatenate([light, plane * middle], axis=-1))
        fits = ((colour >= -1e-3) & (colour <= 1.001)).all(axis=-1, keepdims=True)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return low[..., 0]


_LMS: Final = np.array(  # linear sRGB -> cone responses
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB: Final = np.array(  # their cube roots -> Oklab
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_FROM_LMS: Final = np.linalg.inv(_LMS)
_FROM_LAB: Final = np.linalg.inv(_LAB)


def _linear(srgb: FloatArray) -> FloatArray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)


def _oklab(srgb: FloatArray) -> FloatArray:
    return np.cbrt(_linear(srgb) @ _LMS.T) @ _LAB.T


def _srgb(oklab: FloatArray) -> FloatArray:
    linear = (oklab @ _FROM_LAB.T) ** 3 @ _FROM_LMS.T
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, curved)


def _heat() -> ColourTable:
    """Return the hues of warming: blue, violet, red, orange, yellow, ever lighter."""
    # uptake, Oklab lightness, chroma, hue in degrees
    knots = np.array(
        [
            (0.00, 0.25, 0.00, 255),
            (0.15, 0.45, 0.14, 258),
            (0.30, 0.50, 0.14, 290),
            (0.42, 0.56, 0.15, 345),
            (0.52, 0.62, 0.17, 385),
            (0.64, 0.70, 0.16, 413),
            (0.76, 0.80, 0.16, 438),
            (0.88, 0.90, 0.17, 462),
            (1.00, 0.97, 0.17, 472),
        ]
    )
    levels = np.linspace(0, 1, 256)
    light, chroma, hue = (np.interp(levels, knots[:, 0], knots[:, k]) for k in (1, 2, 3))
    angle = np.deg2rad(hue)
    lab = np.stack([light, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    return ColourTable("heat", np.round(np.clip(_srgb(lab), 0, 1) * 255) / 255)


HEAT: Final = _heat()


# --- checks and conversions


def _bytes(values: FloatArray) -> ByteImage:
    return np.floor(np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def _picture(rgb: ByteImage) -> Image.Image:
    if np.ndim(rgb) != 3:
        raise ImageError(f"An image of shape {np.shape(rgb)} is no (y, x, 3)")
    return Image.fromarray(np.ascontiguousarray(colour_pixels(rgb).reshape(np.shape(rgb))))


def _unit(what: str, image: NDArray[Any], shape: tuple[int, ...]) -> FloatArray:
    """Return an image as float64 cut to 0..1, or refuse it."""
    values = np.asarray(image, np.float64)
    if values.ndim != 2 or values.shape != shape:
        raise InputError(f"{what} has shape {values.shape}, not {shape}, or is no (y, x) image")
    if not np.isfinite(values).all():
        raise InputError(f"{what} holds values that are not finite")
    return np.clip(values, 0, 1)
