"""Which MR and PET series lie under a folder, from their headers alone.

Nothing here reads a voxel, and nothing keeps more of a file than its name: some 200 bytes each.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fusionflow.errors import ConfigurationError, NoScansError
from fusionflow.io.dicom_tags import Tags, read_tags, when

__all__ = ["Index", "Series", "index"]

#: Images that are not one of these are no MR or PET: captures of a screen, reports, states.
_IMAGES: Final = {
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # legacy converted enhanced MR
    "1.2.840.10008.5.1.4.1.1.128",  # PET
    "1.2.840.10008.5.1.4.1.1.128.1",  # legacy converted enhanced PET
    "1.2.840.10008.5.1.4.1.1.130",  # enhanced PET
}
_MODALITIES: Final = {
    "CT",
    "NM",
    "US",
    "SR",
    "SC",
    "OT",
    "PR",
    "KO",
    "SEG",
    "REG",
    "DOC",
    "RTSTRUCT",
}
_TAGS: Final = (
    "AccessionNumber",
    "AcquisitionDate",
    "BurnedInAnnotation",
    "ContentDate",
    "ContrastBolusAgent",
    "CorrectedImage",
    "EchoTime",
    "ImageType",
    "InversionTime",
    "IssuerOfPatientID",
    "MRAcquisitionType",
    "Modality",
    "NumberOfFrames",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientWeight",
    "ProtocolName",
    "RepetitionTime",
    "SOPClassUID",
    "ScanningSequence",
    "SeriesDate",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesType",
    "SpecificCharacterSet",
    "StudyDate",
    "StudyInstanceUID",
)


@dataclass(eq=False)
class Series:
    """One series: what its first header says, and where its files are.

    Attributes
    ----------
    patient : tuple of str
        Who, as the headers tell it; in no output.
    born, study, uid, accession : str
        Birth date, UIDs of study and series, accession number; in no output.
    modality : str
        ``MR``, ``PT`` or another.
    fault : str
        Why it is no image that could be taken; empty if it could be.
    date : datetime.date or None
        Of the study, or else of the series or its images.
    description : str
        Of series and protocol; in no output.
    sequence, corrected, kind : tuple of str
        ScanningSequence, CorrectedImage and (of a PET) SeriesType.
    volumetric, contrast : bool
        Whether it says that it is a 3-D acquisition, and with a contrast agent.
    tr, te, ti, weight, number : float or None
        Times in ms, body weight in kg, series number.
    images : int
        Slices of all frames.
    folders : dict of str to list of str
        Names of its files, by folder; in no output.
    """

    patient: tuple[str, ...]
    born: str
    study: str
    uid: str
    accession: str
    modality: str
    fault: str
    date: datetime.date | None
    description: str
    sequence: tuple[str, ...]
    corrected: tuple[str, ...]
    kind: tuple[str, ...]
    volumetric: bool
    contrast: bool
    tr: float | None
    te: float | None
    ti: float | None
    weight: float | None
    number: float | None
    images: int = 0
    folders: dict[str, list[str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what names nobody."""
        return f"<{self.modality} series of {self.images} images>"

    @property
    def folder(self) -> str:
        """The folder of its first files; may hold names."""
        return next(iter(self.folders), "")

    def paths(self) -> Iterator[Path]:
        """Return its files."""
        for folder, names in self.folders.items():
            for name in names:
                yield Path(folder, name)


@dataclass(frozen=True, eq=False)
class Index:
    """What lies under a folder.

    Attributes
    ----------
    series : tuple of Series
        In the order in which they were met.
    others : int
        Files that are no DICOM images: other formats, DICOMDIR.
    damaged : Counter
        How many files could not be read, by reason.
    """

    series: tuple[Series, ...]
    others: int
    damaged: Counter[str]


