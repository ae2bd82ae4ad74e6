"""Looking after weights: what is known, fetching, staging for machines without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionflow.backbones import (
    BACKBONES,
    Backbone,
    build_trunk,
    known_backbone,
    resolve_weights,
)
from fusionflow.errors import ChecksumError, ConfigurationError, FusionflowError, WeightsError
from fusionflow.io.files import file_sha256, write_bytes
from fusionflow.learned import MODELS
from fusionflow.plugins import plugin_names
from fusionflow.weights import (
    SUMS_FILE,
    WEIGHTS_DIR_VARIABLE,
    Weights,
    cached_path,
    read_sums,
    read_tensors,
    stated_digest,
)


@dataclass(frozen=True)
class Known:
    """What is known of a backbone's weights.

    Attributes
    ----------
    backbone : str
        The architecture.
    source : str
        Where they come from.
    licence : str
        Of the weights, as far as it is stated.
    size_mb : float
        Of the published file.
    digest : str
        The beginning of its SHA-256: torchvision states no more than that.
    found : tuple of Path
        Where this machine has some: in ``FUSIONFLOW_WEIGHTS_DIR``, and in torch's cache.
    """

    backbone: str
    source: str
    licence: str
    size_mb: float
    digest: str
    found: tuple[Path, ...]


def known_weights() -> list[Known]:
    """Return what is known of every backbone's weights."""
    names = [*BACKBONES, *plugin_names("fusionflow.backbones")]
    return [_known(known_backbone(name)) for name in dict.fromkeys(names)]


def _known(backbone: Backbone) -> Known:
    found = []
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if folder and Path(folder).is_dir():
        found += [
            path
            for path in sorted(Path(folder).iterdir())
            if path.suffix in (".safetensors", ".pth")
            and path.name.startswith((f"{backbone.name}.", f"{backbone.name}-"))
        ]
    if backbone.file is not None:
        found.append(backbone.file)
    if backbone.url and cached_path(backbone.url).is_file():
        found.append(cached_path(backbone.url))
    return Known(
        backbone=backbone.name,
        source=backbone.url or ("comes with its package" if backbone.file else "none known"),
        licence=backbone.licence,
        size_mb=backbone.size_mb,
        digest=stated_digest(backbone.url) if backbone.url else "",
        found=tuple(found),
    )


def fetch(names: Sequence[str]) -> Iterator[Path]:
    """Bring torchvision's weights into torch's cache, and yield where each is.

    Raises
    ------
    WeightsNotFoundError
        If they are not there and cannot be downloaded.
    ChecksumError
        If a file is damaged.
    """
    for name in names or BACKBONES:
        path = resolve_weights("torchvision", name).path
        if path is not None:
            yield path


def stage(folder: Path, names: Sequence[str], source: Path | None = None) -> Iterator[Path]:
    """Copy weights into a folder that compute nodes read, with their checksums.

    Parameters
    ----------
    folder : Path
        Made if it is not there. Its ``SHA256SUMS`` can be checked with ``sha256sum -c`` too.
    names : sequence of str
        Backbones; all by default.
    source : Path, optional
        A file to copy instead of torchvision's; then `names` is the one backbone it is for.

    Yields
    ------
    Path
        Each file, once it is there and its checksum is stated.

    Raises
    ------
    WeightsNotFoundError, ChecksumError
        As `fetch`.
    ConfigurationError
        If a file is given for none or several backbones.
    """
    if source is not None and len(names) != 1:
        raise ConfigurationError(
            f"{source} belongs to one backbone, not to {len(names)}", "Name the one that it is for"
        )
    if source is not None:
        _check_file(source, names[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"Cannot make {folder}: {error.strerror or error}") from error
    for name in names or BACKBONES:
        weights = resolve_weights(str(source) if source else "torchvision", name)
        if weights.path is None:
            raise ConfigurationError("Random weights need no staging")
        # A file is found by its backbone's name.
        own = weights.path.name
        target = folder / (own if own.startswith(name) else f"{name}-{own}")
        if weights.path != target.resolve():
            temporary = target.with_name(f".{target.name}.part")
            try:
                shutil.copyfile(weights.path, temporary)
                if file_sha256(temporary) != weights.identity:
                    raise ChecksumError(f"{target} did not arrive whole", "Stage it again")
                temporary.replace(target)
            except OSError as error:
                raise WeightsError(f"Cannot write {target}: {error.strerror or error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        sums = {**read_sums(folder), target.name: weights.identity}
        text = "".join(f"{digest}  {file}\n" for file, digest in sorted(sums.items()))
        write_bytes(folder / SUMS_FILE, text.encode())
        yield target


def _check_file(path: Path, name: str) -> None:
    """Refuse a file that a run would refuse later, on a machine where nobody looks."""
    if path.suffix not in (".safetensors", ".pth"):
        raise ConfigurationError(f"{path} is neither a .safetensors nor a .pth file")
    first = next(iter(known_backbone(name).taps))
    build_trunk(Weights(name, file_sha256(path), path), (first,))


@dataclass(frozen=True)
class Checked:
    """One file of weights: `fault` says what is wrong with it, None that nothing is."""

    path: Path
    fault: str | None


def verify(folder: Path | None = None) -> list[Checked]:
    """Check every weights file of a folder; or of torch's cache, and the models of fusionflow.

    Its SHA-256 must be what ``SHA256SUMS`` (or the file's name in the cache) states, and it must
    hold tensors.
    """
    if folder is None:
        return verify(MODELS) + [
            Checked(path, _fault(path, stated_digest(backbone.url)))
            for backbone in BACKBONES.values()
            if backbone.url and (path := cached_path(backbone.url)).is_file()
        ]
    sums = read_sums(folder)
    there = {path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".pth")}
    return [
        Checked(folder / name, _fault(folder / name, sums.get(name)))
        for name in sorted(there | set(sums))
    ]


def _fault(path: Path, digest: str | None) -> str | None:
    if digest is None:
        return f"{SUMS_FILE} does not name it: nothing says what it should be"
    try:
        if not file_sha256(path).startswith(digest):
            return f"its SHA-256 is not {digest[:12]}"
        read_tensors(path)
    except OSError as error:
        return error.strerror or str(error)
    except FusionflowError as error:
        return str(error)
    return None
