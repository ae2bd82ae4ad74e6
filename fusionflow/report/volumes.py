"""What the 3-D viewer of a report gets: the program, and small volumes as NIfTI."""

from __future__ import annotations

import base64
import gzip
from functools import cache
from importlib.resources import files

import nibabel as nib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from fusionflow.report.planes import Levels

#: Steps from black to white: fewer than 256 make the page a third smaller, and are enough to see.
STEPS = 63


@cache
def program() -> Markup:
    """Return NiiVue as it is in a page: gzipped, base64."""
    packed = (files("fusionflow.report") / "vendor" / "niivue.umd.js.gz").read_bytes()
    return Markup(base64.b64encode(packed).decode())


@cache
def licences() -> str:
    """Return the licences of NiiVue and what is in its bundle, which go where it goes."""
    return (files("fusionflow.report") / "vendor" / "niivue.LICENSES.txt").read_text("utf-8")


def nifti(small: Levels, affine: npt.ArrayLike, block: tuple[int, int, int]) -> bytes:
    """Return a smaller copy of a volume as NIfTI, gzipped; the same bytes for the same input.

    Parameters
    ----------
    small : ndarray, (z', y', x') uint8
        Means over blocks; 0 to 255 is 0 to 1.
    affine : array-like, (4, 4)
        Voxel (x, y, z) of the volume to world mm (RAS+).
    block : tuple of int
        Voxels of the volume along (z, y, x) in one of the copy.
    """
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(small.shape[::-1])
    header.set_sform(coarser(affine, block), code=1)
    header["pixdim"][1:4] = np.linalg.norm(coarser(affine, block)[:3, :3], axis=0)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1 / STEPS, 0)
    header["vox_offset"] = 352
    header["cal_max"] = 1
    steps = (small.astype(np.uint16) * STEPS + 127) // 255
    content = header.binaryblock + bytes(4) + steps.astype(np.uint8).tobytes()
    return gzip.compress(content, compresslevel=9, mtime=0)


def coarser(affine: npt.ArrayLike, block: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    """Return the affine of a copy whose voxels are blocks, each in the middle of its own.

    Examples
    --------
    >>> coarser(np.eye(4), (1, 2, 4))[:3].tolist()
    [[4.0, 0.0, 0.0, 1.5], [0.0, 2.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0]]
    """
    steps = np.array(block[::-1], np.float64)
    there = np.array(affine, np.float64)
    there[:3, 3] += there[:3, :3] @ ((steps - 1) / 2)
    there[:3, :3] *= steps
    return there
