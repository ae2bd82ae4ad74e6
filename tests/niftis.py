"""A small image, and its files: in any orientation, with any bytes in the header."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (3, 4, 5)
DATA = np.arange(60, dtype=np.float32).reshape(SHAPE)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.3) @ np.diag([1.0, 1.5, 2.0]), [-10, 20, 5]
)


def affine_of(axcodes: str, shape=SHAPE) -> np.ndarray:
    """Return the affine that puts an array with these axes into the oblique grid."""
    ornt = nib.orientations.axcodes2ornt(axcodes)
    to_ras = nib.orientations.ornt_transform(ornt, nib.orientations.axcodes2ornt("RAS"))
    return OBLIQUE @ np.linalg.inv(nib.orientations.inv_ornt_aff(to_ras, shape))


def save(
    path: Path, data=DATA, affine=OBLIQUE, *, sform=2, qform=0, kind=nib.Nifti1Image, **fields
):
    image = kind(data, affine)
    image.set_sform(affine if sform else None, sform)
    image.set_qform(affine if qform else None, qform)
    for name, value in fields.items():
        image.header[name] = value
    image.to_filename(path)
    return path


def patched(path: Path, *patches: tuple[int, bytes]) -> Path:
    """Write a good image whose header is then overwritten here and there."""
    content = bytearray(gzip.decompress(save(path).read_bytes()))
    for at, new in patches:
        content[at : at + len(new)] = new
    path.write_bytes(gzip.compress(bytes(content)))
    return path
