"""The input of a run, whatever it is: a BIDS dataset or a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fusionflow.config import InputOptions
from fusionflow.errors import ConfigurationError
from fusionflow.io.bids import discover
from fusionflow.io.bids_names import NO_FILTERS, read_filters
from fusionflow.io.manifest import OPTIONAL, REQUIRED, read_manifest
from fusionflow.io.scans import Discovery


def recorded_options(last_run: Mapping[str, Any]) -> InputOptions:
    """Return the options of the input that a run was given, from its summary.

    Raises
    ------
    ConfigurationError
        If they cannot be understood.
    """
    config = last_run.get("config")
    content = config.get("input", {}) if isinstance(config, dict) else {}
    try:
        return InputOptions.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(
            "The summary of the last run does not say what its input was", "Run again"
        ) from error


def is_manifest(source: Path) -> bool:
    """Whether an input is a table, not a BIDS dataset."""
    return source.suffix == ".tsv" and not source.is_dir()


def find_scans(
    source: Path,
    options: InputOptions,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
) -> Discovery:
    """Find the scans of a BIDS dataset (a folder) or a manifest (a table, ``.tsv``).

    Parameters
    ----------
    source : Path
        Folder or table.
    options : InputOptions
        Which images are wanted, and what else belongs to them.
    participant_labels, session_labels : sequence of str
        Keep only these; all if empty.

    Raises
    ------
    ConfigurationError
        If the input cannot be read, or an option means nothing for it.
    """
    selection = {"participant_labels": participant_labels, "session_labels": session_labels}
    columns = ", ".join((*REQUIRED, *OPTIONAL))
    if not is_manifest(source):
        if source.is_file():
            raise ConfigurationError(
                f"{source} is neither the folder of a BIDS dataset nor a manifest (.tsv)",
                f"Save the table with tabs between its columns ({columns}), as .tsv",
            )
        return discover(
            source,
            **selection,
            filters=read_filters(options.bids_filter) if options.bids_filter else NO_FILTERS,
            derivatives=options.derivatives,
            reference_region=options.reference_region,
        )
    for name, value in (
        ("a filter file", options.bids_filter),
        ("derivatives", options.derivatives),
        ("a reference region", options.reference_region),
    ):
        if value:
            raise ConfigurationError(
                f"{name} was given, which means nothing for the manifest {source}",
                f"Write in the manifest what is wanted; its columns are {columns}",
            )
    return read_manifest(source, **selection)
