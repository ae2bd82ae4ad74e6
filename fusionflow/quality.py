"""The figures by which the literature ranks fusion methods, one table of them.

:data:`QUALITIES` declares every figure; :func:`assess` computes them for one pair of source slices
and what was made of it. The gradient figures are in :mod:`fusionflow.gradients`, the others that
take more than a line in :mod:`fusionflow.vif`, :mod:`fusionflow.fmi`, :mod:`fusionflow.ssim`,
:mod:`fusionflow.multiscale`, :mod:`fusionflow.correlations` and :mod:`fusionflow.information`, with
their formulas and sources. What well-known code bases compute under the same names is another
matter: see :mod:`fusionflow.conventions`.

Conventions:

- Images are slices scaled so that 0..1 is the display window. Papers speak of grey levels of
  0..255: figures that have an intensity in their unit (MSE, SD, SF, AG) are on that scale here,
  unlike in :mod:`fusionflow.metrics`.
- Information is in bits.
- A figure against one source is named after it: ``ssim_mri``, ``ssim_pet``. Where the literature
  adds or averages the two, that figure has the bare name: ``mi`` is ``mi_mri + mi_pet``.
- A figure that is not defined is NaN, never a flattering number.
- Colour has no part in this: give the luminance, ITU-R BT.601.
- Results read from a picture have been rounded to grey levels. For a comparison with those, give
  all through :func:`fusionflow.grey_levels.eight_bit`: rounding moves Qabf, SCD, SSIM and VIF by up
  to 0.002.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from fusionflow.correlations import correlation, sum_of_correlations
from fusionflow.errors import InputError
from fusionflow.fmi import feature_mutual_information
from fusionflow.gradients import (
    MOST_PRESERVED,
    average_gradient,
    edge_preservation,
    fusion_artefacts,
    spatial_frequency,
)
from fusionflow.grey_levels import LEVELS, mean_squared_levels, standard_deviation
from fusionflow.information import (
    entropy,
    joint_entropy,
    mutual_information,
    normalised_mutual_information,
)
from fusionflow.metrics import psnr, relative_rmse
from fusionflow.multiscale import multiscale_ssim
from fusionflow.pixels import FloatArray, Image, consistent, finite
from fusionflow.schema import SOURCES
from fusionflow.ssim import structural_similarity
from fusionflow.vif import visual_information_fidelity

__all__ = [
    "QUALITIES",
    "TABLE_1",
    "Quality",
    "assess",
    "table_1",
]


@dataclass(frozen=True)
class Quality:
    """What a figure of fusion quality is, and how it is computed.

    Attributes
    ----------
    name : str
        Short name, e.g. ``"qabf"``.
    long_name : str
        Name for tables and axes.
    better : {"higher", "lower", "neither"}
        Which way is better. Contrast and entropy are ``"neither"``: noise raises them, too.
    units : str
        ``"1"``, ``"dB"``, ``"bit"``, ``"level"`` (a 255th of the display window) or ``"level2"``.
    value_range : tuple of float
        Lowest and highest possible value of `function`, for images within the display window.
    per_source : bool
        Whether the fused slice is compared with one source at a time.
    function : callable
        ``(source, fused) -> float`` or, where it is not per source, ``(mri, pet, fused) -> float``.
    overall : {"sum", "mean"}, optional
        How the two figures per source become one, where the literature has that.
    """

    name: str
    long_name: str
    better: Literal["higher", "lower", "neither"]
    units: str
    value_range: tuple[float, float]
    per_source: bool
    function: Callable[..., float]
    overall: Literal["sum", "mean"] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of its figures in the result of :func:`assess`."""
        if not self.per_source:
            return (self.name,)
        keys = tuple(f"{self.name}_{source}" for source in SOURCES)
        return (self.name, *keys) if self.overall else keys

    def figures(self, mri: Image, pet: Image, fused: Image) -> dict[str, float]:
        """Compute its figures, by key."""
        if not self.per_source:
            return {self.name: self.function(mri, pet, fused)}
        figures = [self.function(source, fused) for source in (mri, pet)]
        if self.overall:
            total = sum(figures) / (len(figures) if self.overall == "mean" else 1)
            figures.insert(0, total)
        return dict(zip(self.keys, figures, strict=True))


def _joint_entropy_of_sources(mri: Image, pet: Image, fused: Image) -> float:
    del fused
    return joint_entropy(mri, pet)


def _entropy_of_source(source: Image, fused: Image) -> float:
    del fused
    return entropy(source)


def _of_fused(function: Callable[[Image], float], mri: Image, pet: Image, fused: Image) -> float:
    del mri, pet
    return function(fused)


_UNIT: Final = (0.0, 1.0)
_POSITIVE: Final = (0.0, math.inf)

