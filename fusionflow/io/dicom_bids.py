"""DICOM folders to a BIDS dataset: what is new is converted, one session after the other.

A session appears with its T1w and its PET or not at all, is never made again while it is there, and
has no text that tells who it is. Which series it was made from stands in its sidecars as a keyed
hash (`SourceSeries`), and which key the labels were made with in ``dataset_description.json``, so
that a dataset that was made otherwise is left alone.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fusionflow import __version__
from fusionflow.errors import ConfigurationError, FusionflowError, NoScansError, StoreError
from fusionflow.io.dicom import Series, index
from fusionflow.io.dicom_convert import Converted, convert_series, working_folder
from fusionflow.io.dicom_labels import DEFAULT_KEY, Key, Labels, read_labels
from fusionflow.io.dicom_pairs import LeftOut, Pair, make_plan
from fusionflow.io.dicom_tags import dcm2niix_program
from fusionflow.io.files import UNFINISHED, discard, flush_tree, write_bytes, write_json
from fusionflow.runlock import RunLock
from fusionflow.untrusted import read_bounded

__all__ = ["DicomReport", "Outcome", "convert_dicom"]

_NAME: Final = "fusionflow dicom"
_MOST_BYTES: Final = 1 << 26
_WEIGHT: Final = {"weight": {"Description": "Body weight at the PET", "Units": "kg"}}
_README: Final = """\
PET and T1-weighted MR images, converted from DICOM by fusionflow.

Labels of participants and sessions are keyed hashes, or were given by the site; sessions are in no
order of time. Dates, names, numbers and institutions were left out of images and sidecars. A
T1-weighted image of a head still shows a face: deface it before you share it.
"""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a session.

    Attributes
    ----------
    label : str
        Such as ``sub-x_ses-y``.
    state : {"made", "there", "failed"}
        There: made by a run before.
    notes : tuple of str
        What a person should know, or why it failed; names nobody.
    folders : tuple of str
        Where its series are; may hold names.
    """

    label: str
    state: Literal["made", "there", "failed"]
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True, eq=False)
class DicomReport:
    """What a run did.

    Attributes
    ----------
    outcomes : tuple of Outcome
        One a session.
    left : tuple of LeftOut
        Series that were not converted.
    others : int
        Files that are no DICOM images.
    damaged : Counter
        Files that could not be read, by reason.
    key : Key
        What labels were made with.
    unlabelled : int
        Patients that the table of labels does not have.
    """

    outcomes: tuple[Outcome, ...]
    left: tuple[LeftOut, ...]
    others: int
    damaged: Counter[str]
    key: Key
    unlabelled: int = 0

    def count(self, state: str) -> int:
        """Return how many sessions are in a state."""
        return sum(outcome.state == state for outcome in self.outcomes)


def convert_dicom(
    dicom_dir: Path,
    bids_dir: Path,
    *,
    key: Path = DEFAULT_KEY,
    labels: Path | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> DicomReport:
    """Convert the PET/MR pairs under a folder that a BIDS dataset does not have yet.

    Parameters
    ----------
    dicom_dir : Path
        Any files at any depth.
    bids_dir : Path
        Made if it is not there.
    key : Path
        The secret of the labels, made if it is not there; outside `bids_dir`.
    labels : Path, optional
        A table of labels, see `dicom_labels.read_labels`.
    on_outcome : callable, optional
        Told of each session.

    Returns
    -------
    DicomReport

    Raises
    ------
    ConfigurationError
        If the dataset is not of this command or of another key, or key or table cannot be used.
    NoScansError
        If there is nothing to convert and nothing was.
    LockedError
        If another run writes the dataset.
    MissingExtraError
        If dcm2niix or pydicom is not installed.
    """
    dcm2niix_program()
    _check_is_ours(bids_dir)
    secret = Key.of(key, bids_dir)
    _check_is_ours(bids_dir, secret)
    table = read_labels(labels, secret)
    found = index(dicom_dir)
    plan = make_plan(found, table)
    absent = {s.patient for s in found.series if not table.is_known(s)} if labels else set()
    outcomes: list[Outcome] = []
    if plan.pairs:
        try:
            bids_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Cannot make {bids_dir}: {error.strerror}") from error
        with RunLock(bids_dir / "run.lock", uuid.uuid4().hex[:8]) as lock:
            _check_is_ours(bids_dir, secret)
            tree = _Tree(bids_dir, secret)
            for pair in plan.pairs:
                lock.check()
                outcome = _session(pair, tree, table)
                outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome)
            tree.tidy()
        with contextlib.suppress(OSError):
            bids_dir.rmdir()  # only if nothing came of it
    report = DicomReport(
        tuple(outcomes), plan.left, found.others, found.damaged, secret, len(absent)
    )
    if not plan.pairs:
        reasons = Counter(item.reason for item in plan.left)
        told = "; ".join(f"{n} {reason}" for reason, n in reasons.most_common(5))
        raise NoScansError(
            f"{dicom_dir} holds no pair of PET and T1-weighted MR of one patient"
            + (f". Series left out: {told}" if told else ""),
            "Give the folder that holds both",
        )
    return report


