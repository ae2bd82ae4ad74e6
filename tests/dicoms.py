"""DICOM series of made-up people, with a name in every field that can hold one; and converted."""

from __future__ import annotations

import datetime
import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from click.testing import CliRunner
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from fusionflow.cli import main
from fusionflow.io.dicom_bids import convert_dicom

MR, PET = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
SHAPE = (16, 12, 10)  # slices, rows, columns
NOON = datetime.datetime(2024, 3, 5, 12, 0, 0)


@dataclass(frozen=True)
class Person:
    """A patient; every text is one that may be found in no output."""

    name: str
    number: str
    born: str = "19470313"
    issuer: str = ""
    hospital: str = "Hospital Zum Goldenen Hirschen"
    physician: str = "Quacksalber^Balthasar"
    accession: str = "ACC7741093"
    weight: float | None = 71.5

    @property
    def secrets(self) -> set[str]:
        """Texts that tell who it is."""
        texts = {self.name, self.number, self.born, self.hospital, self.physician, self.accession}
        texts |= {part for text in (self.name, self.physician) for part in text.split("^")}
        texts |= {self.issuer, f"{self.born[:4]}-{self.born[4:6]}-{self.born[6:]}"}
        return {text for text in texts if len(text) > 3}


ERIKA = Person("Mustermann^Erika", "PID-5551234")
HEINZ = Person("Strunk^Heinz", "PID-5559876", born="19620517", accession="ACC1234567")


@dataclass
class Study:
    """A visit of somebody, and the UIDs that were given out in it."""

    person: Person
    when: datetime.datetime = NOON
    uid: str = field(default_factory=generate_uid)
    uids: set[str] = field(default_factory=set)
    _series: int = 0

    @property
    def secrets(self) -> set[str]:
        """Texts that tell who it is, or which files."""
        day = self.when
        dates = {f"{day:%Y%m%d}", f"{day:%Y-%m-%d}"}
        return self.person.secrets | self.uids | {self.uid, "STUDY88812"} | dates

    def write(
        self,
        folder: Path,
        modality: str,
        values: np.ndarray | None = None,
        *,
        slopes: float | list[float] = 1.0,
        at: tuple[float, float, float] = (-20.0, -24.0, 5.0),
        spacing: float = 3.0,
        suffix: str = ".dcm",
        **tags: Any,
    ) -> list[Path]:
        """Write one series of axial slices, stored values (frame, slice, row, column) or 3-D."""
        self._series += 1
        folder.mkdir(parents=True, exist_ok=True)
        values = voxels(self._series) if values is None else values
        frames = values if values.ndim == 4 else values[None]
        series, frame_of_reference = generate_uid(), generate_uid()
        self.uids |= {series, frame_of_reference}
        paths = []
        for f, frame in enumerate(frames):
            for k, pixels in enumerate(frame):
                number = f * len(frame) + k
                d = self._about(modality, series, frame_of_reference)
                d.InstanceNumber = number + 1
                d.ImagePositionPatient = [*at[:2], at[2] + spacing * k]
                d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
                d.PixelSpacing, d.SliceThickness = [4.0, 4.5], spacing
                d.Rows, d.Columns = pixels.shape
                d.BitsAllocated = d.BitsStored = 16
                d.HighBit, d.PixelRepresentation, d.SamplesPerPixel = 15, 0, 1
                d.PhotometricInterpretation = "MONOCHROME2"
                slope = slopes if isinstance(slopes, float) else slopes[number]
                d.RescaleSlope, d.RescaleIntercept = f"{slope:.10g}", "0"
                if modality == "PT":
                    self._pet(d, f, len(frames), len(frame), k)
                for tag, value in tags.items():
                    if callable(value):
                        value = value(f, k)
                    if value is None:
                        if tag in d:
                            delattr(d, tag)
                    else:
                        setattr(d, tag, value)
                d.PixelData = pixels.astype("<u2").tobytes()
                self.uids.add(d.SOPInstanceUID)
                paths.append(save(d, folder / f"IM{self._series}_{number:04}{suffix}"))
        return paths

    def _about(self, modality: str, series: str, frame_of_reference: str) -> Dataset:
        p, d = self.person, Dataset()
        d.SpecificCharacterSet = "ISO_IR 192"
        d.SOPClassUID = MR if modality == "MR" else PET
        d.SOPInstanceUID, d.SeriesInstanceUID = generate_uid(), series
        d.StudyInstanceUID, d.FrameOfReferenceUID = self.uid, frame_of_reference
        d.Modality, d.ImageType = modality, ["ORIGINAL", "PRIMARY"]
        day, time = f"{self.when:%Y%m%d}", f"{self.when:%H%M%S}.000000"
        d.StudyDate = d.SeriesDate = d.AcquisitionDate = d.ContentDate = day
        d.StudyTime = d.SeriesTime = d.AcquisitionTime = d.ContentTime = time
        d.PatientName, d.PatientID, d.PatientBirthDate = p.name, p.number, p.born
        d.OtherPatientIDs, d.PatientAddress = p.number, f"{p.name} Street 5"
        d.PatientComments = f"talked to {p.name} of {p.hospital}"
        if p.issuer:
            d.IssuerOfPatientID = p.issuer
        if p.weight is not None:
            d.PatientWeight = str(p.weight)
        d.PatientSex, d.AccessionNumber, d.StudyID = "F", p.accession, "STUDY88812"
        d.InstitutionName = d.InstitutionAddress = d.InstitutionalDepartmentName = p.hospital
        d.StationName, d.DeviceSerialNumber = p.hospital[:16], "STUDY88812"
        d.ReferringPhysicianName = d.PerformingPhysicianName = d.OperatorsName = p.physician
        d.PhysiciansOfRecord = d.NameOfPhysiciansReadingStudy = p.physician
        d.StudyDescription = f"brain of {p.name}"
        d.SeriesDescription = f"T1 mprage {p.name}" if modality == "MR" else f"PET {p.name}"
        d.ProtocolName, d.SequenceName = f"head {p.number}", p.name[:16]
        d.ImageComments, d.RequestedProcedureDescription = p.name, f"for {p.physician}"
        d.PerformedProcedureStepDescription = f"{p.name} {p.accession}"
        d.Manufacturer, d.ManufacturerModelName = "SIEMENS", f"Biograph mMR {p.accession}"
        d.SoftwareVersions, d.BodyPartExamined, d.PatientPosition = "syngo", "HEAD", "HFS"
        d.SeriesNumber, d.AcquisitionNumber = self._series, 1
        if modality == "MR":
            d.RepetitionTime, d.EchoTime, d.InversionTime, d.FlipAngle = "2300", "3", "900", "9"
            d.MRAcquisitionType, d.ScanningSequence = "3D", ["GR", "IR"]
            d.SequenceVariant, d.MagneticFieldStrength = ["SP", "MP"], "3"
        return d

    def _pet(self, d: Dataset, f: int, n_frames: int, n_slices: int, k: int) -> None:
        start = self.when + datetime.timedelta(seconds=300 * f)
        d.AcquisitionDate, d.AcquisitionTime = f"{start:%Y%m%d}", f"{start:%H%M%S}.000000"
        d.FrameReferenceTime, d.ActualFrameDuration = str(300_000 * f + 150_000), "300000"
        d.SeriesType = ["DYNAMIC" if n_frames > 1 else "STATIC", "IMAGE"]
        d.Units, d.DecayCorrection, d.DecayFactor = "BQML", "START", "1.02"
        d.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "NORM"]
        d.NumberOfSlices, d.ImageIndex = n_slices, f * n_slices + k + 1
        if n_frames > 1:
            d.NumberOfTimeSlices = n_frames
        d.ReconstructionMethod, d.ConvolutionKernel = "OSEM3D 4i21s", "Gauss 4.00"
        d.AttenuationCorrectionMethod = f"measured for {self.person.name}"
        drug, code = Dataset(), Dataset()
        drug.Radiopharmaceutical = "Fluorodeoxyglucose F^18^"
        drug.RadionuclideTotalDose = "185000000"
        injected = self.when - datetime.timedelta(minutes=45)
        drug.RadiopharmaceuticalStartTime = f"{injected:%H%M%S}.000000"
        drug.RadionuclideHalfLife = "6586.2"
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
            "C-111A1",
            "SRT",
            "^18^Fluorine",
        )
        drug.RadionuclideCodeSequence = Sequence([code])
        d.RadiopharmaceuticalInformationSequence = Sequence([drug])


def voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return stored values that are nowhere alike."""
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)


def save(d: Dataset, path: Path) -> Path:
    """Write a DICOM file."""
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)
    return path


def pair(folder: Path, study: Study, **tags) -> Path:
    """Write an MR and a PET of one study."""
    study.write(folder / "mr", "MR", voxels(1), **tags)
    study.write(folder / "pet", "PT", voxels(2), slopes=2.5)
    return folder


def change(path: Path, **tags) -> None:
    """Write a file with other values of some tags."""
    d = dcmread(path)
    for tag, value in tags.items():
        setattr(d, tag, value)
    save(d, path)


def convert(place: Path, **options):
    options.setdefault("key", place / "key")
    return convert_dicom(place / "dicom", place / "bids", **options)


def command(place: Path, *options: str):
    arguments = ["dicom", place / "dicom", place / "bids", "--key", place / "key", *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sidecar(place: Path, suffix: str) -> dict:
    (path,) = (place / "bids").glob(f"sub-*/ses-*/*/*_{suffix}.json")
    return json.loads(path.read_text())


def image(place: Path, suffix: str) -> nib.Nifti1Image:
    (path,) = (place / "bids").glob(f"sub-*/ses-*/*/*_{suffix}.nii.gz")
    return nib.load(path)


def by_world(image: nib.Nifti1Image) -> np.ndarray:
    """Return values with axes as DICOM's axial slices lie: (frame), slice, row, column."""
    ras = nib.as_closest_canonical(image)
    return ras.get_fdata()[::-1, ::-1].T  # columns grow to the left, rows to the back


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def leaks(text: bytes, secrets: set[str]) -> set[str]:
    """Return which secrets a text holds, in any case and as 8 or 16 bit characters."""
    folded = text.lower()
    forms = ("utf-8", "latin-1", "utf-16-le")
    return {s for s in secrets for form in forms if s.lower().encode(form, "replace") in folded}
