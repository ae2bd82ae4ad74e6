"""What ``participants.tsv`` says of the people of a cohort."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fusionflow.errors import StoreError
from fusionflow.history import read_last_run
from fusionflow.io.inputs import is_manifest
from fusionflow.io.sidecars import read_table
from fusionflow.ledger import OutputPaths
from fusionflow.untrusted import printable

NAME = "participants.tsv"

#: More columns, and longer cells, than a person can group by only make the page large.
_MOST_COLUMNS = 60
_MOST_LETTERS = 80


@dataclass(frozen=True)
class Participants:
    """A table of people.

    Attributes
    ----------
    columns : tuple of str
        Names of its columns, without ``participant_id``.
    rows : dict of str to dict
        ``participant_id``, with ``sub-``, -> column -> text; empty where it is not known.
    notes : tuple of str
        What a person should know, such as why there is none.
    """

    columns: tuple[str, ...] = ()
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def participants_path(paths: OutputPaths, source: Path | None = None) -> Path | None:
    """Return where the table of an output lies: in it, or in its input.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    source : Path, optional
        The input; by default that of the last run.
    """
    if (paths.root / NAME).is_file():
        return paths.root / NAME
    source = source or _last_input(paths)
    if source is None or is_manifest(source):
        return None
    path = source / NAME
    return path if path.is_file() else None


def _last_input(paths: OutputPaths) -> Path | None:
    try:
        source = (read_last_run(paths) or {}).get("input")
    except StoreError:
        return None
    return Path(source) if isinstance(source, str) and "\0" not in source else None


def read_participants(path: Path | None) -> Participants:
    """Read a table of people; what is wrong with it is said and stops nothing.

    Parameters
    ----------
    path : Path or None
        ``participants.tsv``; None if there is none.
    """
    if path is None:
        return Participants(
            notes=(
                f"There is no {NAME}, in the output or in the input of its last run. Put one into "
                "the output folder to group scans by its columns.",
            )
        )
    table, problem = read_table(path)
    if problem:
        return Participants(notes=(f"{NAME} was left out: {problem}",))
    rows: dict[str, dict[str, str]] = {}
    twice = set()
    for row in table:
        if label := row.pop("participant_id", ""):
            label = f"sub-{label.removeprefix('sub-')}"
            twice.update({label} & rows.keys())
            rows[label] = {name: _short(value) for name, value in row.items()}
    if not rows:
        return Participants(notes=(f"{NAME} was left out: it has no participant_id.",))
    columns = tuple(dict.fromkeys(name for row in rows.values() for name in row if name))
    notes = []
    if len(columns) > _MOST_COLUMNS:
        notes.append(f"Of the {len(columns)} columns of {NAME} the first {_MOST_COLUMNS} are here.")
    if twice:
        some = ", ".join(sorted(twice)[:5]) + (", ..." if len(twice) > 5 else "")
        notes.append(f"{NAME} has more than one line for {some}: the last one counts.")
    return Participants(columns[:_MOST_COLUMNS], rows, tuple(notes))


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…"
