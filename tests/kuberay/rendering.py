# SPDX-License-Identifier: Apache-2.0
"""The manifests as a cluster gets them: what ``kubectl kustomize`` prints."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
SERVICES = ["base", *(f"overlays/{name}" for name in OVERLAYS)]
FOLDERS = [*SERVICES, "gateway"]

Document = dict[str, Any]


@cache
def kustomize(folder: str) -> str:
    """The final YAML of a folder of ``kuberay/``. Nobody is asked for anything: kubectl does this alone."""
    kubectl = Path(sys.executable).with_name("kubectl")  # of the development extra, always the same version
    result = subprocess.run([kubectl, "kustomize", str(KUBERAY / folder)], capture_output=True, text=True)
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
