"""How a scan came to be, in words and rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fusionflow.records import Published


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of the registration of a scan.

    Attributes
    ----------
    mood : {"good", "warn", "soft"}
        Whether it was checked, must be looked at, or was not tried.
    words : str
        One sentence.
    """

    mood: Literal["good", "warn", "soft"]
    words: str


def verdict(record: Published) -> Verdict:
    """Say how the PET was brought onto the MRI, and whether to look at it."""
    alignment = record.conformed.get("Alignment")
    if not isinstance(alignment, Mapping):
        return Verdict("soft", "How the PET was aligned is not recorded")
    mode, found = alignment.get("mode"), alignment.get("registration")
    apart = found.get("displacement_mm") if isinstance(found, Mapping) else None
    if record.is_flagged:
        return Verdict("warn", "Look at the alignment: the registration is not to be believed")
    if mode == "rigid":
        moved = f", moved by {apart:.1f} mm on average" if isinstance(apart, float) else ""
        return Verdict("good", f"PET registered to the MRI{moved}")
    if mode == "header" and isinstance(apart, float):
        return Verdict(
            "good",
            f"Aligned as the headers say; a registration agrees to {apart:.1f} mm on average",
        )
    words = {
        "header": "Aligned as the headers say; no registration was tried",
        "none": "Taken voxel for voxel, whatever the headers say; no registration was tried",
        "in T1w space": "The PET was in the space of the T1w before",
    }
    return Verdict("soft", words.get(str(mode), f"Aligned by: {mode}"))


#: Figures of a registration -> what they are, and their unit.
_REGISTRATION = {
    "displacement_mm": ("mean distance over the head between header and registration", "mm"),
    "distance_mm": ("distance at the centre of the head", "mm"),
    "rotation_deg": ("rotation", "degrees"),
    "restart_mm": ("difference when started elsewhere", "mm"),
    "metric_before": ("mutual information as the header has it", "nats"),
    "metric_after": ("mutual information as registered", "nats"),
    "overlap_before": ("part of the head in the PET, as the header has it", "1"),
    "overlap": ("part of the head in the PET, as registered", "1"),
}


def registration_figures(record: Published) -> list[tuple[str, float, str]]:
    """Return the figures of the registration that was tried, if one was: what, value, unit."""
    alignment = record.conformed.get("Alignment")
    found = alignment.get("registration") if isinstance(alignment, Mapping) else None
    if not isinstance(found, Mapping):
        return []
    return [
        (words, float(found[name]), unit)
        for name, (words, unit) in _REGISTRATION.items()
        if isinstance(found.get(name), int | float)
    ]


def rows(content: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested options as rows: a dotted name, and the value as text.

    Examples
    --------
    >>> rows({"transform": {"name": "db2", "levels": 1}, "backbone": None})
    [('transform.name', 'db2'), ('transform.levels', '1'), ('backbone', 'none')]
    """
    found: list[tuple[str, str]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            found += rows(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", _text(value)))
    return found


def _text(value: Any) -> str:  # noqa: ANN401
    if value is None or value in ("", [], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(
            f"({', '.join(f'{name}: {text}' for name, text in rows(item))})"
            if isinstance(item, Mapping)
            else f"({_text(item)})"
            if isinstance(item, list | tuple)
            else _text(item)
            for item in value
        )
    return str(value)


def software_rows(record: Published) -> list[tuple[str, str]]:
    """Return how a scan was made: by which run, worker and versions."""
    return [
        ("version of the outputs", record.version),
        ("made", record.created),
        ("run", record.run),
        ("worker", record.worker),
        ("attempts", str(record.attempt)),
        ("asked for (fingerprint)", record.request),
        ("weights", record.weights or "none: the method reads no network"),
        *((f"seconds: {stage}", f"{seconds:.3g}") for stage, seconds in record.timings.items()),
        *((f"software: {name}", version) for name, version in record.software.items()),
    ]
