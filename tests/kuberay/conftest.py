# SPDX-License-Identifier: Apache-2.0
"""An overlay as users make it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from rendering import KUBERAY

from modelyard.kuberay import overlays


@pytest.fixture
def make_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    monkeypatch.setattr(overlays, "FOLDER", tmp_path / "kuberay")

    def make(kustomization: str, files: Mapping[str, str] = MappingProxyType({})) -> Path:
        own = tmp_path / "kuberay" / "overlays" / "mine"
        own.mkdir()
        for name, text in {**files, "kustomization.yaml": kustomization}.items():
            (own / name).write_text(text)
        return own

    return make
