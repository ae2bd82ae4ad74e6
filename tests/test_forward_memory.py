"""What a forward pass takes follows from the size of a slice, not from their number."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Prints by how many MiB fusing raises the most memory that the process has had.
PROGRAM = """
import resource, sys
import numpy as np
from fusionflow.config import METHODS
from fusionflow.graph import make_recipe
from fusionflow.stages import decompose_slab, fuse_slab

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

name, weights = sys.argv[1:]
recipe = make_recipe(METHODS[name].model_copy(update={"weights": weights}))
draw = np.random.default_rng(0)
small = (draw.random((1, 64, 64), np.float32) for _ in range(2))
fuse_slab(decompose_slab(*small, recipe), recipe)  # libraries are read at the first use
bands = decompose_slab(*(draw.random((4, 384, 384), np.float32) for _ in range(2)), recipe)
before = most()
fuse_slab(bands, recipe)
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("name", "weights"), [("dwt-vgg19-l1", "random:0"), ("dwt-vgg19", "auto")])
def test_large_slices_take_little_more_than_the_features_of_one(name, weights):
    """All taps of a batch of 16 images of this size take 300 and 960 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, weights], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 200
