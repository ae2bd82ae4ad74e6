"""Pictures as PNG files, compressed by ISA-L: several times as fast as Pillow, about as large."""

from __future__ import annotations

import struct
import zlib
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


def png_bytes(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return a picture in colour as a PNG file (ISO/IEC 15948).

    Parameters
    ----------
    picture : ndarray, (y, x, 3) uint8
        Red, green, blue; at least one pixel.
    """
    rows, columns, _ = picture.shape
    flat = picture.reshape(rows, -1)
    filtered = np.empty((rows, 1 + flat.shape[1]), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=filtered[1:, 1:])
    header = struct.pack(">IIBBBBB", columns, rows, *_RGB)
    packed = isal_zlib.compress(filtered, 1)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Return a part of a file: its length, what it is, that, and a checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum
