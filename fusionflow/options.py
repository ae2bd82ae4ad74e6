"""Options that a person writes: models without room for misspelt names, and YAML they come from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fusionflow.errors import ConfigurationError
from fusionflow.untrusted import one_line, read_bounded

__all__ = ["Options", "explained", "read_options"]

#: What pydantic adds to the place of an error in a transform.
_KINDS = ("wavelet", "laplacian")
_MOST_BYTES = 1 << 16
_MOST_FAULTS = 10


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without aliases and names that are given twice.

    A few lines of aliases of aliases stand for more than fits in memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"*{event.anchor}: write it out, aliases are not read")
        return super().compose_node(parent, index)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    if twice := sorted(name for name, times in names.items() if times > 1):
        raise yaml.YAMLError(f"{', '.join(twice)} is given twice{node.start_mark}")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class Options(BaseModel):
    """Frozen, and without room for misspelt names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def canonical(self) -> str:
        """Return the options as JSON that is the same for the same options."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def read_options(path: Path) -> dict[str, Any]:
    """Return what a YAML file of options holds.

    Raises
    ------
    ConfigurationError
        If it cannot be read, or is no YAML of options.
    """
    try:
        text = read_bounded(path, _MOST_BYTES, pipes=True).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read the configuration {path}: {error}") from error
    try:
        content = yaml.load(text, Loader=_Loader)
    except Exception as error:  # a date that does not exist, `!!int x`: each fails in its own way
        raise ConfigurationError(
            f"{path} is not valid YAML: {one_line(error) or type(error).__name__}"
        ) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} holds a {type(content).__name__}, not options", "Write `option: value` lines"
        )
    return content


def explained(error: ValidationError) -> str:
    """Return what is wrong with options, each by its place."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'] if part not in _KINDS)}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False)
    ]
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return "; ".join(one_line(fault, 300) for fault in faults[:_MOST_FAULTS]) + more
