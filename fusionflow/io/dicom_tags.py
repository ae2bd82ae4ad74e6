"""DICOM headers, read without pixels, without trust, and without a word about what they say.

pydicom puts values into its warnings, its log and its errors, and values hold names. All three
are kept in here: a value that cannot be read is not there.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fusionflow.errors import MissingExtraError
from fusionflow.untrusted import open_file

__all__ = ["Tags", "dcm2niix_program", "identifiers", "read_tags", "when"]

#: Values that take more bytes are not read; none of those looked at comes near.
_MOST_VALUE_BYTES: Final = 1 << 14
_UNDEFINED_LENGTH: Final = 0xFFFFFFFF
_PREAMBLE: Final = 128
_GROUP_LENGTH: Final = b"\x02\x00\x00\x00UL\x04\x00"
_MOST_META_BYTES: Final = 1 << 16
_DICOMDIR: Final = b"1.2.840.10008.1.3.10"
#: The transfer syntax whose header is compressed: there is no telling how large it gets.
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"

_PEOPLE = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "OperatorsName",
)
_NUMBERS = (
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "StudyID",
    "AdmissionID",
    "PatientBirthDate",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "MilitaryRank",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "DeviceSerialNumber",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PerformedProcedureStepID",
    "RequestedProcedureID",
)
IDENTIFYING: Final = (*_PEOPLE, *_NUMBERS)
"""Keywords whose values tell who or where somebody is."""


def _missing(what: str) -> MissingExtraError:
    return MissingExtraError(
        f"Reading DICOM needs {what}, which is not installed",
        "Run: pip install 'fusionflow[dicom]'",
    )


def dcm2niix_program() -> str:
    """Return the path of dcm2niix as it comes with its package.

    Raises
    ------
    MissingExtraError
        If the package is not installed.
    """
    try:
        import dcm2niix
    except ImportError:
        raise _missing("dcm2niix") from None
    return str(dcm2niix.bin)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Let pydicom tell nothing: neither warnings nor log lines."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


class Tags:
    """Values of one header; what is absent, damaged or too long is empty.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As `read_tags` makes it.
    """

    def __init__(self, dataset: Any) -> None:  # noqa: ANN401
        self._dataset = dataset

    def _value(self, keyword: str) -> Any:  # noqa: ANN401
        try:
            if keyword not in self._dataset:
                return None
            length = getattr(self._dataset.get_item(keyword), "length", 0)
            if length not in (None, _UNDEFINED_LENGTH) and length > _MOST_VALUE_BYTES:
                return None
            with _silent():
                return self._dataset[keyword].value
        except Exception:  # what pydicom raises on damaged values has no common type
            return None

    def texts(self, keyword: str) -> tuple[str, ...]:
        """Return the values of a tag as text without padding, empty ones left out."""
        value = self._value(keyword)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        with contextlib.suppress(Exception):  # as above
            stripped = [str(item).strip(" \0") for item in values if item is not None]
            return tuple(text for text in stripped if text)
        return ()

    def text(self, keyword: str) -> str:
        """Return the first value of a tag, or an empty text."""
        return next(iter(self.texts(keyword)), "")

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Return the values of a tag, or none if one is no finite number."""
        try:
            values = tuple(float(text) for text in self.texts(keyword))
        except ValueError:
            return ()
        return values if all(map(math.isfinite, values)) else ()

    def number(self, keyword: str) -> float | None:
        """Return the first value of a tag as a number."""
        return next(iter(self.numbers(keyword)), None)

    def first(self, keyword: str) -> Tags:
        """Return the first item of a sequence; an empty one if there is none."""
        value = self._value(keyword)
        try:
            return Tags(value[0])
        except Exception:  # no sequence, an empty one, or one that cannot be read
            return Tags({})


def read_tags(path: Path, keywords: Sequence[str]) -> Tags | None:
    """Return some tags of a DICOM file, without its pixels; None if it is no image of a series.

    Files are told by the marker that every DICOM file has, whatever their names.

    Raises
    ------
    MissingExtraError
        If pydicom is not installed.
    OSError
        If the file cannot be read, or is a pipe or the like.
    ValueError
        If it has the marker and cannot be read as DICOM; the text says no more than that.
    """
    try:
        import pydicom
    except ImportError:
        raise _missing("pydicom") from None
    with open_file(path) as stream:
        head = stream.read(_PREAMBLE + 16)
        if head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
            return None
        length = int.from_bytes(head[-4:], "little")
        if head[_PREAMBLE + 4 : -4] != _GROUP_LENGTH or length > _MOST_META_BYTES:
            raise ValueError("it does not begin as DICOM files do")
        meta = stream.read(length)
        if _DICOMDIR in meta:
            return None
        if _DEFLATED in meta:
            raise ValueError("its header is compressed")
        stream.seek(0)
        try:
            with _silent():
                dataset = pydicom.dcmread(
                    stream,
                    defer_size=_MOST_VALUE_BYTES,
                    stop_before_pixels=True,
                    specific_tags=list(keywords),
                )
        except Exception:  # its text may hold values
            problem = "it is damaged"
        else:
            return Tags(dataset)
    raise ValueError(problem)


def identifiers(tags: Tags) -> frozenset[str]:
    """Return what tells who, where or when: whole values, and the words of people's names."""
    found = {text.casefold() for keyword in IDENTIFYING for text in tags.texts(keyword)}
    for keyword in _PEOPLE:
        for text in tags.texts(keyword):
            found.update(re.findall(r"\w+", text.casefold()))
    return frozenset(found)


def tells(text: str, secrets: frozenset[str]) -> bool:
    """Say whether a text holds an identifier: as a word, or anywhere if it has four letters.

    >>> tells("GE Discovery MI", frozenset({"mi"})), tells("DISCOVERY", frozenset({"disc"}))
    (True, True)
    >>> tells("Discovery", frozenset({"di", "muster"}))
    False
    """
    folded = text.casefold()
    words = set(re.findall(r"\w+", folded))
    return any(
        secret == folded.strip() or secret in words or (len(secret) > 3 and secret in folded)
        for secret in secrets
    )


def when(date: str, time: str) -> datetime.datetime | None:
    """Return the moment that a date (DA) and a time (TM) name, or that a DT does.

    >>> when("20240305", "120001.5")
    datetime.datetime(2024, 3, 5, 12, 0, 1, 500000)
    """
    digits = date.replace(".", "").replace("-", "")
    match = re.fullmatch(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(\.\d{1,6})?)?)?", time.strip())
    if len(digits) != 8 or not digits.isdecimal() or match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    try:
        day = datetime.datetime.strptime(digits, "%Y%m%d")
        start = day.replace(hour=hours, minute=minutes, second=min(seconds, 59))
    except ValueError:
        return None
    return start + datetime.timedelta(seconds=float(match[4] or 0))
