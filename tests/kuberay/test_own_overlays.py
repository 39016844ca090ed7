# SPDX-License-Identifier: Apache-2.0
"""Overlays that users make: rendering reads of them what Kustomize does, and refuses what it does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendering import KUBERAY, kustomize_folder

from modelyard.errors import InvalidConfig
from modelyard.kuberay import Choices, Rendered, overlays, render

Make = Callable[..., Path]

MERGE = """
apiVersion: ray.io/v1
kind: RayService
metadata: {name: modelyard, annotations: {team: vision}}
spec:
  upgradeStrategy: null
  rayClusterConfig: {autoscalerOptions: {idleTimeoutSeconds: 30}, headGroupSpec: {serviceType: ClusterIP}}
"""
FILES = {"merge.yaml": MERGE}
PATCH = "/spec/rayClusterConfig/headGroupSpec"
READ = {
    "digest": "resources: [../cpu]\nimages: [{name: modelyard, newName: r.io:5000/m, digest: 'sha256:0a'}]",
    "tag": "resources: [../gpu]\nimages: [{name: modelyard-gpu, newTag: '2'}]",
    "another's image": "resources: [../cpu]\nimages: [{name: nginx, newTag: '2'}]",
    "operations": f"""
resources: [../cpu]
patches:
  - target: {{kind: Ray.*, name: modelyard, group: ray.io, version: v1}}
    patch: |-
      - {{op: add, path: /metadata/annotations, value: {{ray.io/a: "1"}}}}
      - {{op: replace, path: /metadata/annotations/ray.io~1a, value: "2"}}
      - {{op: add, path: {PATCH}/template/spec/containers/0/ports/0, value: {{name: own, containerPort: 1}}}}
      - {{op: remove, path: {PATCH}/template/spec/containers/0/ports/4}}
      - {{op: replace, path: {PATCH}/template/spec/containers/0/ports/1/name, value: gcs}}
""",
    "a merge patch in a file": "resources: [../cpu]\npatches: [{path: merge.yaml}]",
    "a merge patch with a target": "resources: [../cpu]\npatches: [{path: merge.yaml, target: {kind: RayService}}]",
    "a patch for something else": "resources: [../cpu]\npatches: [{path: merge.yaml, target: {kind: Service}}]",
    "labels as targets": """
resources: [../gpu]
patches:
  - target: {labelSelector: modelyard-added-group=gpu}
    patch: |-
      - {op: replace, path: /spec/rayClusterConfig/workerGroupSpecs/1/maxReplicas, value: 9}
  - target: {labelSelector: modelyard-added-group=llm}
    patch: |-
      - {op: replace, path: /spec/rayClusterConfig/workerGroupSpecs/1/maxReplicas, value: 8}
""",
    "components": "resources: [../llm]\ncomponents: [../../components/object-store, ../../components/fault-tolerance]",
    "a configmap with its own name": """
resources: [../cpu]
configMapGenerator: [{name: mine, literals: [A=1], options: {disableNameSuffixHash: true}}]
patches:
  - target: {kind: RayService}
    patch: |-
      - op: add
        path: /spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/envFrom/-
        value: {configMapRef: {name: mine}}
