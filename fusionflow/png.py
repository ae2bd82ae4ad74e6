"""Pictures as PNG files, compressed by ISA-L: several times as fast as Pillow, about as large."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

__all__ = ["png_bytes"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
#: Of the header: bits a channel, colours red, green and blue, then what there is only one of.
_RGB: Final = (8, 2, 0, 0, 0)
#: Filter of a row: what it has beyond the row above.
_UP: Final = 2
#: Rows that are packed at once.
_ROWS: Final = 64


def png_bytes(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return a picture in colour as a PNG file (ISO/IEC 15948).

    Parameters
    ----------
    picture : ndarray, (y, x, 3) uint8
        Red, green, blue; at least one pixel.
    """
    rows, columns, _ = picture.shape
    flat = picture.reshape(rows, -1)
    filtered = np.empty((min(rows, _ROWS), 1 + flat.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    packer, parts = isal_zlib.compressobj(1), []
    for start in range(0, rows, _ROWS):
        strip = flat[start : start + _ROWS]
        first, others = filtered[0, 1:], filtered[1 : len(strip), 1:]
        np.subtract(strip[0], flat[start - 1] if start else 0, out=first)
        np.subtract(strip[1:], strip[:-1], out=others)
        parts.append(packer.compress(filtered[: len(strip)]))
    header = struct.pack(">IIBBBBB", columns, rows, *_RGB)
    content = (*parts, packer.flush())
    return b"".join(
        (_SIGNATURE, *_chunk(b"IHDR", (header,)), *_chunk(b"IDAT", content), *_chunk(b"IEND", ()))
    )


def _chunk(kind: bytes, content: Sequence[bytes]) -> Iterator[bytes]:
    """Give a part of a file: its length, what it is, that, and a checksum."""
    yield struct.pack(">I", sum(map(len, content)))
    checksum = 0
    for piece in (kind, *content):
        checksum = zlib.crc32(piece, checksum)
        yield piece
    yield struct.pack(">I", checksum)
