# SPDX-License-Identifier: Apache-2.0
"""The shape of a RayService, as a Kubernetes API server checks it with ``--validate=strict``.

An API server takes unknown keys away without a word unless it is asked not to; here they are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final

from modelyard.config.problems import join_path, nearest, shown
from modelyard.kuberay import metadata
from modelyard.kuberay.quantity import to_number

Schema = Mapping[str, Any]

_QUANTITY: Final = "[KMGTPE]i"
"""In the pattern of quantities, which lets some through that an API server refuses then."""
_INT32: Final = 2**31
_INT64: Final = 2**63
_REQUIRED: Final = ("apiVersion", "kind", "metadata", "spec")
"""An API server takes a RayService without a spec, and the operator refuses it."""
_LABEL_MAPS: Final = ("labels", "annotations", "nodeSelector")


@cache
def _parts() -> Mapping[str, Schema]:
    """What ``compact`` has written."""
    parts: dict[str, Any] = json.loads((files(__package__) / "rayservice.json").read_text(encoding="utf-8"))
    return parts


def check_shape(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with the shape of a RayService, one sentence for each problem, beginning with the key's path."""
    schema = _parts()["schema"]
    shape = {**schema, "required": _REQUIRED, "properties": {**schema["properties"], "metadata": metadata.SHAPE}}
    return tuple(_check(document, shape, ""))


def _check(value: object, schema: Schema, path: str) -> Iterator[str]:
    schema = _parts()[schema["$ref"]] if "$ref" in schema else schema
    if value is None and schema.get("nullable"):
        return
    words, is_right, check_inside = _TYPES[schema["type"]]
    if not is_right(value):
        yield f"{path}: expected {words}, got {shown(value, path)}"
    elif "enum" in schema and value not in schema["enum"]:
        yield f"{path}: expected one of {', '.join(schema['enum'])}, got {shown(value, path)}"
    else:
        yield from check_inside(value, schema, path)


def _check_mapping(value: Mapping[Any, Any], schema: Schema, path: str) -> Iterator[str]:
    fields: Mapping[str, Schema] = schema.get("properties", {})
    others: Schema | None = schema.get("additionalProperties")
    for key, item in value.items():
        where = join_path(path, str(key))
        if not isinstance(key, str):
            yield f"{where}: expected a text as the key, got {shown(key, '')}"
        elif key in fields:
            yield from _check(item, fields[key], where)
        elif others is not None:
            yield from _check(item, others, where)
        elif fields:
            yield f"{where}: unknown key{nearest(key, list(fields))}"
    for key in schema.get("required", ()):
        if key not in value and "default" not in fields[key]:
            yield f"{join_path(path, key)}: expected {_words(fields[key])}, got nothing"
    if path.rpartition(".")[2] in _LABEL_MAPS:
        yield from metadata.check_pairs(value, path)


def _check_list(value: Sequence[Any], schema: Schema, path: str) -> Iterator[str]:
    for index, item in enumerate(value):
        yield from _check(item, schema["items"], join_path(path, index))
    if "x-kubernetes-list-type" in schema:
        yield from _check_different(value, schema, path)


def _check_different(value: Sequence[Any], schema: Schema, path: str) -> Iterator[str]:
    keys: Sequence[str] = schema.get("x-kubernetes-list-map-keys", ())
    items = schema["items"]
    fields = (_parts()[items["$ref"]] if "$ref" in items else items).get("properties", {})
    seen: dict[str, int] = {}
    for index, item in enumerate(value):
        if keys and not isinstance(item, Mapping):
            continue
        named = {key: item.get(key, fields[key].get("default")) for key in keys} if keys else item
        first = seen.setdefault(json.dumps(named, default=str), index)
        if first != index:
            what = " and ".join(keys) or "values"
            yield f"{join_path(path, index)}: expected another {what} than in {join_path(path, first)}"


def _check_number(value: int, schema: Schema, path: str) -> Iterator[str]:
    limit = _INT32 if schema.get("format") == "int32" else _INT64
    low = max(schema.get("minimum", -limit), -limit)
    if not low <= value < limit:
        yield f"{path}: expected an integer from {low} to {limit - 1}, got {value}"


def _check_text(value: str, schema: Schema, path: str) -> Iterator[str]:
    if len(value) > schema.get("maxLength", len(value)):
        yield f"{path}: expected a text of at most {schema['maxLength']} characters, got {len(value)}"
    elif len(value) < schema.get("minLength", 0):
        yield f"{path}: expected a text that is not empty"
    elif "pattern" in schema and not _matches(schema["pattern"], value):
        yield f"{path}: expected {_words(schema)}, got {shown(value, path)}"
    elif schema.get("format") == "date-time" and not _is_time(value):
        yield f"{path}: expected a time as 2026-01-31T12:00:00Z, got {shown(value, path)}"


def _check_either(value: int | str, schema: Schema, path: str) -> Iterator[str]:
    if isinstance(value, str):
        yield from _check_text(value, schema, path)
    else:
        yield from _check_number(value, schema, path)


def _matches(pattern: str, value: str) -> bool:
    if _QUANTITY not in pattern:
        return re.search(pattern, value) is not None
    try:
        to_number(value)
    except ValueError:
        return False
    return True


def _is_time(value: str) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _words(schema: Schema) -> str:
    schema = _parts()[schema["$ref"]] if "$ref" in schema else schema
    if _QUANTITY in schema.get("pattern", ""):
        return "a quantity as 500m, 2 or 4Gi"
    return f"a text that matches {schema['pattern']}" if "pattern" in schema else _TYPES[schema["type"]][0]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_Check = Callable[[Any, Schema, str], Iterator[str]]
_TYPES: Final[Mapping[str, tuple[str, Callable[[object], bool], _Check]]] = {
    "object": ("a mapping", lambda value: isinstance(value, Mapping), _check_mapping),
    "array": ("a list", lambda value: isinstance(value, list), _check_list),
    "string": ("a text", lambda value: isinstance(value, str), _check_text),
    "integer": ("an integer", _is_integer, _check_number),
    "int-or-string": (
        "an integer or a text",
        lambda value: isinstance(value, str) or _is_integer(value),
        _check_either,
    ),
    "boolean": ("true or false", lambda value: isinstance(value, bool), lambda *_: iter(())),
}
"""Of each type its name in messages, how a value of it is known, and what is looked at inside one."""
