"""Pods of Kubernetes, as a person chooses them."""

from __future__ import annotations

from fusionflow.options import Options


class KubernetesOptions(Options):
    """Groups of pods."""

    @property
    def has_gpus(self) -> bool:
        """Whether a group's pods have GPUs."""
        return False
