# SPDX-License-Identifier: Apache-2.0
"""The manifests as a cluster gets them: what ``kubectl kustomize`` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
_OWN = ("object-store", "fault-tolerance", "https-out", "eks-pod-identity", "gke-workload-identity")
COMBINED = {
    "overlays/cpu with object-store": ("overlays/cpu", "object-store"),
    "overlays/cpu with volume": ("overlays/cpu", "model-volume", "long-requests"),
    "overlays/ha with object-store": ("overlays/ha", "object-store", "long-requests"),
    "overlays/incremental-upgrade with databases": ("overlays/incremental-upgrade", "fault-tolerance", "object-store"),
    "overlays/gpu with everything": ("overlays/gpu", *_OWN),
    "overlays/llm with everything": ("overlays/llm", *_OWN),
}
"""What users put together themselves: an overlay and components that it does not have."""
SERVICES = ["base", *(f"overlays/{name}" for name in OVERLAYS), *COMBINED]
FOLDERS = [*SERVICES, "gateway"]

Document = dict[str, Any]


@cache
def kustomize(folder: str) -> str:
    """The final YAML of a folder of ``kuberay/``. Nobody is asked for anything: kubectl does this alone."""
    if folder not in COMBINED:
        return kustomize_folder(KUBERAY / folder)
    overlay, *names = COMBINED[folder]
    components = ", ".join(f"../../components/{name}" for name in names)
    return kustomize_own(f"namespace: modelyard\nresources: [../../{overlay}]\ncomponents: [{components}]\n")


def kustomize_own(kustomization: str, files: Mapping[str, str] = MappingProxyType({})) -> str:
    """The final YAML of ``kuberay/overlays/mine``, which a user makes.

    Args:
        kustomization: The text of its ``kustomization.yaml``.
        files: Beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(KUBERAY, Path(folder) / "kuberay")
        own = Path(folder) / "kuberay" / "overlays" / "mine"
        own.mkdir()
        for name, text in {**files, "kustomization.yaml": kustomization}.items():
            (own / name).write_text(text)
        return kustomize_folder(own)


def kustomize_folder(folder: Path) -> str:
    """The final YAML of any folder."""
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
