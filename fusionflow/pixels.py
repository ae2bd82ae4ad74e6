"""Images to be measured: of one shape, finite, in float64, and which of their pixels count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fusionflow.errors import InputError

__all__ = ["FloatArray", "Image", "Mask", "consistent", "counted_pixels", "finite"]

Image: TypeAlias = NDArray[np.floating[Any]]
Mask: TypeAlias = NDArray[np.bool_ | np.integer[Any]]
FloatArray: TypeAlias = NDArray[np.float64]


def consistent(
    images: Mapping[str, Image], mask: Mask | None, ndim: int | None = None
) -> tuple[dict[str, Image], NDArray[np.bool_] | None]:
    """Return images of one shape by name, and their mask as booleans."""
    arrays = {name: np.asarray(image) for name, image in images.items()}
    first, shape = next((name, array.shape) for name, array in arrays.items())
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
            raise InputError(
                f"{name} is {array.dtype}, not float32 or float64",
                "Scale it so that 0..1 is the display window",
            )
        if ndim is not None and array.ndim != ndim:
            raise InputError(f"{name} has {array.ndim} dimensions, not {ndim}")
        if array.shape != shape:
            raise InputError(f"{name} has shape {array.shape}, but {first} has {shape}")
    if mask is None:
        return arrays, None
    mask = np.asarray(mask)
    if mask.dtype.kind not in "bui":
        raise InputError(f"mask is {mask.dtype}, neither bool nor integer")
    if mask.shape != shape:
        raise InputError(f"mask has shape {mask.shape}, but {first} has {shape}")
    return arrays, mask != 0


def finite(what: str, image: Image) -> FloatArray:
    """Return an image as contiguous float64, or refuse it for its values."""
    # Within float32's range no square, and no product of squares, overflows in float64.
    limit = float(np.finfo(np.float32).max)
    pixels = np.ascontiguousarray(image, dtype=np.float64)
    # NaN makes both comparisons false.
    if not (pixels.min(initial=0.0) >= -limit and pixels.max(initial=0.0) <= limit):
        raise InputError(
            f"{what} holds values that are not finite, or beyond the range of float32",
            "Replace them before measuring",
        )
    return pixels


def counted_pixels(images: Mapping[str, Image], mask: Mask | None) -> list[FloatArray]:
    """Return, for each image, the pixels that count."""
    arrays, inside = consistent(images, mask)
    pixels = [finite(name, array) for name, array in arrays.items()]
    return pixels if inside is None else [array[inside] for array in pixels]
