"""A training small enough for a test."""

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from fusionflow.train_config import TrainConfig

SMALL = {
    "weights": "random:0", "taps": ["relu1_1"], "width": 4, "seen": 2, "crop": 48, "batch": 2,
    "steps": 2, "epochs": 3, "pictures_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of six pairs of pictures, 56 x 64 pixels."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for kind, sigma in (("MRI", 1.5), ("PET", 4)):
        (folder / kind).mkdir()
        for number in range(6):
            image = gaussian_filter(rng.random((56, 64)), sigma)
            image = np.clip((image - image.min()) / np.ptp(image) * 255, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture
def small(pictures):
    def small(**update):
        source = {"kind": "pictures", "folder": str(pictures), "pet": "grey"}
        data = {
            "train": [{**source, "names": "[0-3]"}],
            "validation": [{**source, "names": "[45]"}],
        }
        return TrainConfig.model_validate({**SMALL, **data, **update})

    return small
