# SPDX-License-Identifier: Apache-2.0
"""RayServices as they are made from the overlays' own platform files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelyard.kuberay import Choices, Rendered, overlay_names, render

OVERLAYS = overlay_names()
FOLDER = Path(__file__).parents[3] / "kuberay"


def platform_file(overlay: str) -> dict[str, Any]:
    own = FOLDER / "overlays" / overlay / "platform.yaml"
    path = own if own.exists() else FOLDER / "base" / "platform.yaml"
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def render_again(overlay: str) -> Callable[[], Rendered]:
    return lambda: render(platform_file(overlay), Choices(overlay=overlay))


@pytest.fixture
def rendered(render_again: Callable[[], Rendered]) -> Rendered:
    return render_again()


@pytest.fixture
def service(rendered: Rendered) -> dict[str, Any]:
    return copy.deepcopy(dict(rendered.service))
