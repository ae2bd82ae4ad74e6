"""Fusion quality by gradients: edges preserved, edges made up, and how much of them there is.

References
----------
edge_preservation
    C. S. Xydeas, V. Petrovic, "Objective image fusion performance measure", Electronics Letters
    36(4), 2000.
fusion_artefacts
    V. Petrovic, C. Xydeas, "Objective image fusion performance characterisation", ICCV 2005, as
    modified by B. K. Shreyamsha Kumar, "Multifocus and multispectral image fusion based on pixel
    significance using discrete cosine harmonic wavelet transform", Signal, Image and Video
    Processing 7(6), 2013.
spatial_frequency
    A. M. Eskicioglu, P. S. Fisher, "Image quality measures and their performance", IEEE
    Transactions on Communications 43(12), 1995.
average_gradient
    G. Cui, H. Feng, Z. Xu, Q. Li, Y. Chen, "Detail preserved fusion of visible and infrared images
    using regional saliency extraction and multi-scale image decomposition", Optics
    Communications 341, 2015.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import numpy as np
from scipy.ndimage import correlate1d

from fusionflow.pixels import FloatArray, Image, consistent, finite

__all__ = [
    "MOST_PRESERVED",
    "average_gradient",
    "edge_preservation",
    "fusion_artefacts",
    "grey_grid",
    "spatial_frequency",
]

LEVELS: Final = 255.0  # grey levels to a display window


class Sigmoid(NamedTuple):
    r"""How much of an agreement of 0..1 is perceived, :math:`\Gamma / (1 + e^{-k (x - s)})`."""

    ceiling: float
    slope: float
    middle: float

    def __call__(self, agreement: FloatArray) -> FloatArray:
        """Return what is perceived."""
        return self.ceiling / (1.0 + np.exp(-self.slope * (agreement - self.middle)))


STRENGTH: Final = Sigmoid(0.9994, 15.0, 0.5)
ORIENTATION: Final = Sigmoid(0.9879, 22.0, 0.8)
ARTEFACT_STRENGTH: Final = Sigmoid(0.9999, 19.0, 0.5)
ARTEFACT_ORIENTATION: Final = Sigmoid(0.9995, 22.0, 0.5)
ARTEFACT_THRESHOLD: Final = 2.0  # grey levels to a pixel
FAINT_WEIGHT: Final = 0.001
GRID_BITS: Final = 20

MOST_PRESERVED: Final = float(STRENGTH(np.asarray(1.0)) * ORIENTATION(np.asarray(1.0)))
"""The edge preservation of an image by itself: the sigmoids never reach 1."""


class Edges(NamedTuple):
    """Strength and orientation, -pi/2 to pi/2, of the edge at every pixel."""

    strength: FloatArray
    orientation: FloatArray


def edge_preservation(
    mri: Image,
    pet: Image,
    fused: Image,
    *,
    opposite_is_same: bool = False,
    ties: Literal["one", "strength"] = "one",
) -> float:
    r"""Edge preservation of Xydeas and Petrovic, :math:`Q^{AB/F}`.

    .. math:: \frac{\sum_p g_A Q^{AF} + g_B Q^{BF}}{\sum_p g_A + g_B}

    with :math:`g = \sqrt{s_x^2 + s_y^2}` and :math:`\alpha = \arctan(s_y / s_x)` (or
    :math:`\pi/2` where :math:`s_x = 0`) of the 3 x 3 Sobel responses, the image being continued by
    zeros, and at every pixel

    .. math:: G^{AF} &= \min(g_A, g_F) / \max(g_A, g_F) \\
              A^{AF} &= 1 - |\alpha_A - \alpha_F| / (\pi/2) \\
              Q^{AF} &= \frac{0.9994}{1 + e^{-15 (G^{AF} - 0.5)}}
                        \frac{0.9879}{1 + e^{-22 (A^{AF} - 0.8)}}

    Published figures are computed so, and with this :math:`A^{AF}`. The paper's own is
    :math:`||\alpha_A - \alpha_F| - \pi/2| / (\pi/2)`, which agrees up to a difference of
    :math:`\pi/2`, and beyond it takes two edges of nearly vertical gradient, at
    :math:`+\pi/2` and :math:`-\pi/2`, for the same, as they are: `opposite_is_same` computes that.
    It raises the figure by 0.001 to 0.015 on brain slices.

    Where :math:`g_A = g_F`, much code takes :math:`G = g_F`, which can be meant for 0 alone: of
    grey levels of 0..255 that is a large number, perceived as 0.9994. By the formula it is 1,
    perceived as 0.9989, and the figure does not depend on the intensity scale. An unchanged source
    has 0.0005 less by that.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (y, x), float32 or float64
        The two sources and the fused slice.
    opposite_is_same : bool
        Compare orientations as lines, as the paper defines them, not as numbers.
    ties : {"one", "strength"}
        What :math:`G` is where two edges are equally strong: 1, or that strength on the 0..255
        scale, as code for 8-bit images has it.

    Returns
    -------
    float
        0 to 0.975 (:data:`MOST_PRESERVED`), no units; higher is better. Symmetric in the sources.
        NaN where neither source has an edge.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> mri, pet = np.eye(32), np.zeros((32, 32))
    >>> round(edge_preservation(mri, pet, mri), 3)
    0.975
    """
    images = _images(mri=mri, pet=pet, fused=fused)
    edges_m, edges_p, edges_f = (_edges(grey_grid(image), "constant") for image in images.values())
    kept = total = 0.0
    for edges in (edges_m, edges_p):
        turn = np.abs(edges.orientation - edges_f.orientation)
        if opposite_is_same:
            turn = np.minimum(turn, math.pi - turn)
        ratio = _ratio(edges.strength, edges_f.strength)
        if ties == "strength":
            tied = edges.strength == edges_f.strength
            ratio[tied] = edges.strength[tied]
        preserved = STRENGTH(ratio)
        preserved *= ORIENTATION(1.0 - turn / (math.pi / 2.0))
        kept += float((edges.strength * preserved).sum())
        total += float(edges.strength.sum())
    return kept / total if total else math.nan


def fusion_artefacts(
    mri: Image, pet: Image, fused: Image, *, faint_weight: float = FAINT_WEIGHT
) -> float:
    r"""Fusion artefacts :math:`N^{AB/F}`, as modified by Kumar: edges that no source has.

    .. math:: \frac{\sum_{p \in N} (1 - Q^{AF}) w_A + (1 - Q^{BF}) w_B}{\sum_p w_A + w_B}

    where :math:`N` are the pixels at which the fused edge is stronger than that of either source.
    It differs from :func:`edge_preservation` in all its details: images on the 0..255 scale, Sobel
    responses divided by 8 (so that :math:`g` is the slope in grey levels to a pixel), the image
    continued by reflection about its outermost pixels, :math:`G = 0` where either strength is 0,
    orientations compared as lines,

    .. math:: Q^{AF} = \left( \frac{0.9999}{1 + e^{-19 (G^{AF} - 0.5)}}
                              \frac{0.9995}{1 + e^{-22 (A^{AF} - 0.5)}} \right)^{1/2}

    and weights :math:`w = g^{1.5}` where :math:`g \geq 2`, `faint_weight` elsewhere.

    Parameters
    ----------
    mri, pet, fused : ndarray, shape (y, x), float32 or float64
        The two sources and the fused slice, 0..1 being the display window.
    faint_weight : float
        What a pixel of a source counts where its edge is below 2 grey levels to a pixel.

    Returns
    -------
    float
        0 (no edge of the fused image is stronger than both sources') to 1, no units; lower is
        better. Symmetric in the sources. NaN for a slice of fewer than 2 pixels along y or x, and
        where no pixel has a weight.

    Raises
    ------
    InputError
        Shapes or dtypes that do not fit, or values that are not finite.

    Examples
    --------
    >>> mri, pet = np.eye(32), np.zeros((32, 32))
    >>> fusion_artefacts(mri, pet, np.maximum(mri, pet))
    0.0
    """
    images = _images(mri=mri, pet=pet, fused=fused)
    if min(images["fused"].shape) < 2:
        return math.nan
    edges_m, edges_p, edges_f = (
        _edges(grey_grid(image) / 8.0, "mirror") for image in images.values()
    )
    new = edges_f.strength > np.maximum(edges_m.strength, edges_p.strength)
    made_up = total = 0.0
    for edges in (edges_m, edges_p):
        turn = np.abs(edges.orientation - edges_f.orientation)
        ratio = _ratio(edges.strength, edges_f.strength)
        ratio[edges.strength == 0] = 0.0
        preserved = ARTEFACT_STRENGTH(ratio)
        preserved *= ARTEFACT_ORIENTATION(np.abs(turn - math.pi / 2.0) / (math.pi / 2.0))
        strong = edges.strength >= ARTEFACT_THRESHOLD
        weights = np.where(strong, edges.strength**1.5, faint_weight)
        made_up += float(((1.0 - np.sqrt(preserved)) * weights)[new].sum())
        total += float(weights.sum())
    return made_up / total if total else math.nan


def grey_grid(image: FloatArray) -> FloatArray:
    """Bring pixels to the 0..255 scale, on a grid that is fine but lets sums be exact.

    Where a gradient vanishes its orientation is a matter of definition, and rounding must not stand
    in for it: the levels of an 8-bit picture divided by 255 give Sobel responses of 1e-17 for 0.

    Parameters
    ----------
    image : ndarray, float64
        Finite pixels, 0..1 being the display window.

    Returns
    -------
    ndarray, float64
        Grey levels, rounded to a power of two that is about a millionth of the greatest magnitude
        among them; so 8-bit pictures have whole numbers, in float32, too.
    """
    levels = LEVELS * image
    greatest = float(np.abs(levels).max(initial=0.0))
    step = math.ldexp(1.0, max(math.frexp(greatest)[1] - GRID_BITS, -1000))
    return np.asarray(np.rint(levels / step) * step)


def spatial_frequency(image: Image) -> float:
    r"""Spatial frequency, :math:`\sqrt{\overline{\Delta_x^2} + \overline{\Delta_y^2}}`.

    The means are over the differences of neighbours that there are. (The paper divides both sums
    by the number of pixels, which makes a slice of 256 x 256 less by 0.2 %.)

    Parameters
    ----------
    image : ndarray, shape (y, x), float32 or float64
        The slice, 0..1 being the display window.

    Returns
    -------
    float
        0 (a constant image) to 361, in grey levels of 0..255. Noise raises it, too. NaN for a
        slice of fewer than 2 pixels along y or x.

    Raises
    ------
    InputError
        Not two dimensions or not floating point, or values that are not finite.

    Examples
    --------
    >>> round(spatial_frequency(np.arange(12.0).reshape(3, 4) / 255), 6)  # steps of 1 and 4
    4.123106
    """
    (pixels,) = _images(image=image).values()
    if min(pixels.shape) < 2:
        return math.nan
    steps = (np.square(np.diff(pixels, axis=axis)).mean() for axis in (0, 1))
    return LEVELS * math.sqrt(sum(steps))


def average_gradient(image: Image) -> float:
    r"""Average gradient, the mean of :math:`\sqrt{(\partial_x^2 + \partial_y^2) / 2}`.

    Derivatives are central differences, and one-sided at the border.

    Parameters
    ----------
    image : ndarray, shape (y, x), float32 or float64
        The slice, 0..1 being the display window.

    Returns
    -------
    float
        0 (a constant image) to 255, in grey levels of 0..255 to a pixel. Noise raises it, too. NaN
        for a slice of fewer than 2 pixels along y or x.

    Raises
    ------
    InputError
        Not two dimensions or not floating point, or values that are not finite.

    Examples
    --------
    >>> round(average_gradient(np.arange(12.0).reshape(3, 4) / 255), 6)  # slopes of 1 and 4
    2.915476
    """
    (pixels,) = _images(image=image).values()
    if min(pixels.shape) < 2:
        return math.nan
    along_y, along_x = np.gradient(pixels)
    return LEVELS * float(np.hypot(along_x, along_y).mean()) / math.sqrt(2.0)


def _images(**images: Image) -> dict[str, FloatArray]:
    arrays, _ = consistent(images, None, ndim=2)
    return {name: finite(name, array) for name, array in arrays.items()}


def _edges(image: FloatArray, border: Literal["constant", "mirror"]) -> Edges:
    """Find the edges by Sobel; `border` is how SciPy continues the image."""
    smooth, step = np.array([1.0, 2.0, 1.0]), np.array([-1.0, 0.0, 1.0])
    along_x, along_y = (
        correlate1d(correlate1d(image, step, axis, mode=border), smooth, 1 - axis, mode=border)
        for axis in (1, 0)
    )
    # The arc tangent of y / x, where there is an x; sign and size of x are of no account.
    orientation = np.full(image.shape, math.pi / 2.0)
    np.divide(along_y, along_x, out=orientation, where=along_x != 0)
    np.arctan(orientation, out=orientation, where=along_x != 0)
    return Edges(np.hypot(along_x, along_y), orientation)


def _ratio(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the lesser of two strengths over the greater; 1 where both are 0."""
    greater = np.maximum(a, b)
    return np.divide(np.minimum(a, b), greater, out=np.ones_like(greater), where=greater > 0)
