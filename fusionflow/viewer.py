"""A scan to look at: three planes through it in a notebook or a page, or as a picture."""

from __future__ import annotations

import html
import io
import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image
from scipy import ndimage

from fusionflow import schema
from fusionflow.errors import ConfigurationError
from fusionflow.io.files import write_bytes
from fusionflow.overlay import Overlay, pet_on_mri
from fusionflow.pictures import Planes, mosaic, slices_to_show
from fusionflow.placement import current_client
from fusionflow.png import png_bytes
from fusionflow.report.page import data_uri, render
from fusionflow.untrusted import printable

if TYPE_CHECKING:
    from fusionflow.cohort import Cohort

__all__ = ["View", "in_memory", "view", "voxel_size"]

Levels: TypeAlias = npt.NDArray[np.uint8]

#: What is shown of a scan, in this order, and what it is called.
_TITLES = {"mri": "MRI", "pet": "PET", "fused": "Fused"}
#: Voxels along the longest side of what a page holds.
_SIDE = 160
#: Levels of each source in the page's table of colours.
_COLOURS = 128
_QUALITY = 85
#: Pixels of the frame that a notebook gives the page.
_HEIGHT = 440


def view(scan: xr.Dataset | Cohort, label: str | None = None, *, title: str | None = None) -> View:
    """Show a scan in three planes: MRI, PET, the fused image and the PET in colour on the MRI.

    Parameters
    ----------
    scan : Dataset or Cohort
        ``mri`` and ``pet``, (z, y, x) floats of which 0 to 1 is shown, in RAS+; with ``fused``
        where there is one. The attribute ``affine`` gives the voxels' shape, else they are cubes.
        Or a cohort.
    label : str, optional
        Which scan of a cohort.
    title : str, optional
        Line above it; by default the label and the method.

    Returns
    -------
    View
        In a notebook it shows itself; ``.save("scan.html")`` and ``.save("scan.png")`` keep it.

    Raises
    ------
    ConfigurationError
        If it is a cohort and there is no label.
    ScanNotFoundError
        If the cohort does not hold the scan.
    SchemaError
        If the dataset lacks ``mri`` or ``pet``, or has it with other dimensions.
    """
    if not isinstance(scan, xr.Dataset):
        if label is None:
            some = ", ".join(scan.labels[:5]) or "none"
            raise ConfigurationError("Which scan of the cohort?", f"Give a label; it holds: {some}")
        scan = scan.scan(label)
    named = [spec for spec in (schema.FUSED, schema.MASK) if spec.name in scan]
    schema.validate(scan, (*schema.CONFORMED, *named), "scan")
    return View(scan, title)


def in_memory(scan: xr.Dataset) -> xr.Dataset:
    """Return a dataset with its arrays computed, each task where it may run."""
    if scan.chunks and current_client() is not None:
        from fusionflow.graph import compute

        computed: xr.Dataset = compute(scan)
        return computed
    return scan.compute()


def voxel_size(scan: xr.Dataset) -> tuple[float, float, float]:
    """Return the voxels' size along (z, y, x), mm; 1 where the scan has no affine."""
    affine = np.asarray(scan.attrs.get("affine", np.eye(4)), float)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return z, y, x


