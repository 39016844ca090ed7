# SPDX-License-Identifier: Apache-2.0
"""Where an overlay is kept, who shares it, and when it goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelyard.environments.overlay import Overlay, locked, overlays_folder, remove_unused

MONTH_S = 31 * 24 * 3600
PLAIN = Overlay("pip", ("tiny==1.0",))
OTHERS = [
    Overlay("uv", ("tiny==1.0",)),
    Overlay("pip", ("tiny==2.0",)),
    Overlay("pip", ("tiny==1.0",), "sklearn"),
    Overlay("pip", ("tiny==1.0",), "", {"PIP_INDEX_URL": "https://pypi.example.com"}),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_whatever_decides_its_content_makes_it_another(other: Overlay) -> None:
    assert len({PLAIN.key, other.key, Overlay("pip", ("tiny==1.0",)).key}) == 2


def test_it_survives_the_environment_of_a_process_unexpanded() -> None:
    overlay = Overlay("pip", ("a @ https://h/a.whl",), "", {"PIP_INDEX_URL": "https://${TOKEN}@h/${x}"})
    assert "$" not in overlay.to_json()
    assert Overlay.from_json(overlay.to_json()) == overlay


def test_it_is_kept_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.delenv("MODELYARD_ENVIRONMENTS", raising=False)
    assert overlays_folder() == Path("/c/modelyard/environments")
    monkeypatch.setenv("MODELYARD_ENVIRONMENTS", str(tmp_path))
    assert PLAIN.folder.parent == tmp_path


def _make(overlay: Overlay, *, is_ready: bool = True) -> Path:
    with locked(overlay, alone=True):
        overlay.folder.mkdir()
        if is_ready:
            overlay.mark_ready()
    return overlay.folder


def test_what_is_not_used_for_a_month_goes(environments: Path) -> None:
    recent, old, broken_off = _make(PLAIN), _make(OTHERS[0]), _make(OTHERS[1], is_ready=False)
    mark = old / "modelyard.json"
    os.utime(mark, (mark.stat().st_mtime - MONTH_S,) * 2)
    with locked(OTHERS[0], alone=False):
        remove_unused()
        assert old.exists(), "somebody uses it"
    remove_unused()
    assert (recent.exists(), old.exists(), broken_off.exists()) == (True, False, False)
