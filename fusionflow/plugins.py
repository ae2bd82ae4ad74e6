"""What other packages add: backbones and rules, by entry points.

A package that has, in its ``pyproject.toml``::

    [project.entry-points."fusionflow.rules"]
    my-rule = "my_package:MY_RULE"

adds a rule that a method can name. The package must be installed wherever tasks run.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from fusionflow.errors import ConfigurationError

T = TypeVar("T")


def plugin(group: str, name: str, kind: type[T]) -> T | None:
    """Return what a package offers under `name`, or None if no package does.

    Parameters
    ----------
    group : str
        ``fusionflow.backbones`` or ``fusionflow.rules``.
    name : str
        Name of the entry point.
    kind : type
        What it must be.

    Raises
    ------
    ConfigurationError
        If it cannot be imported, is something else, or two packages offer it.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    packages = ", ".join(sorted(str(item.dist.name) if item.dist else "?" for item in found))
    if len(found) > 1:
        raise ConfigurationError(f"{name!r} of {group} is offered by {packages}", "Uninstall one")
    try:
        thing = found[0].load()
    except Exception as error:
        raise ConfigurationError(
            f"{name!r} of {group}, from {packages}, cannot be imported: {error!r}"
        ) from error
    if not isinstance(thing, kind):
        raise ConfigurationError(
            f"{name!r} of {group}, from {packages}, is a {type(thing).__name__}",
            f"It must be a {kind.__name__}",
        )
    return thing


def plugin_names(group: str) -> list[str]:
    """Return the names that installed packages offer in `group`, sorted."""
    return sorted({item.name for item in entry_points(group=group)})
