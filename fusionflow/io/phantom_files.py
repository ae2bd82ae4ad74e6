"""The files of the phantom cohort, as BIDS wants them, the same bytes every time."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

DESCRIPTION: Final[Mapping[str, Any]] = {
    "Name": "fusionflow phantom cohort (simulated)",
    "BIDSVersion": "1.10.0",
    "DatasetType": "raw",
    "License": "CC0",
    "Authors": ["The fusionflow developers"],
    "GeneratedBy": [{"Name": "fusionflow.phantom", "Description": "Simulated heads, no person"}],
}

PARTICIPANTS: Final[Mapping[str, Any]] = {
    "weight": {"Description": "Body weight, simulated", "Units": "kg"},
    "phantom_seed": {"Description": "Seed of the simulated anatomy"},
}

T1W_SIDECAR: Final[Mapping[str, Any]] = {
    "Modality": "MR",
    "Manufacturer": "Simulated",
    "ManufacturersModelName": "fusionflow phantom",
    "MagneticFieldStrength": 3,
    "BodyPart": "HEAD",
    "PulseSequenceType": "Simulated MPRAGE",
    "MRAcquisitionType": "3D",
    "NonlinearGradientCorrection": False,
    "RepetitionTime": 2.3,
    "EchoTime": 0.003,
    "InversionTime": 0.9,
    "FlipAngle": 9,
}

README: Final = """\
A simulated PET/MRI cohort, drawn by fusionflow.phantom: no person's data.

Each session holds a T1w image and an FDG-PET image of the same made-up head, on two grids in one
world space. One lesion is seen by the PET only, one by the MRI only; lesions.tsv gives their
centres (world mm, RAS+) and radii (mm). The PET lesion of sub-01 is larger and hotter at
ses-followup than at ses-baseline.
"""


def pet_sidecar(filter_fwhm: float) -> dict[str, Any]:
    """Return the sidecar of a PET image whose post-filter has this FWHM, in mm."""
    return {
        "Modality": "PT",
        "Manufacturer": "Simulated",
        "ManufacturersModelName": "fusionflow phantom",
        "BodyPart": "HEAD",
        "Units": "Bq/mL",
        "TracerName": "FDG",
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": 185,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "InjectionStart": 0,
        "ScanStart": 2700,
        "FrameTimesStart": [2700],
        "FrameDuration": [900],
        "AcquisitionMode": "list mode",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "none (simulated)",
        "ReconMethodParameterLabels": ["none"],
        "ReconMethodParameterUnits": ["none"],
        "ReconMethodParameterValues": [0],
        "ReconFilterType": "Gaussian",
        "ReconFilterSize": filter_fwhm,
        "AttenuationCorrection": "none (nothing attenuates in the simulation)",
    }


def nifti_bytes(
    data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64], step: float
) -> bytes:
    """Return a gzipped NIfTI file of whole `step`s in int16, the same bytes every time."""
    image = nib.Nifti1Image(np.rint(data / step).astype(np.int16), affine)
    image.header.set_slope_inter(step, 0)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as stream:
        stream.write(image.to_bytes())
    return packed.getvalue()


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return a JSON file."""
    return (json.dumps(content, indent=2) + "\n").encode()


def lines_bytes(lines: Sequence[str]) -> bytes:
    """Return a text file."""
    return ("\n".join(lines) + "\n").encode()


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
