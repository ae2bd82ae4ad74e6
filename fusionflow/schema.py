"""Names, dimensions, dtypes and units of every dataset, and a check that a dataset has them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fusionflow.errors import SchemaError

#: The two images that are fused.
SOURCES = ("mri", "pet")

#: Goes into the attributes of every scan group; raised when the layout changes.
LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Variable:
    """What one variable of a dataset must be.

    Attributes
    ----------
    name : str
        Its name.
    dims : tuple of str
        Its dimensions, in order.
    kind : str
        Kinds of dtype that will do, as in `numpy.dtype.kind`.
    dtype : str
        The dtype it is stored with.
    units : str
        Its unit, ``1`` if it has none.
    doc : str
        What it holds.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    dtype: str
    units: str
    doc: str


MRI = Variable(
    "mri", ("z", "y", "x"), "f", "float32", "1", "MRI on its own grid; 0 to 1 is the display window"
)
PET = Variable(
    "pet", ("z", "y", "x"), "f", "float32", "1", "PET on the MRI's grid; 0 to 1 is the window"
)
MASK = Variable("mask", ("z", "y", "x"), "ub", "uint8", "1", "1 inside the head")
FUSED = Variable(
    "fused", ("z", "y", "x"), "f", "float32", "1", "fused image, arbitrary units: not quantitative"
)
METRICS = Variable(
    "metrics", ("z", "source", "metric"), "f", "float64", "1", "metrics of each slice, by source"
)
IMAGE_METRICS = Variable(
    "image_metrics", ("z", "image_metric"), "f", "float64", "1", "metrics of each slice"
)

#: What can be fused.
CONFORMED = (MRI, PET)
#: A published scan.
PUBLISHED = (MRI, PET, MASK, FUSED, METRICS, IMAGE_METRICS)


def validate(dataset: xr.Dataset, variables: Iterable[Variable], what: str = "dataset") -> None:
    """Check that `dataset` has the variables, each with its dimensions and kind of dtype.

    Raises
    ------
    SchemaError
        If one is missing or different; the message names it and says what it must be.
    """
    for variable in variables:
        if variable.name not in dataset:
            raise SchemaError(
                f"The {what} has no variable {variable.name!r} ({', '.join(variable.dims)})",
                f"It has: {', '.join(map(str, dataset.data_vars)) or 'none'}",
            )
        array = dataset[variable.name]
        if array.dims != variable.dims:
            raise SchemaError(
                f"{variable.name!r} of the {what} has dimensions {array.dims}, not {variable.dims}",
                f"Transpose it: dataset.transpose({', '.join(map(repr, variable.dims))})"
                if set(array.dims) == set(variable.dims)
                else "Take one such array of it, with .isel() say",
            )
        if np.dtype(array.dtype).kind not in variable.kind:
            raise SchemaError(
                f"{variable.name!r} of the {what} is {array.dtype}",
                f"Convert it to {variable.dtype}",
            )
