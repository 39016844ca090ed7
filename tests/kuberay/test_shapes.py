# SPDX-License-Identifier: Apache-2.0
"""Every object of every overlay is of a shape that an API server takes as it is, and no key of it could be misspelt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import crd
import kubernetes_validate
import others
import pytest
from renaming import renamed
from rendering import FOLDERS, documents, find

# The oldest and the newest that KubeRay 1.7.0 is tested with, as far as there are schemas.
VERSIONS = ("1.29", "1.37")


def check_builtin(document: Mapping[str, Any]) -> list[str]:
    try:
        for version in VERSIONS:
            kubernetes_validate.validate(dict(document), version, strict=True)
    except (KeyError, kubernetes_validate.SchemaNotFoundError, kubernetes_validate.ValidationError) as exc:
        return [str(exc)]
    return []


def checker(document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], list[str]]:
    if document["kind"] == "RayService":
        return crd.check
    return others.check if document["kind"] in others.KINDS else check_builtin


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_is_valid(folder: str) -> None:
    found = {f"{item['kind']} {item['metadata']['name']}": checker(item)(item) for item in documents(folder)}
    assert found
    assert {name: problems for name, problems in found.items() if problems} == {}


def test_a_misspelt_key_is_refused_wherever_it_is() -> None:
    # Most objects are the same in several overlays.
    different = {json.dumps(item, sort_keys=True): item for folder in FOLDERS for item in documents(folder)}
    accepted = []
    for document in different.values():
        check = checker(document)
        changes = list(renamed(document))
        assert len(changes) > 3
        accepted += [f"{document['kind']} {path}" for path, changed in changes if not check(changed)]
    assert accepted == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_objects_have_different_names_and_one_namespace(folder: str) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in documents(folder)]
    assert len(set(names)) == len(names)
    assert {item["metadata"]["namespace"] for item in documents(folder)} == {"modelyard"}


def spec(path: str, value: object) -> dict[str, Any]:
    """The service of `gpu` with another value at a path, as ``a.0.b``."""
    service = find("overlays/gpu", "RayService")
    *parents, last = path.split(".")
    inside: Any = service
    for key in parents:
        inside = inside[int(key) if key.isdigit() else key]
    inside[int(last) if last.isdigit() else last] = value
    return service


HEAD = "spec.rayClusterConfig.headGroupSpec"
POD = f"{HEAD}.template.spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "ray.io/v1alpha1"),
        ("kind", "RayServices"),
        ("spec", None),
        ("metadata.name", "Modelyard"),
        ("metadata.name", "m" * 48),
        ("metadata.label", {}),
        ("metadata.labels", {"a/b/c": "x"}),
        ("metadata.labels", {"a": "-x"}),
        ("metadata.annotations", {"a": 1}),
        ("spec.serveConfig", ""),
        ("spec.serveConfigV2", {"applications": []}),
        ("spec.rayClusterDeletionDelaySeconds", -1),
        ("spec.rayClusterDeletionDelaySeconds", 2**31),
        ("spec.managedBy", "somebody"),
        ("spec.upgradeStrategy", None),
        ("spec.excludeHeadPodFromServeSvc", "true"),
        ("spec.rayClusterConfig.managedBy", "somebody"),
        ("spec.rayClusterConfig.authOptions.mode", "tokens"),
        ("spec.rayClusterConfig.autoscalerOptions.version", "v3"),
        ("spec.rayClusterConfig.autoscalerOptions.upscalingMode", "default"),
        ("spec.rayClusterConfig.gcsFaultToleranceOptions", {"backend": "etcd"}),
        (f"{HEAD}.rayStartParams", {"num-cpus": 0}),
        (f"{HEAD}.template.metadata.labels", {"a": "b c"}),
        (f"{POD}.containers.0.imagePullPolcy", "Always"),
        (f"{POD}.containers.0.resources.limits.memory", "6 GB"),
        (f"{POD}.containers.0.resources.limits.memory", True),
        (f"{POD}.containers.0.ports.1", {"name": "twice", "containerPort": 6379, "protocol": "TCP"}),
        (f"{POD}.containers.0.ports.1.containerPort", "8265"),
        (f"{POD}.containers.0.env", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        (f"{POD}.containers.0.env", [{"name": "A", "value": 1}]),
        (f"{POD}.volumes.1.name", "tmp"),
        (f"{POD}.terminationGracePeriodSeconds", 2**63),
        (f"{POD}.terminationGracePeriodSeconds", "120"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", 2**31),
        ("spec.rayClusterConfig.workerGroupSpecs.0.groupNames", "x"),
    ],
)
def test_what_an_api_server_refuses_is_refused(path: str, value: object) -> None:
    assert crd.check(spec(path, value))


def test_defaults_of_the_definition_count_as_given() -> None:
    service = find("overlays/cpu", "RayService")
    for key in ("minReplicas", "maxReplicas", "replicas"):
        del service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0][key]
    assert crd.check(service) == []


def test_the_definition_is_the_one_that_its_note_tells() -> None:
    note = (crd.DEFINITION.parent / "SOURCE.txt").read_text()
    assert hashlib.sha256(crd.DEFINITION.read_bytes()).hexdigest() in note
