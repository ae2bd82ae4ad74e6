"""Labels that name nobody: keyed hashes, or a table of a site's own.

A plain hash of a patient's number is no secret, since all numbers can be tried. With a key that
stays where the patients' data are, the same patient gets the same label on every run, and without
it nobody can tell which.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fusionflow.errors import ConfigurationError, StoreError
from fusionflow.io.dicom import Series
from fusionflow.untrusted import read_bounded

__all__ = ["DEFAULT_KEY", "Key", "Labels", "read_labels"]

DEFAULT_KEY: Final = Path("~/.config/fusionflow/dicom.key")
_KEY_BYTES: Final = 32
_MOST_KEY_BYTES: Final = 1 << 12
_MOST_TABLE_BYTES: Final = 1 << 26
_LABEL: Final = re.compile(r"[0-9A-Za-z]+")
_COLUMNS: Final = {"patient_id", "participant_id", "study", "session_id"}


@dataclass(frozen=True)
class Key:
    """A secret, and what is made with it.

    Attributes
    ----------
    secret : bytes
        Never shown.
    made : bool
        Whether it was made just now.
    shared : bool
        Whether others may read its file.
    """

    secret: bytes = field(repr=False)
    made: bool = False
    shared: bool = False

    @classmethod
    def of(cls, path: Path, outside: Path) -> Key:
        """Read a key, or make one that nobody else may read.

        Parameters
        ----------
        path : Path
            Its file.
        outside : Path
            A folder that it may not be in, since that is going to be shared.

        Raises
        ------
        ConfigurationError
            If it is in that folder, or no key.
        StoreError
            If it cannot be made or read.
        """
        path = path.expanduser()
        if path.resolve().is_relative_to(outside.resolve()):
            raise ConfigurationError(
                f"The key {path} is in the dataset: whoever gets that could tell the patients",
                "Keep it elsewhere, with --key",
            )
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            try:
                descriptor = os.open(path, flags, 0o600)
            except FileExistsError:
                content = read_bounded(path, _MOST_KEY_BYTES).strip()
                shared = bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
            else:
                content, shared = secrets.token_hex(_KEY_BYTES).encode(), False
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                return cls(content, made=True)
        except OSError as error:
            raise StoreError(
                f"The key {path} cannot be made or read: {error.strerror or error}",
                "Name another file with --key",
            ) from error
        if len(content) < _KEY_BYTES:
            raise ConfigurationError(
                f"{path} is no key: it has fewer than {_KEY_BYTES} bytes",
                "Name the file that the dataset was begun with, or one that is not there yet",
            )
        return cls(content, shared=shared)

    def code(self, length: int, *parts: str) -> str:
        """Return so many letters and digits (base 32) that stand for some texts."""
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        digest = hmac.new(self.secret, text, hashlib.sha256).digest()
        return base64.b32encode(digest).decode("ascii").lower()[:length]

    def series(self, uid: str) -> str:
        """Return what stands for a series."""
        return self.code(16, "series", uid)

    @property
    def check(self) -> str:
        """What tells datasets of this key from others."""
        return self.code(16, "check")


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of patients and studies.

    Attributes
    ----------
    key : Key
        For those that the table does not have.
    patients : mapping
        Label by patient ID.
    studies : mapping
        Label of a session by patient ID and study (UID or accession number).
    """

    key: Key
    patients: Mapping[str, str] = field(default_factory=dict, repr=False)
    studies: Mapping[tuple[str, str], str] = field(default_factory=dict, repr=False)

    def is_known(self, series: Series) -> bool:
        """Whether the table has this patient."""
        return series.patient[0] == "id" and series.patient[1] in self.patients

    def subject(self, series: Series) -> str:
        """Return the label of a series' patient, without ``sub-``."""
        if self.is_known(series):
            return self.patients[series.patient[1]]
        return self.key.code(10, "patient", *series.patient)

    def session(self, series: Series) -> str:
        """Return the label of a series' study, without ``ses-``."""
        if self.is_known(series):
            for study in (series.study, series.accession):
                if label := self.studies.get((series.patient[1], study)):
                    return label
        return self.key.code(8, "study", series.study)


def read_labels(path: Path | None, key: Key) -> Labels:
    """Read a table of labels: tab-separated, with a line of column names.

    Columns are ``patient_id``, ``participant_id`` and, if wanted, ``study`` (StudyInstanceUID or
    AccessionNumber) with ``session_id``. Two numbers with one label are one person.

    Raises
    ------
    ConfigurationError
        If it is no such table; lines are told by number, since they hold names.
    """
    if path is None:
        return Labels(key)
    try:
        text = read_bounded(path, _MOST_TABLE_BYTES, pipes=True).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    columns = [name.strip() for name in rows[0]] if rows else []
    if not {"patient_id", "participant_id"} <= set(columns) <= _COLUMNS:
        raise ConfigurationError(
            f"{path} has not the columns patient_id and participant_id, or has others",
            "Besides these it can have study and session_id; separate them by tabs",
        )
    patients: dict[str, str] = {}
    studies: dict[tuple[str, str], str] = {}
    for line, cells in enumerate(rows[1:], 2):
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        if not any(row.values()):
            continue
        patient, subject = row.get("patient_id", ""), row.get("participant_id", "")
        study, session = row.get("study", ""), row.get("session_id", "")
        subject, session = subject.removeprefix("sub-"), session.removeprefix("ses-")
        sound = patient and _LABEL.fullmatch(subject) and bool(study) == bool(session)
        if not sound or (session and not _LABEL.fullmatch(session)):
            raise ConfigurationError(
                f"Line {line} of {path} is not a patient with a label",
                "Labels are letters and digits; a study stands with a session_id",
            )
        if patients.setdefault(patient, subject) != subject or (
            study and studies.setdefault((patient, study), session) != session
        ):
            raise ConfigurationError(f"Line {line} of {path} contradicts one before it")
    return Labels(key, patients, studies)
