"""Tables of pseudo-colours: the ones known by name, and one read from a file.

The known tables are kept as knots between which each channel is a straight line. The two of the
Whole Brain Atlas (Harvard AANLIB) were measured from its published slices and give those colours
exactly. `jet`, `hot`, `nipy-spectral` are defined by knots. `viridis` and its relatives are
smooth; their knots come within one 8-bit level of each channel (their makers, N. Smith and S. van
der Walt for four of them, J. Nunez et al. for cividis and A. Mikhailov for turbo, gave the colours
away freely).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from fusionflow.errors import ImageError, InputError
from fusionflow.untrusted import one_line, read_bounded

__all__ = ["TABLES", "ColourTable", "colour_pixels", "distinct_colours", "read_table"]

FloatArray: TypeAlias = NDArray[np.float64]
ByteImage: TypeAlias = NDArray[np.uint8]
Knots: TypeAlias = Sequence[tuple[float, float]]

CURVE_POINTS: Final = 8192  # how finely the curve through a table is searched
_MOST_BYTES: Final = 1 << 20  # of a file with a table


@dataclass(frozen=True, eq=False)
class ColourTable:
    """Colours in the order of what they stand for.

    Parameters
    ----------
    name : str
        What it is called by.
    colours : ndarray, (n, 3), float64
        sRGB, 0..1; row k stands for the level k / (n - 1).

    Raises
    ------
    InputError
        Not two or more rows of three values 0..1.
    """

    name: str
    colours: FloatArray = field(repr=False)
    _curve: tuple[cKDTree, FloatArray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the colours, and index the curve through them."""
        colours = np.array(self.colours, np.float64)
        if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) < 2:
            raise InputError(
                f"colour table {self.name} has shape {colours.shape}",
                "Give two or more rows of red, green and blue",
            )
        if not (colours.min() >= 0 and colours.max() <= 1):  # NaN fails as well
            raise InputError(f"colour table {self.name} holds values outside 0..1")
        colours.setflags(write=False)
        object.__setattr__(self, "colours", colours)
        steps = len(colours) - 1
        levels = np.linspace(0, 1, steps * -(-CURVE_POINTS // steps) + 1)
        object.__setattr__(self, "_curve", (cKDTree(self.colour_at(levels) * 255), levels))

    def colour_at(self, levels: NDArray[np.floating[Any]]) -> FloatArray:
        """Return the colours, (..., 3) and 0..1, of levels 0..1, straight between rows."""
        places = np.linspace(0, 1, len(self.colours))
        channels = [np.interp(levels, places, self.colours[:, channel]) for channel in range(3)]
        return np.stack(channels, axis=-1)

    def nearest(self, colours: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Return the level 0..1 of the nearest point on the curve, and how far that is.

        Parameters
        ----------
        colours : ndarray, (..., 3)
            sRGB, 0..255, which is also the unit of the distances.
        """
        tree, levels = self._curve
        distances, places = tree.query(np.asarray(colours, np.float64))
        return np.asarray(levels[places]), np.asarray(distances)


def colour_pixels(rgb: NDArray[Any]) -> ByteImage:
    """Return the pixels of an 8-bit colour image of any shape (..., 3), as (pixel, 3).

    Raises
    ------
    ImageError
        Not uint8 with a last axis of 3, or no pixel.
    """
    rgb = np.asarray(rgb)
    if rgb.dtype != np.uint8 or rgb.ndim < 2 or rgb.shape[-1] != 3 or not rgb.size:
        raise ImageError(
            f"An image of shape {rgb.shape} and type {rgb.dtype} is no 8-bit colour image",
            "Give (y, x, 3), uint8",
        )
    return rgb.reshape(-1, 3)


def distinct_colours(rgb: NDArray[Any]) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp]]:
    """Return the distinct colours of an 8-bit image, which each pixel has, and how often."""
    packed = colour_pixels(rgb).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    codes, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.float64)
    return colours, inverse.reshape(-1), counts


def _by_channel(name: str, red: Knots, green: Knots, blue: Knots) -> ColourTable:
    """Return 256 levels on straight lines between (place, value 0..1) of each channel."""
    places = np.linspace(0, 1, 256)
    lines = [np.array(knots, np.float64) for knots in (red, green, blue)]
    channels = [np.interp(places, line[:, 0], line[:, 1]) for line in lines]
    return ColourTable(name, np.round(np.stack(channels, axis=-1) * 255) / 255)


def _by_knots(
    name: str, knots: Mapping[int, tuple[float, float, float]], *, cut: bool = False
) -> ColourTable:
    """Return a table of straight lines between level -> 8-bit colour, rounded or cut to 8 bits."""
    places = np.arange(max(knots) + 1)
    colours = np.array(list(knots.values()), np.float64)
    lines = np.stack([np.interp(places, list(knots), colours[:, c]) for c in range(3)], axis=-1)
    # Straight lines in binary fractions land a hair below the whole number they should be.
    return ColourTable(name, (np.floor(lines + 1e-9) if cut else np.round(lines)) / 255)


def _by_words(name: str, words: str) -> ColourTable:
    """Return a table from words of two hexadecimal digits each: level, red, green, blue."""
    rows = [bytes.fromhex(word) for word in words.split()]
    return _by_knots(name, {row[0]: (row[1], row[2], row[3]) for row in rows})


_TWENTIETHS: Final = (  # of nipy-spectral
    "000000 770088 880099 0000aa 0000dd 0077dd 0099dd 00aaaa 00aa88 009900 00bb00 00dd00 00ff00 "
    "bbff00 eeee00 ffcc00 ff9900 ff0000 dd0000 cc0000 cccccc"
)


def _spectral() -> ColourTable:
    rows = [bytes.fromhex(word) for word in _TWENTIETHS.split()]
    red, green, blue = (
        [(place / (len(rows) - 1), row[channel] / 255) for place, row in enumerate(rows)]
        for channel in range(3)
    )
    return _by_channel("nipy-spectral", red, green, blue)


def _known() -> dict[str, ColourTable]:
    tables = [
        _by_knots("grey", {0: (0, 0, 0), 255: (255, 255, 255)}),
        _by_knots(
            "harvard-pet",
            {
                0: (0, 0, 0),
                15: (0, 0, 255 * 15 / 31),
                31: (0, 85, 255),
                63: (255, 255, 0),
                95: (255, 0, 0),
                127: (255, 0, 255),
            },
            cut=True,
        ),
        # The cases of the atlas come in 72 or 92 levels whose knots differ by up to 1 % of the
        # scale; these are the knots of the 72, which lie on levels.
        _by_knots(
            "harvard-spect",
            {
                0: (0, 0, 0),
                10: (41, 71, 73),
                25: (83, 0, 144),
                40: (190, 90, 121),
                57: (255, 114, 0),
                71: (255, 222, 255),
            },
            cut=True,
        ),
        _by_channel(
            "jet",
            [(0, 0), (0.35, 0), (0.66, 1), (0.89, 1), (1, 0.5)],
            [(0, 0), (0.125, 0), (0.375, 1), (0.64, 1), (0.91, 0), (1, 0)],
            [(0, 0.5), (0.11, 1), (0.34, 1), (0.65, 0), (1, 0)],
        ),
        _by_channel(
            "hot",
            [(0, 0.0416), (0.365079, 1), (1, 1)],
            [(0, 0), (0.365079, 0), (0.746032, 1), (1, 1)],
            [(0, 0), (0.746032, 0), (1, 1)],
        ),
        _by_channel(
            "hot-iron",
            [(0, 0), (0.5, 1), (1, 1)],
            [(0, 0), (0.5, 0), (1, 1)],
            [(0, 0), (0.75, 0), (1, 1)],
        ),
        _spectral(),
        *(_by_words(name, words) for name, words in _SMOOTH.items()),
    ]
    return {table.name: table for table in tables}


_SMOOTH: Final = {
    "viridis": (
        "00440154 0e481668 1d482979 2c443b84 393e4a89 4638598c 5a2e6d8e 7126828e 8120928c "
        "8f1f9f88 9a23a983 a22ab07f aa35b779 b344bf70 bc56c667 c66ccd5a d084d44b e7c0df25 "
        "eed2e21b f2dde318 f6e7e419 faf1e51d fffde725"
    ),
    "plasma": (
        "000d0887 0419068c 0b280592 214e02a2 346c00a8 3f7d03a8 478808a6 58a01a9c 6fbb3488 "
        "86d14e72 aaed7953 baf68d45 cafca338 d8feb82c e2fdc827 ecfad824 fbf2f227 fdf1f525 "
        "fff0f921"
    ),
    "inferno": (
        "00000004 0402010a 0b060419 120d0829 1d1c0c43 25290b55 2b340a5f 313e0966 384a0c6b "
        "4159106e 4965156e 597f1e6c 6a9a2865 7bb43359 8fd04545 9ce05536 acef6c23 b8f68013 "
        "c0f98e09 c5fb9706 c9fc9f07 cefca80d d5fbb61a def9c72f e8f5db4c ecf3e35a f4f1f179 "
        "faf5f992 fffcffa4"
    ),
    "magma": (
        "00000004 04020109 0d07061c 1d19103f 26251255 2f341069 36400f74 3d4c117a 465a167e "
        "516b1d81 5f812581 6b942c80 81b83779 98dc4869 a4eb5760 aff4695c b8f9795d c2fc8c63 "
        "cffea571 ddfebf84 ecfdda9c fffcfdbf"
    ),
    "cividis": (
        "0000224e 1300306f 17013271 1c123570 221e3a6f 2b2b406d 3436466c 4245506c 54565c6d "
        "6b6b6d72 7e7b7a78 938f8a78 a49f9775 b3aea371 c0bcae6c cdc9b965 dbd9c55c e8e7d150 "
        "f3f3db42 fbfde334 fcfee434 fffee838"
    ),
    "turbo": (
        "0030123b 06372466 0c3d358b 124146ac 184456c7 1e4666dd 244776ee 2b4687fb 304294ff "
        "363aa3fc 3d2eb4f2 4520c7df 4b1ad4d0 5018ddc2 551ae4b6 5b25eca7 6238f491 6d61fc6c "
        "788bff4b 7c99fe42 83acfb38 87b7f735 90cdec34 9ce7d739 a3f2c93a a9f9bc39 b0fdac34 "
        "b7fe992c c0fb7e21 c8f46617 d2e84b0c dcd83706 e5c52603 eeaf1801 f7950d01 ff7a0403"
    ),
}

TABLES: Final[Mapping[str, ColourTable]] = MappingProxyType(_known())


def read_table(path: str | Path) -> ColourTable:
    """Read a table: a CSV file with red, green and blue of one level a line, lowest level first.

    Values are 0..255, or 0..1 where none is above 1. One line of headings may come first, and
    lines that begin with ``#`` count for nothing.

    Raises
    ------
    InputError
        No file, a line that is not three such numbers (it says which), or fewer than two levels.
    """
    path = Path(path)
    mend = "Give red,green,blue on each line, 0..255 or 0..1, the lowest level first"
    try:
        content = read_bounded(path, _MOST_BYTES, pipes=True)
        lines = list(csv.reader(content.decode("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}", mend) from error
    rows: list[list[float]] = []
    headed = False
    for number, line in enumerate(lines, start=1):
        if not line or line[0].lstrip().startswith("#"):
            continue
        try:
            row = [float(value) for value in line]
        except ValueError:
            if rows or headed:
                raise InputError(
                    f"{path}, line {number} is not numbers: {one_line(','.join(line), 60)}", mend
                ) from None
            headed = True
            continue
        if len(row) != 3 or not all(0 <= value <= 255 for value in row):
            raise InputError(
                f"{path}, line {number} is not a colour: {one_line(','.join(line), 60)}", mend
            )
        rows.append(row)
    if len(rows) < 2:
        raise InputError(f"{path} holds {len(rows)} colours, fewer than two", mend)
    colours = np.array(rows)
    return ColourTable(path.stem, colours / 255 if colours.max() > 1 else colours)
