"""The registration as ITK does it: images at three resolutions, the metric, and the climb.

Everything is in RAS+ world mm, from end to end: ITK names its physical space LPS, but a rigid
registration does not hang on the name, and images that never leave RAS need no change of sign. ITK
gets each image on its own voxel axes, so oblique and left-handed grids are not resampled first.

SimpleITK is large, so it is imported when it is needed. Nothing global of it is read or changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from fusionflow.io.nifti import Affine

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["Level", "Resolution", "Shown", "climb", "metric", "resolutions", "world"]

FloatArray: TypeAlias = npt.NDArray[np.float32]
Point: TypeAlias = npt.NDArray[np.float64]

SPACINGS = (8.0, 4.0, 2.0)  # mm, from coarse to fine
FWHM = 1.5  # of the smoothing at each level, in spacings
BINS = 32
SAMPLES = 40_000
MARGIN = 8.0  # mm of air around the head that count: its edge is what both images show best
_SEED = 1
_MOST_ITERATIONS = 200
_LAST_STEP = 0.01  # mm
_RELAXATION = 0.6
# ITK's 1e-4 is in nats, and stops images that share little before they have arrived.
_LEAST_GRADIENT = 1e-7
_FEWEST_VOXELS = 10  # along an axis; a level that has fewer is left out
_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))
_TRUNCATE = 3.0  # sigmas
_SLAB_VOXELS = 1 << 22  # that are smoothed at a time


@dataclass(frozen=True)
class Level:
    """What happened at one resolution.

    Attributes
    ----------
    spacing_mm : float
        Distance of the samples, at least that of the voxels; both images are smoothed to 1.5 times
        as much, full width at half maximum.
    iterations : int
        Steps that the optimiser took.
    stop : str
        Why it stopped, in ITK's words.
    """

    spacing_mm: float
    iterations: int
    stop: str


@dataclass(frozen=True, eq=False)
class Resolution:
    """Both images at one resolution, as ITK takes them."""

    spacing: float
    mri: SimpleITK.Image
    pet: SimpleITK.Image
    where: SimpleITK.Image
    share: float


def climb(
    levels_of: tuple[Resolution, ...], start: Affine, middle: Point
) -> tuple[Affine, tuple[Level, ...], bool]:
    """Return the matrix PET -> MRI that is found from a start, and how it was found."""
    found, levels, settled = start, [], False
    for resolution in levels_of:
        method = _method(resolution)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(resolution.share, _SEED)
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=resolution.spacing / 2,
            minStep=_LAST_STEP,
            numberOfIterations=_MOST_ITERATIONS,
            relaxationFactor=_RELAXATION,
            gradientMagnitudeTolerance=_LEAST_GRADIENT,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        transform = _transform(found, middle)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(resolution.mri, resolution.pet)
        except RuntimeError as error:
            # "ITK ERROR: class(address): sentence. More sentences."
            reason = str(error).strip().rpartition("): ")[2].partition(". ")[0]
            levels.append(Level(resolution.spacing, 0, f"failed: {reason}"))
            return found, tuple(levels), False
        found = _matrix(transform)
        iterations = int(method.GetOptimizerIteration())
        settled = iterations < _MOST_ITERATIONS
        stop = str(method.GetOptimizerStopConditionDescription())
        levels.append(Level(resolution.spacing, iterations, stop))
    return found, tuple(levels), settled


def _method(resolution: Resolution) -> SimpleITK.ImageRegistrationMethod:
    """Return a registration with our metric, on one thread."""
    import SimpleITK

    method = SimpleITK.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(resolution.where)
    method.SetInterpolator(SimpleITK.sitkLinear)
    # Differences between voxels do: the images are smooth, and ITK would smooth them once more.
    method.MetricUseMovingImageGradientFilterOff()
    method.MetricUseFixedImageGradientFilterOff()
    return method


def metric(resolution: Resolution, matrix: Affine, middle: Point) -> float:
    """Return the mutual information over all samples; 0 where the images do not meet."""
    method = _method(resolution)
    method.SetInitialTransform(_transform(matrix, middle))
    try:
        return -float(method.MetricEvaluate(resolution.mri, resolution.pet))
    except RuntimeError:  # not one sample lies in the PET
        return 0.0


def _transform(matrix: Affine, middle: Point) -> SimpleITK.Euler3DTransform:
    """Return a matrix PET -> MRI as what ITK wants: MRI -> PET, about the centre of the head."""
    import SimpleITK

    back = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    transform = SimpleITK.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(back[:3, :3].ravel().tolist(), 1e-6)
    transform.SetTranslation((world(back, middle) - middle).tolist())
    return transform


def _matrix(transform: SimpleITK.Euler3DTransform) -> Affine:
    """Return the matrix PET -> MRI of such a transform."""
    back = np.eye(4)
    back[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    middle = np.array(transform.GetCenter())
    back[:3, 3] = middle + transform.GetTranslation() - back[:3, :3] @ middle
    matrix = np.eye(4)
    matrix[:3, :3] = back[:3, :3].T
    matrix[:3, 3] = -back[:3, :3].T @ back[:3, 3]
    return matrix


@dataclass(frozen=True, eq=False)
class Shown:
    """An image (x, y, z) as registration looks at it, made slab by slab when it is needed.

    Attributes
    ----------
    data : ndarray, (x, y, z)
        The image.
    window : tuple of float, optional
        What becomes 0 and what becomes 1; what is beyond is cut.
    """

    data: npt.NDArray[Any]
    window: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z)."""
        return self.data.shape

    def __getitem__(self, slices: slice) -> FloatArray:
        """Return slices along z, (x, y, z) float32."""
        part = np.asarray(self.data[..., slices], dtype=np.float32)
        if self.window is None:
            return part
        low, high = self.window
        clipped = np.clip(part, np.float32(low), np.float32(high))
        clipped -= np.float32(low)
        clipped /= np.float32(high - low)
        return np.asarray(clipped)


