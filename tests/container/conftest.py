"""The image, built once for all tests that run it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from engine import Engine

CACHE = Path(os.environ.get("FUSIONFLOW_CONTAINER_CACHE", "~/.cache/fusionflow")).expanduser()
NEEDED = ("buildah", "podman", "runc", "debootstrap")
#: Bytes that a build takes for a while, with the CUDA libraries of PyTorch.
ROOM = 33e9


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """What builds and runs, or a skip that says why there is nothing."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("building with chroot isolation needs root")
    folder = tmp_path_factory.mktemp("containers")
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        pytest.skip(f"{folder} has {free / 1e9:.0f} GB free, and a build takes {ROOM / 1e9:.0f}")
    engine = Engine(folder)
    yield engine
    engine.remove()


@pytest.fixture(scope="session")
def image(engine):
    """The image with all that workers need, dask-cuda too."""
    return engine.build(engine.base(CACHE), VARIANT="gpu")
