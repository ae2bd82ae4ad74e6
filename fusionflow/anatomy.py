"""A made-up head, drawn from closed surfaces in world millimetres.

Shapes are signed distances in mm, negative inside, at points in world mm (RAS+, the origin near the
anterior commissure), so one seed gives one anatomy on every grid. The cortex is folded by
band-limited noise near the surface of each hemisphere: its zero set, carried inwards, makes the
sulci.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["TISSUES", "Anatomy", "Canvas", "Tissue", "Waves", "ellipsoid"]

Volume: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float, float]
Coordinates: TypeAlias = tuple[Volume, Volume, Volume]


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
"""The tissues by name; `Canvas.labels` holds their labels."""

_HORNS: Final[Sequence[Point]] = (
    (9, 32, 8),
    (8, 14, 15),
    (9, -10, 20),
    (16, -30, 19),
    (25, -44, 12),
    (24, -68, 7),
)
"""The middle of a lateral ventricle, front to back."""


def ellipsoid(p: Coordinates, centre: Sequence[float], radii: Sequence[float]) -> Volume:
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


def _meet(a: Volume, b: Volume, k: float) -> Volume:
    """Return what two shapes share, the edge rounded over `k` mm."""
    return -_join(-a, -b, k)


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
    return ellipsoid((np.zeros_like(y), y, z), (0, -6, 5), (1e3, 42, 22))


@dataclass(frozen=True)
class Waves:
    """A band-limited random field of unit variance: a sum of plane waves."""

    vectors: Volume  # (wave, 3), rad/mm
    phases: Volume

    @classmethod
    def draw(cls, rng: np.random.Generator, length: float, number: int, spread: float) -> Waves:
        """Draw waves of about `length` mm, give or take the fraction `spread`."""
        directions = rng.standard_normal((number, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = length * rng.uniform(1 - spread, 1 + spread, (number, 1))
        phases = rng.uniform(0, 2 * math.pi, number)
        vectors = 2 * math.pi / lengths * directions
        return cls(vectors.astype(np.float32), phases.astype(np.float32))

    def __call__(self, p: Coordinates) -> Volume:
        """Return the field."""
        return self.with_slope(p)[0]

    def with_slope(self, p: Coordinates, out: Coordinates | None = None) -> tuple[Volume, Volume]:
        """Return the field and, given directions `out`, its slope per mm across them."""
        field = np.zeros_like(p[0])
        gradient = [np.zeros_like(p[0]) for _ in range(3)]
        for k, phase in zip(self.vectors, self.phases, strict=True):
            angle = p[0] * k[0] + p[1] * k[1] + p[2] * k[2] + phase
            field += np.cos(angle)
            if out is not None:
                sine = np.sin(angle)
                for g, component in zip(gradient, k, strict=True):
                    g -= sine * component
        unit = np.float32(math.sqrt(2 / len(self.phases)))
        steepness = gradient[0] ** 2 + gradient[1] ** 2 + gradient[2] ** 2
        if out is not None:
            steepness -= (gradient[0] * out[0] + gradient[1] * out[1] + gradient[2] * out[2]) ** 2
        return field * unit, np.sqrt(np.maximum(steepness, 0)) * unit


class Canvas:
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


class Anatomy:
    """The head of one subject, without lesions."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.scale = rng.uniform((0.93, 0.93, 0.92), (0.99, 0.985, 0.97)).astype(np.float32)
        self.taper = float(rng.uniform(0.0004, 0.0014))  # how much narrower in front, per mm
        self.ventricles = float(rng.uniform(0.85, 1.35))
        self.gap = float(rng.uniform(0.5, 0.9))  # mm, half the width of a sulcus
        self.skull = np.float32(rng.uniform(4.5, 6.5))  # mm
        self.fold_depth = float(rng.uniform(15.0, 18.0))  # mm
        self.warp = [Waves.draw(rng, 95.0, 6, 0.3) for _ in range(3)]
        self.fold_length = float(rng.uniform(25.0, 29.0))  # mm, two sulci
        self.folds = Waves.draw(rng, self.fold_length, 32, 0.2)
        self.depths = Waves.draw(rng, 30.0, 12, 0.3)
        self.texture = Waves.draw(rng, 14.0, 12, 0.4)

    def sample(self, world: Coordinates, spacing: float) -> Canvas:
        """Return the head at points in world mm, its edges blurred over one `spacing`."""
        canvas = Canvas(world[0].shape, spacing)
        x, y, z = (
            a / s + np.float32(1.5) * w(world)
            for a, s, w in zip(world, self.scale, self.warp, strict=True)
        )
        p = (x, y, z)
        m = (np.abs(x), y, z)  # left and right at once
        width = 1 + self.taper * np.maximum(y + 5, -30) - np.float32(1.6e-5) * (y + 15) ** 2
        upper = ellipsoid((m[0] * np.maximum(width, 0.7), y, z), (0, -15, 11), (64, 83, 62))
        upper = _meet(upper, -z - 22, 8.0)
        temporal = _tube(m, [(41, 13, -25), (46, -42, -14)], [16, 20])
        vermis = ellipsoid(p, (0, -56, -31), (11, 22, 19))
        cerebellum = _join(ellipsoid(m, (22, -62, -37), (27, 28, 21)), vermis, 6.0)
        stem = _tube(
            p, [(0, -20, -6), (0, -23, -22), (0, -27, -46), (0, -36, -72)], [10, 9.5, 9.5, 6.5]
        )
        stem = _join(stem, _tube(m, [(11, -13, -4), (6, -17, -24)], [6, 5]), 3.0)
        stem = _join(stem, ellipsoid(p, (0, -19, -34), (17, 12, 13)), 4.0)
        hindbrain = np.minimum(cerebellum, _meet(stem, z + 11, 4.0))
        cranium = _join(_join(upper, temporal, 9.0), cerebellum, 9.0) - 2
        self._paint_head(canvas, p, m, cranium)
        self._paint_cerebrum(canvas, p, upper, temporal, hindbrain)
        self._paint_hindbrain(canvas, p, cerebellum, stem)
        self._paint_core(canvas, m)
        return canvas

    def _paint_head(self, canvas: Canvas, p: Coordinates, m: Coordinates, cranium: Volume) -> None:
        texture = self.texture(p)
        outer: Volume = cranium - self.skull - texture * np.float32(0.25)
        nose = _tube(p, [(0, 78, -28), (0, 92, -62)], [6, 12])
        face = _join(ellipsoid(p, (0, 36, -56), (58, 47, 52)), nose, 8.0)
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
            canvas.paint(tissue, ellipsoid(m, centre, radii))
        canvas.paint("air", _both(ellipsoid(m, (6, 58, -44), (7, 25, 15)), texture * 2 - 2))
        canvas.paint("air", _tube(p, [(0, 20, -56), (0, 6, -70), (0, 6, -120)], [9, 7, 9]))
        canvas.paint("marrow", _tube(p, [(0, 9, -38), (0, -8, -56)], [6, 5]))
        canvas.paint("bone", _tube(p, [(0, -14, -70), (0, -18, -140)], [9, 10]))
        canvas.paint("marrow", _tube(p, [(0, -14, -70), (0, -18, -140)], [7, 8]))
        canvas.paint("bone", outer)
        canvas.paint("marrow", _both(outer + 1.8, 1.6 - cranium))
        canvas.paint("csf", cranium)
        canvas.paint("csf", _tube(p, [(0, -25, -40), (0, -36, -140)], [12, 9]))
        canvas.paint("csf", ellipsoid(m, (31, 62, -26), (12, 12, 12)))  # eye and lens
        canvas.paint("soft", ellipsoid(m, (31, 71, -26), (5, 2.2, 5)))

    def _paint_cerebrum(
        self, canvas: Canvas, p: Coordinates, upper: Volume, temporal: Volume, hindbrain: Volume
    ) -> None:
        """Paint the ribbon of grey matter, then the white matter within."""
        hull = _meet(np.minimum(upper, temporal), 3 - hindbrain, 3.0)
        near = hull < 3
        side = np.where(p[0][near] < 0, np.float32(-1), np.float32(1))
        x, y, z = p[0][near] * side, p[1][near], p[2][near]
        lobe, below = upper[near] - temporal[near], -hull[near]

        # The lateral fissure runs inwards, rising backwards, and opens on the insula.
        slant = np.float32(0.83) * (z + np.float32(0.6) * y - np.float32(0.3) * (x - 39) + 1)
        lateral = np.sqrt(slant**2 + _beyond(-x, -38) ** 2 + _beyond(np.abs(y + 4), 30) ** 2)
        bulge = x - 39 + (y - 2) ** 2 / 160 + slant**2 / 60
        insula = np.sqrt(
            bulge**2 + _beyond(np.abs(y - 2), 18) ** 2 + _beyond(np.abs(slant), 9) ** 2
        )
        # The fissure between the hemispheres ends at the corpus callosum.
        midline = np.sqrt(x**2 + _beyond(-_callosum(y, z), 0) ** 2) - np.float32(0.4)
        # Sulci: the zero set of the folding field, read half way out to the surface of the
        # hemisphere, the medial one too, so that they lean, and crowd less than rays would.
        under = _join(below, 1.7 * midline, 6.0)
        v = (x - 24, y + 13 - 45 * np.tanh((y + 13) / 45), z - 6)
        reach = np.sqrt(v[0] ** 2 + v[1] ** 2 + v[2] ** 2 + 25)
        out = (v[0] / reach, v[1] / reach, v[2] / reach)
        rise = np.float32(0.5) * under
        nearer = ((x + out[0] * rise + 40) * side, y + out[1] * rise, z + out[2] * rise)
        field, slope = self.folds.with_slope(nearer, (out[0] * side, out[1], out[2]))
        # The distance to a zero of a sine, from its value and slope; at most a quarter of a wave.
        tune = np.float32(2 * math.pi / (1.25 * self.fold_length))
        across = np.arctan2(np.abs(field) * tune, slope + np.float32(0.008)) / tune
        across /= 1 + rise / reach
        # They end at a floor that rises and falls, and short of the nuclei and ventricles.
        shallow = 1 - np.float32(0.4) * np.clip(0.5 + lobe / 16, 0, 1)  # in the temporal lobe
        floor = np.clip(self.fold_depth + 5 * self.depths(nearer), 6, 26) * shallow
        m = (x, y, z)
        core = _join(ellipsoid(m, (12, -9, 2), (22, 32, 20)), _tube(m, _HORNS, [9] * 6), 10.0)
        sulcus = np.sqrt(across**2 + _beyond(np.maximum(under - floor, 2 - core), 0) ** 2)

        fissure = np.minimum(np.minimum(insula, lateral), midline)
        depth = np.full_like(hull, -9)  # below the pia, mm
        depth[near] = _join(_join(sulcus, fissure, 1.5) - self.gap, below, 2.0)
        canvas.paint("grey", -depth)
        # Cortex is thicker on the crown of a gyrus than at the bottom of a sulcus.
        ribbon = np.full_like(hull, 3.6)
        ribbon[near] -= np.clip(0.06 * under, 0, 1)
        canvas.paint("white", ribbon - depth)

    def _paint_hindbrain(
        self, canvas: Canvas, p: Coordinates, cerebellum: Volume, stem: Volume
    ) -> None:
        _, y, z = p
        folia = np.sin(np.arctan2(z + 33, -(y + 34)) * 34)
        canvas.paint("csf", cerebellum - 1)
        canvas.paint("cerebellar_grey", cerebellum)
        canvas.paint("csf", _both(np.abs(folia), -cerebellum - 8, cerebellum))
        canvas.paint("white", cerebellum + 11 + 4 * folia)
        canvas.paint("white", stem)
        canvas.paint("white", _tube(p, [(0, -36, -72), (0, -42, -140)], [6, 6]))
        canvas.paint("csf", ellipsoid(p, (0, -38, -34), (7, 4, 9)))

    def _paint_core(self, canvas: Canvas, m: Coordinates) -> None:
        """Paint the corpus callosum, the nuclei and the ventricles."""
        x, y, z = m
        size = self.ventricles
        arch = _callosum(y, z)
        canvas.paint("white", _meet(_both(arch + 1, 4 - z), x - 13, 9.0))
        canvas.paint("csf", _both(arch + 7, x - 5, 10 - y * np.float32(0.12) - z))
        canvas.paint("white", _both(arch + 7, x - 1))
        for nucleus in (
            ellipsoid(m, (3, -2, -6), (4, 8, 5)),
            ellipsoid(m, (11, -19, 7), (9, 15, 10)),
            _tube(m, [(13, 18, 4), (15, 8, 14), (18, -12, 21)], [6.5, 4.5, 2.5]),
            ellipsoid(m, (26, 2, 2), (6, 17, 12)),
            _tube(m, [(22, -10, -20), (29, -30, -12)], [6, 4.5]),
        ):
            canvas.paint("deep_grey", nucleus)
        radii = [3.4, 5.4, 4.4, 4.8, 6.5, 1.8]
        canvas.paint("csf", _tube(m, _HORNS, [r * size for r in radii]))
        canvas.paint("csf", _tube(m, [(26, -44, 12), (35, -34, -6), (34, -14, -16)], [4, 2, 2]))
        canvas.paint("csf", ellipsoid(m, (0, -14, 2), (2.2 * size, 13, 10)))
        canvas.paint("csf", ellipsoid(m, (0, 0, -22), (12, 9, 8)))
