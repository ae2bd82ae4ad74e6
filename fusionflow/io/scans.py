"""What an input holds: scans, and places that give none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusionflow.io.files import fingerprint
from fusionflow.pet_info import PetInfo

#: How the label of a row begins whose own cannot be read.
UNREADABLE = "line-"
_NOTHING_KNOWN = PetInfo()


@dataclass(frozen=True)
class Scan:
    """One PET + T1w pair of one subject (and session): the unit of work.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``; None where the subject has no sessions. It is the PET's.
    t1w, pet : pathlib.Path
        The two images.
    pet_info : PetInfo
        Metadata of the PET.
    notes : tuple of str
        What a person should know: which of several files was taken, what metadata lack.
    mask : pathlib.Path or None
        Of the head or brain, in the space of the T1w.
    reference : pathlib.Path or None
        A mask of the reference region, in the space of the T1w.
    pet_in_t1w_space : bool
        Whether the PET was aligned with the T1w before.
    sidecars : tuple of pathlib.Path
        The JSON files that its metadata are from.
    """

    subject: str
    session: str | None
    t1w: Path
    pet: Path
    pet_info: PetInfo = _NOTHING_KNOWN
    notes: tuple[str, ...] = ()
    mask: Path | None = None
    reference: Path | None = None
    pet_in_t1w_space: bool = False
    sidecars: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """The scan's name in outputs and logs.

        >>> Scan("01", "02", Path("t1w.nii.gz"), Path("pet.nii.gz")).label
        'sub-01_ses-02'
        """
        return place_label(self.subject, self.session)

    @property
    def facts(self) -> str:
        """Fingerprint of what is known of the scan besides the content of its files."""
        return fingerprint(repr(self.pet_info), str(self.pet_in_t1w_space), *self.files)

    @property
    def files(self) -> dict[str, Path]:
        """The images that are read, by role: ``t1w``, ``pet``, and ``mask`` and ``reference``."""
        roles = {"t1w": self.t1w, "pet": self.pet, "mask": self.mask, "reference": self.reference}
        return {role: path for role, path in roles.items() if path is not None}


@dataclass(frozen=True)
class Excluded:
    """A place in the input that gives no scan, and why.

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
    """What an input holds.

    Attributes
    ----------
    root : pathlib.Path
        Its folder.
    scans : tuple of Scan
        In natural order of their labels (``sub-2`` before ``sub-10``).
    excluded : tuple of Excluded
        In the same order.
    notes : tuple of str
        What a person should know about the input as a whole.
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


def place_label(subject: str, session: str | None) -> str:
    """Return the name of a subject's session, or of a subject without sessions."""
    return f"sub-{subject}" if session is None else f"sub-{subject}_ses-{session}"
