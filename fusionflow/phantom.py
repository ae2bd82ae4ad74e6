"""A small made-up PET/MRI cohort, for the demo and the tests.

A head is drawn from closed surfaces in world millimetres (RAS+, the origin near the anterior
commissure), so one seed gives one anatomy on every grid. The cortex is folded by band-limited
noise on the hull of the brain: its zero set, carried inwards, makes the sulci. Every scan has one
lesion that only the PET shows and one that only the MRI shows: what fusion is for, with the
answer known.

Nothing here is a person's data, and nothing here is a model of physiology.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusionflow.errors import ConfigurationError

Volume = NDArray[np.float32]
Affine = NDArray[np.float64]
Point = tuple[float, float, float]
Coordinates = tuple[Volume, Volume, Volume]


@dataclass(frozen=True)
class Tissue:
    """What a tissue looks like: label, T1w signal (white matter is 1), FDG (grey matter is 1)."""

    label: int
    t1w: float
    fdg: float


TISSUES: Final[Mapping[str, Tissue]] = {
    "air": Tissue(0, 0.0, 0.0),
    "csf": Tissue(1, 0.20, 0.05),
    "grey": Tissue(2, 0.66, 1.0),
    "white": Tissue(3, 1.0, 0.27),
    "deep_grey": Tissue(4, 0.76, 0.9),
    "cerebellar_grey": Tissue(5, 0.68, 0.85),
    "bone": Tissue(6, 0.07, 0.04),
    "marrow": Tissue(7, 0.55, 0.08),
    "fat": Tissue(8, 1.15, 0.04),
    "soft": Tissue(9, 0.42, 0.12),
}
"""The tissues by name; `Phantom.labels` holds their labels."""

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
    head = _Anatomy(seed).sample(world, step)
    hot, dark = (head.cover(_ellipsoid(world, b.centre, (b.radius,) * 3)) for b in lesions)
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
    lesions = ["participant_id\tsession_id\tmodality\tx\ty\tz\tradius"]
    for subject, session in COHORT:
        number = sum(s == subject for s, _ in COHORT[: len(folders)]) + 1
        subjects[subject] = 100 * seed + int(subject)
        phantom = make_phantom(subjects[subject], shape=shape or SHAPE, session=number)
        folder = bids_dir / f"sub-{subject}" / f"ses-{session}"
        name = f"sub-{subject}_ses-{session}"
        for stem, data, affine, step, sidecar in (
            (f"anat/{name}_T1w", phantom.t1w, phantom.t1w_affine, 1.0, _T1W_SIDECAR),
            (f"pet/{name}_trc-FDG_pet", phantom.pet, phantom.pet_affine, _PET_STEP, _PET_SIDECAR),
        ):
            _replace(folder / f"{stem}.nii.gz", _nifti(data, affine, step))
            _replace(folder / f"{stem}.json", _json(sidecar))
        lesions += [
            f"sub-{subject}\tses-{session}\t{lesion.modality}\t"
            + "\t".join(f"{value:.2f}" for value in (*lesion.centre, lesion.radius))
            for lesion in phantom.lesions
        ]
        folders.append(folder)
    people = ["participant_id\tweight\tphantom_seed"]
    people += [f"sub-{subject}\t70\t{value}" for subject, value in subjects.items()]
    _replace(bids_dir / "dataset_description.json", _json(_DESCRIPTION))
    _replace(bids_dir / "participants.tsv", _lines(people))
    _replace(bids_dir / "participants.json", _json(_PARTICIPANTS))
    _replace(bids_dir / "lesions.tsv", _lines(lesions))
    _replace(bids_dir / ".bidsignore", _lines(["lesions.tsv"]))
    _replace(bids_dir / "README", _README.encode())
    return folders


# Shapes: signed distances in mm, negative inside.


def _ellipsoid(p: Coordinates, centre: Sequence[float], radii: Sequence[float]) -> Volume:
    """Return the distance to an ellipsoid, to first order; exact for a ball."""
    r = [np.float32(a) for a in radii]
    u = [(a - np.float32(c)) / b for a, c, b in zip(p, centre, r, strict=True)]
    k0 = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2)
    k1 = np.sqrt((u[0] / r[0]) ** 2 + (u[1] / r[1]) ** 2 + (u[2] / r[2]) ** 2)
    distance: Volume = np.where(k1 > 1e-6, k0 * (k0 - 1) / np.maximum(k1, 1e-6), -min(r))
    return distance


def _tube(p: Coordinates, vertices: Sequence[Point], radii: Sequence[float]) -> Volume:
    """Return the distance to a tube along a polyline, its radius given at each vertex."""
    pieces = []
    for i in range(len(vertices) - 1):
        a, b = (np.array(v, np.float32) for v in vertices[i : i + 2])
        axis = b - a
        v = [c - o for c, o in zip(p, a, strict=True)]
        t = np.clip((v[0] * axis[0] + v[1] * axis[1] + v[2] * axis[2]) / (axis @ axis), 0, 1)
        off = [c - t * e for c, e in zip(v, axis, strict=True)]
        radius = radii[i] + (radii[i + 1] - radii[i]) * t
        pieces.append(np.sqrt(off[0] ** 2 + off[1] ** 2 + off[2] ** 2) - radius)
    tube: Volume = np.minimum.reduce(pieces)
    return tube


def _join(a: Volume, b: Volume, k: float) -> Volume:
    """Return the union of two shapes, the seam rounded over `k` mm."""
    h = np.clip(0.5 + (b - a) / (2 * k), 0, 1)
    joined: Volume = b + (a - b) * h - k * h * (1 - h)
    return joined


def _both(*shapes: Volume) -> Volume:
    """Return what all shapes share."""
    shared: Volume = np.maximum.reduce(shapes)
    return shared


def _beyond(a: Volume, limit: float) -> Volume:
    """Return by how much `a` exceeds `limit`, else 0."""
    excess: Volume = np.maximum(a - limit, 0)
    return excess


def _callosum(y: Volume, z: Volume) -> Volume:
    """Return the distance to the outer edge of the corpus callosum, in the midplane."""
    return _ellipsoid((np.zeros_like(y), y, z), (0, -6, 5), (1e3, 42, 22))


@dataclass(frozen=True)
class _Waves:
    """A band-limited random field of unit variance: a sum of plane waves."""

    vectors: Volume  # (wave, 3), rad/mm
    phases: Volume

    @classmethod
    def draw(cls, rng: np.random.Generator, length: float, number: int, spread: float) -> _Waves:
        """Draw waves of about `length` mm, give or take the fraction `spread`."""
        directions = rng.standard_normal((number, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = length * rng.uniform(1 - spread, 1 + spread, (number, 1))
        phases = rng.uniform(0, 2 * math.pi, number)
        vectors = 2 * math.pi / lengths * directions
        return cls(vectors.astype(np.float32), phases.astype(np.float32))

    def __call__(self, p: Coordinates) -> Volume:
        """Return the field."""
        return self.with_slope(p, slope=False)[0]

    def with_slope(self, p: Coordinates, *, slope: bool = True) -> tuple[Volume, Volume]:
        """Return the field and the length of its gradient per mm."""
        field = np.zeros_like(p[0])
        gradient = [np.zeros_like(p[0]) for _ in range(3)]
        for k, phase in zip(self.vectors, self.phases, strict=True):
            angle = p[0] * k[0] + p[1] * k[1] + p[2] * k[2] + phase
            field += np.cos(angle)
            if slope:
                sine = np.sin(angle)
                for g, component in zip(gradient, k, strict=True):
                    g -= sine * component
        unit = np.float32(math.sqrt(2 / len(self.phases)))
        steepness = np.sqrt(gradient[0] ** 2 + gradient[1] ** 2 + gradient[2] ** 2)
        return field * unit, steepness * unit


class _Canvas:
    """T1w signal, FDG uptake and labels, painted from the skin inwards."""

    def __init__(self, shape: tuple[int, ...], spacing: float) -> None:
        self.spacing = spacing
        self.t1w = np.zeros(shape, np.float32)
        self.fdg = np.zeros(shape, np.float32)
        self.labels = np.zeros(shape, np.uint8)

    def cover(self, shape: Volume) -> Volume:
        """Return about how much of each voxel lies inside a shape: partial volume."""
        cover: Volume = np.clip(0.5 - shape / self.spacing, 0, 1)
        return cover

    def paint(self, tissue: str, shape: Volume) -> None:
        """Fill a shape with a tissue."""
        what, cover = TISSUES[tissue], self.cover(shape)
        self.t1w += (np.float32(what.t1w) - self.t1w) * cover
        self.fdg += (np.float32(what.fdg) - self.fdg) * cover
        self.labels[cover > 0.5] = what.label


class _Anatomy:
    """The head of one subject, without lesions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.scale = rng.uniform((0.93, 0.93, 0.92), (0.99, 0.985, 0.97)).astype(np.float32)
        self.taper = float(rng.uniform(0.0004, 0.0014))  # how much narrower in front, per mm
        self.ventricles = float(rng.uniform(0.85, 1.35))
        self.gap = float(rng.uniform(0.5, 0.9))  # mm, half the width of a sulcus
        self.skull = np.float32(rng.uniform(4.5, 6.5))  # mm
        self.fold_depth = float(rng.uniform(15.0, 18.0))  # mm
        self.warp = [_Waves.draw(rng, 95.0, 6, 0.3) for _ in range(3)]
        self.folds = _Waves.draw(rng, float(rng.uniform(21.0, 25.0)), 32, 0.3)
        self.depths = _Waves.draw(rng, 45.0, 12, 0.3)
        self.texture = _Waves.draw(rng, 14.0, 12, 0.4)

    def sample(self, world: Coordinates, spacing: float) -> _Canvas:
        """Return the head at points in world mm, its edges blurred over one `spacing`."""
        canvas = _Canvas(world[0].shape, spacing)
        x, y, z = (
            a / s + np.float32(1.5) * w(world)
            for a, s, w in zip(world, self.scale, self.warp, strict=True)
        )
        p = (x, y, z)
        m = (np.abs(x), y, z)  # left and right at once
        width = 1 + self.taper * np.maximum(y + 5, -30) - np.float32(1.6e-5) * (y + 15) ** 2
        upper = _ellipsoid((m[0] * np.maximum(width, 0.7), y, z), (0, -15, 11), (64, 83, 62))
        upper = -_join(-upper, z + 22, 8.0)
        temporal = _tube(m, [(41, 13, -25), (46, -42, -14)], [16, 20])
        vermis = _ellipsoid(p, (0, -56, -31), (11, 22, 19))
        cerebellum = _join(_ellipsoid(m, (22, -62, -37), (27, 28, 21)), vermis, 6.0)
        cranium = _join(_join(upper, temporal, 9.0), cerebellum, 9.0) - 2
        self._paint_head(canvas, p, m, cranium)
        self._paint_cerebrum(canvas, p, upper, temporal, cerebellum)
        self._paint_hindbrain(canvas, p, cerebellum)
        self._paint_core(canvas, m)
        return canvas

    def _paint_head(self, canvas: _Canvas, p: Coordinates, m: Coordinates, cranium: Volume) -> None:
        texture = self.texture(p)
        outer: Volume = cranium - self.skull - texture * np.float32(0.25)
        nose = _tube(p, [(0, 78, -28), (0, 92, -62)], [6, 12])
        face = _join(_ellipsoid(p, (0, 36, -56), (58, 47, 52)), nose, 8.0)
        neck = _tube(p, [(0, -28, -45), (0, -42, -140)], [54, 54])
        head = _join(_join(outer - 6, face, 12.0), neck, 18.0)
        canvas.paint("soft", head)
        canvas.paint("fat", _both(head + 1.6, -head - 5 - texture))
        canvas.paint("fat", _both(head + 8, 3.2 - texture * 2))
        for tissue, centre, radii in (
            ("fat", (29, 50, -26), (17, 25, 16)),  # orbit, its muscles, more fat
            ("soft", (30, 46, -26), (8, 18, 8)),
            ("fat", (30, 46, -26), (5, 18, 5)),
            ("bone", (30, 58, -54), (15, 17, 13)),  # sinuses
            ("bone", (0, 56, -44), (15, 26, 17)),
            ("air", (30, 58, -54), (13, 15, 11)),
            ("air", (0, 24, -32), (11, 10, 8)),
        ):
            canvas.paint(tissue, _ellipsoid(m, centre, radii))
        canvas.paint("air", _both(_ellipsoid(m, (6, 58, -44), (7, 25, 15)), texture * 2 - 2))
        canvas.paint("air", _tube(p, [(0, 20, -56), (0, 6, -70), (0, 6, -120)], [9, 7, 9]))
        canvas.paint("marrow", _tube(p, [(0, 9, -38), (0, -8, -56)], [6, 5]))
        canvas.paint("bone", _tube(p, [(0, -14, -70), (0, -18, -140)], [9, 10]))
        canvas.paint("marrow", _tube(p, [(0, -14, -70), (0, -18, -140)], [7, 8]))
        canvas.paint("bone", outer)
        canvas.paint("marrow", _both(outer + 1.8, 1.6 - cranium))
        canvas.paint("csf", cranium)
        canvas.paint("csf", _tube(p, [(0, -25, -40), (0, -36, -140)], [12, 9]))
        canvas.paint("csf", _ellipsoid(m, (31, 62, -26), (12, 12, 12)))  # eye and lens
        canvas.paint("soft", _ellipsoid(m, (31, 71, -26), (5, 2.2, 5)))

    def _paint_cerebrum(
        self, canvas: _Canvas, p: Coordinates, upper: Volume, temporal: Volume, cerebellum: Volume
    ) -> None:
        """Paint the ribbon of grey matter, then the white matter within."""
        hull = -_join(-np.minimum(upper, temporal), cerebellum - 3, 3.0)
        near = hull < 3
        side = np.where(p[0][near] < 0, np.float32(-1), np.float32(1))
        x, y, z = p[0][near] * side, p[1][near], p[2][near]
        lobe, below = upper[near] - temporal[near], -hull[near]

        # The lateral fissure runs inwards, rising backwards, and opens on the insula.
        slant = np.float32(0.94) * (z + np.float32(0.35) * y - 1)
        lateral = np.sqrt(
            np.minimum(np.abs(lobe) / 2, np.abs(slant)) ** 2
            + _beyond(-x, -37) ** 2
            + _beyond(np.abs(y + 4), 30) ** 2
        )
        insula = np.sqrt(
            (x - 37) ** 2 + _beyond(np.abs(y - 2), 18) ** 2 + _beyond(np.abs(slant), 9) ** 2
        )
        # The fissure between the hemispheres ends at the corpus callosum.
        midline = np.sqrt(x**2 + _beyond(-_callosum(y, z), 0) ** 2) - np.float32(0.4)
        # Sulci: the zero set of the folding field, read on the hull above each point.
        low = lobe > 0
        v = (
            x - np.where(low, np.float32(30), np.float32(20)),
            y - np.where(low, np.clip(y, -42, 14), np.clip(y, -58, 32)),
            z - np.where(low, np.float32(-18), np.float32(10)),
        )
        lift = below * np.float32(0.8) / np.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2 + 1)
        on_hull = ((x + v[0] * lift + 40) * side, y + v[1] * lift, z + v[2] * lift)
        field, slope = self.folds.with_slope(on_hull)
        across = np.abs(field) / np.sqrt(slope**2 + np.float32(0.005)) / (1 + lift)
        floor = np.clip(self.fold_depth + 6 * self.depths(on_hull), 5, 28)
        sulcus = np.sqrt(across**2 + np.maximum(below - floor, 0) ** 2)

        fissure = np.minimum(np.minimum(insula, lateral), midline)
        depth = np.full_like(hull, -9)  # below the pia, mm
        depth[near] = _join(_join(sulcus, fissure, 1.0) - self.gap, below, 1.5)
        canvas.paint("grey", -depth)
        canvas.paint("white", 2.9 - depth)

    def _paint_hindbrain(self, canvas: _Canvas, p: Coordinates, cerebellum: Volume) -> None:
        _, y, z = p
        folia = np.sin(np.arctan2(z + 33, -(y + 34)) * 34)
        canvas.paint("csf", cerebellum - 1)
        canvas.paint("cerebellar_grey", cerebellum)
        canvas.paint("csf", _both(np.abs(folia), -cerebellum - 8, cerebellum))
        canvas.paint("white", cerebellum + 11 + 4 * folia)
        stem = _tube(
            p, [(0, -20, -6), (0, -23, -22), (0, -27, -46), (0, -36, -72)], [12, 11, 9.5, 6.5]
        )
        canvas.paint("white", _join(stem, _ellipsoid(p, (0, -19, -34), (17, 12, 13)), 4.0))
        canvas.paint("white", _tube(p, [(0, -36, -72), (0, -42, -140)], [6, 6]))
        canvas.paint("csf", _ellipsoid(p, (0, -38, -34), (7, 4, 9)))

    def _paint_core(self, canvas: _Canvas, m: Coordinates) -> None:
        """Paint the corpus callosum, the nuclei and the ventricles."""
        x, y, z = m
        size = self.ventricles
        arch = _callosum(y, z)
        canvas.paint("white", _both(arch + 1, x - 13))
        canvas.paint("csf", _both(arch + 7, x - 5, 10 - y * np.float32(0.12) - z))
        canvas.paint("white", _both(arch + 7, x - 1))
        for nucleus in (
            _ellipsoid(m, (3, -2, -6), (4, 8, 5)),
            _ellipsoid(m, (11, -19, 7), (9, 15, 10)),
            _tube(m, [(13, 18, 4), (15, 8, 14), (18, -12, 21)], [6.5, 4.5, 2.5]),
            _ellipsoid(m, (26, 2, 2), (6, 17, 12)),
            _tube(m, [(22, -10, -20), (29, -30, -12)], [6, 4.5]),
        ):
            canvas.paint("deep_grey", nucleus)
        horns = [(9, 32, 8), (8, 14, 15), (9, -10, 20), (16, -30, 19), (25, -44, 12), (24, -68, 7)]
        radii = [3.4, 5.4, 4.4, 4.8, 6.5, 1.8]
        canvas.paint("csf", _tube(m, horns, [r * size for r in radii]))
        canvas.paint("csf", _tube(m, [(26, -44, 12), (35, -34, -6), (34, -14, -16)], [4, 2, 2]))
        canvas.paint("csf", _ellipsoid(m, (0, -14, 2), (2.2 * size, 13, 10)))
        canvas.paint("csf", _ellipsoid(m, (0, 0, -22), (12, 9, 8)))


