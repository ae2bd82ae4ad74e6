"""Make the README's picture from a T1w and a PET volume of one head.

    python workflows/make_figures.py T1W.nii.gz PET.nii.gz

The picture in the repository shows the simulated BrainWeb volumes that come with pyapetnet's demo
data (MIT licence). Their headers call the second axis anterior, but it runs to the back of the
head; ``--posterior`` says so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

import fusionflow as ff
from fusionflow.config import RunConfig

FIGURES = Path(__file__).parent / "figures"


def main() -> None:
    """Fuse one pair and keep the picture that the run makes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("t1w", type=Path)
    parser.add_argument("pet", type=Path)
    parser.add_argument("--posterior", action="store_true", help="the y axis runs backwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bids"
        for source, name in (
            (arguments.t1w, "anat/sub-brainweb_T1w.nii.gz"),
            (arguments.pet, "pet/sub-brainweb_pet.nii.gz"),
        ):
            place = root / "sub-brainweb" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            image = nib.load(source)
            turn = np.diag([-1, -1, 1, 1]) if arguments.posterior else np.eye(4)
            nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), turn @ image.affine), place)
        out = Path(folder) / "fused"
        ff.run(root, out, RunConfig(), levels=("participant",))
        picture = Image.open(out / "sub-brainweb/fused/sub-brainweb_fused.png")
        FIGURES.mkdir(exist_ok=True)
        picture.save(FIGURES / "brainweb.png", optimize=True)


if __name__ == "__main__":
    main()
