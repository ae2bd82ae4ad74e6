"""A table of pseudo-colours found in the images that use it: the curve on which they all lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from scipy.spatial.distance import cdist

from fusionflow.errors import InputError
from fusionflow.luts import ByteImage, ColourTable, FloatArray, colour_pixels, distinct_colours

__all__ = ["fit_table"]

EXACT_COLOURS: Final = 256  # images with no more colours than this were never resampled
ON_PATH: Final = 4.0  # 8-bit units a colour that was never resampled may lie off the curve
NEAR_PATH: Final = 20.0  # and one that was
EXPLAINED: Final = 0.9  # share of the pixels that a curve must explain
CELL: Final = 12  # 8-bit units: resampled colours are averaged in cells of this size


def fit_table(images: Iterable[ByteImage]) -> ColourTable:
    """Find the table behind pseudo-coloured images that all use the same one.

    The colours are joined into the tree of least total length (in 8-bit sRGB), whose longest path
    is the curve; it starts at the end on which the background, the most frequent colour, lies. In
    images with at most 256 colours each of these is one level, and a step several times as long
    as those around it stands for levels that no pixel has. Resampled images have more: there the
    levels follow the length of the curve, so that uptake is in the right order, but not
    proportional. A level that lies beyond the hottest colour seen cannot be known: 1 is the
    hottest in these images.

    Parameters
    ----------
    images : iterable of ndarray, (y, x, 3), uint8

    Raises
    ------
    InputError
        Fewer than 8 colours, or colours that do not lie along a curve from the background.
    """
    stacked = [colour_pixels(image) for image in images]
    if not stacked:
        raise InputError("No images to find a colour table in")
    colours, _, counts = distinct_colours(np.concatenate(stacked))
    mend = "Give the table as a file (--lut FILE), or use --colour luminance"
    if len(colours) < 8:
        raise InputError(f"{len(colours)} colours are too few to find a colour table in", mend)
    background = colours[counts.argmax()]
    counts = np.where(_distance(colours, background) > CELL, counts, 0)
    if not counts.any():
        raise InputError("The images hold no colour apart from their background", mend)
    exact = len(colours) <= EXACT_COLOURS
    nodes = colours if exact else _cells(colours, counts, background)
    path = _longest_path(nodes)
    if exact:
        path = _with_corners(path, nodes)
    if _distance(path[-1:], background) < _distance(path[:1], background):
        path = path[::-1]
    levels = _levels(path) if exact else _length(path)
    count = round(levels[-1]) + 1 if exact else EXACT_COLOURS
    places = np.linspace(0, levels[-1], count)
    fitted = np.stack([np.interp(places, levels, path[:, c]) for c in range(3)], axis=-1)
    table = ColourTable("fitted", np.clip(fitted / 255, 0, 1))
    start, _ = table.nearest(background)
    if start > 0.1:
        raise InputError(
            f"The background lies {start:.0%} along the colours, not at their beginning", mend
        )
    _, off = table.nearest(colours)
    near = off <= (ON_PATH if exact else NEAR_PATH)
    share = counts[near].sum() / counts.sum()
    if share < EXPLAINED:
        raise InputError(
            f"The colours do not lie along a curve: the best leaves out {1 - share:.0%} "
            "of the pixels",
            mend,
        )
    return table


def _distance(colours: FloatArray, colour: FloatArray) -> FloatArray:
    return np.linalg.norm(colours - colour, axis=-1)


def _cells(colours: FloatArray, counts: NDArray[np.intp], background: FloatArray) -> FloatArray:
    """Return the mean colours of the cells in which nearly all pixels lie, and the background."""
    cells, member = np.unique(colours // CELL, axis=0, return_inverse=True)
    member = member.reshape(-1)
    pixels = np.bincount(member, counts, len(cells))
    sums = np.stack([np.bincount(member, counts * colours[:, c], len(cells)) for c in range(3)], 1)
    order = np.argsort(pixels)[::-1]
    kept = order[: np.searchsorted(np.cumsum(pixels[order]), 0.97 * pixels.sum()) + 1]
    kept = kept[pixels[kept] > 0]
    return np.concatenate([background[None], sums[kept] / pixels[kept, None]])


def _longest_path(nodes: FloatArray) -> FloatArray:
    """Return the colours along the longest path in their minimum spanning tree."""
    if len(nodes) > 4096:
        raise InputError(
            "The colours fill a space, they do not lie along a curve",
            "Give the table as a file (--lut FILE), or use --colour luminance",
        )
    # The nodes are distinct but for a background equal to a mean: a zero would be no edge.
    tree = minimum_spanning_tree(np.maximum(cdist(nodes, nodes), 1e-6))

    def farthest(start: int) -> tuple[int, NDArray[np.signedinteger[Any]]]:
        order, before = breadth_first_order(tree, start, directed=False)
        length = np.zeros(len(nodes))
        for node in order[1:]:
            length[node] = length[before[node]] + np.linalg.norm(nodes[node] - nodes[before[node]])
        return int(length.argmax()), before

    end, _ = farthest(0)
    node, before = farthest(end)
    path = [node]
    while path[-1] != end:
        path.append(int(before[path[-1]]))
    return nodes[path]


def _with_corners(path: FloatArray, nodes: FloatArray) -> FloatArray:
    """Put back the colours that the path cuts off where the curve turns sharply.

    A colour at a corner hangs on one neighbour alone where its two neighbours are nearer to each
    other. Each is put where it lengthens the path least, if by less than two steps.
    """
    on_path = {tuple(colour) for colour in path}
    limit = 2 * float(np.median(np.linalg.norm(np.diff(path, axis=0), axis=1)))
    for colour in (node for node in nodes if tuple(node) not in on_path):
        away = _distance(path, colour)
        longer = away[:-1] + away[1:] - np.linalg.norm(np.diff(path, axis=0), axis=1)
        place = int(longer.argmin())
        if longer[place] < limit:
            path = np.insert(path, place + 1, colour, axis=0)
    return path


def _length(path: FloatArray) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])


def _levels(path: FloatArray) -> FloatArray:
    """Return the level of each colour: steps of one, more where levels were left out."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    around = np.array([np.median(steps[max(0, i - 4) : i + 5]) for i in range(len(steps))])
    # Rounded to bytes, a step can look longer by the diagonal of a byte without being a gap.
    gap = steps > 1.5 * around + np.sqrt(3)
    return np.concatenate([[0.0], np.cumsum(np.where(gap, np.round(steps / around), 1))])
