"""Which scans a BIDS dataset holds, and why others are left out.

The dataset is walked with `os.scandir`, four levels deep at most and without opening any image, so
that 10,000 subjects are listed in seconds. Nothing is dropped silently: what cannot run is
excluded with a reason, and what a person should know about what runs is in its notes.

The rules are those of the Brain Imaging Data Structure (Gorgolewski et al., 2016) and its PET
extension (Norgaard et al., 2022), BIDS 1.11.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionflow.errors import ConfigurationError
from fusionflow.untrusted import printable, read_bounded

__all__ = ["Discovery", "Excluded", "Scan", "discover"]

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

_LABEL = r"[0-9A-Za-z+]+"
_FOLDER = re.compile(rf"(?:sub|ses)-{_LABEL}")
_NAME = re.compile(rf"((?:[0-9A-Za-z]+-{_LABEL}_)*)([0-9A-Za-z]+)(?:\.nii|\.nii\.gz|\.json)")
_IMAGES = {"T1w": "anat", "pet": "pet"}
_MOST_SIDECAR_BYTES = 1 << 24
_MOST_SIDECAR_LEVELS = 64


@dataclass(frozen=True)
class Scan:
    """One PET + T1w pair of one subject (and session): the unit of work.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``; None where the subject has no sessions.
    t1w, pet : pathlib.Path
        The two images.
    pet_sidecar : mapping
        The metadata of the PET image, inherited fields included; empty if there is none.
    notes : tuple of str
        What a person should know: which of several files was taken, what metadata lack.
    """

    subject: str
    session: str | None
    t1w: Path
    pet: Path
    pet_sidecar: Mapping[str, Any] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The scan's name in outputs and logs.

        >>> Scan("01", "02", Path("t1w.nii.gz"), Path("pet.nii.gz")).label
        'sub-01_ses-02'
        """
        return _label(self.subject, self.session)

    @property
    def frame_durations(self) -> tuple[float, ...] | None:
        """Duration of each PET frame in seconds, or None where the sidecar has no usable list."""
        durations = self.pet_sidecar.get("FrameDuration")
        durations = durations if isinstance(durations, list) else [durations]
        if all(isinstance(d, int | float) and not isinstance(d, bool) for d in durations):
            with contextlib.suppress(OverflowError):
                seconds = tuple(float(d) for d in durations)
                return seconds if all(map(math.isfinite, seconds)) else None
        return None


@dataclass(frozen=True)
class Excluded:
    """A place in the dataset that gives no scan, and why.

    Attributes
    ----------
    label : str
        Such as ``sub-01_ses-02``.
    reason : str
        What is missing or wrong.
    broken : bool
        True if a person must mend something; False if there simply is no PET/T1w pair.
    """

    label: str
    reason: str
    broken: bool


