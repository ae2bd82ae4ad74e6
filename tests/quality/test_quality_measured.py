"""The figures of fusion quality are those that an independent program measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt
from numpy.testing import assert_allclose
from PIL import Image

from fusionflow.grey_levels import eight_bit
from fusionflow.quality import assess


def grey(path):
    return np.asarray(Image.open(path).convert("L"), dtype=np.float64) / 255


def dwt_max(mri, pet):
    """One level of db2; of each coefficient, approximation included, that of greater magnitude."""
    a, b = (pywt.dwt2(image, "db2", mode="symmetric") for image in (mri, pet))
    bands = [
        np.where(np.abs(x) >= np.abs(y), x, y)
        for x, y in zip((a[0], *a[1]), (b[0], *b[1]), strict=True)
    ]
    return pywt.idwt2((bands[0], tuple(bands[1:])), "db2", mode="symmetric")


METHODS = {
    "MRI": lambda mri, pet: mri,
    "average": lambda mri, pet: (mri + pet) / 2,
    "maximum": np.maximum,
    "DWT": dwt_max,
}
COLUMNS = ("qabf", "scd", "ssim_mri", "ssim_pet", "vif_mri", "vif_pet")


@pytest.fixture(scope="module")
def pairs(shared):
    """Slices of MRI and PET, the latter as luminance, by file name."""
    val = shared / "data" / "harvard" / "val"
    names = sorted(path.name for path in (val / "MRI").glob("*.png"))
    return {name: (grey(val / "MRI" / name), grey(val / "PET" / name)) for name in names}


@pytest.mark.shared
class TestMeasured:
    """What an independent program measured on 21 pairs of real slices, to three digits."""

    @pytest.mark.parametrize("rounded", [False, True])
    @pytest.mark.parametrize(
        ("method", "expected"),
        [
            ("MRI", (0.752, math.nan, 1.000, 0.520, 1.000, 0.028)),
            ("average", (0.412, 1.109, 0.807, 0.669, 0.467, 0.231)),
            ("maximum", (0.768, 1.723, 0.827, 0.696, 0.575, 0.432)),
            ("DWT", (0.716, 1.728, 0.848, 0.673, 0.578, 0.297)),
            ("IFCNN-MAX", (0.586, 1.406, 0.817, 0.660, 0.265, 0.203)),
            ("MATR", (0.708, 0.159, 0.497, 0.051, 0.720, 0.029)),
            ("DATFuse", (0.698, 1.526, 0.336, 0.203, 0.421, 0.268)),
        ],
    )
    def test_the_table(self, shared, pairs, method, expected, rounded):
        rows = []
        for name, (mri, pet) in pairs.items():
            if method in METHODS:
                fused = METHODS[method](mri, pet)
            elif rounded:
                pytest.skip("published as pictures")
            else:
                fused = grey(shared / "data" / "harvard" / "peers" / method / name)
            fused = eight_bit(fused) if rounded else fused
            rows.append([*assess(mri, pet, fused, COLUMNS).values()])
        assert len(rows) == 21
        assert_allclose(np.mean(rows, axis=0), expected, atol=0.005)