def resolutions(
    pet_affine: Affine,
    pet: Shown,
    mri_affine: Affine,
    mri: Shown,
    head: npt.NDArray[np.bool_],
) -> tuple[Resolution, ...]:
    """Return both images at each resolution, from coarse to fine."""
    found: list[Resolution] = []
    where = Shown(head)
    had = 0.0
    for spacing in reversed(SPACINGS):
        fwhm = FWHM * spacing
        blur = math.sqrt(fwhm**2 - had**2)
        (mri, where), mri_affine = _coarser((mri, where), mri_affine, blur, spacing)
        (pet,), pet_affine = _coarser((pet,), pet_affine, blur, spacing)
        had = fwhm
        if found and min(mri.shape + pet.shape) < _FEWEST_VOXELS:
            continue
        sizes = np.linalg.norm(mri_affine[:3, :3], axis=0)
        near = ndimage.distance_transform_edt(where.data < 0.5, sampling=sizes) <= MARGIN
        share = min(1.0, SAMPLES / int(np.count_nonzero(near)))
        found.append(
            Resolution(
                spacing,
                _image(mri.data, mri_affine),
                _image(pet.data, pet_affine),
                _image(near.astype(np.uint8), mri_affine),
                share,
            )
        )
    return tuple(reversed(found))


def _coarser(
    images: tuple[Shown, ...], affine: Affine, fwhm: float, spacing: float
) -> tuple[list[Shown], Affine]:
    """Smooth images (x, y, z) of one grid, and keep every so many of their voxels."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.maximum(1, np.floor(spacing / sizes + 1e-3)).astype(int)
    first = (np.array(images[0].shape) - 1) % step // 2
    sigma = fwhm * _TO_SIGMA / sizes
    coarse = affine.copy()
    coarse[:3, 3] = world(affine, first)
    coarse[:3, :3] = affine[:3, :3] * step
    return [Shown(_smoothed(image, sigma, first, step)) for image in images], coarse


def _smoothed(
    image: Shown,
    sigma: npt.NDArray[np.float64],
    first: npt.NDArray[np.int_],
    step: npt.NDArray[np.int_],
) -> FloatArray:
    """Return every so many voxels of a smoothed image, each as if all were smoothed at once."""
    rows, columns, depth = image.shape
    reach = int(_TRUNCATE * sigma[2] + 0.5)  # of scipy's filter
    thick = max(1, _SLAB_VOXELS // (rows * columns))
    parts = []
    for start in range(0, depth, thick):
        low, high = max(0, start - reach), min(depth, start + thick + reach)
        part = ndimage.gaussian_filter(
            image[low:high], sigma.tolist(), mode="nearest", truncate=_TRUNCATE
        )
        kept = np.arange(first[2], depth, step[2])
        kept = kept[(kept >= start) & (kept < start + thick)] - low
        parts.append(part[first[0] :: step[0], first[1] :: step[1], kept])
    return np.concatenate(parts, axis=2)


def _image(data: npt.NDArray[Any], affine: Affine) -> SimpleITK.Image:
    """Return an array (x, y, z) as an ITK image in RAS+ world space."""
    import SimpleITK

    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(sizes.tolist())
    image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def world(affine: Affine, index: Sequence[float] | npt.NDArray[Any]) -> Point:
    """Return where a point (3,) goes through an affine (4, 4)."""
    return np.asarray(affine[:3, :3] @ np.asarray(index) + affine[:3, 3])
