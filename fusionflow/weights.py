"""Pretrained weights: where they come from, and reading them without running anything in them.

What travels to a worker is a path and a checksum; the worker checks that it reads that file.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fusionflow.errors import ChecksumError, ConfigurationError, WeightsError, WeightsNotFoundError
from fusionflow.io.files import file_sha256
from fusionflow.untrusted import one_line, read_bounded

logger = logging.getLogger(__name__)

WEIGHTS_DIR_VARIABLE = "FUSIONFLOW_WEIGHTS_DIR"
#: Set to anything, nothing is downloaded.
OFFLINE_VARIABLE = "FUSIONFLOW_OFFLINE"
#: Checksums of a weights folder, as the command ``sha256sum`` writes and checks them.
SUMS_FILE = "SHA256SUMS"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


_SUM = re.compile(r"([0-9a-fA-F]{64})\s+\*?([^\s\0][^\0]*)")
_MOST_SUMS_BYTES = 1 << 20

#: torchvision's DenseNet file is older than the names of its layers.
_DENSENET_OF_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


@dataclass(frozen=True)
class Weights:
    """Which weights, in a form that travels to workers: a path and a checksum.

    Attributes
    ----------
    backbone : str
        The architecture that they are for.
    identity : str
        SHA-256 of the file, or ``random:SEED``.
    path : Path or None
        The file; None for random weights.
    """

    backbone: str
    identity: str
    path: Path | None = None

    @property
    def is_random(self) -> bool:
        """Whether nothing was learned: the user asked for this by name."""
        return self.path is None

    @property
    def description(self) -> str:
        """One line for screens, sidecars and reports."""
        if self.path is None:
            return f"{self.identity} (RANDOM weights, not pretrained: for trying out only)"
        return f"{self.path.name} (sha256 {self.identity[:12]})"


def find_weights(spec: str, backbone_name: str, url: str | None) -> Weights:
    """Find the weights that `spec` names. Nothing is ever replaced by something else.

    Parameters
    ----------
    spec : str
        - ``auto``: the folder ``FUSIONFLOW_WEIGHTS_DIR`` if that is set, otherwise as
          ``torchvision``;
        - ``torchvision``: torchvision's ImageNet weights, from its cache or its server;
        - ``random:SEED``: random weights, for trying out;
        - otherwise the path of a ``.safetensors`` or ``.pth`` file.
    backbone_name : str
        The architecture.
    url : str or None
        Where its weights are on the network; the name ends in the beginning of their SHA-256.

    Raises
    ------
    WeightsNotFoundError
        If they are not there, or there is no network to fetch them through.
    ChecksumError
        If the file is not what its name (torchvision's) or the folder's ``SHA256SUMS`` says.
    ConfigurationError
        If the seed is not a whole number.
    """
    if spec.startswith("random:"):
        seed = spec.removeprefix("random:")
        if not seed.isdecimal() or len(seed) > 19 or int(seed) >= 2**63:
            raise ConfigurationError(
                f"The seed in weights {spec!r} is not a whole number", "Write random:0"
            )
        return Weights(backbone_name, f"random:{int(seed)}")
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if spec == "auto" and folder:
        path = _find_in_folder(Path(folder), backbone_name)
    elif spec in ("auto", "torchvision"):
        path = _fetch_torchvision(backbone_name, url)
    else:
        path = Path(spec)
        if not is_file(path):
            raise WeightsNotFoundError(
                f"No weights file {path}",
                "Give the path of a .safetensors or .pth file, `torchvision`, or random:SEED",
            )
    weights = identified(backbone_name, path)
    logger.info("weights of %s: %s", backbone_name, path)
    return weights


def is_file(path: Path) -> bool:
    """Whether there is a regular file; not a pipe, which would be waited for."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def identified(backbone_name: str, path: Path) -> Weights:
    """Return a file of weights by its checksum, which must be the one that stands beside it.

    Raises
    ------
    ChecksumError
        If the ``SHA256SUMS`` of its folder says another.
    WeightsNotFoundError
        If the file cannot be read.
    """
    try:
        checksum = file_sha256(path)
    except OSError as error:
        raise WeightsNotFoundError(
            f"Cannot read the weights {path}: {error.strerror or error}",
            "Let the user that fusionflow runs as read them",
        ) from error
    weights = Weights(backbone_name, checksum, path.resolve())
    known = read_sums(path.parent).get(path.name)
    if known not in (None, weights.identity):
        raise ChecksumError(
            f"The weights {path} have SHA-256 {weights.identity[:12]}, but {SUMS_FILE} beside "
            f"them says {known[:12] if known else known}",
            "The file changed or is damaged: stage it again",
        )
    return weights


def _find_in_folder(folder: Path, backbone_name: str) -> Path:
    """Return the weights of a backbone in a folder: the shortest name that begins with it."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise WeightsNotFoundError(
            f"Cannot look into {folder} ({WEIGHTS_DIR_VARIABLE}): permission denied",
            "Let the user that fusionflow runs as read it",
        )
    found = [
        path
        for pattern in ("*.safetensors", "*.pth")
        for path in folder.glob(f"{backbone_name}{pattern}")
        if not path.name.removeprefix(backbone_name)[0].isalnum()
        and not path.name.startswith(f"{backbone_name}_bn")  # another network
    ]
    if not found:
        raise WeightsNotFoundError(
            f"No weights of {backbone_name} in {folder} ({WEIGHTS_DIR_VARIABLE})",
            f"Put {backbone_name}.safetensors, {backbone_name}-SOMETHING.safetensors or .pth there",
        )
    if len(found) > 1:
        logger.warning(
            "%s has %d files for %s; the shortest name is taken", folder, len(found), backbone_name
        )
    return min(found, key=lambda path: (len(path.name), path.name))


def read_sums(folder: Path) -> dict[str, str]:
    """Return the checksums that a weights folder states: file name -> SHA-256."""
    try:
        lines = read_bounded(folder / SUMS_FILE, _MOST_SUMS_BYTES).decode().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"Cannot read {folder / SUMS_FILE}: {error}") from error
    sums: dict[str, str] = {}
    for line in filter(str.strip, lines):
        match = _SUM.fullmatch(line)
        if match is None or ".." in Path(match[2]).parts or Path(match[2]).is_absolute():
            raise WeightsError(
                f"{folder / SUMS_FILE} has a line that is no SHA-256 of a file in its folder: "
                f"{one_line(line, 80)}",
                "Write it again, there: sha256sum * > SHA256SUMS",
            )
        sums[match[2]] = match[1].lower()
    return sums


def cached_path(url: str) -> Path:
    """Return where torch's cache has, or would have, the file at `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def stated_digest(url: str) -> str:
    """Return the beginning of the SHA-256 that torchvision writes into the name of its files."""
    return Path(url).stem.rsplit("-", 1)[-1]


def _fetch_torchvision(backbone_name: str, url: str | None) -> Path:
    """Return torchvision's weights file, downloading it if it is not in torch's cache."""
    if url is None:
        raise WeightsNotFoundError(
            f"There are no weights of {backbone_name} to be fetched",
            "Give the path of a .safetensors or .pth file",
        )
    path, digest = cached_path(url), stated_digest(url)
    if not path.is_file() and (reason := _download(url, path, digest)):
        raise WeightsNotFoundError(
            f"The pretrained weights of {backbone_name} are not on this machine and could "
            f"not be downloaded ({reason})",
            f"Put them at {path}, or set {WEIGHTS_DIR_VARIABLE} to a folder that holds "
            f"{backbone_name}*.safetensors or .pth, or pass --weights FILE; to try things "
            "out without pretrained weights ask for them by name: --weights random:0",
        )
    if not file_sha256(path).startswith(digest):
        raise ChecksumError(
            f"The SHA-256 of {path} does not begin with {digest}, as torchvision's does",
            "Remove it, so that it is fetched again",
        )
    return path


def _download(url: str, path: Path, digest: str) -> str | None:
    """Fetch a file whole, or say why that was not possible."""
    if os.environ.get(OFFLINE_VARIABLE):
        return "offline"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=True)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Normalisation:
    """What a network expects of its input: ``(x * scale - mean) / std`` in each channel."""

    scale: float = 1.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None) -> Normalisation:
        """Read the header of a safetensors file; what it does not say is torchvision's.

        Raises
        ------
        ValueError
            If it says something that cannot be.
        """
        metadata = metadata or {}
        default = cls()

        def numbers(name: str, fallback: tuple[float, ...]) -> tuple[float, ...]:
            if name not in metadata:
                return fallback
            values = tuple(float(part) for part in metadata[name].split(","))
            if len(values) != len(fallback) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name} {metadata[name]!r} is not {len(fallback)} numbers")
            return values

        (scale,) = numbers("scale", (default.scale,))
        std = numbers("std", default.std)
        if min(std) <= 0:
            raise ValueError(f"std {metadata['std']!r} is not positive")
        return cls(scale=scale, mean=numbers("mean", default.mean), std=std)


