"""What other packages add by entry points: backbones, rules, masks, and whole methods.

A package that has, in its ``pyproject.toml``::

    [project.entry-points."fusionflow.rules"]
    my-rule = "my_package:MY_RULE"

    [project.entry-points."fusionflow.methods"]
    dwt-mine = "my_package:DWT_MINE"

adds a rule that a method can name, and a method that a person can (``fusionflow run --method
dwt-mine``). The package must be installed, in the same version, wherever tasks run. Its version
is part of what a scan was made with: raise it whenever the same options give other voxels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import TypeVar

from fusionflow.errors import ConfigurationError, PlacementError

T = TypeVar("T")

#: Entry points that this process found, by where it looked: a look takes 12 ms, a slab several.
_found: dict[tuple[str, ...], EntryPoint] = {}


@dataclass(frozen=True)
class Plugin:
    """A part of a run that comes from another package.

    Attributes
    ----------
    group : str
        The group of its entry point, such as ``fusionflow.rules``.
    name : str
        What it is called there.
    package, version : str
        Of the distribution that offers it.
    """

    group: str
    name: str
    package: str
    version: str

    def __str__(self) -> str:
        """Return what decides bits: the part, and whose it is."""
        return f"{self.group} {self.name}: {self.package} {self.version}"


def plugin(group: str, name: str, kind: type[T]) -> T | None:
    """Return what a package offers under `name`, or None if no package does.

    Parameters
    ----------
    group : str
        ``fusionflow.backbones``, ``fusionflow.rules``, ``fusionflow.masks`` or
        ``fusionflow.methods``.
    name : str
        Name of the entry point; what it leads to has the same ``name``.
    kind : type
        What it must be.

    Raises
    ------
    ConfigurationError
        If it cannot be imported, is something else, calls itself otherwise, or two packages
        offer it.
    """
    place = (group, name, *sys.path)
    found = _found.get(place) or _entry_point(group, name)
    if found is None:
        return None
    _found[place] = found
    what = f"{name!r} of {group}, from {_package(found)},"
    try:
        thing = found.load()
    except Exception as error:
        raise ConfigurationError(f"{what} cannot be imported: {error!r}") from error
    if not isinstance(thing, kind):
        raise ConfigurationError(
            f"{what} is a {type(thing).__name__}", f"It must be a {kind.__name__}"
        )
    if getattr(thing, "name", None) != name:
        raise ConfigurationError(
            f"{what} calls itself {getattr(thing, 'name', None)!r}",
            "Give it the name of its entry point",
        )
    return thing


def plugin_names(group: str) -> list[str]:
    """Return the names that installed packages offer in `group`, sorted."""
    return sorted({item.name for item in entry_points(group=group)})


def provider(group: str, name: str) -> Plugin | None:
    """Return which package offers `name`, without importing it; None if none does.

    Raises
    ------
    ConfigurationError
        If two do.
    """
    found = _entry_point(group, name)
    if found is None or found.dist is None:
        return None
    return Plugin(group, name, found.dist.name, found.dist.version)


def installed_versions(plugins: Sequence[Plugin]) -> dict[str, str]:
    """Return package -> version here, "" where it is not installed."""
    return {item.package: _installed(item.package) for item in plugins}


@lru_cache  # a process keeps what it imported, whatever is installed later
def require(plugins: tuple[Plugin, ...]) -> None:
    """Refuse to work beside another version of a package than a run was planned with.

    Raises
    ------
    PlacementError
        If it is missing, or has another version.
    """
    here = installed_versions(plugins)
    for item in plugins:
        if here[item.package] != item.version:
            raise PlacementError(
                f"This worker has {item.package} {here[item.package] or '(not installed)'}, but "
                f"the run needs {item.package} {item.version} for {item.name}",
                "Install the same version of it on every worker",
            )


def _entry_point(group: str, name: str) -> EntryPoint | None:
    found = list(entry_points(group=group, name=name))
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise ConfigurationError(f"{name!r} of {group} is offered by {packages}", "Uninstall one")
    return found[0] if found else None


def _package(item: EntryPoint) -> str:
    return item.dist.name if item.dist else "?"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
