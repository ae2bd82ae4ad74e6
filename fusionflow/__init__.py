"""Fusion of PET/MRI cohorts on Dask clusters.

Everything public is here; what is not in ``__all__`` may change.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

__version__ = metadata.version("fusionflow")

if TYPE_CHECKING:
    from fusionflow.cohort import Cohort, open_cohort, summarise
    from fusionflow.config import Method, RunConfig, Wavelet, load_config
    from fusionflow.errors import FusionflowError
    from fusionflow.events import RunReport
    from fusionflow.graph import compute, fuse
    from fusionflow.handle import RunHandle
    from fusionflow.runner import run
    from fusionflow.viewer import view

__all__ = [
    "Cohort",
    "FusionflowError",
    "Method",
    "RunConfig",
    "RunHandle",
    "RunReport",
    "Wavelet",
    "__version__",
    "compute",
    "fuse",
    "load_config",
    "open_cohort",
    "run",
    "summarise",
    "view",
]

_HOMES = {
    "Cohort": "cohort",
    "FusionflowError": "errors",
    "Method": "config",
    "RunConfig": "config",
    "RunHandle": "handle",
    "RunReport": "events",
    "Wavelet": "config",
    "compute": "graph",
    "fuse": "graph",
    "load_config": "config",
    "open_cohort": "cohort",
    "run": "runner",
    "summarise": "cohort",
    "view": "viewer",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import what is public when it is first used: torch alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return what is public."""
    return __all__
