# SPDX-License-Identifier: Apache-2.0
"""The RayService of ``kuberay/``: the base's with what an overlay changes, as ``kubectl kustomize`` makes it.

Only what concerns the RayService is read, and only the kinds of patches that the overlays use.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from modelyard.config.problems import nearest
from modelyard.errors import InvalidConfig

_PACKAGED: Final = Path(__file__).with_name("manifests")
FOLDER: Final = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[3] / "kuberay"
"""In an installed package, or in a checkout."""
_ENVIRONMENT: Final = "modelyard-ray"
"""The ConfigMap that pods have as their environment."""


def overlay_names() -> tuple[str, ...]:
    """Of the overlays there are."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml")))


def load_service(overlay: str) -> dict[str, Any]:
    """The RayService of an overlay, without its Serve file.

    Raises:
        InvalidConfig: There is none of that name.
    """
    if overlay not in overlay_names():
        raise InvalidConfig((f'--overlay: unknown overlay "{overlay}"{nearest(overlay, overlay_names())}',))
    service: dict[str, Any] = _load(FOLDER / "base" / "rayservice.yaml")
    for path, label in _patch_files(FOLDER / "overlays" / overlay):
        if not label or label in service["metadata"].get("labels", {}):
            for change in _load(path):
                _apply(service, change)
    return service


def image_name(overlay: str) -> str:
    """Of the image that the overlay's pods run, without a tag."""
    own = (_load(folder / "kustomization.yaml").get("images") for folder in _folders(FOLDER / "overlays" / overlay))
    image = [images for images in own if images][-1][0]
    return str(image.get("newName", image["name"]))


def load_environment(overlay: str) -> dict[str, str]:
    """What Ray and Serve read when their processes start: the base's, with what the overlay's components say."""
    lines = (FOLDER / "base" / "ray.env").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    for folder in _folders(FOLDER / "overlays" / overlay):
        for generator in _load(folder / "kustomization.yaml").get("configMapGenerator", ()):
            lines += generator.get("literals", ()) if generator.get("name") == _ENVIRONMENT else ()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _patch_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Those for the RayService, each with the label that it has to have, or none."""
    for each in _folders(folder):
        for patch in _load(each / "kustomization.yaml").get("patches", ()):
            target = patch.get("target", {})
            if "path" in patch and target.get("kind") == "RayService":
                yield each / patch["path"], target.get("labelSelector", "")


def _folders(folder: Path) -> Iterator[Path]:
    """Those that make up an overlay, in the order in which they count: what it is made from, its components, itself."""
    kustomization = _load(folder / "kustomization.yaml")
    for name in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        if (folder / name).is_dir():
            yield from _folders(folder / name)
    yield folder


def _apply(document: Any, change: Mapping[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902): add, replace or remove."""
    *path, last = change["path"].strip("/").split("/")
    for key in path:
        document = document[int(key) if isinstance(document, list) else key]
    if change["op"] == "remove":
        del document[last]
    elif isinstance(document, list) and last == "-":
        document.append(copy.deepcopy(change["value"]))
    else:
        document[int(last) if isinstance(document, list) else last] = copy.deepcopy(change["value"])


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