def read_state(weights: Weights) -> tuple[dict[str, torch.Tensor], Normalisation]:
    """Read ``features.*`` of a weights file; pickles are read as plain tensors only."""
    return read_tensors(unchanged(weights))


def unchanged(weights: Weights) -> Path:
    """Return the file of weights, having checked that it is still the one that was found.

    Raises
    ------
    WeightsError
        If they are random.
    WeightsNotFoundError
        If this worker cannot read it.
    ChecksumError
        If it is another.
    """
    path = weights.path
    if path is None:
        raise WeightsError("random weights have no file")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise WeightsNotFoundError(
            f"Cannot read the weights {path} on this worker: {error}",
            "Put them in a folder that every worker can read",
        ) from error
    if found != weights.identity:
        raise ChecksumError(
            f"The weights {path} have SHA-256 {found[:12]}, not {weights.identity[:12]}",
            "The file changed or is damaged: fetch it again",
        )
    return path


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], Normalisation]:
    """Return the tensors of a file by name, and what its network expects of its input.

    Raises
    ------
    WeightsError
        If it holds anything else; nothing in it is executed.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                state = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
                normalisation = Normalisation.from_metadata(stream.metadata())
        else:
            with warnings.catch_warnings():
                # What a broken file left behind is checked with the next one, which torch warns of.
                warnings.filterwarnings("ignore", "Validating sparse tensor invariants")
                state = torch.load(path, map_location="cpu", weights_only=True)
            normalisation = Normalisation()
    except (SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(f"Cannot read the weights {path}: {one_line(error)}") from error
    except Exception as error:  # unpickling fails in many ways, all of them mean this
        raise WeightsError(f"{path} is not a file of weights: {one_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not weights by layer")
    return dict(state), normalisation


def checked_state(
    layers: nn.Module, state: Mapping[str, torch.Tensor], path: Path
) -> dict[str, torch.Tensor]:
    """Return the weights of `layers` in float32, having checked that all of them fit."""
    checked = {}
    state = {_DENSENET_OF_OLD.sub(r"\1\2", key): tensor for key, tensor in state.items()}
    for name, wanted in layers.state_dict().items():
        key = f"features.{name}"
        if name.endswith("num_batches_tracked"):  # counts training steps; older files lack it
            checked[name] = torch.zeros((), dtype=wanted.dtype)
            continue
        if key not in state:
            raise WeightsError(
                f"The weights {path} have no {key}",
                "Choose taps that come before it, or a file that holds that layer",
            )
        checked[name] = checked_tensor(state[key], wanted.shape, key, path)
    return checked


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def checked_tensor(tensor: object, shape: torch.Size, key: str, path: Path) -> torch.Tensor:
    """Return a tensor of a file in float32, having checked that it fits and is of numbers.

    A copy, which nobody changes who writes to the file.

    Raises
    ------
    WeightsError
        If it does not, or holds NaN or infinity.
    """
    if not isinstance(tensor, torch.Tensor):
        raise WeightsError(f"The weights {path} have a {type(tensor).__name__} as {key}")
    if tensor.shape != shape:
        raise WeightsError(
            f"The weights {path} have {key} of shape {tuple(tensor.shape)}, not {tuple(shape)}"
        )
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _FLOATS:
        raise WeightsError(
            f"The weights {path} have {key} as {tensor.dtype}, {tensor.layout} on {tensor.device}",
            "Give weights of plain numbers: float32, float16 or bfloat16",
        )
    tensor = tensor.to(torch.float32, copy=True).contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"The weights {path} have NaN or infinity in {key}", "Get them anew")
    return tensor