QUALITIES: Final[tuple[Quality, ...]] = (
    Quality(
        "qabf",
        "edge preservation (Xydeas and Petrovic)",
        "higher",
        "1",
        (0.0, MOST_PRESERVED),
        False,
        edge_preservation,
    ),
    Quality("nabf", "fusion artefacts (Kumar)", "lower", "1", _UNIT, False, fusion_artefacts),
    Quality(
        "scd",
        "sum of the correlations of differences",
        "higher",
        "1",
        (-2.0, 2.0),
        False,
        sum_of_correlations,
    ),
    Quality(
        "vif",
        "visual information fidelity",
        "higher",
        "1",
        _POSITIVE,
        True,
        visual_information_fidelity,
    ),
    Quality(
        "ssim", "structural similarity", "higher", "1", (-1.0, 1.0), True, structural_similarity
    ),
    Quality(
        "ms_ssim", "multi-scale structural similarity", "higher", "1", _UNIT, True, multiscale_ssim
    ),
    Quality(
        "fmi_pixel",
        "feature mutual information of pixels",
        "higher",
        "1",
        _UNIT,
        False,
        partial(feature_mutual_information, feature="pixel"),
    ),
    Quality(
        "fmi_gradient",
        "feature mutual information of gradients",
        "higher",
        "1",
        _UNIT,
        False,
        partial(feature_mutual_information, feature="gradient"),
    ),
    Quality(
        "nmi",
        "normalised mutual information",
        "higher",
        "1",
        _UNIT,
        True,
        normalised_mutual_information,
        "sum",
    ),
    Quality(
        "mi", "mutual information", "higher", "bit", (0.0, 8.0), True, mutual_information, "sum"
    ),
    Quality("cc", "correlation", "higher", "1", (-1.0, 1.0), True, correlation, "mean"),
    Quality(
        "mse", "mean squared error", "lower", "level2", (0.0, 65025.0), True, mean_squared_levels
    ),
    Quality("psnr", "peak signal-to-noise ratio", "higher", "dB", _POSITIVE, True, psnr),
    Quality(
        "rmse_relative",
        "error norm relative to source norm",
        "lower",
        "1",
        _POSITIVE,
        True,
        relative_rmse,
    ),
    Quality("en", "entropy", "neither", "bit", (0.0, 8.0), False, partial(_of_fused, entropy)),
    Quality(
        "sd",
        "standard deviation",
        "neither",
        "level",
        (0.0, 127.5),
        False,
        partial(_of_fused, standard_deviation),
    ),
    Quality(
        "sf",
        "spatial frequency",
        "neither",
        "level",
        (0.0, LEVELS * math.sqrt(2.0)),
        False,
        partial(_of_fused, spatial_frequency),
    ),
    Quality(
        "ag",
        "average gradient",
        "neither",
        "level",
        (0.0, LEVELS),
        False,
        partial(_of_fused, average_gradient),
    ),
    Quality("entropy", "entropy of source", "neither", "bit", (0.0, 8.0), True, _entropy_of_source),
    Quality(
        "joint_entropy",
        "joint entropy of source and fused",
        "neither",
        "bit",
        (0.0, 16.0),
        True,
        joint_entropy,
    ),
    Quality(
        "joint_entropy_sources",
        "joint entropy of sources",
        "neither",
        "bit",
        (0.0, 16.0),
        False,
        _joint_entropy_of_sources,
    ),
)

TABLE_1: Final = ("mse", "psnr", "rmse_relative", "ssim", "mi", "nmi")
"""The columns per source of Panesar and Ganatra's table 1: its "MI" looks like our ``nmi``."""


def assess(
    mri: Image, pet: Image, fused: Image, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Compute the figures of fusion quality of one slice.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (y, x), float32 or float64
        The two sources and the fused slice, 0..1 being the display window.
    names : sequence of str, optional
        The figures wanted: names of :data:`QUALITIES`, for all the figures of each, or single keys
        of theirs, such as ``"vif_pet"``. All of them by default. A name that is also a key, as
        ``"mi"`` is, stands for that one figure.

    Returns
    -------
    dict of str to float
        Figures by key, in the order of `names`; NaN where one is not defined.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, values that are not finite, or an unknown name.

    Examples
    --------
    >>> import numpy as np
    >>> mri, pet = np.random.default_rng(0).random((2, 64, 64))
    >>> assess(mri, pet, mri, ["ssim", "vif_mri"])["ssim_mri"]
    1.0
    >>> list(assess(mri, pet, mri, ["ssim", "vif_mri", "mi"]))
    ['ssim_mri', 'ssim_pet', 'vif_mri', 'mi']
    """
    images = _images(mri=mri, pet=pet, fused=fused)
    known: dict[str, tuple[Quality, tuple[str, ...]]] = {q.name: (q, q.keys) for q in QUALITIES}
    known |= {key: (quality, (key,)) for quality in QUALITIES for key in quality.keys}
    figures: dict[str, float] = {}
    wanted: dict[str, float] = {}
    for name in [key for q in QUALITIES for key in q.keys] if names is None else names:
        if name not in known:
            raise InputError(f"figure {name!r} is not known", f"Use some of {', '.join(known)}")
        quality, keys = known[name]
        if not figures.keys() >= set(keys):
            figures |= quality.figures(*images)
        wanted |= {key: figures[key] for key in keys}
    return wanted


def table_1(source: Image, fused: Image) -> dict[str, float]:
    """Compute the figures of Panesar and Ganatra's table 1 against one source.

    Parameters
    ----------
    source, fused : ndarray, shape (y, x), float32 or float64
        The slice to compare, 0..1 being the display window.

    Returns
    -------
    dict of str to float
        By the names of :data:`TABLE_1`; the MSE on the 0..255 scale.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> figures = table_1(np.zeros((16, 16)), np.full((16, 16), 0.1))
    >>> round(figures["mse"], 2), round(figures["psnr"], 2), figures["rmse_relative"]
    (650.25, 20.0, nan)
    """
    functions = {q.name: q.function for q in QUALITIES}
    return {name: functions[name](source, fused) for name in TABLE_1}


def _images(**images: Image) -> list[FloatArray]:
    arrays, _ = consistent(images, None, ndim=2)
    return [finite(name, array) for name, array in arrays.items()]
