"""What is asked of a scan most often, as ``scan.fusionflow`` on any xarray Dataset of one.

It is registered with whatever gives scans (`fusionflow.open_cohort`, `fusionflow.fuse`), and not by
``import fusionflow``, which imports no xarray: where a scan was opened by `xarray.open_zarr` alone,
``import fusionflow.accessor`` does it.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import xarray as xr

from fusionflow import schema
from fusionflow.errors import ConfigurationError, MissingExtraError, SchemaError
from fusionflow.io.nifti_header import Orientation
from fusionflow.io.nifti_write import write_slices
from fusionflow.overlay import pet_on_mri
from fusionflow.viewer import View, in_memory, view, voxel_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ScanAccessor"]

Plane: TypeAlias = Literal["axial", "coronal", "sagittal"]

#: Plane -> the dimension that it cuts, and those of its rows and columns.
_PLANES = {"axial": ("z", "y", "x"), "coronal": ("y", "z", "x"), "sagittal": ("x", "z", "y")}
_TITLES = {"mri": "MRI", "pet": "PET", "fused": "Fused"}
#: Inches across for an inch of what a figure is asked to be high: a slab of few slices is flat.
_WIDEST = 2.0


@xr.register_dataset_accessor("fusionflow")
class ScanAccessor:
    """Questions to a scan: a Dataset with ``mri``, ``pet`` and mostly ``fused``, (z, y, x).

    Examples
    --------
    >>> scan = fusionflow.open_cohort("out").scan("sub-01")    # doctest: +SKIP
    >>> scan.fusionflow.to_nifti("sub-01_fused.nii.gz")        # doctest: +SKIP
    >>> scan.fusionflow.plot(plane="coronal")                  # doctest: +SKIP
    """

    def __init__(self, scan: xr.Dataset) -> None:
        self._scan = scan

    @property
    def affine(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Voxel (x, y, z) -> world mm (RAS+), (4, 4) float64.

        Raises
        ------
        SchemaError
            If the dataset has none.
        """
        if "affine" not in self._scan.attrs:
            raise SchemaError(
                "The dataset has no attribute 'affine', so where its voxels lie is not known",
                "Take it from the scan it was made of: scan.assign_attrs(affine=...)",
            )
        return np.asarray(self._scan.attrs["affine"], np.float64)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Of (z, y, x), mm; 1 where the dataset has no affine."""
        return voxel_size(self._scan)

    @property
    def metrics(self) -> pd.DataFrame:
        """Figures of all slices, tidy: columns z, metric, source ('' if of none), value.

        Raises
        ------
        SchemaError
            If the dataset has no metrics.
        """
        schema.validate(self._scan, (schema.METRICS, schema.IMAGE_METRICS), "scan")
        names = ["metrics", "image_metrics"]
        figures = in_memory(self._scan[names].drop_vars(["z", "y", "x"], errors="ignore"))
        pair = figures["metrics"].to_series().rename("value").reset_index()
        image = figures["image_metrics"].to_series().rename("value").reset_index()
        image = image.rename(columns={"image_metric": "metric"}).assign(source="")
        columns = ["z", "metric", "source", "value"]
        tables = [table.reindex(columns=columns) for table in (pair, image)]
        return pd.concat(tables, ignore_index=True).sort_values(columns[:3], ignore_index=True)

    def to_nifti(self, path: str | PathLike[str], variable: str = "fused") -> Path:
        """Write a variable as NIfTI-1, float32, in RAS+, where the T1w image lies.

        Viewers lay it over the T1w file; the file that a run writes has that file's own order of
        voxels, too.

        Parameters
        ----------
        path : path-like
            Where to; compressed if it ends in ``.gz``.
        variable : str
            ``fused``, ``mri``, ``pet``, ``mask``, or any (z, y, x); or ``overlay``, in colour.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        SchemaError
            If there is no such variable, it has other dimensions, or there is no affine.
        ConfigurationError
            If the name does not end in ``.nii`` or ``.nii.gz``.
        StoreError
            If it cannot be written.
        """
        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise ConfigurationError(
                f"{path.name} is no name of a NIfTI file", "Let it end in .nii.gz"
            )
        affine = self.affine
        if variable == "overlay":
            array = self.overlay()
        else:
            spec = schema.Variable(variable, ("z", "y", "x"), "fiub", "float32", "1", "")
            schema.validate(self._scan, (spec,), "scan")
            array = self._scan[variable]
        slices = in_memory(array.to_dataset(name="volume"))["volume"].values
        z, y, x = slices.shape[:3]
        like = Orientation((x, y, z), affine, ("R", "A", "S"))
        write_slices(path, slices, like, description=f"fusionflow {variable}"[:79])
        return path

    def overlay(self) -> xr.DataArray:
        """Return the PET in colour on the MRI, lazily where they are lazy.

        Returns
        -------
        DataArray
            (z, y, x, rgb) uint8, sRGB.

        Raises
        ------
        SchemaError
            If the dataset lacks ``mri`` or ``pet``.
        """
        schema.validate(self._scan, schema.CONFORMED, "scan")
        overlay: xr.DataArray = xr.apply_ufunc(
            pet_on_mri,
            self._scan["mri"],
            self._scan["pet"],
            output_core_dims=[["rgb"]],
            dask="parallelized",
            output_dtypes=[np.uint8],
            dask_gufunc_kwargs={"output_sizes": {"rgb": 3}},
        )
        attributes = {"long_name": "PET in colour on the MRI", "units": "1"}
        return overlay.assign_coords(rgb=["r", "g", "b"]).rename("overlay").assign_attrs(attributes)

    def plot(
        self, index: int | None = None, *, plane: Plane = "axial", height: float = 3.2
    ) -> Figure:
        """Draw a slice of MRI, PET, the fused image and the PET on the MRI, side by side.

        Parameters
        ----------
        index : int, optional
            Which slice; by default that of the middle of the head.
        plane : {"axial", "coronal", "sagittal"}
            How the slice lies.
        height : float
            Of the pictures, inches; wide and flat ones get less, and stay within twice of it.

        Returns
        -------
        matplotlib.figure.Figure
            The subject's left is on the left.

        Raises
        ------
        MissingExtraError
            If matplotlib is not installed.
        ConfigurationError
            If there is no such plane or slice.
        SchemaError
            If the dataset lacks ``mri`` or ``pet``.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise MissingExtraError(
                "Plots need matplotlib, which is not installed",
                "pip install 'fusionflow[notebook]'",
            ) from error
        schema.validate(self._scan, schema.CONFORMED, "scan")
        cut, rows, columns = self._plane(plane)
        place = self._middle(cut) if index is None else index
        if not 0 <= place < self._scan.sizes[cut]:
            raise ConfigurationError(
                f"The scan has no {plane} slice {place}", f"0 to {self._scan.sizes[cut] - 1}"
            )
        names = [name for name in _TITLES if name in self._scan]
        flat = in_memory(self._scan[names].isel({cut: place})).transpose(rows, columns)
        pictures = {_TITLES[name]: flat[name].values for name in names}
        pictures["PET on MRI"] = pet_on_mri(flat["mri"].values, flat["pet"].values)
        size = dict(zip("zyx", self.voxel_size, strict=True))
        aspect = size[rows] / size[columns]
        shape = flat.sizes[columns] / (flat.sizes[rows] * aspect)
        width = height * min(shape, _WIDEST)
        height = width / shape
        figure, axes = plt.subplots(
            1, len(pictures), figsize=(len(pictures) * width, height + 0.5), layout="constrained"
        )
        for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect)
            axis.set_title(title)
            axis.set_axis_off()
        figure.suptitle(f"{self._scan.attrs.get('label', '')} {cut} = {place}".strip())
        plt.close(figure)  # a notebook shows what a cell returns, and would show it twice
        return figure

    def view(self) -> View:
        """Show the scan in three planes, as `fusionflow.view`."""
        return view(self._scan)

    @staticmethod
    def _plane(plane: str) -> tuple[str, str, str]:
        try:
            return _PLANES[plane]
        except KeyError:
            raise ConfigurationError(
                f"{plane!r} is no plane", f"One of: {', '.join(_PLANES)}"
            ) from None

    def _middle(self, cut: str) -> int:
        """Return the slice in the middle of the head."""
        head = self._scan["mask"] if "mask" in self._scan else self._scan["mri"] > 0
        others = [dim for dim in ("z", "y", "x") if dim != cut]
        inside = in_memory((head > 0).any(others).to_dataset(name="head"))["head"].values
        places = np.flatnonzero(inside)
        return int(places[len(places) // 2]) if len(places) else self._scan.sizes[cut] // 2
