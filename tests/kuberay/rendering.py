# SPDX-License-Identifier: Apache-2.0
"""The manifests as a cluster gets them: what ``kubectl kustomize`` prints."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
COMBINED = {"overlays/cpu with components/object-store": ("overlays/cpu", "components/object-store")}
"""What users put together themselves: an overlay and a component that none of ours has."""
SERVICES = ["base", *(f"overlays/{name}" for name in OVERLAYS), *COMBINED]
FOLDERS = [*SERVICES, "gateway"]

Document = dict[str, Any]


@cache
def kustomize(folder: str) -> str:
    """The final YAML of a folder of ``kuberay/``. Nobody is asked for anything: kubectl does this alone."""
    if folder not in COMBINED:
        return _kustomize(KUBERAY / folder)
    overlay, component = COMBINED[folder]
    with tempfile.TemporaryDirectory() as own:
        resources, components = (os.path.relpath(KUBERAY / one, os.path.realpath(own)) for one in (overlay, component))
        text = f"kind: Kustomization\nnamespace: modelyard\nresources: [{resources}]\ncomponents: [{components}]\n"
        (Path(own) / "kustomization.yaml").write_text(text)
        return _kustomize(Path(own))


def _kustomize(folder: Path) -> str:
    kubectl = Path(sys.executable).with_name("kubectl")  # of the development extra, always the same version
    result = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def documents(folder: str) -> list[Document]:
    """Its objects, new ones for each caller."""
    return list(yaml.load_all(kustomize(folder), Loader=yaml.CSafeLoader))


def find(folder: str, kind: str, name: str = "") -> Document:
    """The one object of that kind."""
    (found,) = [item for item in documents(folder) if item["kind"] == kind and name in ("", item["metadata"]["name"])]
    return found


def find_all(folder: str, kind: str) -> list[Document]:
    """All objects of that kind."""
    return [item for item in documents(folder) if item["kind"] == kind]
