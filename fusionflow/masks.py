"""Where the head is: from a file, by a stated rule, or by a rule of another package."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusionflow.errors import ConfigurationError, GridError, ImageError
from fusionflow.io.nifti import Affine, read_volume
from fusionflow.plugins import plugin, plugin_names
from fusionflow.resample import resample_to, same_grid

Mask = npt.NDArray[np.uint8]

_AIR_AT_MOST = 0.25
_GROUP = "fusionflow.masks"
#: What needs no other package.
OWN_MASKS = ("auto", "head")


@dataclass(frozen=True)
class MaskRule:
    """How to find the head in a T1w image; other packages offer theirs in ``fusionflow.masks``.

    Attributes
    ----------
    name : str
        How options call it.
    find : callable
        ``find(mri, affine) -> mask``: (z, y, x) float32 and voxel (x, y, z) -> world mm, to
        (z, y, x) uint8, 1 within.
    """

    name: str
    find: Callable[[npt.NDArray[np.float32], Affine], Mask]


def mask_rule(name: str) -> MaskRule:
    """Return the rule called `name`; ``head`` is our own.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    if name == "head":
        return MaskRule("head", lambda mri, affine: head_mask(mri))
    found = plugin(_GROUP, name, MaskRule)
    if found is None:
        known = ", ".join([*OWN_MASKS, *plugin_names(_GROUP)])
        raise ConfigurationError(f"No mask rule is called {name!r}", f"Known are: {known}")
    return found


def find_mask(
    rule: str, mri: npt.NDArray[np.float32], affine: Affine, where: str | os.PathLike[str]
) -> Mask:
    """Find the head by a rule, and make sure that it is one.

    Raises
    ------
    ConfigurationError
        If there is no such rule, or it returns something else.
    ImageError
        If it finds nothing.
    """
    mask = np.asarray(mask_rule(rule).find(mri, affine))
    if mask.shape != mri.shape:
        raise ConfigurationError(
            f"The mask rule {rule} returned {mask.shape} for an image of {mri.shape}"
        )
    found = (mask > 0).view(np.uint8)
    if not found.any():
        raise ImageError(f"The mask rule {rule} finds nothing in {where}", "Take mask: head")
    return found


def read_mask(
    path: str | os.PathLike[str], shape: tuple[int, ...], affine: Affine
) -> tuple[npt.NDArray[np.bool_], tuple[str, ...]]:
    """Read a mask onto a grid; where it lies on another it is resampled, and half counts.

    Parameters
    ----------
    path : path-like
        NIfTI image: above 0.5 is inside.
    shape, affine : tuple of int, ndarray
        The grid, (x, y, z).

    Returns
    -------
    ndarray, (z, y, x) bool
        Inside.
    tuple of str
        Notes.

    Raises
    ------
    ImageError
        If it cannot be read.
    GridError
        If nothing of it is on the grid.
    """
    volume = read_volume(path)
    notes: tuple[str, ...] = ()
    data = volume.data
    if not same_grid(volume, shape, affine):
        data = resample_to(volume, shape, affine)
        notes = (f"{os.path.basename(path)} was resampled onto the grid",)
    inside = data.T > 0.5
    if not inside.any():
        raise GridError(
            f"No voxel of the mask {path} lies on the grid", "Check that it belongs to this T1w"
        )
    return inside, notes


def head_mask(mri: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Separate the head (or the brain, if it is all there is) from air.

    The threshold is that of BET (Smith, 2002, "Fast robust automated brain extraction", Human Brain
    Mapping 17): a tenth of the way from the 2nd to the 98th percentile of the intensities. Of what
    is brighter, the largest connected component is kept, and its holes (ventricles, sinuses) are
    filled: all that is not connected to the border of its axial slice, so what is closed in 3-D,
    too.

    Air is near zero in a magnitude image. Where the 2nd percentile is above a quarter of the 98th,
    the frame is cropped to tissue and holds no air to set a threshold by: all of it is head.

    Parameters
    ----------
    mri : ndarray, (z, y, x)
        A T1-weighted image, not constant.

    Returns
    -------
    ndarray, (z, y, x) uint8
        1 within the head, never empty.
    """
    low, high = np.percentile(mri, (2, 98))
    if low > _AIR_AT_MOST * abs(high) and low < high:
        return np.ones(mri.shape, dtype=np.uint8)
    if low == high:
        # A head so small, or a brain so tightly stripped, that nearly all of the frame is empty.
        low = mri.min()
        high = np.percentile(mri[mri > low], 98, overwrite_input=True)
    head = np.ascontiguousarray(mri > low + 0.1 * (high - low))
    _keep_largest(head)
    for plane in head:
        _fill_holes(plane)
    return head.view(np.uint8)


# Labels take four bytes a voxel, and what indexes or counts by them eight more if it is given all
# of them at once; so these work in place, and take the labels slice by slice.


def _keep_largest(mask: npt.NDArray[np.bool_]) -> None:
    """Leave the largest connected component of a mask (z, y, x), in place."""
    components, n = ndimage.label(mask)
    sizes = np.zeros(n + 1, dtype=np.int64)
    for plane in components:
        found = np.bincount(plane.ravel())
        sizes[: found.size] += found
    sizes[0] = 0
    np.equal(components, sizes.argmax(), out=mask)


def _fill_holes(mask: npt.NDArray[np.bool_]) -> None:
    """Fill what is not connected to the border of a slice (y, x), in place.

    By labels, which visits each voxel a few times; `scipy.ndimage.binary_fill_holes` dilates until
    nothing changes, which takes as many passes as the frame is wide.
    """
    outside, n = ndimage.label(~mask)
    open_to_air = np.zeros(n + 1, dtype=bool)
    for border in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        open_to_air[border] = True
    open_to_air[0] = False  # the mask itself
    np.logical_not(open_to_air[outside], out=mask)
