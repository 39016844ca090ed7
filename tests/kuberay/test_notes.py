# SPDX-License-Identifier: Apache-2.0
"""What docs/kuberay.md has people put into overlays of theirs does what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import kubernetes_validate
import pytest
import yaml
from rendering import ROOT, kustomize_own

PAGE = (ROOT / "docs" / "kuberay.md").read_text()
ROWS = re.findall(r"^\|.*\| `(modelyard-\w+)` \| `path: (\S+)`, `value: (.*?)`(?:;.*)? \|$", PAGE, re.MULTILINE)


def made(text: str) -> dict[str, Any]:
    items = yaml.safe_load_all(kustomize_own(f"namespace: modelyard\nresources: [../cpu]\n{text}"))
    return {item["metadata"]["name"]: item for item in items}


def test_every_way_is_in_the_table() -> None:
    assert [name for name, _, _ in ROWS] == ["modelyard-dns", "modelyard-dns", "modelyard-autoscaler"]


@pytest.mark.parametrize(("name", "path", "value"), ROWS, ids=["gke", "openshift", "port"])
def test_a_way_can_be_opened(name: str, path: str, value: str) -> None:
    operation = yaml.safe_dump([{"op": "add", "path": path, "value": yaml.safe_load(value)}])
    patch = {"target": {"kind": "NetworkPolicy", "name": name}, "patch": operation}
    policy = made(yaml.safe_dump({"patches": [patch]}))[name]
    kubernetes_validate.validate(policy, "1.37", strict=True)
    opened: Mapping[str, Any] = yaml.safe_load(value)
    assert opened in [*policy["spec"]["egress"], *policy["spec"]["egress"][0].get("to", ()), *ports(policy)]


def ports(policy: Mapping[str, Any]) -> list[Any]:
    return [port for rule in policy["spec"]["egress"] for port in rule.get("ports", ())]


def test_a_configmap_can_be_kept_from_being_pruned() -> None:
    found = re.findall(r"`(\S+\.io/[\w-]+): (\S+)`", PAGE.partition("\n## Upgrading\n")[2].partition("\n## ")[0])
    assert len(found) == 2
    generator = {"name": "modelyard-ray", "behavior": "merge", "options": {"annotations": dict(found)}}
    maps = [item for name, item in made(yaml.safe_dump({"configMapGenerator": [generator]})).items() if "-ray-" in name]
    (kept,) = [item["metadata"]["annotations"] for item in maps if item["kind"] == "ConfigMap"]
    assert kept.items() >= dict(found).items()