def _check_is_ours(bids_dir: Path, key: Key | None = None) -> None:
    """Refuse a dataset that this command did not make, or made with another key."""
    try:
        names = {entry.name for entry in os.scandir(bids_dir)}
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{bids_dir} cannot be listed: {error.strerror}") from error
    if not {name for name in names if name != "run.lock" and not name.startswith(UNFINISHED)}:
        return
    made: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        made = json.loads(read_bounded(bids_dir / "dataset_description.json", _MOST_BYTES))
    makers = made.get("GeneratedBy") if isinstance(made, dict) else None
    ours = [m for m in makers or () if isinstance(m, dict) and m.get("Name") == _NAME]
    if not ours:
        raise ConfigurationError(
            f"{bids_dir} holds something that this command did not make", "Name a new folder"
        )
    if key is not None and ours[0].get("KeyCheck") != key.check:
        raise ConfigurationError(
            f"{bids_dir} was made with another key: the same patients would get other labels",
            "Name that key with --key, or a new folder",
        )


class _Tree:
    """The dataset that is written; the run holds its lock."""

    def __init__(self, root: Path, key: Key) -> None:
        self.root, self.key = root, key
        self.tidy()
        description = root / "dataset_description.json"
        self._new = not description.exists()
        self._columns, self._people = _read_participants(root / "participants.tsv")
        self.known = self._known()

    def tidy(self) -> None:
        """Remove what a run that died left."""
        for path in self.root.glob(f"{UNFINISHED}*"):
            discard(path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _known(self) -> dict[str, str]:
        """Return where each PET series went that was converted before, by its code."""
        known = {}
        for path in self.root.glob("sub-*/ses-*/pet/*_pet.json"):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                fields = json.loads(read_bounded(path, _MOST_BYTES))
                place = path.parent.parent
                known[fields["SourceSeries"]] = f"{place.parent.name}_{place.name}"
        return known

    def has(self, pair: Pair) -> bool:
        """Whether a session is there."""
        folder = self.root / f"sub-{pair.subject}" / f"ses-{pair.session}"
        return folder.exists()

    def publish(self, pair: Pair, t1w: Converted, pet: Converted) -> None:
        """Put a session in its place, in one step."""
        if self._new:
            self._describe()
        stage = self.root / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
        name, tracer = pair.label, f"_trc-{pet.tracer}" if pet.tracer else ""
        try:
            for made, series, stem in (
                (t1w, pair.t1w, f"anat/{name}_T1w"),
                (pet, pair.pet, f"pet/{name}{tracer}_pet"),
            ):
                target = stage / f"{stem}.nii.gz"
                target.parent.mkdir(parents=True)
                with made.image.open("rb") as source, target.open("wb") as sink:
                    while part := source.read(1 << 20):
                        sink.write(part)
                code = self.key.series(series.uid)
                write_json(stage / f"{stem}.json", {**made.sidecar, "SourceSeries": code})
            flush_tree(stage)
            place = self.root / f"sub-{pair.subject}" / f"ses-{pair.session}"
            place.parent.mkdir(exist_ok=True)
            os.rename(stage, place)
        except OSError as error:
            raise StoreError(
                f"Cannot write {name} into {self.root}: {error.strerror}",
                "Check space and permissions",
            ) from error
        finally:
            discard(stage)
        self.known[self.key.series(pair.pet.uid)] = name

    def note_person(self, pair: Pair) -> None:
        """Give a participant a line, if there is none; lines that are there are kept."""
        name = f"sub-{pair.subject}"
        if name in self._people:
            return
        weight = pair.pet.weight
        values = {"participant_id": name, "weight": "n/a" if weight is None else f"{weight:g}"}
        self._people[name] = [values.get(column, "n/a") for column in self._columns]
        lines = io.StringIO()
        writer = csv.writer(lines, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
        writer.writerows([self._columns, *(row for _, row in sorted(self._people.items()))])
        write_bytes(self.root / "participants.tsv", lines.getvalue().encode())

    def _describe(self) -> None:
        made_by = {
            "Name": _NAME,
            "Version": __version__,
            "Description": "Converted from DICOM by dcm2niix, without what tells people",
            "KeyCheck": self.key.check,
        }
        content = {
            "Name": "PET and T1w images converted from DICOM",
            "BIDSVersion": "1.11.0",
            "DatasetType": "raw",
            "GeneratedBy": [made_by],
        }
        write_json(self.root / "dataset_description.json", content)
        write_json(self.root / "participants.json", _WEIGHT)
        write_bytes(self.root / "README", _README.encode())
        self._new = False


def _read_participants(path: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the columns of participants.tsv and its lines by label; a site may have added some."""
    try:
        text = read_bounded(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        return ["participant_id", "weight"], {}
    except (OSError, UnicodeDecodeError):
        raise StoreError(f"Cannot read {path}", "Make it a UTF-8 text file again") from None
    rows = [line.split("\t") for line in text.splitlines() if line]
    if not rows or rows[0][0] != "participant_id":
        raise StoreError(f"{path} does not begin with participant_id", "Put that column first")
    return rows[0], {row[0]: row for row in rows[1:]}


def _session(pair: Pair, tree: _Tree, labels: Labels) -> Outcome:
    """Convert one session, unless it is there."""
    folders = (pair.t1w.folder, pair.pet.folder)
    before = tree.known.get(labels.key.series(pair.pet.uid))
    if before not in (None, pair.label):
        note = f"its PET is in the dataset as {before}, which was made with other labels"
        return Outcome(pair.label, "there", (note,), folders)
    if tree.has(pair):
        tree.note_person(pair)
        note = "its study has another PET by now; what is there is kept"
        return Outcome(pair.label, "there", () if before else (note,), folders)
    notes = list(pair.notes)
    made: dict[str, Converted] = {}
    with working_folder() as work:
        for what, series in (("T1w", pair.t1w), ("PET", pair.pet)):
            try:
                made[what] = convert_series(series, work / what)
            except FusionflowError as error:
                code = labels.key.series(series.uid)[:8]
                return Outcome(pair.label, "failed", (f"{what} {code}: {error}",), folders)
            except OSError as error:  # its own text has paths, which may hold names
                raise StoreError(
                    f"No room to work in for {pair.label}: {error.strerror}",
                    "Set TMPDIR to a folder with room for the largest series, uncompressed",
                ) from None
            notes += [f"{what}: {note}" for note in made[what].notes]
        if not made["PET"].tracer:
            notes.append("its tracer is not known here: add TracerName to the PET's sidecar")
        tree.publish(pair, made["T1w"], made["PET"])
    tree.note_person(pair)
    return Outcome(pair.label, "made", tuple(notes), folders)


def describe(series: Series, key: Key) -> str:
    """Return a name of a series that names nobody."""
    kind = {"MR": "MR", "PT": "PET"}.get(series.modality, "other")
    return f"{kind} {key.series(series.uid)[:8]}"