class View:
    """A scan that shows itself; see `view`.

    Its voxels are read once, when they are first shown.

    Parameters
    ----------
    scan : Dataset
        As in `view`.
    title : str, optional
        Line above it.
    """

    def __init__(self, scan: xr.Dataset, title: str | None = None) -> None:
        self.scan = scan
        method = scan.attrs.get("method", "")
        name = str(method.get("name", "")) if isinstance(method, dict) else str(method)
        own = "  ".join(filter(None, (str(scan.attrs.get("label", "")), name)))
        self.title = printable(title if title is not None else own or "scan")
        self._volumes: dict[str, npt.NDArray[Any]] = {}

    def __repr__(self) -> str:
        """Return what it shows."""
        return f"<View of {self.title!r}>"

    def to_html(self) -> str:
        """Return a page that needs nothing beside it."""
        volumes = self._read()
        size = voxel_size(self.scan)
        sprites, shape = {}, (0, 0, 0)
        for name, heading in _TITLES.items():
            if name in volumes:
                levels = _resampled(volumes[name], size)
                shape = levels.shape
                sprites[name] = {"title": heading, "uri": _sprite(levels)}
        return render(
            "view.html.j2",
            title=self.title,
            content={
                "shape": shape,
                "slices": volumes["mri"].shape,
                "volumes": sprites,
                "colours": _colours(),
                "levels": _COLOURS,
                "columns": _columns(shape[0]),
            },
        )

    def to_png(self) -> bytes:
        """Return axial slices of all images as a picture."""
        volumes = self._read()
        slices = slices_to_show(volumes.get("mask", volumes["mri"] > 0))
        rows: dict[str, Planes] = {
            heading: volumes[name] for name, heading in _TITLES.items() if name in volumes
        }
        rows["PET on MRI"] = Overlay(volumes["mri"], volumes["pet"], slab=1)
        return png_bytes(mosaic(rows, slices, self.title, voxel_size(self.scan)))

    def save(self, path: str | PathLike[str]) -> Path:
        """Write a page (``.html``) or a picture (``.png``), and return where.

        Raises
        ------
        ConfigurationError
            If the name ends in something else.
        StoreError
            If it cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".html", ".png"):
            raise ConfigurationError(
                f"A view cannot be written as {path.name}", "Give a name in .html or .png"
            )
        write_bytes(path, self.to_html().encode() if path.suffix == ".html" else self.to_png())
        return path

    def _repr_html_(self) -> str:
        # A frame of its own: its script sees nothing of the notebook, and its style changes none.
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" '
            f'style="width:100%;height:{_HEIGHT}px;border:0" '
            f'srcdoc="{html.escape(self.to_html())}"></iframe>'
        )

    def _repr_png_(self) -> bytes:
        return self.to_png()

    def _read(self) -> dict[str, npt.NDArray[Any]]:
        """Return the volumes that are shown, and the mask if there is one."""
        if not self._volumes:
            names = [name for name in (*_TITLES, "mask") if name in self.scan]
            read = in_memory(self.scan[names])
            self._volumes = {name: read[name].values for name in names}
        return self._volumes


def _resampled(volume: npt.NDArray[np.floating[Any]], size: tuple[float, float, float]) -> Levels:
    """Return a volume as levels 0 to 255 of cubes, at most `_SIDE` along a side."""
    extents = [voxels * step for voxels, step in zip(volume.shape, size, strict=True)]
    cube = max(min(size), max(extents) / _SIDE)
    shown = np.clip(np.nan_to_num(volume), 0, 1).astype(np.float32)
    coarser = [cube / step for step in size]
    if max(coarser) > 1:  # as wide as what becomes one voxel, so that no line is lost between
        shown = ndimage.gaussian_filter(shown, [0.5 * math.sqrt(max(c**2 - 1, 0)) for c in coarser])
    factors = [
        max(1, round(extent / cube)) / voxels
        for extent, voxels in zip(extents, volume.shape, strict=True)
    ]
    shown = ndimage.zoom(shown, factors, order=1, grid_mode=True, mode="nearest")
    return np.asarray(np.floor(np.clip(shown, 0, 1) * 255 + 0.5), np.uint8)


def _columns(slices: int) -> int:
    return math.ceil(math.sqrt(slices))


def _sprite(levels: Levels) -> str:
    """Return all axial slices side by side as one picture, row by row."""
    slices, rows, columns = levels.shape
    across = _columns(slices)
    sheet = np.zeros((math.ceil(slices / across) * rows, across * columns), np.uint8)
    for z, image in enumerate(levels):
        top, left = z // across * rows, z % across * columns
        sheet[top : top + rows, left : left + columns] = image
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "webp", quality=_QUALITY)
    return data_uri(stream.getvalue(), "image/webp")


def _colours() -> str:
    """Return the colour of each pair of levels as a picture, MRI down and PET across."""
    levels = np.linspace(0, 1, _COLOURS)
    stream = io.BytesIO()
    Image.fromarray(pet_on_mri(*np.meshgrid(levels, levels, indexing="ij"))).save(stream, "png")
    return data_uri(stream.getvalue(), "image/png")
