"""The transform that a method names: a wavelet or a Laplacian pyramid."""

from __future__ import annotations

from fusionflow import pyramid, wavelet
from fusionflow.config import LaplacianPyramid, Transform
from fusionflow.subbands import FloatArray, Subbands


def decompose(slices: FloatArray, transform: Transform) -> Subbands:
    """Return the bands of a stack of slices, (z, y, x) float32.

    Raises
    ------
    InputError
        If slices are too small for that many levels.
    """
    if isinstance(transform, LaplacianPyramid):
        return pyramid.decompose(slices, transform.levels)
    return wavelet.decompose(slices, transform)


def reconstruct(subbands: Subbands, transform: Transform) -> FloatArray:
    """Return the slices, (z, y, x) float32, whose bands are `subbands`."""
    if isinstance(transform, LaplacianPyramid):
        return pyramid.reconstruct(subbands)
    return wavelet.reconstruct(subbands, transform)


def check_levels(shape: tuple[int, int], transform: Transform) -> None:
    """Refuse slices (y, x) that are too small for the transform.

    Raises
    ------
    InputError
        If they are.
    """
    if isinstance(transform, LaplacianPyramid):
        pyramid.check_levels(shape, transform.levels)
    else:
        wavelet.check_levels(shape, transform)
