"""How well misaligned PETs are put back onto their MRIs, and how long it takes.

    python workflows/benchmarks/registration.py phantom
    python workflows/benchmarks/registration.py MRI.nii.gz PET.nii.gz --pictures FOLDER

Each pair is taken as aligned, then misaligned by up to 15 mm and 12 degrees, evenly drawn, in any
direction, and registered. The error is the mean over the head of the distance between where the PET
is put and where it belongs; "from its own" is to where the aligned pair itself is registered, which
is what remains where a pair was not quite aligned to begin with. The times are the machine's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.orientations import aff2axcodes
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fusionflow.io.nifti import Orientation, Volume, read_volume
from fusionflow.masks import head_mask
from fusionflow.phantom import make_phantom
from fusionflow.registration import mean_displacement, moved
from fusionflow.registration_picture import contours
from fusionflow.registration_quality import disagreement, implausible


def misalignment(
    seed: int, centre: npt.NDArray[np.float64], millimetres: float = 15.0, degrees: float = 12.0
) -> npt.NDArray[np.float64]:
    """Return a rigid matrix (4, 4), at most so far away, about a centre (x, y, z) in mm."""
    rng = np.random.default_rng(seed)
    shift, axis = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    turn = Rotation.from_rotvec(rng.uniform(0, degrees) * axis, degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre + rng.uniform(0, millimetres) * shift - turn @ centre
    return matrix


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", help="an MRI and a PET, or the word phantom")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--millimetres", type=float, default=15.0)
    parser.add_argument("--degrees", type=float, default=12.0)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    if arguments.images == ["phantom"]:
        phantom = make_phantom(3)
        mri = _volume(phantom.t1w, phantom.t1w_affine)
        pet = _volume(phantom.pet, phantom.pet_affine)
    else:
        mri, pet = (read_volume(path) for path in arguments.images)
    mask = head_mask(mri.data.T)
    centre = mri.affine[:3, :3] @ ndimage.center_of_mass(mask.T) + mri.affine[:3, 3]

    aligned = disagreement(pet, mri, mask)
    own = aligned.registration.matrix
    print(f"as it is: {aligned.verdict}; {aligned.reason}")
    errors, from_own, before, seconds, verdicts = [], [], [], [], []
    for seed in range(arguments.seeds):
        away = misalignment(seed, centre, arguments.millimetres, arguments.degrees)
        off = moved(pet, away)
        start = time.process_time()
        found = disagreement(off, mri, mask)
        seconds.append(time.process_time() - start)
        r = found.registration
        back = np.linalg.inv(away)
        errors.append(mean_displacement(r.matrix, back, mask, mri.affine))
        from_own.append(mean_displacement(np.array(r.matrix) @ away, own, mask, mri.affine))
        before.append(mean_displacement(np.eye(4), back, mask, mri.affine))
        verdicts.append(found.verdict)
        print(
            f"seed {seed:2}: off {before[-1]:5.2f} mm, error {errors[-1]:.2f} mm, from its own "
            f"{from_own[-1]:.2f} mm, {found.verdict}, {implausible(r) or 'plausible'}, "
            f"{seconds[-1]:.1f} s",
            flush=True,
        )
        if arguments.pictures is not None and seed < 3:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            contours(off, mri, r.matrix, mask).save(arguments.pictures / f"seed{seed}.png")
    for name, values in (("error", errors), ("from its own", from_own)):
        below = sum(value < 1 for value in values)
        print(
            f"{name}: mean {np.mean(values):.2f}, largest {max(values):.2f} mm, "
            f"below 1 mm {below} of {len(values)}"
        )
    print(f"seconds of one core: median {np.median(seconds):.1f}, most {max(seconds):.1f}")
    print("; ".join(f"{name} {verdicts.count(name)}" for name in sorted(set(verdicts))))


def _volume(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> Volume:
    """Return an array as a volume read from a file of that layout."""
    orientation = Orientation(data.shape, affine, aff2axcodes(affine))
    return Volume(np.asfortranarray(data), affine, orientation, "")


if __name__ == "__main__":
    main()
