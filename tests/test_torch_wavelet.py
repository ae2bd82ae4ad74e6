"""The torch transform against PyWavelets."""

import numpy as np
import pytest
import torch

from fusionflow import torch_wavelet, wavelet
from fusionflow.config import Wavelet
from fusionflow.errors import ConfigurationError

MODES = ("symmetric", "reflect", "constant", "periodic", "zero")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["haar", "db2", "db4", "sym5", "bior4.4", "coif1"])
@pytest.mark.parametrize(("shape", "levels"), [((64, 64), 1), ((61, 78), 2), ((97, 96), 3)])
class TestAgainstPyWavelets:
    def test_there_and_back(self, name, mode, shape, levels):
        how = Wavelet(name=name, mode=mode, levels=levels if name in ("haar", "db2") else 1)
        slices = np.random.default_rng(0).random((3, *shape), np.float32)
        expected = wavelet.decompose(slices, how)
        found = torch_wavelet.decompose(torch.from_numpy(slices), how)
        assert len(found) == how.levels
        np.testing.assert_allclose(found[0][:, 0], expected.approximation, atol=2e-5)
        for mine, theirs in zip(found, expected.details, strict=True):
            for band, coefficients in enumerate(theirs, start=1):
                np.testing.assert_allclose(mine[:, band], coefficients, atol=2e-5)
        back = torch_wavelet.reconstruct(found, shape, how)
        np.testing.assert_allclose(back, slices, atol=2e-5)

    def test_the_way_back_of_coefficients_that_no_slice_has(self, name, mode, shape, levels):
        how = Wavelet(name=name, mode=mode, levels=levels if name in ("haar", "db2") else 1)
        slices = np.random.default_rng(1).random((2, *shape), np.float32)
        bands = wavelet.decompose(slices, how)
        rng = np.random.default_rng(2)
        other = bands.with_bands(rng.random(c.shape, np.float32) for _, _, c in bands.bands())
        levels_of = [
            torch.from_numpy(np.stack([np.zeros_like(d[0]), *d], axis=1)) for d in other.details
        ]
        levels_of[0][:, 0] = torch.from_numpy(other.approximation)
        np.testing.assert_allclose(
            torch_wavelet.reconstruct(levels_of, shape, how),
            wavelet.reconstruct(other, how),
            atol=2e-5,
        )


def test_gradients_reach_every_coefficient():
    how = Wavelet(levels=2)
    bands = [
        level.requires_grad_() for level in torch_wavelet.decompose(torch.rand(1, 33, 40), how)
    ]
    torch_wavelet.reconstruct(bands, (33, 40), how).square().sum().backward()
    assert (bands[0].grad != 0).all(dim=None)
    assert (bands[1].grad[:, 1:] != 0).all(dim=None)
    assert (bands[1].grad[:, 0] == 0).all(dim=None)


def test_a_mode_that_is_not_there_is_named():
    with pytest.raises(ConfigurationError, match="'smooth' is not there in torch"):
        torch_wavelet.decompose(torch.rand(1, 32, 32), Wavelet(mode="smooth"))
