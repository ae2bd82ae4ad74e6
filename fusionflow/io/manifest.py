"""A table of images as input: one scan a row, wherever the files lie."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionflow.errors import ConfigurationError
from fusionflow.io.bids_names import LABEL, natural, some
from fusionflow.io.scans import UNREADABLE, Discovery, Excluded, Scan, place_label
from fusionflow.io.sidecars import read_json_object, read_table
from fusionflow.pet_info import pet_info
from fusionflow.untrusted import printable

REQUIRED = ("participant_id", "t1w", "pet")
OPTIONAL = ("session_id", "mask", "reference", "weight", "pet_space")


def read_manifest(
    path: Path,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
) -> Discovery:
    """Read a manifest.

    A table of tab-separated values with the columns ``participant_id``, ``t1w`` and ``pet``, and
    perhaps ``session_id``, ``mask`` (of head or brain), ``reference`` (region of SUVR), ``weight``
    (kg) and ``pet_space`` (``T1w`` where the PET was aligned with the T1w before). Paths are
    relative to the table's folder, or absolute. ``n/a`` is an empty cell. A JSON file of the PET's
    name is its sidecar.

    Parameters
    ----------
    path : Path
        The table.
    participant_labels, session_labels : sequence of str
        Keep only these, with or without ``sub-`` and ``ses-``; all if empty.

    Returns
    -------
    Discovery
        Rows that cannot be used are excluded, with the number of their line.

    Raises
    ------
    ConfigurationError
        If the table cannot be read, lacks a column, has one that means nothing, or does not hold
        who was asked for.
    """
    rows, problem = read_table(path)
    if problem is not None:
        raise ConfigurationError(problem)
    if not rows:
        raise ConfigurationError(f"{path} holds no rows", "Write a header and a line for each scan")
    missing = [name for name in REQUIRED if name not in rows[0]]
    odd = sorted(set(rows[0]) - {*REQUIRED, *OPTIONAL, ""})
    if missing or odd:
        what = f"lacks the column {', '.join(missing)}" if missing else f"has a column {odd[0]}"
        raise ConfigurationError(
            f"{path} {printable(what)}", f"Columns are {', '.join((*REQUIRED, *OPTIONAL))}, by tabs"
        )
    found: dict[str, Scan | Excluded] = {}
    line_of: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        item = _scan(path, number, row)
        label = item.label
        if label in found:
            reason = f"lines {line_of[label]} and {number} of {path} are both {label}: mend one"
            found[label] = Excluded(label, reason, broken=True)
        else:
            found[label], line_of[label] = item, number
    chosen = _chosen(path, list(found.values()), participant_labels, session_labels)
    chosen.sort(key=lambda item: natural(item.label))
    return Discovery(
        path.parent,
        tuple(item for item in chosen if isinstance(item, Scan)),
        tuple(item for item in chosen if isinstance(item, Excluded)),
    )


def _scan(path: Path, number: int, row: Mapping[str, str]) -> Scan | Excluded:
    """Return what a row gives."""
    subject = row["participant_id"].removeprefix("sub-")
    session = row.get("session_id", "").removeprefix("ses-") or None
    where = f"line {number} of {path}"
    for label in (subject, session):
        if label is not None and not re.fullmatch(LABEL, label):
            name = f"{UNREADABLE}{number}"
            reason = f"{where}: {label!r} is no label; write letters, digits and + only"
            return Excluded(name, printable(reason), broken=True)
    label = place_label(subject, session)
    absent = [name for name in ("t1w", "pet") if not row[name]]
    if absent:
        return Excluded(label, f"{where} names no {' and no '.join(absent)}", broken=False)
    files = {
        name: Path(os.path.abspath(path.parent / row[name]))
        for name in ("t1w", "pet", "mask", "reference")
        if row.get(name)
    }
    for name, file in files.items():
        if "\0" in str(file) or not file.is_file():
            reason = f"{where}: the {name} {file} is not there, or is no file"
            return Excluded(label, printable(reason), broken=True)
    sidecar = _sidecar(files["pet"])
    fields, notes = _fields(files["pet"], sidecar)
    try:
        weight = float(row["weight"]) if row.get("weight") else None
    except ValueError:
        weight, notes = (
            None,
            [*notes, f"{where}: the weight {printable(row['weight'])} is no number"],
        )
    space = row.get("pet_space", "")
    if space not in ("", "T1w"):
        reason = f"{where}: pet_space is {printable(space)}; write T1w or leave it empty"
        return Excluded(label, reason, broken=True)
    return Scan(
        subject=subject,
        session=session,
        t1w=files["t1w"],
        pet=files["pet"],
        pet_info=pet_info(fields, weight),
        notes=tuple(notes),
        mask=files.get("mask"),
        reference=files.get("reference"),
        pet_in_t1w_space=space == "T1w",
        sidecars=(sidecar,) if sidecar else (),
    )


def _sidecar(pet: Path) -> Path | None:
    """Return the JSON file beside a PET, if there is one."""
    path = pet.with_name(pet.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    return path if path.is_file() else None


def _fields(pet: Path, sidecar: Path | None) -> tuple[dict[str, object], list[str]]:
    """Return the fields of the JSON file beside a PET, and notes."""
    if sidecar is None:
        return {}, [f"{pet.name} has no JSON sidecar"]
    fields, problem = read_json_object(sidecar)
    return fields, [problem] if problem else []


def _chosen(
    path: Path,
    found: list[Scan | Excluded],
    participant_labels: Sequence[str],
    session_labels: Sequence[str],
) -> list[Scan | Excluded]:
    """Return what was asked for."""
    for prefix, labels in (("sub-", participant_labels), ("ses-", session_labels)):
        wanted = {prefix + label.removeprefix(prefix) for label in labels}
        if not wanted:
            continue
        held = {part for item in found for part in item.label.split("_") if part.startswith(prefix)}
        if unknown := sorted(wanted - held, key=natural):
            raise ConfigurationError(
                f"{some(map(printable, unknown))} not in {path}", f"It holds {some(sorted(held))}"
            )
        found = [item for item in found if wanted & set(item.label.split("_"))]
    return found
