"""Sidecars of images from DICOM: what BIDS asks for, and nothing that tells who somebody is.

Fields are those of a list, with values of the kind that the list says. dcm2niix's own
anonymisation (``-ba y``) is not enough: it keeps the institution, the station and every comment.
All that concerns time is taken from the DICOM headers. dcm2niix wrote ``TimeZero`` from
AcquisitionTime until April 2026, which is wrong where a frame begins later than its series, and
``SeriesTime`` alone since; only durations, and starts from the later versions, are taken from it.
"""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fusionflow.io.dicom_tags import Tags, tells, when

__all__ = ["PET_TAGS", "Frame", "pet_fields", "scrubbed", "tracer_of"]

_NUMBERS = {
    "MagneticFieldStrength", "ImagingFrequency", "SliceThickness", "SpacingBetweenSlices",
    "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "PixelBandwidth", "DwellTime",
    "PercentPhaseFOV", "PercentSampling", "PhaseEncodingSteps", "AcquisitionMatrixPE",
    "ReconMatrixPE", "ParallelReductionFactorInPlane", "PartialFourier", "EchoTrainLength",
    "SpoilingState", "NonlinearGradientCorrection", "ImageOrientationPatientDICOM",
    "RadionuclideHalfLife", "RadionuclidePositronFraction", "ReconMethodParameterValues",
    "ReconFilterSize", "DecayCorrectionFactor", "ScatterFraction", "DoseCalibrationFactor",
}  # fmt: skip
_TEXTS = {
    "Modality", "Manufacturer", "ManufacturersModelName", "SoftwareVersions", "BodyPart",
    "PatientPosition", "MRAcquisitionType", "ScanningSequence", "SequenceVariant", "ScanOptions",
    "PulseSequenceType", "InPlanePhaseEncodingDirectionDICOM", "ReconMethodName",
    "ReconMethodParameterLabels", "ReconMethodParameterUnits", "ReconFilterType",
    "AttenuationCorrection", "ConversionSoftware", "ConversionSoftwareVersion",
}  # fmt: skip
#: What machines write; no sentence, and nothing long.
_SOUND_TEXT: Final = re.compile(r"[\w .,:;+*/\\()=-]{1,64}", re.ASCII)
_MOST_ITEMS: Final = 1000
_MOST_NUMBER: Final = 1e7  # no date, no time and no patient's number is smaller by chance alone

PET_TAGS: Final = (
    "RadiopharmaceuticalInformationSequence",
    "Units",
    "DecayCorrection",
    "CorrectedImage",
    "SeriesDate",
    "SeriesTime",
)
"""Tags that `pet_fields` looks at."""

_UNITS: Final = {"BQML": "Bq/mL", "GML": "g/mL", "CNTS": "counts"}
_TRACERS: Final = (
    ("FDG", r"fdg|flu(?:oro|)deoxy-?glucose|fludeoxyglucose"),
    ("AV45", r"florbetapir|av-?45\b|amyvid"),
    ("FBB", r"florbetaben|neuraceq"),
    ("FMM", r"flutemetamol|vizamyl"),
    ("AV1451", r"flortaucipir|av-?1451|t807"),
    ("MK6240", r"mk-?6240"),
    ("PI2620", r"pi-?2620"),
    ("PIB", r"\bpib\b|pittsburgh"),
    ("FET", r"\bfet\b|fluoroethyl-?(?:l-)?tyrosine"),
    ("FDOPA", r"f-?dopa|fluorodopa"),
    ("FLT", r"\bflt\b|fluorothymidine"),
    ("MET", r"methionine"),
    ("RAC", r"raclopride"),
    ("FALL", r"fallypride"),
    ("UCBJ", r"ucb-?j|synvest"),
    ("PK11195", r"pk-?11195"),
    ("PBR28", r"pbr-?28"),
    ("DPA714", r"dpa-?714"),
    ("CHOLINE", r"choline"),
    ("DOTATATE", r"dotatate"),
    ("DOTATOC", r"dotatoc"),
    ("PSMA", r"psma"),
    ("WATER", r"\bwater\b|h2o"),
)
_NUCLIDES: Final = (
    ("F18", r"fluor|\bf\b", "C-111A1"),
    ("C11", r"carbon|\bc\b", "C-105A1"),
    ("N13", r"nitrogen|\bn\b", "C-107A1"),
    ("O15", r"oxygen|\bo\b", "C-B1038"),
    ("Ga68", r"gallium|\bga\b", "C-131A3"),
    ("Cu64", r"copper|\bcu\b", "C-127A2"),
    ("Zr89", r"zirconium|\bzr\b", "C-168A4"),
    ("Rb82", r"rubidium|\brb\b", "C-159A2"),
)
_A_DAY: Final = datetime.timedelta(days=1)
_LEAST_BQ: Final = 1e5  # a dose in Bq; smaller numbers are MBq in the wrong place