def index(dicom_dir: Path) -> Index:
    """Read the headers of every file under a folder, however deep.

    Links are followed, once each, so that circles end.

    Raises
    ------
    ConfigurationError
        If the folder cannot be listed.
    NoScansError
        If it holds no DICOM file.
    MissingExtraError
        If pydicom is not installed.
    """
    found: dict[tuple[tuple[str, ...], str, str], Series] = {}
    others, damaged = 0, Counter[str]()
    for folder, names in _folders(dicom_dir, damaged):
        for name in names:
            try:
                tags = read_tags(Path(folder, name), _TAGS)
            except OSError as error:
                damaged[error.strerror or "cannot be read"] += 1
                continue
            except ValueError as error:
                damaged[str(error)] += 1
                continue
            if tags is None:
                others += 1
                continue
            study, uid = tags.text("StudyInstanceUID"), tags.text("SeriesInstanceUID")
            if not study or not uid:
                damaged["it does not say to which study and series it belongs"] += 1
                continue
            key = (_patient(tags, study), study, uid)
            series = found.get(key) or found.setdefault(key, _series(tags, *key))
            series.images += max(1, int(tags.number("NumberOfFrames") or 1))
            series.folders.setdefault(folder, []).append(name)
    if not found:
        raise NoScansError(
            f"{dicom_dir} holds no DICOM image: {others} other files, "
            f"{damaged.total()} that cannot be read",
            "Give the folder that holds the series, at any depth",
        )
    return Index(tuple(found.values()), others, damaged)


def _folders(root: Path, damaged: Counter[str]) -> Iterator[tuple[str, list[str]]]:
    """Walk a tree in order of names; each folder is met once, whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    waiting = [os.fspath(root)]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            inside: list[str] = []
            names: list[str] = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = False
                    with contextlib.suppress(OSError):  # a link to itself
                        is_folder = entry.is_dir()
                    (inside if is_folder else names).append(entry.name)
        except OSError as error:
            if folder == os.fspath(root):
                raise ConfigurationError(
                    f"{root} cannot be listed: {error.strerror}", "Give a folder of DICOM files"
                ) from None
            damaged["a folder that cannot be listed"] += 1
            continue
        waiting += [os.path.join(folder, name) for name in sorted(inside, reverse=True)]
        yield folder, sorted(names)


def _patient(tags: Tags, study: str) -> tuple[str, ...]:
    """Return who it is: a number and who gave it out, or else name and birth date, or nobody."""
    if number := tags.text("PatientID"):
        return "id", number, tags.text("IssuerOfPatientID")
    name = " ".join(tags.text("PatientName").replace("^", " ").casefold().split())
    born = tags.text("PatientBirthDate")
    return ("name", name, born) if name and born else ("study", study)


def _series(tags: Tags, patient: tuple[str, ...], study: str, uid: str) -> Series:
    days = (tags.text(key) for key in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"))
    weight = tags.number("PatientWeight")
    return Series(
        patient=patient,
        born=tags.text("PatientBirthDate"),
        study=study,
        uid=uid,
        accession=tags.text("AccessionNumber"),
        modality=tags.text("Modality").upper(),
        fault=_fault(tags),
        date=next((day.date() for text in days if (day := when(text, "00"))), None),
        description=f"{tags.text('SeriesDescription')} {tags.text('ProtocolName')}".casefold(),
        sequence=tuple(text.upper() for text in tags.texts("ScanningSequence")),
        corrected=tuple(text.upper() for text in tags.texts("CorrectedImage")),
        kind=tuple(text.upper() for text in tags.texts("SeriesType")),
        volumetric=tags.text("MRAcquisitionType").upper() == "3D",
        contrast=bool(tags.text("ContrastBolusAgent")),
        tr=tags.number("RepetitionTime"),
        te=tags.number("EchoTime"),
        ti=tags.number("InversionTime"),
        weight=weight if weight is not None and 0 < weight < 700 else None,
        number=tags.number("SeriesNumber"),
    )


def _fault(tags: Tags) -> str:
    """Return why a series cannot be taken, in words that come from here and not from the file."""
    modality = tags.text("Modality").upper()
    kind = [text.upper() for text in tags.texts("ImageType")]
    if modality not in ("MR", "PT"):
        return f"modality {modality}" if modality in _MODALITIES else "neither MR nor PET"
    if tags.text("SOPClassUID") not in _IMAGES:
        return "no MR or PET image: a capture of a screen, a report or the like"
    if tags.text("BurnedInAnnotation").upper() == "YES":
        return "writing in its pixels, which may name somebody"
    if "LOCALIZER" in kind:
        return "a localizer"
    if kind and (kind[0] == "DERIVED" or "SECONDARY" in kind[1:2]):
        return "derived from other images"
    return ""
