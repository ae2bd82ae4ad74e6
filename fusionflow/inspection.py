"""What a worker is asked before a run, and what it answers (`fusionflow.preflight` asks)."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import distributed
import torch

from fusionflow.commit import software_versions
from fusionflow.cpu_layers import has_winograd
from fusionflow.errors import FusionflowError
from fusionflow.fusion import load_network
from fusionflow.int8 import has_int8
from fusionflow.planning import seconds_a_slice
from fusionflow.plugins import installed_versions
from fusionflow.stages import Recipe, device_of

__all__ = ["Facts", "Question", "inspect", "versions"]


@dataclass(frozen=True)
class Question:
    """What a worker is asked.

    Attributes
    ----------
    recipe : Recipe
        Whose network it is to read.
    reads_network : bool
        Whether this worker will.
    shape : tuple of int
        Of the slices (y, x) that it fuses to see how long that takes.
    files : tuple of str
        Inputs.
    meeting : str
        A folder of the output that holds a file ``client``, and where it writes one of its own.
    name : str
        Of that file.
    """

    recipe: Recipe
    reads_network: bool
    shape: tuple[int, int]
    files: tuple[str, ...]
    meeting: str
    name: str


@dataclass(frozen=True)
class Facts:
    """What a worker answers.

    Attributes
    ----------
    host : str
        Its machine.
    versions : dict
        Package -> version.
    cuda : str
        Name of the GPU that torch sees, "" for none.
    device : str
        What it will fuse on.
    network : str
        What is wrong with the weights, "" for nothing.
    missing : tuple of str
        Inputs that it does not see.
    output : str
        What is wrong with the output folder, "" for nothing.
    scratch : str
        Its folder for what it spills.
    scratch_bytes : int
        Free there.
    seconds_a_slice : float or None
        As it measured; None if it could not, or is not to fuse.
    plugins : dict
        Package that the run takes a plug-in from -> its version, "" if it is not installed.
    quick : bool
        Whether torch has the fast convolutions for its processor; True if it runs none there.
    in_int8 : bool
        Whether it has those in 8 bits; True if none are asked for.
    """

    host: str
    versions: dict[str, str]
    cuda: str
    device: str
    network: str
    missing: tuple[str, ...]
    output: str
    scratch: str
    scratch_bytes: int
    seconds_a_slice: float | None
    plugins: dict[str, str] = field(default_factory=dict)
    quick: bool = True
    in_int8: bool = True


_TROUBLE = (FusionflowError, OSError, RuntimeError, MemoryError)


def inspect(question: Question) -> Facts:
    """Answer a question; a task on the worker that is asked."""
    recipe = question.recipe
    network, seconds = "", None
    in_int8 = recipe.method.precision != "int8" or not question.reads_network or has_int8()
    try:
        if question.reads_network and recipe.weights is not None and in_int8:
            load_network(recipe.method, recipe.weights, device_of(recipe))
    except _TROUBLE as error:
        network = str(error) or type(error).__name__
    else:
        with contextlib.suppress(*_TROUBLE):  # what a scan meets is the scan's, and found there
            seconds = _seconds(question) if in_int8 else None
    scratch = _scratch()
    return Facts(
        host=socket.gethostname(),
        versions=versions(),
        cuda=_cuda(),
        device=device_of(recipe),
        network=network,
        missing=tuple(path for path in question.files if not os.path.exists(path)),
        output=_meet(Path(question.meeting), question.name),
        scratch=scratch,
        scratch_bytes=shutil.disk_usage(scratch).free,
        seconds_a_slice=seconds,
        plugins=installed_versions(recipe.plugins),
        quick=_is_quick(question),
        in_int8=in_int8,
    )


def versions() -> dict[str, str]:
    """Return the versions of what must agree between processes."""
    return {
        **software_versions(),
        "distributed": metadata.version("distributed"),
        "python": platform.python_version(),
    }


def _cuda() -> str:
    try:
        return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    except RuntimeError:  # a driver that does not fit
        return ""


def _is_quick(question: Question) -> bool:
    recipe = question.recipe
    runs_network = question.reads_network and recipe.weights is not None
    there = runs_network and device_of(recipe) == "cpu" and recipe.method.precision == "float32"
    return not there or has_winograd()


def _seconds(question: Question) -> float | None:
    """Time a slice, where this worker is one that fuses."""
    recipe = question.recipe
    if recipe.weights is not None and not question.reads_network:
        return None
    return seconds_a_slice(recipe, *question.shape)


def _scratch() -> str:
    try:
        return str(distributed.get_worker().local_directory)
    except ValueError:
        return os.getcwd()


def _meet(folder: Path, name: str) -> str:
    """Read what the client wrote and write a file beside it; return what is wrong."""
    try:
        (folder / "client").read_bytes()
        (folder / name).write_bytes(b"")
    except OSError as error:
        return str(error.strerror or error)
    return ""
