"""A small made-up PET/MRI cohort, for the demo and the tests.

One seed gives one head (`fusionflow.anatomy`) on every grid, and every scan of it has one lesion
that only the PET shows and one that only the MRI shows: what fusion is for, with the answer known.

Nothing here is a person's data, and nothing here is a model of physiology.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionflow.anatomy import TISSUES, Anatomy, Coordinates, Point, Volume, Waves, ellipsoid
from fusionflow.errors import ConfigurationError
from fusionflow.io.phantom_files import (
    DESCRIPTION,
    PARTICIPANTS,
    README,
    T1W_SIDECAR,
    json_bytes,
    lines_bytes,
    nifti_bytes,
    pet_sidecar,
    replace,
)

__all__ = ["COHORT", "SHAPE", "TISSUES", "Lesion", "Phantom", "make_phantom", "write_cohort"]

Affine: TypeAlias = NDArray[np.float64]

SHAPE: Final = (112, 136, 112)
"""T1w grid of a phantom unless told otherwise: 1.5 mm voxels."""

COHORT: Final = (("01", "baseline"), ("01", "followup"), ("02", "baseline"), ("03", "baseline"))
"""Subject and session of each scan that `write_cohort` writes."""

_EXTENT: Final = (168.0, 204.0, 168.0)  # mm that hold every head
_CENTRE: Final = (0.0, -10.0, 4.0)  # of the T1w field of view, world mm
_PET_SHIFT: Final = (1.3, -2.1, 0.9)  # of the PET field of view against it, mm
_PET_MARGIN: Final = 14.0  # mm by which the PET field of view is larger
_PSF_FWHM: Final = 4.5  # mm, PET scanner
_FILTER_FWHM: Final = 4.0  # mm, PET post-filter
_GREY_UPTAKE: Final = 18_500.0  # Bq/mL: SUV 7 for 185 MBq and 70 kg
_COUNTS: Final = 1.9e-4  # per Bq/mL and mm3: about 5 % noise in filtered grey matter
_PET_STEP: Final = 2.0  # Bq/mL; int16 then reaches 65,534
_WHITE_SIGNAL: Final = 600.0
_RICIAN_SD: Final = 0.02  # of white matter
_LATTICE: Final = 3.0  # mm; lesions are placed on it, whatever the grid of the images


@dataclass(frozen=True)
class Lesion:
    """A ball that one modality shows and the other does not.

    Attributes
    ----------
    modality : {"pet", "mri"}
        Who shows it.
    centre : tuple of float
        World mm, RAS+.
    radius : float
        In mm.
    """

    modality: Literal["pet", "mri"]
    centre: Point
    radius: float


@dataclass(frozen=True)
class Phantom:
    """One simulated scan: a T1w and an FDG-PET image of one head, aligned by the scanner.

    Attributes
    ----------
    t1w : ndarray (x, y, z) float32
        T1-weighted signal in arbitrary units, whole numbers.
    t1w_affine : ndarray (4, 4) float64
        Voxel to world mm, RAS+.
    pet : ndarray (x', y', z') float32
        Activity concentration in Bq/mL, multiples of 2.
    pet_affine : ndarray (4, 4) float64
        Voxel to world mm, RAS+; coarser than the T1w grid and with another origin.
    lesions : tuple of Lesion
        The one that only the PET shows, then the one that only the MRI shows.
    labels : ndarray (x, y, z) uint8
        The tissue that prevails in each T1w voxel, lesions left out; see `TISSUES`.
    """

    t1w: Volume
    t1w_affine: Affine
    pet: Volume
    pet_affine: Affine
    lesions: tuple[Lesion, ...]
    labels: NDArray[np.uint8]


def make_phantom(
    seed: int,
    *,
    shape: tuple[int, int, int] = SHAPE,
    spacing: float | None = None,
    pet_spacing: float | None = None,
    session: int = 1,
) -> Phantom:
    """Simulate one scan of one subject.

    The seed fixes the anatomy and the place of the lesions, on any grid; the session fixes the
    noise, and the PET lesion grows and heats a little from one session to the next.

    Parameters
    ----------
    seed : int
        The subject, not negative.
    shape : tuple of int
        Voxels of the T1w grid.
    spacing : float, optional
        T1w voxel size in mm; by default the head just fits.
    pet_spacing : float, optional
        PET voxel size in mm; by default 2.7, or 1.25 times the T1w voxel where that is more.
    session : int
        Counted from 1.

    Returns
    -------
    Phantom
        The images, where they lie, and where the lesions are.

    Raises
    ------
    ConfigurationError
        When a parameter is out of range.
    """
    if seed < 0 or session < 1:
        raise ConfigurationError(
            f"a phantom has no seed {seed} with session {session}",
            "Take a seed from 0 and a session from 1",
        )
    if len(shape) != 3 or min(shape) < 16:
        raise ConfigurationError(
            f"a head cannot be drawn on a grid of {shape}", "Give three sizes of at least 16"
        )
    step = max(e / n for e, n in zip(_EXTENT, shape, strict=True)) if spacing is None else spacing
    pet_step = max(2.7, 1.25 * step) if pet_spacing is None else pet_spacing
    if min(step, pet_step) <= 0:
        raise ConfigurationError(
            f"voxels of {step} and {pet_step} mm do not exist", "Give sizes above 0"
        )
    pet_centre = tuple(c + s for c, s in zip(_CENTRE, _PET_SHIFT, strict=True))
    pet_shape = tuple(math.ceil((n * step + _PET_MARGIN) / pet_step) for n in shape)
    affine, pet_affine = _affine(shape, step, _CENTRE), _affine(pet_shape, pet_step, pet_centre)

    lesions, heat = _lesions(seed, session)
    world = _world(shape, affine)
    head = Anatomy(seed).sample(world, step)
    hot, dark = (head.cover(ellipsoid(world, b.centre, (b.radius,) * 3)) for b in lesions)
    head.fdg += (np.float32(heat) - head.fdg) * hot
    head.t1w += (np.float32(0.38) - head.t1w) * dark
    rng = np.random.default_rng([seed, 3, session])
    return Phantom(
        t1w=_acquire_t1w(head.t1w, world, rng),
        t1w_affine=affine,
        pet=_acquire_pet(head.fdg, affine, pet_shape, pet_affine, rng),
        pet_affine=pet_affine,
        lesions=lesions,
        labels=head.labels,
    )


def write_cohort(
    bids_dir: Path, *, seed: int = 0, shape: tuple[int, int, int] | None = None
) -> list[Path]:
    """Write the scans of `COHORT` as a BIDS dataset.

    The same seed and shape give the same bytes (on one type of machine, with the same versions of
    NumPy and SciPy), and files that are there already are replaced.
    ``lesions.tsv`` says where the lesions are; BIDS has no place for it, so ``.bidsignore``
    names it.

    Parameters
    ----------
    bids_dir : Path
        Made when it is not there.
    seed : int
        Not negative; cohorts with other seeds have other subjects.
    shape : tuple of int, optional
        Voxels of the T1w grid, `SHAPE` by default; see `make_phantom`.

    Returns
    -------
    list of Path
        The session folders, in the order of `COHORT`.

    Raises
    ------
    ConfigurationError
        When a parameter is out of range.
    """
    bids_dir = Path(bids_dir)
    folders: list[Path] = []
    subjects: dict[str, int] = {}
    of_pet = pet_sidecar(_FILTER_FWHM)
    lesions = ["participant_id\tsession_id\tmodality\tx\ty\tz\tradius"]
    for subject, session in COHORT:
        number = sum(s == subject for s, _ in COHORT[: len(folders)]) + 1
        subjects[subject] = 100 * seed + int(subject)
        phantom = make_phantom(subjects[subject], shape=shape or SHAPE, session=number)
        folder = bids_dir / f"sub-{subject}" / f"ses-{session}"
        name = f"sub-{subject}_ses-{session}"
        for stem, data, affine, step, sidecar in (
            (f"anat/{name}_T1w", phantom.t1w, phantom.t1w_affine, 1.0, T1W_SIDECAR),
            (f"pet/{name}_trc-FDG_pet", phantom.pet, phantom.pet_affine, _PET_STEP, of_pet),
        ):
            replace(folder / f"{stem}.nii.gz", nifti_bytes(data, affine, step))
            replace(folder / f"{stem}.json", json_bytes(sidecar))
        lesions += [
            f"sub-{subject}\tses-{session}\t{lesion.modality}\t"
            + "\t".join(f"{value:.2f}" for value in (*lesion.centre, lesion.radius))
            for lesion in phantom.lesions
        ]
        folders.append(folder)
    people = ["participant_id\tweight\tphantom_seed"]
    people += [f"sub-{subject}\t70\t{value}" for subject, value in subjects.items()]
    replace(bids_dir / "dataset_description.json", json_bytes(DESCRIPTION))
    replace(bids_dir / "participants.tsv", lines_bytes(people))
    replace(bids_dir / "participants.json", json_bytes(PARTICIPANTS))
    replace(bids_dir / "lesions.tsv", lines_bytes(lesions))
    replace(bids_dir / ".bidsignore", lines_bytes(["lesions.tsv"]))
    replace(bids_dir / "README", README.encode())
    return folders


@lru_cache(maxsize=16)
def _lesions(seed: int, session: int) -> tuple[tuple[Lesion, Lesion], float]:
    """Return the two lesions, and the uptake of the hot one (grey matter is 1)."""
    shape = tuple(round(e / _LATTICE) for e in _EXTENT)
    affine = _affine(shape, _LATTICE, _CENTRE)
    x, y, z = world = _world(shape, affine)
    labels = Anatomy(seed).sample(world, _LATTICE).labels
    rng = np.random.default_rng([seed, 2])
    hot_radius, dark_radius = rng.uniform((8.0, 5.0), (9.5, 6.0))
    heat = rng.uniform(1.7, 1.85)

    def pick(score: Volume, enough: float) -> int:
        """Draw a point whose score is enough, or among the best where none is."""
        return int(rng.choice(np.flatnonzero(score >= min(enough, float(score.max())))))

    white = ndimage.distance_transform_edt(labels == TISSUES["white"].label, sampling=_LATTICE)
    cerebral = (z > 14) & (np.abs(x) > 12)
    at = pick(np.float32(white) * cerebral, dark_radius + 3)
    dark = (float(x.flat[at]), float(y.flat[at]), float(z.flat[at]))
    # The hot one: in cortex, whole within the skull, and well away from the dark one.
    brain = (labels >= TISSUES["csf"].label) & (labels <= TISSUES["cerebellar_grey"].label)
    inside = ndimage.distance_transform_edt(brain, sampling=_LATTICE) > hot_radius
    lateral = (np.abs(x) > 32) & (z > -15) & (z < 50)
    apart = ellipsoid(world, dark, (35.0,) * 3) > 0
    grey = labels == TISSUES["grey"].label
    ribbon = ndimage.uniform_filter(grey.astype(np.float32), 5) * (grey & inside & lateral & apart)
    at = pick(ribbon, float(np.percentile(ribbon[ribbon > 0], 70)))
    hot = (float(x.flat[at]), float(y.flat[at]), float(z.flat[at]))
    growth = session - 1
    return (
        Lesion("pet", hot, float(hot_radius) * (1 + 0.05 * growth)),
        Lesion("mri", dark, float(dark_radius)),
    ), float(heat) * (1 + 0.08 * growth)


def _acquire_t1w(signal: Volume, world: Coordinates, rng: np.random.Generator) -> Volume:
    """Return the signal with a coil bias and Rician noise (Gudbjartsson & Patz 1995)."""
    bias = 1 + np.float32(0.07) * Waves.draw(rng, 300.0, 6, 0.3)(world)
    real = signal * bias + np.float32(_RICIAN_SD) * rng.standard_normal(signal.shape, np.float32)
    imaginary = np.float32(_RICIAN_SD) * rng.standard_normal(signal.shape, np.float32)
    return np.rint(np.sqrt(real**2 + imaginary**2) * np.float32(_WHITE_SIGNAL))


def _acquire_pet(
    uptake: Volume,
    affine: Affine,
    shape: tuple[int, ...],
    pet_affine: Affine,
    rng: np.random.Generator,
) -> Volume:
    """Return the uptake as a scanner sees it, in Bq/mL: blurred, sampled, noisy, filtered.

    Noise is Gaussian with the variance of counts, so that its bits do not hang on a last place.
    """
    step, pet_step = float(affine[0, 0]), float(pet_affine[0, 0])
    to_sigma = 1 / math.sqrt(8 * math.log(2))
    blurred = ndimage.gaussian_filter(uptake, _PSF_FWHM * to_sigma / step)
    seen = ndimage.affine_transform(
        blurred,
        np.full(3, pet_step / step),
        (pet_affine[:3, 3] - affine[:3, 3]) / step,
        output_shape=shape,
        order=1,
        mode="nearest",
    )
    activity = np.float32(_GREY_UPTAKE) * seen
    variance = np.maximum(activity, 0.02 * _GREY_UPTAKE) / (_COUNTS * pet_step**3)
    noisy = activity + np.sqrt(variance) * rng.standard_normal(shape, np.float32)
    filtered = ndimage.gaussian_filter(noisy, _FILTER_FWHM * to_sigma / pet_step)
    steps = np.rint(np.maximum(filtered, 0) / np.float32(_PET_STEP))
    return np.asarray(steps * np.float32(_PET_STEP), np.float32)


def _affine(shape: Sequence[int], spacing: float, centre: Sequence[float]) -> Affine:
    """Return the RAS+ affine of a grid of cubes around `centre`."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.asarray(centre) - spacing * (np.asarray(shape) - 1) / 2
    return affine


def _world(shape: Sequence[int], affine: Affine) -> Coordinates:
    """Return the world coordinates of every voxel, in mm."""
    axes = [np.float32(affine[i, i] * np.arange(n) + affine[i, 3]) for i, n in enumerate(shape)]
    x, y, z = (np.ascontiguousarray(a) for a in np.meshgrid(*axes, indexing="ij"))
    return x, y, z
