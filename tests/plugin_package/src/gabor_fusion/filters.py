"""The weights of the backbone, by formula; ``python -m gabor_fusion.filters`` writes the file."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import save

#: The file that comes with this package.
FILE = Path(__file__).with_name("gabor.safetensors")
SIDE, ORIENTATIONS, WAVELENGTHS = 7, 4, (3.0, 6.0)
#: Even and odd filters of every orientation and wavelength.
FILTERS = 2 * ORIENTATIONS * len(WAVELENGTHS)


def gabor_bank() -> torch.Tensor:
    """Return the filters, (FILTERS, SIDE, SIDE) float32, each with no mean and unit norm.

    A filter is a wave under a Gaussian: cos or sin(2 pi u / wavelength) exp(-(u^2 + v^2) / (2
    sigma^2)), with u across the stripes (Daugman 1985, doi:10.1364/JOSAA.2.001160).
    """
    half = SIDE // 2
    y, x = torch.meshgrid(*[torch.arange(-half, half + 1, dtype=torch.float64)] * 2, indexing="ij")
    filters = []
    for wavelength in WAVELENGTHS:
        for k in range(ORIENTATIONS):
            angle = math.pi * k / ORIENTATIONS
            u = x * math.cos(angle) + y * math.sin(angle)
            envelope = torch.exp(-(x**2 + y**2) / (2 * (wavelength / 2) ** 2))
            for wave in (torch.cos, torch.sin):
                item = wave(2 * math.pi * u / wavelength) * envelope
                item = item - item.mean()
                filters.append(item / item.norm())
    return torch.stack(filters).float()


def weights() -> dict[str, torch.Tensor]:
    """Return what the file holds, under the names that fusionflow looks up."""
    bank = gabor_bank()
    pooled = torch.full((FILTERS, 1, 3, 3), 1 / 9)
    return {
        # A third of each filter for each of three equal channels.
        "features.0.weight": (bank / 3)[:, None].repeat(1, 3, 1, 1).contiguous(),
        "features.2.weight": pooled,
    }


def write(path: Path = FILE) -> None:
    """Write the file, and its checksum beside it."""
    # Images are 0 to 1, and the filters want them as they are.
    content = save(weights(), metadata={"scale": "1", "mean": "0,0,0", "std": "1,1,1"})
    path.write_bytes(content)
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
    path.with_name("SHA256SUMS").write_text(line)


if __name__ == "__main__":
    write()
