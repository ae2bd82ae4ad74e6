"""The 2-D discrete wavelet transform in torch: with gradients, and on a GPU.

The same figures as PyWavelets gives (`fusionflow.wavelet`), to float32 rounding: filters, names of
bands and sizes are PyWavelets' own. A level is one strided convolution of the slice continued
beyond its border; the way back is the transposed convolution, cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import pywt
import torch
from torch.nn import functional

from fusionflow.config import Wavelet
from fusionflow.errors import ConfigurationError

__all__ = ["Bands", "decompose", "reconstruct"]

#: Extension modes that continue a slice by its own pixels, as numpy.pad names them.
_BY_INDEX = {
    "symmetric": "symmetric",
    "reflect": "reflect",
    "constant": "edge",
    "periodic": "wrap",
}

#: The four bands of a level as one tensor, (n, 4, y', x'), in the order a, h, v, d.
Bands: TypeAlias = torch.Tensor


@dataclass(frozen=True)
class _Filters:
    """The four separable filters of a wavelet as kernels (4, 1, k, k), a, h, v, d."""

    forward: torch.Tensor
    backward: torch.Tensor


@cache
def _filters(name: str) -> _Filters:
    """Return the filters of a wavelet; rows are the first of the two axes, as in PyWavelets."""
    wavelet = pywt.Wavelet(name)

    def kernels(low: Sequence[float], high: Sequence[float]) -> torch.Tensor:
        pairs = ((low, low), (high, low), (low, high), (high, high))  # along y, along x
        planes = np.stack([np.outer(along_y, along_x) for along_y, along_x in pairs])
        return torch.from_numpy(planes.astype(np.float32))[:, None]

    # A convolution of torch is a correlation: the analysis filters are turned round.
    return _Filters(
        kernels(wavelet.dec_lo[::-1], wavelet.dec_hi[::-1]),
        kernels(wavelet.rec_lo, wavelet.rec_hi),
    )


@cache
def _places(size: int, reach: int, mode: str) -> torch.Tensor:
    """Return which pixel stands at each place of a line that is continued by `reach`."""
    return torch.from_numpy(np.pad(np.arange(size), reach, mode=_BY_INDEX[mode]))  # type: ignore[call-overload]


def _continued(image: torch.Tensor, reach: int, mode: str) -> torch.Tensor:
    if mode == "zero":
        return functional.pad(image, (reach, reach, reach, reach))
    for axis in (-2, -1):
        places = _places(image.shape[axis], reach, mode).to(image.device)
        image = image.index_select(axis, places)
    return image


def check_mode(wavelet: Wavelet) -> None:
    """Refuse an extension mode that only PyWavelets has.

    Raises
    ------
    ConfigurationError
        If it is one that makes up pixels, or ``periodization``, which has other sizes.
    """
    if wavelet.mode not in {*_BY_INDEX, "zero"}:
        raise ConfigurationError(
            f"Extension mode {wavelet.mode!r} is not there in torch",
            f"Take one of {', '.join(sorted({*_BY_INDEX, 'zero'}))}",
        )


def decompose(slices: torch.Tensor, wavelet: Wavelet) -> list[Bands]:
    """Return the DWT of each slice.

    Parameters
    ----------
    slices : Tensor, (n, y, x) float32
        Slices of any size.
    wavelet : Wavelet
        Which transform, of at least one level.

    Returns
    -------
    list of Tensor, (n, 4, y', x')
        Bands a, h, v, d of every level, coarsest first; ``a`` of all but the first is what the
        level before is made of.

    Raises
    ------
    ConfigurationError
        If the extension mode is not there in torch.
    """
    check_mode(wavelet)
    kernel = _filters(wavelet.name).forward.to(slices.device)
    reach = kernel.shape[-1] - 1
    levels: list[Bands] = []
    rest = slices
    for _ in range(wavelet.levels):
        padded = _continued(rest[:, None], reach, wavelet.mode)[..., 1:, 1:]
        levels.append(functional.conv2d(padded, kernel, stride=2))
        rest = levels[-1][:, 0]
    return levels[::-1]


def reconstruct(levels: Sequence[Bands], shape: tuple[int, int], wavelet: Wavelet) -> torch.Tensor:
    """Return the slices whose DWT is given.

    Parameters
    ----------
    levels : sequence of Tensor, (n, 4, y', x')
        As `decompose` gives them; of all but the first, band ``a`` is not read.
    shape : tuple of int
        (y, x) of the slices.
    wavelet : Wavelet
        The transform they were made with.

    Returns
    -------
    Tensor, (n, y, x) float32
    """
    kernel = _filters(wavelet.name).backward.to(levels[0].device)
    crop = kernel.shape[-1] - 2
    rest = levels[0][:, :1]
    for bands in levels:
        rows, columns = bands.shape[-2:]
        full = torch.cat([rest[..., :rows, :columns], bands[:, 1:]], dim=1)
        rest = functional.conv_transpose2d(full, kernel, stride=2, padding=crop)
    return rest[:, 0, : shape[0], : shape[1]]
