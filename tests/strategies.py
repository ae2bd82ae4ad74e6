"""Hypothesis strategies, and records, that several test modules share."""

from __future__ import annotations

import math

import numpy as np
import pywt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusionflow.config import METHODS, Wavelet
from fusionflow.fusion import BandPair
from fusionflow.pet_info import PetInfo
from fusionflow.records import InputFile, OutputFile, Published

WAVELETS = ("haar", "db2", "bior4.4")
MODES = ("symmetric", "periodization", "zero")

seeds = st.integers(0, 2**32 - 1)

#: (y, x) of slices, odd and even, square and not.
slice_shapes = st.tuples(st.integers(8, 70), st.integers(8, 70))

#: (z, y, x), from one voxel to more than fits in a shard.
volume_shapes = st.tuples(st.integers(1, 1500), st.integers(1, 6000), st.integers(1, 6000))


def random_stack(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Intensities as they are conformed: mostly in 0..1, a little beyond both."""
    return np.random.default_rng(seed).normal(0.5, 0.3, shape).astype(np.float32)


@st.composite
def stacks(draw):
    """Stacks of slices; Hypothesis chooses the size and leaves the pixels to a generator."""
    return random_stack(draw(seeds), (draw(st.integers(1, 3)), *draw(slice_shapes)))


@st.composite
def stacks_and_wavelets(draw, most_levels=2, modes=MODES):
    """Stacks, with a transform whose levels their slices can carry."""
    stack = draw(stacks())
    name = draw(st.sampled_from(WAVELETS))
    most = min(most_levels, pywt.dwtn_max_level(stack.shape[1:], name))
    levels = draw(st.integers(0, most))
    return stack, Wavelet(name=name, levels=levels, mode=draw(st.sampled_from(modes)))


@st.composite
def band_pairs(draw, least_temperature=1e-3):
    """One band of two sources: some coefficients equal, some activities nil, some tiny or huge."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    taps = draw(st.integers(1, 3))
    coefficients = hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))
    activities = hnp.arrays(
        np.float32,
        (taps, *shape),
        elements=st.one_of(
            st.just(0.0),
            st.floats(2.0**-126, 2.0**100, width=32),
        ),
    )
    return BandPair(
        band=draw(st.sampled_from("ahvd")),
        level=draw(st.integers(1, 3)),
        mri=draw(coefficients),
        pet=draw(coefficients),
        mri_activity=draw(activities),
        pet_activity=draw(activities),
        temperature=draw(st.floats(least_temperature, 100)),
    )


#: Figures as a metric can have them: NaN is not defined, an infinite PSNR means no error.
figures = st.floats(allow_nan=True, allow_infinity=True)


def published(label: str = "sub-01", **changes) -> Published:
    """Return the record of a scan that was fused, with `changes`."""
    subject, _, session = label.removeprefix("sub-").partition("_ses-")
    values = {
        "label": label,
        "subject": subject,
        "session": session or None,
        "version": "v-0123456789ab",
        "request": "f" * 64,
        "method": METHODS["dwt-vgg19-l1"].model_dump(mode="json"),
        "weights": "vgg19.safetensors (sha256 0123456789ab)",
        "inputs": (
            InputFile("anat/T1w.nii.gz", 10, 1_700_000_000_123_456_789, "a" * 64),
            InputFile("pet/pet.nii.gz", 20, 1_700_000_001_123_456_789, "b" * 64),
        ),
        "pet_info": PetInfo(frame_durations=(300.0, 299.5)),
        "shape": (5, 6, 7),
        "affine": ((0.1, 0.0, 0.0, -1 / 3), (0.0, 2.0, 0.0, math.pi), (0.0, 0.0, 3.0, 1e-17)),
        "metrics": {"ssim": {"mri": 0.75, "pet": 0.6}, "entropy_fused": 5.041},
        "seconds": 1.25,
        "notes": ("PET: no units",),
        "outputs": (OutputFile("sub-01/fused/sub-01_fused.nii.gz", 30, 1_700_000_002_000_000_001),),
        "stored": (OutputFile("scans/sub-01/v-0123456789ab/fused/c/0/0/0", 40),),
        "software": {"fusionflow": "0.1.0"},
        "created": "2026-01-02T03:04:05Z",
    }
    return Published(**{**values, **changes})
