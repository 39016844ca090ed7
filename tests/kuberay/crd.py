# SPDX-License-Identifier: Apache-2.0
"""What an API server would say about a RayService with ``--validate=strict``, out of KubeRay's own definition.

Its ``openAPIV3Schema`` alone takes any misspelt key. So here: the schema as strict JSON Schema, the document with
defaults, and then what Kubernetes says in keywords of its own: ranges, lists that are maps or sets, rules in CEL, and
``metadata``, which every API server knows without a definition. Stricter than an API server in what it reads over: a
null, no spec, no name.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]

DEFINITION = Path(__file__).parent / "crds" / "rayservice-crd.yaml"
_MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_RULES: Mapping[str, tuple[str, ...]] = {
    f"self in ['{_MANAGERS[0]}', '{_MANAGERS[1]}']": _MANAGERS,
    "self == oldSelf": (),  # of changes; one document has none
}
"""The rules in CEL that are known, and the values that they allow. A new one fails here, and has to be read."""
_RANGES = {"int32": 2**31, "int64": 2**63}
_METADATA = {"name", "namespace", "labels", "annotations", "finalizers", "generateName", "ownerReferences"}
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_OBJECT_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = 47
"""KubeRay's: the names of a RayService's clusters are longer."""


@cache
def schema() -> Schema:
    """Of ``ray.io/v1``, as KubeRay has it."""
    definition = yaml.load(DEFINITION.read_text(), Loader=yaml.CSafeLoader)
    (version,) = [item for item in definition["spec"]["versions"] if item["name"] == "v1"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


@cache
def _validator() -> Draft202012Validator:
    strict = _strict(schema())
    Draft202012Validator.check_schema(strict)
    return Draft202012Validator(strict)


def check(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with it: a line for each problem, beginning with the path."""
    document = copy.deepcopy(dict(document))
    problems = [*_check_frame(document), *_nulls(document, "")]
    if problems:
        return problems
    _add_defaults(document, schema())
    problems += [f"{error.json_path}: {error.message}" for error in _validator().iter_errors(document)]
    return problems or [*_walk(document, schema(), "$"), *_check_metadata(document)]


def _check_frame(document: Mapping[str, Any]) -> Iterator[str]:
    if document.get("apiVersion") != "ray.io/v1" or document.get("kind") != "RayService":
        yield "$: expected a RayService of ray.io/v1"
    if not isinstance(document.get("spec"), dict):
        yield "$.spec: expected a mapping"  # an API server takes it without
    if not isinstance(document.get("metadata"), dict):
        yield "$.metadata: expected a mapping"


def _nulls(value: object, path: str) -> Iterator[str]:
    """An API server drops most of them; in what somebody writes, each is a mistake."""
    if value is None:
        yield f"${path}: expected a value, got null"
    for key, item in _items(value):
        yield from _nulls(item, f"{path}.{key}")


def _items(value: object) -> Iterator[tuple[object, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _strict(node: Schema) -> dict[str, Any]:
    dropped = ("default", "nullable", "properties", "items", "additionalProperties")
    strict = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-") and key not in dropped}
    if node.get("x-kubernetes-int-or-string"):
        del strict["anyOf"]
        strict["type"] = ["integer", "string"]
    if "properties" in node:
        strict["properties"] = {key: _strict(value) for key, value in node["properties"].items()}
        strict["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            strict[key] = _strict(node[key])
    return strict


def _add_defaults(value: Any, node: Schema) -> None:
    if isinstance(value, dict):
        for key, inner in node.get("properties", {}).items():
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
    for key, item in _items(value):
        inner = _inner(node, key)
        if inner is not None:
            _add_defaults(item, inner)


def _inner(node: Schema, key: object) -> Schema | None:
    if key in node.get("properties", {}):
        found: Schema = node["properties"][key]
        return found
    return node.get("items") or node.get("additionalProperties")


def _walk(value: Any, node: Schema, path: str) -> Iterator[str]:
    limit = _RANGES.get(node.get("format", ""))
    if limit is not None and isinstance(value, int) and not -limit <= value < limit:
        yield f"{path}: expected {node['format']}, got {value}"
    for rule in node.get("x-kubernetes-validations", ()):
        allowed = _RULES[rule["rule"]]
        if allowed and value not in allowed:
            yield f"{path}: expected one of {allowed}, got {value!r}"
    if node.get("x-kubernetes-list-type") in ("map", "set"):
        yield from _check_different(value, node, path)
    for key, item in _items(value):
        inner = _inner(node, key)
        if inner is not None:
            yield from _walk(item, inner, f"{path}.{key}")


def _check_different(value: list[Any], node: Schema, path: str) -> Iterator[str]:
    keys = node.get("x-kubernetes-list-map-keys")
    names = [json.dumps([item.get(key) for key in keys] if keys else item) for item in value]
    yield from (f"{path}: {name} is there twice" for name in sorted(set(names)) if names.count(name) > 1)


def _check_metadata(document: Mapping[str, Any]) -> Iterator[str]:
    metadata = document["metadata"]
    yield from (f"$.metadata.{key}: unknown" for key in metadata.keys() - _METADATA)
    name = metadata.get("name")
    if not isinstance(name, str) or not _OBJECT_NAME.fullmatch(name) or len(name) > _MAX_NAME:
        yield f"$.metadata.name: expected at most {_MAX_NAME} characters of a DNS label, got {name!r}"
    for path, found in _all_metadata(document, "$"):
        yield from _check_pairs(found.get("labels", {}), f"{path}.labels", is_label=True)
        yield from _check_pairs(found.get("annotations", {}), f"{path}.annotations", is_label=False)


def _all_metadata(value: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, item in _items(value):
        if key == "metadata" and isinstance(item, dict):
            yield f"{path}.metadata", item
        yield from _all_metadata(item, f"{path}.{key}")


def _check_pairs(pairs: Any, path: str, *, is_label: bool) -> Iterator[str]:
    if not isinstance(pairs, dict):
        yield f"{path}: expected a mapping"
        return
    for key, value in pairs.items():
        prefix, slash, name = key.rpartition("/")
        if not _NAME.fullmatch(name) or (slash and not _PREFIX.fullmatch(prefix)):
            yield f"{path}.{key}: no valid key"
        if not isinstance(value, str) or (is_label and value and not _NAME.fullmatch(value)):
            yield f"{path}.{key}: no valid value: {value!r}"
