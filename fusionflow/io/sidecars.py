"""JSON beside PET images, inherited from the dataset down to the image; weights of subjects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionflow.io.bids_names import BidsFile, parse_name
from fusionflow.untrusted import one_line, read_bounded

REQUIRED_PET_FIELDS = (
    "Manufacturer",
    "ManufacturersModelName",
    "Units",
    "TracerName",
    "TracerRadionuclide",
    "InjectedRadioactivity",
    "InjectedRadioactivityUnits",
    "InjectedMass",
    "InjectedMassUnits",
    "SpecificRadioactivity",
    "SpecificRadioactivityUnits",
    "ModeOfAdministration",
    "TimeZero",
    "ScanStart",
    "InjectionStart",
    "FrameTimesStart",
    "FrameDuration",
    "AcquisitionMode",
    "ImageDecayCorrected",
    "ImageDecayCorrectionTime",
    "ReconMethodName",
    "ReconMethodParameterLabels",
    "ReconFilterType",
    "AttenuationCorrection",
)
"""Sidecar fields that BIDS requires of every PET image."""

OF_THE_IMAGE = (
    "Units",
    "FrameTimesStart",
    "FrameDuration",
    "ImageDecayCorrected",
    "ImageDecayCorrectionTime",
    "DecayCorrection",
)
"""Fields that are about the voxels of one image, not about the injection."""

_MOST_BYTES = 1 << 24
_MOST_LEVELS = 64


@dataclass(frozen=True)
class Sidecar:
    """A JSON file of PET metadata.

    Attributes
    ----------
    file : BidsFile
        Its name.
    fields : mapping
        What it holds; empty if it cannot be read.
    problem : str or None
        Why it cannot.
    """

    file: BidsFile
    fields: Mapping[str, Any]
    problem: str | None


def sidecars_in(folder: Path, names: Iterable[str]) -> list[Sidecar]:
    """Read the PET sidecars among the files of one folder, those with the fewest entities first."""
    files = [
        file
        for name in names
        if name.endswith("pet.json")
        and (file := parse_name(folder / name)) is not None
        and file.suffix == "pet"
    ]
    files.sort(key=lambda file: file.order)
    return [Sidecar(file, *read_json_object(file.path)) for file in files]


def inherit(
    image: BidsFile, sidecars: Iterable[Sidecar]
) -> tuple[dict[str, Any], list[str], list[Path]]:
    """Merge the sidecars that apply to an image, given from far to near.

    Returns
    -------
    dict
        Fields.
    list of str
        What a person should know.
    list of Path
        The sidecars that apply.
    """
    own = image.entities.items()
    applied = [sidecar for sidecar in sidecars if sidecar.file.entities.items() <= own]
    fields = {name: value for sidecar in applied for name, value in sidecar.fields.items()}
    notes = [sidecar.problem for sidecar in applied if sidecar.problem]
    if not applied:
        notes.append(f"{image.path.name} has no JSON sidecar")
    elif lacking := [name for name in REQUIRED_PET_FIELDS if name not in fields]:
        notes.append(f"PET sidecar lacks fields that BIDS requires: {', '.join(lacking)}")
    return fields, notes, [sidecar.file.path for sidecar in applied]


def read_json_object(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the object in a JSON file, or an empty one and what is wrong."""
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"{path} is not valid JSON and is left out: {one_line(error)}"
    except OSError as error:
        return {}, f"{path} cannot be read and is left out: {error.strerror or error}"
    if not isinstance(content, dict):
        return {}, f"{path} holds no JSON object and is left out"
    if _is_deeper(content, _MOST_LEVELS):
        return {}, f"{path} is nested more than {_MOST_LEVELS} deep and is left out"
    return content, None


def _is_deeper(content: object, most: int) -> bool:
    """Say whether lists and objects lie in each other more than so many levels deep."""
    level = [content]
    for _ in range(most + 1):
        level = [
            item
            for holder in level
            if isinstance(holder, dict | list)
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
    return bool(level)


def read_table(path: Path) -> tuple[list[dict[str, str]], str | None]:
    """Return the rows of a TSV file with a header, ``n/a`` as empty; or none and what is wrong."""
    try:
        text = read_bounded(path, _MOST_BYTES).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    except (ValueError, csv.Error) as error:
        return [], f"{path} is no table of tab-separated values: {one_line(error)}"
    except OSError as error:
        return [], f"{path} cannot be read: {error.strerror or error}"
    return [
        {
            str(name).strip(): "" if value is None or value.strip() == "n/a" else value.strip()
            for name, value in row.items()
            if name is not None and not isinstance(value, list)
        }
        for row in rows
    ], None


def body_weights(root: Path, names: Iterable[str]) -> tuple[dict[str, float], list[str]]:
    """Return the weight in kg by ``participant_id``, from ``participants.tsv``, and notes."""
    if "participants.tsv" not in names:
        return {}, []
    rows, problem = read_table(root / "participants.tsv")
    weights = {}
    for row in rows:
        try:
            weights[row.get("participant_id", "")] = float(row.get("weight", ""))
        except ValueError:
            continue
    return weights, [problem] if problem else []
