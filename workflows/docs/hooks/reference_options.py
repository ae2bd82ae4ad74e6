"""Every option of the configuration, from the pydantic models and their docstrings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from reference_figures import table

from fusionflow.config import RunConfig
from fusionflow.train_config import TrainConfig

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {}",
}
_PATTERNED = "of a certain form: a wrong one is refused with a message"


def configuration() -> str:
    """Return a table for each part of a run's configuration."""
    return _tables(RunConfig)


def training() -> str:
    """Return a table for each part of a training's configuration."""
    return _tables(TrainConfig)


def documented(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and its bases say of each attribute.

    Raises
    ------
    ValueError
        If they leave out an option.
    """
    said: dict[str, str] = {}
    for base in reversed(model.__mro__):
        text = inspect.getdoc(base) if "__doc__" in vars(base) else None
        _, _, attributes = (text or "").partition("Attributes\n----------\n")
        for names, lines in re.findall(r"^(\S[^:\n]*?)(?: :[^\n]*)?\n((?:    .*\n?|\n(?=    ))+)",
                                       attributes, re.MULTILINE):  # fmt: skip
            said |= dict.fromkeys(names.split(", "), " ".join(lines.split()))
    if missing := [name for name in model.model_fields if name not in said and name != "kind"]:
        raise ValueError(f"the docstring of {model.__name__} leaves out {', '.join(missing)}")
    return said


def _models(schema: Mapping[str, Any], top: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield models in the order in which a reader meets them."""
    known: dict[str, type[BaseModel]] = {}
    left = [top]
    while left:  # models hold models, also within unions and mappings
        model = left.pop()
        known[model.__name__] = model
        for field in model.model_fields.values():
            left += [found for found in _within(field.annotation) if found.__name__ not in known]
    order = [top.__name__]
    for name in order:
        content = schema if name == top.__name__ else schema["$defs"][name]
        text = json.dumps(content.get("properties", {}))
        order += [n for n in re.findall(r'"#/\$defs/(\w+)"', text) if n not in order]
    return (known[name] for name in dict.fromkeys(order))


def _within(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _within(part)


def _tables(top: type[BaseModel]) -> str:
    schema = top.model_json_schema()
    parts = []
    for model in _models(schema, top):
        name = model.__name__
        content = schema if model is top else schema["$defs"][name]
        summary = (inspect.getdoc(model) or "").split("\n\n")[0]
        parts += [f"### {name}", " ".join(summary.split()), _table(model, content)]
    return "\n\n".join(parts)


def _table(model: type[BaseModel], schema: Mapping[str, Any]) -> str:
    said = documented(model) | {"kind": "Which of several kinds this is."}
    own = documented(model)
    rows = []
    for name, content in schema["properties"].items():
        bounds = list(dict.fromkeys(_bounds(content)))
        what = own.get(name, said[name] if name == "kind" else "")
        default = _default(content, required=name in schema.get("required", ()))
        rows.append((f"`{name}`", _type(content), default, "; ".join(bounds), what))
    return table(("option", "type", "default", "constraints", "what it is"), rows)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_type(part) for part in schema[union]))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "list of " + ", ".join(_type(part) for part in schema["prefixItems"])
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object":
        return f"mapping of names to {_type(schema.get('additionalProperties') or {})}"
    if schema.get("format") == "path":
        return "path"
    words = {"null": "`null`", "boolean": "true or false", "integer": "whole number"}
    kind = schema.get("type", "anything")
    return words.get(kind, {"string": "text"}.get(kind, kind))


def _bounds(schema: object) -> Iterator[str]:
    if not isinstance(schema, Mapping):
        return
    for key, words in _BOUNDS.items():
        if key in schema:
            yield words.format(schema[key])
    if "pattern" in schema:
        yield _PATTERNED
    for union in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(union, ()):
            yield from _bounds(part)
    if "prefixItems" not in schema:
        yield from _bounds(schema.get("items"))


def _default(schema: Mapping[str, Any], *, required: bool) -> str:
    if required or "default" not in schema:
        return "must be given"
    value = schema["default"]
    if isinstance(value, dict):
        return f"`{value['name']}`" if "rule" in value else "as below"
    return f"`{json.dumps(value)}`"
