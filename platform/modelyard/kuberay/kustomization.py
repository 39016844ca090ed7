# SPDX-License-Identifier: Apache-2.0
"""What a folder with a ``kustomization.yaml`` comes to, in Kustomize's order: as ``kubectl kustomize`` makes it.

Without kubectl, which a machine that renders need not have. Only the kinds of objects that rendering looks at are made,
and what of a kustomization is not read here, and could change a RayService, is refused by its name.

Source: Kustomize ``api/internal/target/kusttarget.go`` (``accumulateTarget``) and ``kusttarget_configplugin.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from modelyard.config.documents import parse_yaml, read_documents
from modelyard.kuberay.patches import Item, patch, refuse

RENDERED: Final = "# Made by `modelyard render kuberay`: change the platform file, and make it anew.\n"
"""How a rendered file begins."""
PLATFORM: Final = "modelyard-platform"
"""The ConfigMap with the platform file, whose place the rendered one takes."""
ENVIRONMENT: Final = "modelyard-ray"
"""The ConfigMap that pods have as their environment."""
_KINDS: Final = ("RayService", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget")
_READ: Final = frozenset({"resources", "components", "configMapGenerator", "patches", "images", "replacements"})
_OTHERS: Final = frozenset(
    {
        *("apiVersion", "kind", "metadata", "namespace", "buildMetadata", "sortOptions"),
        *("secretGenerator", "generatorOptions", "configurations"),
    }
)
"""Keys that change no RayService, or only its namespace, which a rendered one leaves open."""
_ELSEWHERE: Final = "is not read: put it into the overlay around what is rendered (docs/render.md)"
_FROM_TEXTS: Final = frozenset({"name", "behavior", "literals", "envs", "options"})
_IMAGE: Final = re.compile(r"(.+?)(:[\w.-]+)?(@sha256:\w+)?")
_IMAGE_KEYS: Final = frozenset({"name", "newName", "newTag", "digest"})


def build(folder: Path) -> list[Item]:
    """The objects of a folder, without their namespace and without the Serve file.

    Raises:
        InvalidConfig: Something in it, or in what it is made from, is not read.
    """
    return _extend([], folder)


def _extend(items: list[Item], folder: Path) -> list[Item]:
    """Objects, with those of a folder, and with all that its kustomization changes in them."""
    path = folder / "kustomization.yaml"
    content = _load(path)
    if unknown := sorted(content.keys() - _READ - _OTHERS):
        refuse(str(path), f"{', '.join(unknown)} {_ELSEWHERE}")
    for name in content.get("resources", ()):
        items += _read_resource(folder, name, path)
    _make_maps(items, content, path)
    for name in content.get("components", ()):
        items = _extend(items, folder / name)
    for index, one in enumerate(content.get("patches", ())):
        where = f"{path}: patches[{index}]"
        items = patch(items, _read_patch(one, folder, where), one.get("target"), where)
    for index, image in enumerate(content.get("images", ())):
        _name_images(items, image, f"{path}: images[{index}]")
    for index, replacement in enumerate(content.get("replacements", ())):
        _check_replacement(replacement, f"{path}: replacements[{index}]")
    return items


def _load(path: Path) -> Mapping[str, Any]:
    documents = read_documents(path)
    if len(documents) != 1 or not isinstance(documents[0], Mapping):
        refuse(str(path), "expected one kustomization")
    return {key: value for key, value in documents[0].items() if value}


def _read_resource(folder: Path, name: str, path: Path) -> list[Item]:
    if (folder / name).is_dir():
        return build(folder / name)
    if "://" in name or not (folder / name).exists():
        refuse(str(path), f'resources: expected files and folders, got "{name}"')
    found = (item for item in read_documents(folder / name) if isinstance(item, Mapping))
    return [dict(item) for item in found if item.get("kind") in _KINDS]


def _make_maps(items: list[Item], content: Mapping[str, Any], path: Path) -> None:
    for index, generator in enumerate(content.get("configMapGenerator", ())):
        if generator.get("name") == ENVIRONMENT:
            _generate(items, generator, path.parent, f"{path}: configMapGenerator[{index}]")
        elif generator.get("name") != PLATFORM:
            options = {**content.get("generatorOptions", {}), **generator.get("options", {})}
            name = {"name": generator.get("name"), "is_hashed": not options.get("disableNameSuffixHash")}
            items.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": name})


def _generate(items: list[Item], generator: Mapping[str, Any], folder: Path, where: str) -> None:
    if unknown := set(generator) - _FROM_TEXTS:
        refuse(where, f"{min(unknown)} is not read: expected literals or envs")
    existing = next((item for item in items if item["metadata"]["name"] == ENVIRONMENT), None)
    if existing is None:
        existing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": ENVIRONMENT}, "data": {}}
        items.append(existing)
    elif generator.get("behavior") == "replace":
        existing["data"] = {}
    lines = [line for file in generator.get("envs", ()) for line in _read_variables(folder / file, where)]
    literals = [_without_quotes(text) for text in generator.get("literals", ())]
    for text in (*lines, *literals):
        key, equals, value = text.partition("=")
        if not equals:
            refuse(where, f'expected NAME=VALUE, got "{key}"')
        existing["data"][key] = value


def _read_variables(path: Path, where: str) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        refuse(where, f"{path}: cannot be read: {exc.strerror}")
    return (line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _without_quotes(text: str) -> str:
    key, equals, value = text.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return key + equals + (value[1:-1] if is_quoted else value)


def _read_patch(one: Mapping[str, Any], folder: Path, where: str) -> list[Any]:
    if unknown := set(one) - {"path", "patch", "target"}:
        refuse(where, f"{min(unknown)} is not read: expected path or patch, and target")
    if ("patch" in one) == ("path" in one):
        refuse(where, "expected either path or patch")
    if "patch" in one:
        return [parse_yaml(one["patch"], where)]
    path = folder / one["path"]
    if path.is_file() and path.read_text(encoding="utf-8").startswith(RENDERED):
        refuse(where, f"{one['path']} was rendered itself: render from what is under resources")
    return list(read_documents(path))


def _name_images(items: list[Item], image: Mapping[str, Any], where: str) -> None:
    if unknown := set(image) - _IMAGE_KEYS:
        refuse(where, f"{min(unknown)} is not read: expected some of {', '.join(sorted(_IMAGE_KEYS))}")
    for container in _containers(items):
        found = _IMAGE.fullmatch(container.get("image", ""))
        if found is None or found[1] != image.get("name"):
            continue
        tag, digest = found[2] or "", found[3] or ""
        if "newTag" in image or "digest" in image:
            tag = f":{image['newTag']}" if "newTag" in image else ""
            digest = f"@{image['digest']}" if "digest" in image else ""
        container["image"] = image.get("newName", found[1]) + tag + digest


def groups_of(service: Item) -> list[Item]:
    """The head's group of a RayService, and those of its workers."""
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())]


def _containers(items: list[Item]) -> Iterator[Item]:
    for item in items:
        if item["kind"] == "RayService":
            for group in groups_of(item):
                pod = group["template"]["spec"]
                yield from (*pod["containers"], *pod.get("initContainers", ()))


def _check_replacement(replacement: Mapping[str, Any], where: str) -> None:
    """Refuses all but that of the Serve file, for which rendering has another."""
    for target in replacement.get("targets", [{}]):
        kind, paths = target.get("select", {}).get("kind"), target.get("fieldPaths")
        if kind not in (None, "RayService") or paths == ["spec.serveConfigV2"]:
            continue
        refuse(where, f"{', '.join(paths or ['path'])} {_ELSEWHERE}")
