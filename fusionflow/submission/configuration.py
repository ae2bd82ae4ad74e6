"""The configuration of a run that is submitted: what it reads where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fusionflow.config import METHODS, RunConfig

__all__ = ["config_inside", "weights_file"]

#: Options of a cluster that a run has a use for on one that was started for it.
_KEPT = {"priority", "window", "time_limit", "patience", "scheduler_patience"}


def config_inside(config: RunConfig, **cluster: Any) -> str:  # noqa: ANN401
    """Return the configuration of a run on a cluster of its own that is there already, as YAML.

    Parameters
    ----------
    config : RunConfig
        What a person chose.
    **cluster
        What more the run is to know of its cluster; a person's own choice wins.

    Returns
    -------
    str
        All options of the run but those that say how the cluster is started and found.
    """
    method = config.method
    known = METHODS.get(method.name) == method
    content = {
        "method": method.name if known else method.model_dump(mode="json"),
        **config.model_dump(
            mode="json", exclude_defaults=True, include={"conform", "region", "input"}
        ),
        "cluster": {
            "shared": False if config.cluster.shared is None else config.cluster.shared,
            **cluster,
            **config.cluster.model_dump(mode="json", exclude_defaults=True, include=_KEPT),
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


def weights_file(weights: str) -> Path | None:
    """Return the file that a method's weights are read from, if they name one."""
    if weights in ("auto", "torchvision") or weights.startswith("random:"):
        return None
    return Path(weights)
