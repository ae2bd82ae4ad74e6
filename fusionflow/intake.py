"""What a run is to make of an input: all that can be refused before anything starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fusionflow import graph
from fusionflow.config import InputOptions, RunConfig
from fusionflow.errors import ConfigurationError, NoScansError, StoreError
from fusionflow.io.derivatives import check_folder
from fusionflow.io.inputs import find_scans
from fusionflow.io.scans import Discovery
from fusionflow.ledger import OutputPaths
from fusionflow.participants import Plan
from fusionflow.survey import request_of


def make_plan(
    source: Path,
    paths: OutputPaths,
    config: RunConfig,
    participant_labels: Sequence[str],
    session_labels: Sequence[str],
) -> Plan:
    """Look at input, method and weights, before anything starts or is written."""
    graph.check_dask_settings()
    _check_apart(source, paths.root)
    check_folder(paths)
    everything = found = find_scans(source, config.input)
    if participant_labels or session_labels:
        found = find_scans(
            source,
            config.input,
            participant_labels=participant_labels,
            session_labels=session_labels,
        )
    recipe = graph.make_recipe(config.method, config.region, mask=config.conform.mask)
    plan = Plan(found.root, found, everything, recipe, request_of(config, recipe.weights))
    if not found.scans and not plan.broken:
        raise _no_scans(source, config.input, found, everything)
    return plan


def _check_apart(source: Path, out: Path) -> None:
    """Refuse an output that is the input, or lies among the images of one of its subjects."""
    mend = f"Write to {source / 'derivatives' / 'fusionflow'}, say"
    if out.resolve() == source.resolve():
        raise ConfigurationError(f"Input and output are the same folder, {source}", mend)
    as_written = Path(os.path.abspath(out)), Path(os.path.abspath(source))
    for folder, whole in (as_written, (out.resolve(), source.resolve())):  # a subject may be a link
        if folder.is_relative_to(whole) and str(folder.relative_to(whole)).startswith("sub-"):
            raise ConfigurationError(f"The output {out} lies in a subject of {source}", mend)


def _no_scans(
    source: Path, options: InputOptions, found: Discovery, everything: Discovery
) -> NoScansError:
    """Return the error that says why an input gives no scan, and what would mend that."""
    why = "".join(f" ({item.label}: {item.reason})" for item in found.excluded[:1])
    if everything.scans:
        return NoScansError(
            f"The labels that were asked for leave none of the {len(everything.scans)} scans of "
            f"{source}{why}",
            "Ask for other participants or sessions, or for all",
        )
    if options.bids_filter and (
        find_scans(source, options.model_copy(update={"bids_filter": None})).scans
    ):
        return NoScansError(
            f"The filter file {options.bids_filter} leaves no scan of {source}{why}",
            "Mend it, or leave it out",
        )
    return NoScansError(
        f"{source} holds no subject with both a T1w and a PET image{why}",
        "fusionflow needs sub-*/[ses-*/]anat/*_T1w.nii[.gz] and pet/*_pet.nii[.gz], or a manifest",
    )


def make_root(paths: OutputPaths) -> None:
    """Make the output folder.

    Raises
    ------
    StoreError
        If it cannot be made.
    """
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"Cannot write {paths.root}: {error.strerror or error}", "Check space and permissions"
        ) from error
