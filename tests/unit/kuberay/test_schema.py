# SPDX-License-Identifier: Apache-2.0
"""The shape of a RayService: what an API server refuses with strict validation, and what it takes away silently."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from modelyard.kuberay import check_rules, check_shape, metadata
from modelyard.kuberay.compact import compact

PARTS: dict[str, Any] = json.loads((files("modelyard.kuberay") / "rayservice.json").read_text())
OPEN = ("labels", "annotations", "rayStartParams", "resources", "requests", "limits", "matchLabels", "nodeSelector")
"""Mappings whose keys are anybody's."""
Keys = tuple[str | int, ...]


def paths_of(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """Of every key and item inside, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths_of(item, (*path, key))


def parent_of(document: Any, path: Keys) -> Any:
    for key in path[:-1]:
        document = document[key]
    return document


def is_open(service: dict[str, Any], path: Keys) -> bool:
    # A container's `resources` has keys of its own, a group's has not.
    return path[-2] in OPEN and not (path[-2] == "resources" and path[-1] in ("requests", "limits", "claims"))


def test_what_is_made_is_accepted(service: dict[str, Any]) -> None:
    assert check_shape(service) == ()


def test_every_key_that_is_renamed_is_refused(service: dict[str, Any]) -> None:
    paths = [path for path in paths_of(service) if isinstance(path[-1], str)]
    renamed = 0
    for path in paths:
        if len(path) > 1 and is_open(service, path):
            continue
        broken = copy.deepcopy(service)
        owner, key = parent_of(broken, path), str(path[-1])
        owner[f"{key}x"] = owner.pop(key)
        assert any(f'x: unknown key; did you mean "{key}"?' in text for text in check_shape(broken)), path
        renamed += 1
    assert renamed > 100


WRONG = (None, True, -1, 2**40, 1.5, "x", [1], {}, {"x": 1})


def to_json_schema(schema: Any) -> Any:
    """What `rayservice.json` says, for a library that knows nothing of Kubernetes."""
    if "$ref" in schema:
        return {"$ref": f"#/$defs/{schema['$ref']}"}
    plain = {
        key: value for key, value in schema.items() if not key.startswith("x-") and key not in ("default", "format")
    }
    if plain["type"] == "int-or-string":
        plain["type"] = ["integer", "string"]
    if schema.get("format") in ("int32", "int64"):
        limit = 2**31 if schema["format"] == "int32" else 2**63
        plain |= {"minimum": max(plain.get("minimum", -limit), -limit), "maximum": limit - 1}
    elif plain["type"] == "integer" or isinstance(plain["type"], list):
        plain |= {"minimum": -(2**63), "maximum": 2**63 - 1}
    if "properties" in schema:
        plain["properties"] = {key: to_json_schema(value) for key, value in schema["properties"].items()}
        plain["additionalProperties"] = False
        defaults = [key for key, value in schema["properties"].items() if "default" in value]
        plain["required"] = [key for key in schema.get("required", ()) if key not in defaults]
    for key in ("items", "additionalProperties"):
        if key in schema:
            plain[key] = to_json_schema(schema[key])
    return plain


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    defs = {name: to_json_schema(part) for name, part in PARTS.items() if name not in ("source", "schema")}
    root = to_json_schema(PARTS["schema"])
    root["properties"]["metadata"] = to_json_schema(metadata.SHAPE)
    root["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return Draft202012Validator({**root, "$defs": defs})


@pytest.mark.parametrize("overlay", ["ha"], indirect=True)
def test_wrong_values_are_refused_as_a_json_schema_library_refuses_them(
    service: dict[str, Any], validator: Draft202012Validator
) -> None:
    assert validator.is_valid(service)
    for path in list(paths_of(service)):
        owner, key = parent_of(service, path), path[-1]
        before = owner[key]
        for owner[key] in WRONG:
            problems = check_shape(service)
            if not validator.is_valid(service):
                assert problems, (path, owner[key])
            else:  # what the library cannot know; the rules stand whatever has this shape
                check_rules(service)
                assert all("another" in text or "labels" in text for text in problems), (path, owner[key], problems)
        owner[key] = before


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("metadata",), {}, "metadata.name: expected a text, got nothing"),
        (("metadata", "annotations"), {"a": 3}, "metadata.annotations.a: expected a text, got 3"),
        (("metadata", "labels"), {"a b": "c"}, "metadata.labels.a b: expected a key as example.com/name"),
        (("metadata", "labels"), {"a": "b c"}, "metadata.labels.a: expected a text of at most 63 letters"),
        (("spec", "managedBy"), "me", "expected one of ray.io/kuberay-operator, kueue.x-k8s.io/multikueue, got"),
        (("spec", "rayClusterDeletionDelaySeconds"), -1, "expected an integer from 0 to 2147483647, got -1"),
        (("spec", "rayClusterConfig"), None, "spec.rayClusterConfig: expected a mapping, got nothing (null)"),
        (("spec", "rayClusterConfig"), {}, "spec.rayClusterConfig.headGroupSpec: expected a mapping, got nothing"),
        (("spec", "serveConfigV3"), "", 'spec.serveConfigV3: unknown key; did you mean "serveConfigV2"?'),
    ],
)  # fmt: skip
def test_a_problem_says_where_what_is_expected_and_what_there_is(path: Keys, value: Any, problem: str) -> None:
    service = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}}
    service["spec"] = {"rayClusterConfig": {"headGroupSpec": {"template": {}}}}
    parent_of(service, path)[path[-1]] = value
    (found,) = check_shape(service)
    assert problem in found


@pytest.mark.parametrize(
    ("key", "items", "problem"),
    [
        ("env", [{"name": "A"}, {"name": "B"}, {"name": "A"}], "env[2]: expected another name than in "),
        ("ports", [{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}], "another containerPort and"),
    ],
)  # fmt: skip
def test_two_of_one_name_are_refused(service: dict[str, Any], key: str, items: list[Any], problem: str) -> None:
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head[key] = items
    (found,) = check_shape(service)
    assert problem in found


@pytest.mark.parametrize(
    ("quantity", "is_one"),
    [("500m", True), ("4Gi", True), (2, True), ("1e3", True), ("4 Gi", False), ("4Gi\n", False), ("1e1.5", False)],
)
def test_amounts_are_quantities(service: dict[str, Any], quantity: Any, is_one: bool) -> None:
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["resources"] = {"requests": {"memory": quantity}}
    assert (check_shape(service) == ()) is is_one


def test_the_schema_is_made_from_kuberay_s_definition() -> None:
    (path,) = (Path(__file__).parents[2] / "kuberay" / "crds").glob("rayservice-crd.yaml")
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)  # a megabyte, and SafeLoader takes ten times as long
    assert compact(definition) == (files("modelyard.kuberay") / "rayservice.json").read_text()


def test_a_definition_becomes_short_and_says_the_same() -> None:
    quantity = {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "x-kubernetes-int-or-string": True,
        "pattern": "x" * 90,
    }
    choice = {
        "type": "string",
        "x-kubernetes-validations": [{"rule": "self in ['a', 'b']"}, {"rule": "self == oldSelf"}],
    }
    schema = {"type": "object", "properties": {"one": quantity, "two": quantity, "three": choice}}
    found = json.loads(compact({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}))
    properties = found["schema"]["properties"]
    assert properties["one"] == properties["two"] == {"$ref": "part0"}
    assert found["part0"] == {"type": "int-or-string", "pattern": "x" * 90}
    assert properties["three"] == {"type": "string", "enum": ["a", "b"]}


def test_a_rule_that_nobody_knows_is_not_lost() -> None:
    schema = {"type": "object", "x-kubernetes-validations": [{"rule": "self.a > self.b"}]}
    with pytest.raises(ValueError, match=r"self.a > self.b"):
        compact({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}})
