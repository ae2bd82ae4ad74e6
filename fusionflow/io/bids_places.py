"""What lies in each folder of a BIDS dataset: images, masks, sidecars, and what is wrong with them.

A place is a subject's session, or a subject's own folder. What is gathered there, in the dataset
and in the derivatives beside it, is names and sidecars; no image is opened. A raw image whose name
does not say where it lies spoils the place: what cannot be trusted is not guessed. Which of the
images make a scan is for `bids` to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fusionflow.io.bids_names import LABEL, BidsFile, listing, parse_name
from fusionflow.io.scans import Excluded, place_label
from fusionflow.io.sidecars import Sidecar, sidecars_in
from fusionflow.untrusted import printable

__all__ = ["FOLDER", "IMAGES", "Place", "bad_label", "broken", "gather_place", "unlisted"]

#: Name of the folder of a subject or session.
FOLDER = re.compile(rf"(?:sub|ses)-{LABEL}")
#: Kind of image -> its folder, and the suffix of its name.
IMAGES = {"t1w": ("anat", "T1w"), "pet": ("pet", "pet")}


@dataclass
class Place:
    """A subject's session, or a subject's own folder: what lies there and below derivatives."""

    subject: str
    session: str | None
    folders: list[Path]
    files: dict[str, list[BidsFile]] = field(default_factory=dict)
    sidecars: list[Sidecar] = field(default_factory=list)
    derived_sidecars: list[Sidecar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dangling: set[Path] = field(default_factory=set)
    problem: Excluded | None = None

    @property
    def label(self) -> str:
        """The name of the scan that may come of it."""
        return place_label(self.subject, self.session)


def gather_place(
    roots: Sequence[Path], subject: str, session: str | None, inherited: Sequence[Sidecar]
) -> Place:
    """Gather the images of one subject or session folder.

    Parameters
    ----------
    roots : sequence of Path
        The dataset, then its derivatives.
    subject, session : str
        Labels without ``sub-`` and ``ses-``; no session for a subject's own folder.
    inherited : sequence of Sidecar
        Those that lie above, from far to near.
    """
    inside = Path(f"sub-{subject}", *([f"ses-{session}"] if session else []))
    folders = [root / inside for root in roots]
    if session is not None:  # what belongs to all sessions lies above them in derivatives
        folders += [root / f"sub-{subject}" for root in roots[1:]]
    place = Place(subject, session, folders, sidecars=list(inherited))
    try:
        if session is not None:
            place.sidecars += sidecars_in(folders[0], listing(folders[0])[1])
        for number, folder in enumerate(folders):
            for datatype in ("anat", "pet"):
                _gather(place, folder / datatype, derived=number > 0)
    except OSError as error:
        place.problem = unlisted(place.label, error)
    return place


def _gather(place: Place, folder: Path, *, derived: bool) -> None:
    """Take the names of one ``anat`` or ``pet`` folder apart."""
    try:
        _, names, dangling = listing(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        place.problem = broken(place.label, f"{folder} is a file, where a folder should be")
        return
    if folder.name == "pet":
        own = place.derived_sidecars if derived else place.sidecars
        own += sidecars_in(folder, names)
    place.dangling |= {folder / name for name in dangling}
    unnamed = []
    for kind, suffix in (("t1w", "T1w"), ("pet", "pet"), ("mask", "mask")):
        if kind in IMAGES and folder.name != IMAGES[kind][0]:
            continue
        for name in names:
            if not name.endswith((f"_{suffix}.nii", f"_{suffix}.nii.gz")):
                continue
            file = parse_name(folder / name)
            if file is None:
                unnamed.append(printable(name))
            elif _belongs(place, file := replace(file, derived=derived), kind):
                place.files.setdefault(kind, []).append(file)
    if unnamed:
        place.notes.append(f"{', '.join(unnamed)} left: not a BIDS name")
        if not place.files.get("t1w" if folder.name == "anat" else "pet"):
            reason = f"{folder / unnamed[0]} is not a BIDS name: rename it"
            place.problem = place.problem or broken(place.label, reason)


def _belongs(place: Place, file: BidsFile, kind: str) -> bool:
    """Whether an image carries the labels of its place; a raw one that does not is broken."""
    own = (file.entities.get("sub"), file.entities.get("ses"))
    if own == (place.subject, place.session):
        return True
    if file.derived and own == (place.subject, None):
        return True
    if not file.derived and kind != "mask":
        place.problem = place.problem or broken(
            place.label,
            f"{file.path} does not carry the labels of its folder ({place.label}): rename it, "
            "or move it to where it belongs",
        )
    return False


def broken(label: str, reason: str) -> Excluded:
    """Exclude a place in which a person must mend something."""
    return Excluded(label, reason, broken=True)


def bad_label(folder: Path, label: str) -> Excluded:
    """Exclude a folder whose name is not one of BIDS."""
    # Such a name can hold what a terminal or a log takes for something else.
    return broken(
        printable(label),
        f"{printable(folder)} is not a BIDS name: rename it with letters, digits and + only",
    )


def unlisted(label: str, error: OSError) -> Excluded:
    """Exclude a folder that cannot be listed."""
    return broken(label, f"{error.filename} cannot be listed: {error.strerror}: make it readable")