@lru_cache(maxsize=16)
def _lesions(seed: int, session: int) -> tuple[tuple[Lesion, Lesion], float]:
    """Return the two lesions, and the uptake of the hot one (grey matter is 1)."""
    shape = tuple(round(e / _LATTICE) for e in _EXTENT)
    affine = _affine(shape, _LATTICE, _CENTRE)
    x, y, z = world = _world(shape, affine)
    labels = _Anatomy(seed).sample(world, _LATTICE).labels
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
    apart = _ellipsoid(world, dark, (35.0,) * 3) > 0
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
    bias = 1 + np.float32(0.07) * _Waves.draw(rng, 300.0, 6, 0.3)(world)
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


# Files.


def _nifti(data: Volume, affine: Affine, step: float) -> bytes:
    """Return a gzipped NIfTI file of whole `step`s in int16, the same bytes every time."""
    image = nib.Nifti1Image(np.rint(data / step).astype(np.int16), affine)
    image.header.set_slope_inter(step, 0)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as stream:
        stream.write(image.to_bytes())
    return packed.getvalue()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _lines(lines: Sequence[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


_DESCRIPTION: Final[Mapping[str, Any]] = {
    "Name": "fusionflow phantom cohort (simulated)",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
    "Authors": ["The fusionflow developers"],
    "GeneratedBy": [{"Name": "fusionflow.phantom", "Description": "Simulated heads, no person"}],
}

_PARTICIPANTS: Final[Mapping[str, Any]] = {
    "weight": {"Description": "Body weight, simulated", "Units": "kg"},
    "phantom_seed": {"Description": "Seed of the simulated anatomy"},
}

_T1W_SIDECAR: Final[Mapping[str, Any]] = {
    "Modality": "MR",
    "Manufacturer": "Simulated",
    "ManufacturersModelName": "fusionflow phantom",
    "MagneticFieldStrength": 3,
    "BodyPart": "HEAD",
    "PulseSequenceType": "Simulated MPRAGE",
    "MRAcquisitionType": "3D",
    "NonlinearGradientCorrection": False,
    "RepetitionTime": 2.3,
    "EchoTime": 0.003,
    "InversionTime": 0.9,
    "FlipAngle": 9,
}

_PET_SIDECAR: Final[Mapping[str, Any]] = {
    "Modality": "PT",
    "Manufacturer": "Simulated",
    "ManufacturersModelName": "fusionflow phantom",
    "BodyPart": "HEAD",
    "Units": "Bq/mL",
    "TracerName": "FDG",
    "TracerRadionuclide": "F18",
    "InjectedRadioactivity": 185,
    "InjectedRadioactivityUnits": "MBq",
    "InjectedMass": "n/a",
    "InjectedMassUnits": "n/a",
    "SpecificRadioactivity": "n/a",
    "SpecificRadioactivityUnits": "n/a",
    "ModeOfAdministration": "bolus",
    "TimeZero": "10:00:00",
    "InjectionStart": 0,
    "ScanStart": 2700,
    "FrameTimesStart": [2700],
    "FrameDuration": [900],
    "AcquisitionMode": "list mode",
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
    "ReconMethodName": "none (simulated)",
    "ReconMethodParameterLabels": ["none"],
    "ReconMethodParameterUnits": ["none"],
    "ReconMethodParameterValues": [0],
    "ReconFilterType": "Gaussian",
    "ReconFilterSize": _FILTER_FWHM,
    "AttenuationCorrection": "none (nothing attenuates in the simulation)",
}

_README: Final = """\
A simulated PET/MRI cohort, drawn by fusionflow.phantom: no person's data.

Each session holds a T1w image and an FDG-PET image of the same made-up head, on two grids in one
world space. One lesion is seen by the PET only, one by the MRI only; lesions.tsv gives their
centres (world mm, RAS+) and radii (mm). The PET lesion of sub-01 is larger and hotter at
ses-followup than at ses-baseline.
"""