""",
}


def rendered() -> Rendered:
    document = yaml.safe_load((KUBERAY / "base" / "platform.yaml").read_text())
    return render(document, Choices(overlay="mine"))


def kustomized(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(kustomize_folder(folder)) if item["kind"] == kind]


@pytest.mark.parametrize("text", READ.values(), ids=READ)
def test_what_is_read_is_what_kustomize_makes(make_overlay: Make, text: str) -> None:
    folder = make_overlay(text, FILES)
    (made,) = kustomized(folder, "RayService")
    made["metadata"].pop("namespace", None)
    made["spec"]["serveConfigV2"] = ""
    for group in overlays.groups_of(made):
        for source in group["template"]["spec"]["containers"][0]["envFrom"]:
            if source.get("configMapRef", {}).get("name", "").startswith("modelyard-ray-"):
                source["configMapRef"]["name"] = "modelyard-ray"  # its name without the hash
    assert overlays.load_service("mine") == made


@pytest.mark.parametrize(
    "generator",
    [
        "{behavior: merge, envs: [own.env], literals: [C=\"3\", RAY_USAGE_STATS_ENABLED=1]}",
        "{behavior: replace, literals: [A=b=c]}",
    ],
)  # fmt: skip
def test_variables_are_those_of_the_configmap(make_overlay: Make, generator: str) -> None:
    text = f"resources: [../llm]\nconfigMapGenerator: [{{name: modelyard-ray, {generator[1:]}]"
    folder = make_overlay(text, {"own.env": "# what is mine\n\nA=1\nB=\"2\"\n"})  # fmt: skip
    found = kustomized(folder, "ConfigMap")
    (made,) = [item["data"] for item in found if item["metadata"]["name"].startswith("modelyard-ray-")]
    assert overlays.load_overlay("mine").environment == made


def test_the_image_of_the_overlay_is_that_of_the_pods(make_overlay: Make) -> None:
    make_overlay(READ["digest"])
    containers = [
        group["template"]["spec"]["containers"][0] for group in overlays.groups_of(dict(rendered().service))
    ]  # fmt: skip
    assert {container["image"] for container in containers} == {"r.io:5000/m@sha256:0a"}


def test_a_configmap_of_one_s_own_stays(make_overlay: Make) -> None:
    make_overlay(READ["a configmap with its own name"])
    head = rendered().service["spec"]["rayClusterConfig"]["headGroupSpec"]
    assert head["template"]["spec"]["containers"][0]["envFrom"] == [{"configMapRef": {"name": "mine"}}]


def patches(text: str) -> str:
    return f"resources: [../cpu]\npatches: [{{target: {{kind: RayService}}, patch: '{text}'}}]"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "resources: [../cpu]\nimages:\nnamePrefix: a-",
            "mine/kustomization.yaml: namePrefix is not read: put it into",
        ),
        ("resources: [../cpu]\ncommonLabels: {a: b}\nlabels: [{pairs: {c: d}}]", "commonLabels, labels is not read"),
        ("resources: [../cpu]\npatchesJson6902: [{path: a.yaml}]", "patchesJson6902 is not read"),
        ("resources: ['https://example.com/a']", 'resources: expected files and folders, got "https://example.com/a"'),
        ("resources: [../none]", 'resources: expected files and folders, got "../none"'),
        ("resources: [../../gateway]", "mine: expected one RayService, got 0"),
        ("resources: [../cpu, ../../base]", "mine: expected one RayService, got 2"),
        ("[]", "expected one kustomization"),
        ("resources: [../cpu]\nconfigMapGenerator: [a]", "mine: a kustomization is not of the right shape"),
        ("resources: [../cpu]\npatches: [{path: merge.yaml, target: {kind: '*'}}]", "mine: a kustomization is not of"),
        (patches("[{op: add, path: '', value: 1}]").replace("''", "a"), "add a: there is no such place"),
        (patches("[{op: test, path: /a, value: 1}]"), "patches[0]: op: test is not read"),
        (patches("[{op: replace, path: /spec/none, value: 1}]"), "replace /spec/none: there is no such place"),
        (patches("[{op: add, path: /spec/none/a, value: 1}]"), "add /spec/none/a: there is no such place"),
        (patches("[{op: add, path: /spec/a}]"), "add /spec/a: there is no such place, or no value"),
        (patches("{spec: {upgradeStrategy: {$patch: replace}}}"), "patches[0]: $patch inside a patch is not read"),
        (patches("{$patch: delete}"), "mine: expected one RayService, got 0"),
        ("resources: [../cpu]\npatches: [{patch: '[{op: remove, path: /a}]'}]", "expected a target, got none"),
        (
            "resources: [../cpu]\npatches: [{target: {annotationSelector: a}, path: merge.yaml}]",
            "target.annotationSelector is not read",
        ),
        ("resources: [../cpu]\npatches: [{target: {labelSelector: a in (b)}, path: merge.yaml}]", 'got "a in (b)"'),
        ("resources: [../cpu]\npatches: [{path: merge.yaml, options: {allowNameChange: true}}]", "options is not read"),
        ("resources: [../cpu]\npatches: [{target: {kind: RayService}}]", "expected either path or patch"),
        ("resources: [../cpu]\nimages: [{name: modelyard, tagSuffix: a}]", "images[0]: tagSuffix is not read"),
        (
            "resources: [../cpu]\nconfigMapGenerator: [{name: modelyard-ray, behavior: merge, files: [a]}]",
            "configMapGenerator[0]: files is not read",
        ),
        (
            "resources: [../cpu]\nconfigMapGenerator: [{name: modelyard-ray, behavior: merge, envs: [none]}]",
            "cannot be read",
        ),
        (
            "resources: [../cpu]\nconfigMapGenerator: [{name: modelyard-ray, behavior: merge, literals: [A]}]",
            'expected NAME=VALUE, got "A"',
        ),
        (
            READ["a configmap with its own name"].replace(", options: {disableNameSuffixHash: true}", ""),
            "envFrom: mine gets a name with a hash",
        ),
        (
            "resources: [../cpu]\nreplacements: [{targets: [{select: {kind: RayService}, fieldPaths: [spec.a]}]}]",
            "replacements[0]: spec.a is not read",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(make_overlay: Make, text: str, problem: str) -> None:
    make_overlay(text, FILES)
    with pytest.raises(InvalidConfig) as caught:
        rendered()
    (sentence,) = caught.value.problems
    assert problem in sentence


def test_what_was_rendered_is_no_start_for_rendering(make_overlay: Make) -> None:
    text = render({"applications": [{"import_path": "modelyard.serve.app:build"}]}, Choices()).to_yaml()
    make_overlay("resources: [../cpu]\npatches: [{path: rayservice.yaml}]", {"rayservice.yaml": text})
    with pytest.raises(InvalidConfig, match=r"rayservice\.yaml was rendered itself"):
        rendered()
