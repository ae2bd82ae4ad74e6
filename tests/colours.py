"""The tables of colours, and images in them and in none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from fusionflow.colour import HEAT, TABLES

ALL = [*TABLES.values(), HEAT]
NAMES = [table.name for table in ALL]


def painted(table, levels):
    """Return levels 0..1 as 8-bit colours of a table."""
    return np.round(table.colour_at(levels) * 255).astype(np.uint8)


def smooth(seed=0, size=128):
    """Return a smooth head of uptake on nothing, 0..1, that reaches both ends of the scale."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 8)
    noise = (noise - noise.min()) / np.ptp(noise)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    levels = noise * ndimage.gaussian_filter((x**2 + y**2 < 0.7).astype(float), 4)
    return levels / levels.max()


def photograph(seed, size=96):
    """Return an image with the spectrum of a photograph, its three channels unlike."""
    spectrum = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.fftfreq(size)[None] ** 2
    spectrum[0, 0] = 1
    noise = np.random.default_rng(seed).normal(size=(3, size, size))
    channels = np.fft.ifft2(np.fft.fft2(noise) / np.sqrt(spectrum)).real
    ranks = channels.reshape(3, -1).argsort(axis=1).argsort(axis=1).reshape(3, size, size)
    return np.ascontiguousarray((ranks * 256 // size**2).astype(np.uint8).transpose(1, 2, 0))


def lightness(rgb):
    """Return CIE L* of an sRGB image."""
    color = pytest.importorskip("skimage.color")
    return color.rgb2lab(rgb)[..., 0]
