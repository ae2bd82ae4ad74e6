"""Jobs of SLURM, as a person chooses them."""

from __future__ import annotations

from fusionflow.options import Options


class SlurmOptions(Options):
    """Pools of jobs."""

    @property
    def has_gpus(self) -> bool:
        """Whether a pool's jobs have GPUs."""
        return False