@dataclass(frozen=True)
class Frame:
    """When a slice was measured.

    Attributes
    ----------
    place : int
        Which slice position.
    start : datetime or None
        When its frame began.
    duration : float or None
        Seconds.
    """

    place: int
    start: datetime.datetime | None
    duration: float | None


def scrubbed(fields: Mapping[str, Any], secrets: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a sidecar that are known to be harmless.

    Parameters
    ----------
    fields : mapping
        As dcm2niix wrote it.
    secrets : frozenset of str
        What may not be in any text; see `dicom_tags.identifiers`.
    """
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        items = value if isinstance(value, list) else [value]
        if name in _NUMBERS:
            sound = all(isinstance(i, int | float) and abs(i) < _MOST_NUMBER for i in items)
        elif name in _TEXTS:
            sound = all(
                isinstance(i, str) and _SOUND_TEXT.fullmatch(i) and not tells(i, secrets)
                for i in items
            )
        else:
            sound = False
        if sound and items and len(items) <= _MOST_ITEMS:
            kept[name] = value
    return kept


def tracer_of(tags: Tags) -> str:
    """Return a tracer's short name, if it is one of those known here, else an empty text."""
    drug = tags.first("RadiopharmaceuticalInformationSequence")
    code = drug.first("RadiopharmaceuticalCodeSequence")
    text = f"{drug.text('Radiopharmaceutical')} {code.text('CodeMeaning')}".casefold()
    return next((name for name, pattern in _TRACERS if re.search(pattern, text)), "")


def _nuclide(drug: Tags) -> str:
    code = drug.first("RadionuclideCodeSequence")
    text = f"{code.text('CodeMeaning')} {drug.text('Radiopharmaceutical')}".casefold()
    text = re.sub(r"(?<=\d)(?=[a-z])|(?<=[a-z])(?=\d)", " ", text.replace("^", " "))
    for name, pattern, value in _NUCLIDES:
        mass = re.sub(r"\D", "", name)
        by_text = re.search(rf"\b{mass}\b", text) and re.search(pattern, text)
        if code.text("CodeValue") == value or by_text:
            return name
    return ""


def pet_fields(
    tags: Tags, frames: Sequence[Frame], volumes: int, converted: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what BIDS asks of a PET, as far as the headers say it.

    Time zero is the series' own, to which scanners correct decay; seconds are counted from it.
    What is missing or contradicts itself is left out.

    Parameters
    ----------
    tags : Tags
        Of one image of the series, `PET_TAGS`.
    frames : sequence of Frame
        Of every image; empty for enhanced (multi-frame) files.
    volumes : int
        Frames of the image that was made.
    converted : mapping
        dcm2niix's sidecar.
    """
    fields: dict[str, Any] = {}
    drug = tags.first("RadiopharmaceuticalInformationSequence")
    if tracer := tracer_of(tags):
        fields["TracerName"] = tracer
    if nuclide := _nuclide(drug):
        fields["TracerRadionuclide"] = nuclide
    dose = drug.number("RadionuclideTotalDose")
    if dose is not None and dose >= _LEAST_BQ:
        fields |= {"InjectedRadioactivity": dose / 1e6, "InjectedRadioactivityUnits": "MBq"}
    if units := _UNITS.get(tags.text("Units").upper()):
        fields["Units"] = units
    corrected = [text.upper() for text in tags.texts("CorrectedImage")]
    if corrected and "ATTN" not in corrected:
        fields["AttenuationCorrection"] = "none"

    zero = when(tags.text("SeriesDate"), tags.text("SeriesTime"))
    starts = [frame.start for frame in frames if frame.start is not None]
    if zero is not None and starts and min(starts) < zero - datetime.timedelta(seconds=1):
        zero = None  # the series' time was changed when something was made of it
    injected = _injected(drug, zero)
    if zero is not None:
        fields |= {"TimeZero": f"{zero:%H:%M:%S}", "ScanStart": 0}
        if injected is not None:
            fields["InjectionStart"] = injected

    correction = tags.text("DecayCorrection").upper()
    if correction in ("START", "ADMIN"):
        fields["ImageDecayCorrected"] = True
        at = 0 if correction == "START" else injected
        if zero is not None and at is not None:
            fields["ImageDecayCorrectionTime"] = at
    elif correction == "NONE":
        fields["ImageDecayCorrected"] = False
    elif "DECY" in corrected:
        fields["ImageDecayCorrected"] = True
    return fields | _frame_times(frames, zero, volumes, converted)


def _injected(drug: Tags, zero: datetime.datetime | None) -> float | None:
    """Return when the tracer was given, in seconds from time zero."""
    if zero is None:
        return None
    moment = drug.text("RadiopharmaceuticalStartDateTime")
    given = when(moment[:8], re.split(r"[+&-]", moment[8:])[0]) if len(moment) > 8 else None
    if given is None:  # a time of day: the last one before the scan's end
        given = when(f"{zero:%Y%m%d}", drug.text("RadiopharmaceuticalStartTime"))
        if given is not None and given > zero + _A_DAY / 2:
            given -= _A_DAY
    if given is None or abs(given - zero) > _A_DAY:
        return None
    return _seconds((given - zero).total_seconds())


def _frame_times(
    frames: Sequence[Frame],
    zero: datetime.datetime | None,
    volumes: int,
    converted: Mapping[str, Any],
) -> dict[str, Any]:
    """Return when frames began and how long they took, one value a frame, or nothing."""
    if not frames:  # enhanced files: as dcm2niix says
        fields = {}
        names = ["FrameDuration"]
        if "SeriesTime" in converted and "TimeZero" not in converted and zero is not None:
            names.append("FrameTimesStart")  # seconds from the series' time
        for name in names:
            value = converted.get(name)
            items = value if isinstance(value, list) else []
            if len(items) == volumes and all(isinstance(item, int | float) for item in items):
                fields[name] = items
        return fields
    places: dict[int, list[Frame]] = defaultdict(list)
    for frame in frames:
        places[frame.place].append(frame)
    if {len(inside) for inside in places.values()} != {volumes}:
        return {}
    if volumes > 1 and any(frame.start is None for frame in frames):
        return {}
    value = converted.get("FrameTimesStart")
    told = value if isinstance(value, list) else []
    rising = [item for item in told if isinstance(item, int | float)]
    if rising != sorted(rising):
        return {}  # the image has its frames in another order than that of time
    latest = datetime.datetime.max
    ordered = [sorted(i, key=lambda frame: frame.start or latest) for i in places.values()]
    fields = {}
    durations = [{inside[n].duration for inside in ordered} for n in range(volumes)]
    if all(len(seconds) == 1 and None not in seconds for seconds in durations):
        fields["FrameDuration"] = [_seconds(seconds.pop() or 0.0) for seconds in durations]
    starts = [[inside[n].start for inside in ordered] for n in range(volumes)]
    if zero is not None and all(None not in moments for moments in starts):
        # The parts of one frame that were measured bed by bed begin with the first.
        fields["FrameTimesStart"] = [
            _seconds(min((m - zero).total_seconds() for m in moments if m is not None))
            for moments in starts
        ]
    return fields


def _seconds(value: float) -> float:
    """Return whole seconds as whole numbers."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
