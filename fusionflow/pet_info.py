"""What a sidecar tells of a PET image, in one form whoever wrote it.

Fields are those of BIDS 1.11, and those that dcm2niix writes: until 2026-04 with ``TimeZero`` and
``InjectionStart``, since then with ``SeriesTime`` and without them. ``AcquisitionTime`` is never
taken for a beginning: it is that of the frame, bed or reconstruction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

#: Half-lives in seconds: Decay Data Evaluation Project (Bé et al., Table of Radionuclides, BIPM
#: Monographie 5).
HALF_LIVES = {
    "C11": 1221.66,
    "N13": 597.9,
    "O15": 122.46,
    "F18": 6586.2,
    "Cu64": 45721.1,
    "Ga68": 4069.8,
    "Rb82": 75.27,
    "Zr89": 282280.3,
    "I124": 360806.4,
}

_BECQUEREL = {
    "bq": 1.0,
    "kbq": 1e3,
    "mbq": 1e6,
    "gbq": 1e9,
    "mci": 3.7e7,
    "uci": 3.7e4,
    "ci": 3.7e10,
}
_UNITS = {
    "bq/ml": "Bq/mL", "bqml": "Bq/mL", "bq/cc": "Bq/mL",
    "kbq/ml": "kBq/mL", "kbqml": "kBq/mL",
    "mbq/ml": "MBq/mL",
    "g/ml": "g/mL", "gml": "g/mL", "suv": "g/mL", "suvbw": "g/mL",
}  # fmt: skip
_DAY = 86400.0
#: Half-life, s, up to which clock times without a date tell how long a dose decayed.
_MOST_BY_CLOCK = 4 * 3600.0


@dataclass(frozen=True)
class PetInfo:
    """Metadata of a PET image; None or an empty text where it is not told or makes no sense.

    Attributes
    ----------
    frame_starts, frame_durations : tuple of float or None
        Seconds, for each frame; starts count from time zero.
    units : str
        ``Bq/mL``, ``kBq/mL``, ``MBq/mL``, ``g/mL`` (SUV), or as it stands.
    tracer, radionuclide : str
        As they stand; the radionuclide as ``F18`` where it is known.
    half_life : float or None
        Seconds.
    dose_bq : float or None
        Injected activity at injection, Bq.
    weight_kg : float or None
        Of the body.
    decay_corrected : bool or None
        Whether the image is.
    decay_seconds : float or None
        From the injection to the time that decay correction refers to.
    """

    frame_starts: tuple[float, ...] | None = None
    frame_durations: tuple[float, ...] | None = None
    units: str = ""
    tracer: str = ""
    radionuclide: str = ""
    half_life: float | None = None
    dose_bq: float | None = None
    weight_kg: float | None = None
    decay_corrected: bool | None = None
    decay_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> PetInfo:
        """Read what `to_json` returned."""
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        for name in ("frame_starts", "frame_durations"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


def pet_info(sidecar: Mapping[str, Any], weight_kg: float | None = None) -> PetInfo:
    """Read the fields of a sidecar, of whatever type they are.

    Parameters
    ----------
    sidecar : mapping
        The JSON object.
    weight_kg : float, optional
        From ``participants.tsv``; a weight in the sidecar wins, being of that day.
    """
    radionuclide = _radionuclide(sidecar)
    half_life = _positive(sidecar.get("RadionuclideHalfLife")) or HALF_LIVES.get(radionuclide)
    corrected = sidecar.get("ImageDecayCorrected")
    if not isinstance(corrected, bool):
        how = str(sidecar.get("DecayCorrection", "")).upper()
        corrected = {"NONE": False, "START": True, "ADMIN": True}.get(how)
    weight = _positive(sidecar.get("PatientWeight")) or _positive(sidecar.get("BodyWeight"))
    return PetInfo(
        frame_starts=_numbers(sidecar.get("FrameTimesStart")),
        frame_durations=_numbers(sidecar.get("FrameDuration")),
        units=_units(sidecar.get("Units")),
        tracer=_text(sidecar.get("TracerName") or sidecar.get("Radiopharmaceutical")),
        radionuclide=radionuclide,
        half_life=half_life,
        dose_bq=_dose(sidecar),
        weight_kg=weight or _positive(weight_kg),
        decay_corrected=corrected,
        decay_seconds=_decay_seconds(sidecar, half_life),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _positive(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _numbers(value: object) -> tuple[float, ...] | None:
    """Return a list of seconds; a single number is a list of one."""
    values = [_number(item) for item in (value if isinstance(value, list) else [value])]
    return None if None in values else tuple(item for item in values if item is not None)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _units(value: object) -> str:
    text = _text(value)
    return _UNITS.get(text.lower().replace(" ", ""), text)


def _radionuclide(sidecar: Mapping[str, Any]) -> str:
    """Return such as ``F18`` for ``18F``, ``F-18``, ``^18^Fluorine`` and ``[18F]FDG``."""
    names = {"fluorine": "F", "carbon": "C", "nitrogen": "N", "oxygen": "O", "copper": "Cu",
             "gallium": "Ga", "rubidium": "Rb", "zirconium": "Zr", "iodine": "I"}  # fmt: skip
    for field in ("TracerRadionuclide", "Radionuclide", "TracerName", "Radiopharmaceutical"):
        text = _text(sidecar.get(field)).replace("^", "")
        for pattern in (
            r"\b([A-Z][a-z]?|[A-Z][a-z]{4,})-?(\d{2,3})\b",
            r"\b(\d{2,3})-?([A-Z][a-z]?|[A-Z][a-z]{4,})\b",
        ):
            for one, other in re.findall(pattern, text[:200]):
                element, mass = (other, one) if one.isdigit() else (one, other)
                known = f"{names.get(element.lower(), element)}{mass}"
                if known in HALF_LIVES:
                    return known
    return _text(sidecar.get("TracerRadionuclide"))


def _dose(sidecar: Mapping[str, Any]) -> float | None:
    """Return the injected activity in Bq, where its unit is told or, from DICOM, is Bq."""
    dose = _positive(sidecar.get("InjectedRadioactivity"))
    if dose is not None:
        factor = _BECQUEREL.get(_text(sidecar.get("InjectedRadioactivityUnits")).lower())
        return None if factor is None else dose * factor
    return _positive(sidecar.get("RadionuclideTotalDose"))  # DICOM (0018,1074), Bq


def _decay_seconds(sidecar: Mapping[str, Any], half_life: float | None) -> float | None:
    """Return how long the dose decayed until the time that decay correction refers to.

    Clock times have no date: the nearest half day is meant, and for nuclides that live for hours,
    which are imaged days later, they say nothing.
    """
    injection = _number(sidecar.get("InjectionStart"))
    reference = _number(sidecar.get("ImageDecayCorrectionTime"))
    how = _text(sidecar.get("DecayCorrection")).upper()
    if injection is not None and reference is not None:
        seconds = reference - injection
        return None if how == "ADMIN" and abs(seconds) > 1 else seconds  # which of the two?
    if how == "ADMIN":
        return 0.0
    if half_life is None or half_life > _MOST_BY_CLOCK:
        return None
    begun = _clock(sidecar.get("SeriesTime"))
    injected = _clock(sidecar.get("RadiopharmaceuticalStartTime"))
    if begun is None or injected is None:
        return None
    if how == "START":
        return _nearest(begun - injected)
    if not how and reference is not None:  # the reference counts from the beginning of the series
        return _nearest(begun - injected) + reference
    return None


def _nearest(seconds: float) -> float:
    """Return a difference of clock times, within half a day of zero."""
    return (seconds + _DAY / 2) % _DAY - _DAY / 2


def _clock(value: object) -> float | None:
    """Return the seconds since midnight of ``HH:MM:SS.ff`` or DICOM's ``HHMMSS.ff``."""
    match = re.fullmatch(r"(\d\d):?(\d\d):?(\d\d(?:\.\d*)?)", _text(value) or str(value))
    if match is None:
        return None
    hours, minutes, seconds = (float(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds
