"""What a run would do, and whether the cluster can: nothing is fused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import distributed

from fusionflow import clusters
from fusionflow.config import RunConfig
from fusionflow.history import new_run
from fusionflow.intake import make_plan, make_root
from fusionflow.ledger import OutputPaths
from fusionflow.preflight import Preflight, preflight
from fusionflow.runlock import living_holder
from fusionflow.survey import Standing, asked_again, removed_labels, survey
from fusionflow.tenancy import Tenancy


def look(
    bids_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    retry_failed: bool = False,
    force: bool = False,
    settle: float = 0,
) -> tuple[Standing, ...]:
    """Say what `run` would do and why, and do nothing.

    Parameters
    ----------
    bids_dir, out_dir, config, participant_labels, session_labels, retry_failed, force, settle
        As in `run`.

    Returns
    -------
    tuple of Standing
        Every scan of the input, what it leaves out as broken (``quarantined``), and what is
        published and no longer in the input (``removed``).

    Raises
    ------
    NoScansError, ConfigurationError, WeightsNotFoundError
        As `run`.
    """
    config = config or RunConfig()
    source, paths = Path(bids_dir).absolute(), OutputPaths(Path(out_dir).absolute())
    plan = make_plan(source, paths, config, participant_labels, session_labels)
    holder = living_holder(paths.run_lock)
    standings = survey(
        paths, plan.source, plan.found.scans, plan.request,
        live_run=holder.run if holder else None, settle=settle, plugins=plan.recipe.plugins,
    )  # fmt: skip
    return (
        *(asked_again(item, retry_failed=retry_failed, force=force) for item in standings),
        *(Standing(item.label, "quarantined", item.reason) for item in plan.broken),
        *(
            Standing(label, "removed", "the input no longer has it")
            for label in removed_labels(paths, plan.everything)
        ),
    )


def check(
    bids_dir: str | PathLike[str],
    out_dir: str | PathLike[str],
    config: RunConfig | None = None,
    *,
    participant_labels: Sequence[str] = (),
    session_labels: Sequence[str] = (),
    client: distributed.Client | None = None,
) -> Preflight:
    """Look whether the cluster could do what `run` would ask of it, and do nothing.

    Parameters
    ----------
    bids_dir, out_dir, config, participant_labels, session_labels, client
        As in `run`. The output folder is made if it is not there.

    Returns
    -------
    Preflight
        What was found; `run` stops where a line of it fails.

    Raises
    ------
    NoScansError, ConfigurationError, WeightsNotFoundError, ClusterError, StoreError
        As `run`.
    """
    config = config or RunConfig()
    source, paths = Path(bids_dir).absolute(), OutputPaths(Path(out_dir).absolute())
    plan = make_plan(source, paths, config, participant_labels, session_labels)
    make_root(paths)
    with contextlib.ExitStack() as stack:
        tenancy = Tenancy.of(new_run(), config.cluster, client)
        client = client or stack.enter_context(
            clusters.connect(config.cluster, torch_threads=config.method.threads)
        )
        return preflight(
            client,
            tenancy,
            plan.recipe,
            plan.found.scans,
            paths.root,
            config.cluster,
            config.conform.space,
        )[1]
