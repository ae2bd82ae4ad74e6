"""Slices of many kinds, as pictures hold them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fusionflow.grey_levels import eight_bit

KINDS = ("noise", "levels", "sparse", "ramp", "blocks", "constant", "black")


def picture(kind, seed, shape=(48, 45)):
    """An 8-bit picture, of one of the kinds that break metrics."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    made = {
        "noise": lambda: rng.random(shape),
        "levels": lambda: rng.integers(0, 3, shape) / 2,
        "sparse": lambda: (rng.random(shape) > 0.98) * rng.random(),
        "ramp": lambda: (xs * rng.random() + ys * rng.random()) / sum(shape),
        "blocks": lambda: np.kron(rng.random((6, 5)), np.ones((8, 9)))[: shape[0], : shape[1]],
        "constant": lambda: np.full(shape, rng.random()),
        "black": lambda: np.zeros(shape),
    }
    return eight_bit(made[kind]())


pictures = st.builds(picture, st.sampled_from(KINDS), st.integers(0, 2**16))
