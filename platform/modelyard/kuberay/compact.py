# SPDX-License-Identifier: Apache-2.0
"""Makes ``rayservice.json`` out of KubeRay's CustomResourceDefinition: ``python -m modelyard.kuberay.compact CRD``.

Source: ``ray.io_rayservices.yaml`` of KubeRay v1.7.0 (59d663ae, Apache-2.0), ``versions[name=v1]``. What several places
have alike, a container for example, is written once, and what Kubernetes says in its own words becomes plain keywords.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

RELEASE: Final = "v1.7.0"
_SOURCE: Final = f"KubeRay {RELEASE}, helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml, v1; Apache-2.0"
_DROPPED: Final = frozenset(
    {"anyOf", "x-kubernetes-int-or-string", "x-kubernetes-map-type", "x-kubernetes-validations"}
)
_CHOICE: Final = re.compile(r"self in \[(.+)\]")
_MIN_SHARED_CHARACTERS: Final = 100


def compact(definition: Mapping[str, Any]) -> str:
    """The text of ``rayservice.json``: a line for each shared part.

    Args:
        definition: The CustomResourceDefinition.
    """
    (version,) = [item for item in definition["spec"]["versions"] if item["name"] == "v1"]
    schema = _to_plain(version["schema"]["openAPIV3Schema"])
    counts: Counter[str] = Counter()
    _count(schema, counts)
    found = [text for text, count in counts.items() if count > 1 and len(text) > _MIN_SHARED_CHARACTERS]
    names = {text: f"part{index}" for index, text in enumerate(found)}
    lines = [_line("source", _SOURCE), _line("schema", _share(schema, names))]
    lines += [_line(name, _share(json.loads(text), names, is_part=True)) for text, name in names.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _to_plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without Kubernetes' own keywords where plain ones say the same."""
    plain = {key: value for key, value in schema.items() if key not in _DROPPED}
    if schema.get("x-kubernetes-list-type") == "atomic":
        del plain["x-kubernetes-list-type"]
    if schema.get("x-kubernetes-int-or-string"):
        plain["type"] = "int-or-string"
    for rule in schema.get("x-kubernetes-validations", ()):
        choice = _CHOICE.fullmatch(rule["rule"])
        if choice:
            plain["enum"] = [item.strip(" '\"") for item in choice[1].split(",")]
        elif rule["rule"] != "self == oldSelf":  # about changes, and a file is none
            raise ValueError(f"expected a rule that is known, got {rule['rule']}")
    if "properties" in schema:
        plain["properties"] = {key: _to_plain(value) for key, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            plain[key] = _to_plain(schema[key])
    return plain


def _count(schema: Mapping[str, Any], counts: Counter[str]) -> None:
    text = _text(schema)
    counts[text] += 1
    if counts[text] == 1:  # what is inside a repeated part is not repeated by that
        for inner in _inner(schema):
            _count(inner, counts)


def _inner(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    single = [schema[key] for key in ("items", "additionalProperties") if key in schema]
    return [*schema.get("properties", {}).values(), *single]


def _share(schema: Mapping[str, Any], names: Mapping[str, str], *, is_part: bool = False) -> dict[str, Any]:
    name = names.get(_text(schema))
    if name is not None and not is_part:
        return {"$ref": name}
    shared = dict(schema)
    if "properties" in schema:
        shared["properties"] = {key: _share(value, names) for key, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            shared[key] = _share(schema[key], names)
    return shared


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _line(name: str, value: object) -> str:
    return f"{_text(name)}: {_text(value)}"


if __name__ == "__main__":
    target = Path(__file__).with_name("rayservice.json")
    target.write_text(compact(yaml.safe_load(Path(sys.argv[1]).read_text())))
