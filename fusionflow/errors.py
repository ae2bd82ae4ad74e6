"""The exceptions of fusionflow.

Every error that fusionflow raises on purpose says what is wrong, with which file or scan,
and what to do about it::

    FusionflowError
    ├── ConfigurationError (ValueError)     an option, a method or a YAML file
    ├── MissingExtraError (ImportError)     an optional dependency that is not installed
    ├── InputError (ValueError)             something in the data that was handed in
    │   ├── NoScansError                    nothing to run on
    │   ├── ImageError                      an image that cannot be read
    │   ├── InputChangedError               an image that changed while it was read
    │   └── GridError                       images that cannot be put on one grid
    ├── WeightsError                        pretrained weights
    │   ├── WeightsNotFoundError (FileNotFoundError)
    │   └── ChecksumError
    ├── SchemaError (ValueError)            a dataset that lacks what it must have
    ├── StoreError                          the output folder
    │   ├── LockedError                     another run writes it
    │   └── ScanNotFoundError (KeyError)
    ├── ClusterError (RuntimeError)         a cluster that cannot be started or reached
    ├── PlacementError (RuntimeError)       a task on a worker that may not run it
    └── DeviceMemoryError (MemoryError)     a slice that does not fit where it is fused
"""

from __future__ import annotations

from typing import Any

from fusionflow.untrusted import printable


class FusionflowError(Exception):
    """Base of all errors that fusionflow raises on purpose.

    Parameters
    ----------
    message : str
        What is wrong, and with which file, scan or option.
    mend : str, optional
        What the person who reads it can do.
    """

    def __init__(self, message: str, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        """Return what is wrong, followed by the mend: one line, safe to show on a terminal."""
        return printable(f"{self.message}. {self.mend}" if self.mend else self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error cross process borders whole."""
        return type(self), (self.message, self.mend)


class ConfigurationError(FusionflowError, ValueError):
    """An option, a method or a configuration file that cannot be used."""


class MissingExtraError(FusionflowError, ImportError):
    """An optional dependency that is not installed."""


class InputError(FusionflowError, ValueError):
    """Something in the input data that cannot be used."""


class NoScansError(InputError):
    """The input holds no scan that could run."""


class ImageError(InputError):
    """An image that cannot be read, or that holds nothing usable."""


class InputChangedError(InputError):
    """An image that changed while it was read: the next run will find it whole."""


class GridError(InputError):
    """Images that cannot be put on one grid."""


class WeightsError(FusionflowError):
    """Pretrained weights that cannot be used."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """Pretrained weights that are not where they were looked for."""


class ChecksumError(WeightsError):
    """A weights file whose contents are not what they should be."""


class SchemaError(FusionflowError, ValueError):
    """A dataset that lacks a variable, dimension or dtype it must have."""


class StoreError(FusionflowError):
    """The output folder cannot be read or written."""


class LockedError(StoreError):
    """Another run writes the output folder."""


class ScanNotFoundError(StoreError, KeyError):
    """A label that the cohort does not hold."""


class ClusterError(FusionflowError, RuntimeError):
    """A cluster that cannot be started or reached."""


class PlacementError(FusionflowError, RuntimeError):
    """A task that landed on a worker that may not run it."""


class DeviceMemoryError(FusionflowError, MemoryError):
    """A device, or the processor, whose memory does not hold the features of one image."""