@dataclass(frozen=True)
class Discovery:
    """What a dataset holds.

    Attributes
    ----------
    root : pathlib.Path
        The dataset's folder.
    scans : tuple of Scan
        In natural order of their labels (``sub-2`` before ``sub-10``).
    excluded : tuple of Excluded
        In the same order.
    notes : tuple of str
        What a person should know about the dataset as a whole.
    """

    root: Path
    scans: tuple[Scan, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> frozenset[str]:
        """Labels of every place, whether it gives a scan or not."""
        return frozenset(
            (*(scan.label for scan in self.scans), *(place.label for place in self.excluded))
        )


@dataclass(frozen=True)
class _File:
    """A file whose name follows BIDS, taken apart."""

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: few entities first, then by name."""
        return len(self.entities), _natural(self.path.name)


@dataclass(frozen=True)
class _Sidecar:
    """A JSON file of PET metadata."""

    file: _File
    fields: Mapping[str, Any]
    problem: str | None


def discover(
    bids_dir: str | os.PathLike[str],
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
) -> Discovery:
    """Find every PET + T1w pair of a BIDS dataset.

    Looks at ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``sub-*/[ses-*/]pet/*_pet.nii[.gz]``. A
    subject can have both sessions and files directly under it. All else at the top
    (``derivatives``, ``sourcedata``, ``code``, dotfolders) is not looked into.

    Where one place holds several T1w or PET images, the one with the fewest entities besides
    ``sub`` and ``ses`` is taken, and among equals the first in natural order of their names
    (``run-2`` before ``run-10``). The scan's notes say what was taken and what was left.

    PET metadata follow the inheritance principle: JSON files with suffix ``pet``, whose entities
    are a subset of the image's, at the dataset, subject, session and ``pet`` level; fields of the
    nearest win. They never exclude a scan.

    Parameters
    ----------
    bids_dir : path-like
        The dataset.
    participant_labels, session_labels : sequence of str
        Keep only these, with or without ``sub-`` and ``ses-``; all if empty.

    Returns
    -------
    Discovery

    Raises
    ------
    ConfigurationError
        If the dataset is not a folder that can be listed, or if a participant or session that was
        asked for is not in it.
    """
    root = Path(bids_dir)
    try:
        folders, files, _ = _listing(root)
    except OSError as error:
        raise ConfigurationError(
            f"The BIDS dataset {root} cannot be listed: {error.strerror or error}",
            "Give the folder that holds dataset_description.json and sub-*",
        ) from error

    subjects = [name for name in folders if name.startswith("sub-")]
    wanted = _wanted("sub-", participant_labels)
    _check_held(root, "sub-*", wanted, set(subjects))
    sessions_wanted = _wanted("ses-", session_labels)
    sessions_seen: set[str] = set()

    places: list[Scan | Excluded] = []
    inherited = _sidecars(root, files)
    for name in subjects:
        if wanted and name not in wanted:
            continue
        try:
            found, seen = _subject(root / name, inherited, sessions_wanted)
        except OSError as error:
            found, seen = [_unlisted(name, error)], set()
        sessions_seen |= seen
        places += found
    _check_held(root, "ses-*", sessions_wanted, sessions_seen)
    notes = []
    if "dataset_description.json" not in files:
        notes.append(f"{root} has no dataset_description.json, which BIDS requires")
    if not subjects:
        notes.append(f"{root} holds no sub-* folder")
    scans = tuple(place for place in places if isinstance(place, Scan))
    excluded = tuple(place for place in places if isinstance(place, Excluded))
    return Discovery(root, scans, excluded, tuple(notes))


def _subject(
    folder: Path, inherited: Sequence[_Sidecar], sessions_wanted: set[str]
) -> tuple[list[Scan | Excluded], set[str]]:
    """Return what one subject gives, and the sessions it has."""
    if not _FOLDER.fullmatch(folder.name):
        return [_bad_label(folder, folder.name)], set()
    subject = folder.name.removeprefix("sub-")
    folders, files, _ = _listing(folder)
    inherited = [*inherited, *_sidecars(folder, files)]
    sessions = [name for name in folders if name.startswith("ses-")]

    found: list[Scan | Excluded] = []
    has_own = any(datatype in folders for datatype in _IMAGES.values())
    if not sessions_wanted and (has_own or not sessions):
        found.append(_place(folder, subject, None, folders, inherited))
    for name in sessions:
        if sessions_wanted and name not in sessions_wanted:
            continue
        label = f"{folder.name}_{name}"
        if not _FOLDER.fullmatch(name):
            found.append(_bad_label(folder / name, label))
            continue
        try:
            inside, session_files, _ = _listing(folder / name)
        except OSError as error:
            found.append(_unlisted(label, error))
            continue
        known = [*inherited, *_sidecars(folder / name, session_files)]
        session = name.removeprefix("ses-")
        found.append(_place(folder / name, subject, session, inside, known))
    return found, set(sessions)


def _place(
    folder: Path,
    subject: str,
    session: str | None,
    folders: Sequence[str],
    inherited: Sequence[_Sidecar],
) -> Scan | Excluded:
    """Return the scan of one subject or session folder, or why there is none."""
    label = _label(subject, session)
    notes: list[str] = []
    taken: dict[str, _File] = {}
    sidecars = list(inherited)
    for suffix, datatype in _IMAGES.items():
        if datatype not in folders:
            continue
        try:
            _, names, dangling = _listing(folder / datatype)
        except OSError as error:
            return _unlisted(label, error)
        if datatype == "pet":
            sidecars += _sidecars(folder / datatype, names)
        endings = (f"_{suffix}.nii", f"_{suffix}.nii.gz")
        paths = [folder / datatype / name for name in names if name.endswith(endings)]
        images = [image for path in paths if (image := _parse(path)) is not None]
        unnamed = [printable(path.name) for path in paths if _parse(path) is None]
        for image in images:
            if (image.entities.get("sub"), image.entities.get("ses")) != (subject, session):
                return _broken(
                    label,
                    f"{image.path} does not carry the labels of its folder ({label}): rename it, "
                    "or move it to where it belongs",
                )
        images.sort(key=lambda image: image.order)
        if images:
            taken[suffix] = images[0]
            if images[0].path.name in dangling:
                return _broken(
                    label,
                    f"{images[0].path} is a link to content that is not here: fetch it, for "
                    "example with `datalad get` or `git annex get`",
                )
        elif unnamed:
            return _broken(label, f"{folder / datatype / unnamed[0]} is not a BIDS name: rename it")
        if len(images) > 1:
            left = ", ".join(image.path.name for image in images[1:])
            notes.append(f"{images[0].path.name} is taken; {left} left")
        if unnamed:
            notes.append(f"{', '.join(unnamed)} left: not a BIDS name")

    lacking = [kind for kind in ("T1w", "pet") if kind not in taken]
    if lacking:
        return Excluded(label, f"no {' and no '.join(lacking)} image in {folder}", broken=False)
    sidecar, about = _inherit(taken["pet"], sidecars)
    return Scan(subject, session, taken["T1w"].path, taken["pet"].path, sidecar, (*notes, *about))


def _inherit(image: _File, sidecars: Iterable[_Sidecar]) -> tuple[dict[str, Any], list[str]]:
    """Merge the sidecars that apply to an image, given from far to near."""
    own = image.entities.items()
    applied = [sidecar for sidecar in sidecars if sidecar.file.entities.items() <= own]
    fields = {name: value for sidecar in applied for name, value in sidecar.fields.items()}
    notes = [sidecar.problem for sidecar in applied if sidecar.problem]
    if not applied:
        notes.append(f"{image.path.name} has no JSON sidecar")
    elif lacking := [name for name in REQUIRED_PET_FIELDS if name not in fields]:
        notes.append(f"PET sidecar lacks fields that BIDS requires: {', '.join(lacking)}")
    return fields, notes


def _sidecars(folder: Path, names: Iterable[str]) -> list[_Sidecar]:
    """Read the PET sidecars among the files of one folder, those with the fewest entities first."""
    files = [
        file
        for name in names
        if name.endswith("pet.json")
        and (file := _parse(folder / name)) is not None
        and file.suffix == "pet"
    ]
    files.sort(key=lambda file: file.order)
    return [_Sidecar(file, *_read_json(file.path)) for file in files]


def _read_json(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the object in a JSON file, or an empty one and what is wrong."""
    try:
        text = read_bounded(path, _MOST_SIDECAR_BYTES).decode("utf-8-sig")
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"{path} is not valid JSON and is left out: {error}"
    except OSError as error:
        return {}, f"{path} cannot be read and is left out: {error.strerror or error}"
    if not isinstance(content, dict):
        return {}, f"{path} holds no JSON object and is left out"
    if _is_deeper(content, _MOST_SIDECAR_LEVELS):  # it could not be sent to a worker
        return {}, f"{path} is nested more than {_MOST_SIDECAR_LEVELS} deep and is left out"
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


def _parse(path: Path) -> _File | None:
    """Take a file name apart: ``key-value_..._suffix.extension``, each key once."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    pairs = re.findall(r"([^-_]+)-([^-_]+)_", match[1])
    entities = dict(pairs)
    return _File(path, entities, match[2]) if len(entities) == len(pairs) else None


def _listing(folder: Path) -> tuple[list[str], list[str], set[str]]:
    """Return the names of folders, files, and dangling links (also among files), not hidden."""
    folders, files, dangling = [], [], set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    folders.append(entry.name)
                    continue
                absent = entry.is_symlink() and not entry.is_file()
            except OSError:  # a link to itself
                absent = True
            files.append(entry.name)
            if absent:
                dangling.add(entry.name)
    return sorted(folders, key=_natural), sorted(files, key=_natural), dangling


def _natural(name: str) -> tuple[Any, ...]:
    """Return a sort key that takes runs of digits as numbers."""
    parts = re.split(r"([0-9]+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _wanted(prefix: str, labels: Sequence[str]) -> set[str]:
    """Return labels as folder names; one string is one label."""
    labels = [labels] if isinstance(labels, str) else labels
    return {prefix + label.removeprefix(prefix) for label in labels}


def _check_held(root: Path, kind: str, wanted: set[str], held: set[str]) -> None:
    """Refuse folders that were asked for and are not in the dataset."""
    if missing := sorted(wanted - held, key=_natural):
        known = sorted(held, key=_natural)
        raise ConfigurationError(
            f"{_some(missing)} not in {root}",
            f"It holds {_some(known)}" if known else f"It holds no {kind} folder",
        )


def _label(subject: str, session: str | None) -> str:
    return f"sub-{subject}" if session is None else f"sub-{subject}_ses-{session}"


def _broken(label: str, reason: str) -> Excluded:
    return Excluded(label, reason, broken=True)


def _bad_label(folder: Path, label: str) -> Excluded:
    # Such a name can hold what a terminal or a log takes for something else.
    return _broken(
        printable(label),
        f"{printable(folder)} is not a BIDS name: rename it with letters, digits and + only",
    )


def _unlisted(label: str, error: OSError) -> Excluded:
    return _broken(label, f"{error.filename} cannot be listed: {error.strerror}: make it readable")


def _some(names: Sequence[str], most: int = 5) -> str:
    more = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {more} more" if more > 0 else "")
