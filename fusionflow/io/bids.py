"""Which scans a BIDS dataset holds, and why others are left out.

The dataset is walked with `os.scandir`, four levels deep at most and without opening any image, so
that 10,000 subjects are listed in seconds. Nothing is dropped silently: what cannot run is
excluded with a reason, and what a person should know about what runs is in its notes.

The rules are those of the Brain Imaging Data Structure (Gorgolewski et al., 2016) and its PET
extension (Norgaard et al., 2022), BIDS 1.11.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusionflow.errors import ConfigurationError
from fusionflow.io.bids_names import NO_FILTERS, BidsFile, Filters, listing, natural, some
from fusionflow.io.bids_places import (
    FOLDER,
    IMAGES,
    Place,
    bad_label,
    broken,
    gather_place,
    unlisted,
)
from fusionflow.io.scans import Discovery, Excluded, Scan
from fusionflow.io.sidecars import (
    OF_THE_IMAGE,
    REQUIRED_PET_FIELDS,
    Sidecar,
    body_weights,
    inherit,
    read_table,
    sidecars_in,
)
from fusionflow.pet_info import pet_info
from fusionflow.untrusted import printable

__all__ = ["REQUIRED_PET_FIELDS", "Discovery", "Excluded", "Scan", "discover"]

#: Spaces in which the images of one person lie; all others are templates'.
_OWN_SPACES = (None, "T1w", "orig", "scanner", "individual")


def discover(
    bids_dir: str | os.PathLike[str],
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    filters: Filters = NO_FILTERS,
    derivatives: Sequence[Path] = (),
    reference_region: str | None = None,
) -> Discovery:
    """Find every PET + T1w pair of a BIDS dataset, raw or derivative.

    Looks at ``sub-*/[ses-*/]anat/*_T1w.nii[.gz]`` and ``sub-*/[ses-*/]pet/*_pet.nii[.gz]``, and at
    the same places of ``derivatives``. A subject can have both sessions and files directly under
    it. All else at the top (``derivatives``, ``sourcedata``, ``code``, dotfolders) is not looked
    into.

    **Which image.** Those that ``filters`` leave; of them, not those in the space of a template. A
    PET in ``space-T1w`` comes before others, an image of ``derivatives`` before a raw one, then
    the one with the fewest entities, then the first in natural order of their names (``run-2``
    before ``run-10``). The scan's notes say what was taken and what was left.

    **Which T1w.** That of the PET's own session. If it has none, that of the subject's nearest
    session: by ``acq_time`` in ``sub-*_sessions.tsv`` where all have one, else by the order of
    their labels; of two as near, the earlier.

    **Masks**: ``*_desc-brain_mask.nii[.gz]`` in ``anat``; the reference region is
    ``*_label-REGION_mask.nii[.gz]`` or ``*_desc-REGION_mask.nii[.gz]`` there. In ``pet`` both
    count only with ``space-T1w``.

    **PET metadata** follow the inheritance principle: JSON files with suffix ``pet``, whose
    entities are a subset of the image's, at the dataset, subject, session and ``pet`` level;
    fields of the nearest win. Of a derivative PET, units, frames and decay correction are what its
    own dataset says, never what is said of the raw image. The weight is that of
    ``participants.tsv`` (kg). They never exclude a scan.

    Parameters
    ----------
    bids_dir : path-like
        The dataset.
    participant_labels, session_labels : sequence of str
        Keep only these, with or without ``sub-`` and ``ses-``; all if empty.
    filters : Filters
        Keep only images with these entities.
    derivatives : sequence of Path
        Derivative datasets of the same subjects; the first comes first.
    reference_region : str, optional
        Name of the region that SUVR refers to.

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
    folders, files = _listed(root, "BIDS dataset")
    for other in derivatives:
        _listed(other, "derivative dataset")
    subjects = [name for name in folders if name.startswith("sub-")]
    wanted = _wanted("sub-", participant_labels)
    _check_held(root, "sub-*", wanted, set(subjects))
    weights, notes = body_weights(root, files)
    index = _Index(
        roots=(root, *derivatives),
        filters=filters,
        region=reference_region,
        weights=weights,
        inherited=sidecars_in(root, files),
        sessions_wanted=_wanted("ses-", session_labels),
    )
    places: list[Scan | Excluded] = []
    for name in subjects:
        if not wanted or name in wanted:
            try:
                places += index.subject(name)
            except OSError as error:
                places.append(unlisted(name, error))
    _check_held(root, "ses-*", index.sessions_wanted, index.sessions_seen)
    if "dataset_description.json" not in files:
        notes.append(f"{root} has no dataset_description.json, which BIDS requires")
    if not subjects:
        notes.append(f"{root} holds no sub-* folder")
    scans = tuple(place for place in places if isinstance(place, Scan))
    excluded = tuple(place for place in places if isinstance(place, Excluded))
    return Discovery(root, scans, excluded, tuple(notes))


@dataclass
class _Index:
    """What is asked for, while the subjects are gone through."""

    roots: tuple[Path, ...]
    filters: Filters
    region: str | None
    weights: Mapping[str, float]
    inherited: list[Sidecar]
    sessions_wanted: set[str]
    sessions_seen: set[str] = field(default_factory=set)

    def subject(self, name: str) -> list[Scan | Excluded]:
        """Return what one subject gives."""
        folder = self.roots[0] / name
        if not FOLDER.fullmatch(name):
            return [bad_label(folder, name)]
        subject = name.removeprefix("sub-")
        folders, files, _ = listing(folder)
        inherited = [*self.inherited, *sidecars_in(folder, files)]
        sessions = [session for session in folders if session.startswith("ses-")]
        self.sessions_seen |= set(sessions)
        places, bad = [], []
        has_own = any(datatype in folders for datatype, _ in IMAGES.values())
        if has_own or not sessions:
            places.append(gather_place(self.roots, subject, None, inherited))
        for session in sessions:
            if FOLDER.fullmatch(session):
                places.append(
                    gather_place(self.roots, subject, session.removeprefix("ses-"), inherited)
                )
            elif not self.sessions_wanted or session in self.sessions_wanted:
                bad.append(bad_label(folder / session, f"{name}_{session}"))
        found: list[Scan | Excluded] = []
        lent: dict[str, list[str]] = {}
        for place in places:
            if not self.sessions_wanted or f"ses-{place.session}" in self.sessions_wanted:
                found.append(self._resolve(place, places, lent, files))
        for i, item in enumerate(found):
            if isinstance(item, Excluded) and item.label in lent:
                used = f"{item.reason}; its T1w is used for {', '.join(lent[item.label])}"
                found[i] = Excluded(item.label, used, item.broken)
        return [*found, *bad]

    def _resolve(
        self,
        place: Place,
        places: Sequence[Place],
        lent: dict[str, list[str]],
        files: Sequence[str],
    ) -> Scan | Excluded:
        """Return the scan of a place, or why there is none."""
        if place.problem is not None:
            return place.problem
        notes = list(place.notes)
        pet = self._choose(place, "pet", notes)
        t1w_place = place
        t1w = self._choose(place, "t1w", notes)
        if t1w is None and pet is not None:
            others = [item for item in places if item is not place and item.problem is None]
            holding = [item for item in others if self._wanted_of(item, "t1w")]
            nearest, rule = _nearest(place, holding, self.roots[0], files)
            if nearest is not None:
                t1w_place = nearest
                t1w = self._choose(nearest, "t1w", notes)
                notes.append(
                    f"{place.label} has no T1w image: that of {nearest.label} is taken, the "
                    f"nearest {rule}"
                )
                lent.setdefault(nearest.label, []).append(place.label)
        if t1w is None or pet is None:
            return Excluded(place.label, self._lacking(place, t1w, pet), broken=False)
        for image in (t1w, pet):
            if image.path in place.dangling | t1w_place.dangling:
                return broken(
                    place.label,
                    f"{image.path} is a link to content that is not here: fetch it, for "
                    "example with `datalad get` or `git annex get`",
                )
            if image.unknown:
                notes.append(f"{image.path.name}: BIDS knows no entity {', '.join(image.unknown)}")
        fields, about, sidecars = inherit(pet, place.sidecars)
        if pet.derived:  # another image of the same injection
            fields = {name: value for name, value in fields.items() if name not in OF_THE_IMAGE}
            more, about, nearer = inherit(pet, place.derived_sidecars)
            fields |= more
            sidecars += nearer
        masks = [
            file for file in t1w_place.files.get("mask", []) if file.path.parent.name == "anat"
        ]
        masks += [  # a mask in the space of the PET would be taken for one of the T1w
            file
            for file in place.files.get("mask", [])
            if file.path.parent.name == "pet" and file.entities.get("space") == "T1w"
        ]
        mask = self._mask(masks, "brain")
        reference = self._mask(masks, self.region) if self.region else None
        if mask is not None:
            notes.append(f"the mask is {mask.name}")
        return Scan(
            subject=place.subject,
            session=place.session,
            t1w=t1w.path,
            pet=pet.path,
            pet_info=pet_info(fields, self.weights.get(f"sub-{place.subject}")),
            notes=(*notes, *about),
            mask=mask,
            reference=reference,
            pet_in_t1w_space=pet.entities.get("space") == "T1w",
            sidecars=tuple(sidecars),
        )

    def _wanted_of(self, place: Place, kind: str) -> list[BidsFile]:
        """Return the images of a kind that are wanted, the first first."""
        any_space = "space" in self.filters.wanted.get(kind, {})
        files = [
            file
            for file in place.files.get(kind, [])
            if self.filters.take(kind, file)
            and (any_space or file.entities.get("space") in _OWN_SPACES)
        ]

        def key(file: BidsFile) -> tuple[object, ...]:
            aligned = kind == "pet" and file.entities.get("space") == "T1w"
            return (not aligned, not file.derived, *file.order)

        return sorted(files, key=key)

    def _choose(self, place: Place, kind: str, notes: list[str]) -> BidsFile | None:
        """Return the image of a kind that is taken, and note what is left."""
        files = self._wanted_of(place, kind)
        if len(files) > 1:
            left = some((file.path.name for file in files[1:]), 20)
            notes.append(f"{files[0].path.name} is taken; {left} left")
        return files[0] if files else None

    def _mask(self, files: Sequence[BidsFile], what: str) -> Path | None:
        """Return the mask of something, the first by `_choose`'s rule."""
        fitting = [
            file
            for file in files
            if self.filters.take("mask", file)
            and file.entities.get("space") in _OWN_SPACES
            and what in (file.entities.get("label"), file.entities.get("desc"))
        ]
        fitting.sort(key=lambda file: (not file.derived, *file.order))
        return fitting[0].path if fitting else None

    def _lacking(self, place: Place, t1w: BidsFile | None, pet: BidsFile | None) -> str:
        """Say what a place lacks, and what was there and not wanted."""
        lacking = [name for name, image in (("T1w", t1w), ("pet", pet)) if image is None]
        reason = f"no {' and no '.join(lacking)} image in {place.folders[0]}"
        for kind in ("t1w", "pet"):
            held = place.files.get(kind, [])
            if held and not self._wanted_of(place, kind):
                asked = self.filters.of(kind) or "in the space of the subject"
                reason += f" that is {asked} (there is {some(file.path.name for file in held)})"
        return reason


def _nearest(
    place: Place, holding: Sequence[Place], root: Path, files: Sequence[str]
) -> tuple[Place | None, str]:
    """Return the place whose T1w is nearest to a session, and by what."""
    if not holding:
        return None, ""
    table = f"sub-{place.subject}_sessions.tsv"
    times: dict[str, datetime.datetime] = {}
    if table in files:
        for row in read_table(root / f"sub-{place.subject}" / table)[0]:
            try:
                when = datetime.datetime.fromisoformat(row.get("acq_time", ""))
            except ValueError:
                continue
            times[row.get("session_id", "")] = when.replace(tzinfo=None)
    own = times.get(f"ses-{place.session}")
    known = [times.get(f"ses-{other.session}") for other in holding]
    if own is not None and all(when is not None for when in known):
        gaps = [
            (abs(when - own), when, other)
            for when, other in zip(known, holding, strict=True)
            if when is not None
        ]
        return min(gaps, key=lambda gap: gap[:2])[2], "by acq_time"
    names = sorted(natural(item.session or "") for item in (place, *holding))
    here = names.index(natural(place.session or ""))

    def distance(other: Place) -> tuple[int, int]:
        at = names.index(natural(other.session or ""))
        return abs(at - here), at

    return min(holding, key=distance), "by the order of their labels"


def _listed(root: Path, what: str) -> tuple[list[str], list[str]]:
    try:
        folders, files, _ = listing(root)
    except OSError as error:
        raise ConfigurationError(
            f"The {what} {root} cannot be listed: {error.strerror or error}",
            "Give the folder that holds dataset_description.json and sub-*",
        ) from error
    return folders, files


def _wanted(prefix: str, labels: Sequence[str]) -> set[str]:
    """Return labels as folder names; one string is one label."""
    labels = [labels] if isinstance(labels, str) else labels
    return {prefix + label.removeprefix(prefix) for label in labels}


def _check_held(root: Path, kind: str, wanted: set[str], held: set[str]) -> None:
    """Refuse folders that were asked for and are not in the dataset."""
    if missing := sorted(wanted - held, key=natural):
        known = sorted(held, key=natural)
        raise ConfigurationError(
            f"{some(map(printable, missing))} not in {root}",
            f"It holds {some(map(printable, known))}" if known else f"It holds no {kind} folder",
        )
