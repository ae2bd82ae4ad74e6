"""Images that lie where they should, and how far from it they are put."""

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fusionflow.io.nifti import Orientation, Volume, read_volume
from fusionflow.masks import head_mask
from fusionflow.phantom import make_phantom
from fusionflow.registration import mean_displacement


def volume(data, affine):
    orientation = Orientation(data.shape, affine, nib.aff2axcodes(affine))
    return Volume(np.asfortranarray(data, dtype=np.float32), affine, orientation, "")


def rotation(angles, centre=(0, 0, 0), shift=(0, 0, 0)):
    """Return a matrix that turns by a rotation vector (degrees) about a centre, then shifts."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(angles, degrees=True).as_matrix()
    matrix[:3, 3] = np.array(centre) + shift - matrix[:3, :3] @ centre
    return matrix


def misalignment(seed, centre, most_mm=15, most_deg=12):
    """Return a rigid matrix: lengths evenly drawn up to the most, in any direction."""
    rng = np.random.default_rng(seed)
    shift, axis = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    return rotation(rng.uniform(0, most_deg) * axis, centre, rng.uniform(0, most_mm) * shift)


def centre_of(mri, mask):
    return nib.affines.apply_affine(mri.affine, ndimage.center_of_mass(mask.T))


class Pair:
    """An MRI and a PET that lie where they should."""

    def __init__(self, mri, pet):
        self.mri, self.pet = mri, pet
        self.mask = head_mask(mri.data.T)
        self.centre = centre_of(mri, self.mask)

    def error(self, found, away):
        """Return the mean over the head of how far off the PET is, in mm."""
        return mean_displacement(found.matrix, np.linalg.inv(away), self.mask, self.mri.affine)


def phantom_pair():
    made = make_phantom(3, shape=(70, 85, 70))
    return Pair(volume(made.t1w, made.t1w_affine), volume(made.pet, made.pet_affine))


def real(shared, subject):
    folder = shared / "data" / "bids" / f"sub-{subject}"
    found = (next(folder.glob(f"{kind}/*.nii.gz")) for kind in ("anat", "pet"))
    return Pair(*(read_volume(path) for path in found))
