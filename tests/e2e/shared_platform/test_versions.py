# SPDX-License-Identifier: Apache-2.0
"""A folder of versions while it is being served: versions come and go under load, and none of it is lost."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from made_models import write_broken, write_constant
from platform_process import PlatformProcess, wait_until

from modelyard.client import Platform
from modelyard.errors import ModelNotFound

NAME = "constant"


@pytest.fixture
def folder(platform: PlatformProcess) -> Iterator[Path]:
    path = platform.folder / "models" / "constants"
    path.mkdir()
    yield path
    with Platform.connect(platform.url) as client, contextlib.suppress(ModelNotFound):
        client.unregister(NAME, wait=True)
    shutil.rmtree(path)


def _register(platform: PlatformProcess, **policy: object) -> None:
    spec = {"framework": "sklearn", "uri": "models/constants", "resources": {"num_cpus": 0.05}}
    with Platform.connect(platform.url) as client:
        client.register(NAME, **spec, version_policy=policy or None)  # type: ignore[arg-type]
        client.wait_ready(NAME, timeout_s=90)


def _ask(http: httpx.Client, part: str = "") -> httpx.Response:
    return http.post(f"/v1/models/{NAME}{part}:predict", json={"instances": [[0.0]]})


def _answer(http: httpx.Client, part: str = "") -> float:
    reply = _ask(http, part)
    assert reply.status_code == 200, reply.text
    return reply.json()["predictions"][0]  # type: ignore[no-any-return]


def _states(http: httpx.Client) -> dict[str, str]:
    found = http.get(f"/v1/models/{NAME}").json()["model_version_status"]
    return {one["version"]: one["state"] for one in found}


def _wait_for(http: httpx.Client, expected: dict[str, str]) -> None:
    try:
        wait_until(lambda: _states(http) == expected, 60, str(expected))
    except TimeoutError:
        raise AssertionError(f"expected {expected}, got {http.get(f'/v1/models/{NAME}').text}") from None


def test_versions_side_by_side_and_by_label(platform: PlatformProcess, http: httpx.Client, folder: Path) -> None:
    for number in (1, 2, 30):
        write_constant(folder / f"{number:04}", float(number))
    _register(platform, latest=2, labels={"canary": 30, "stable": 2})
    _wait_for(http, {"2": "AVAILABLE", "30": "AVAILABLE"})
    parts = ("", "/versions/2", "/versions/30", "/labels/stable", "/labels/canary")
    assert [_answer(http, part) for part in parts] == [30, 2, 30, 2, 30]
    assert _ask(http, "/versions/1").status_code == 404


def test_versions_come_and_go_under_load(platform: PlatformProcess, http: httpx.Client, folder: Path) -> None:
    write_constant(folder / "1", 1.0)
    _register(platform)
    seen: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=platform.url, timeout=60) as client:
            while not ended.is_set():
                seen.append(_answer(client))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        write_constant(folder / "2", 2.0)
        _wait_for(http, {"2": "AVAILABLE"})
        write_broken(folder / "3")
        wait_until(lambda: _states(http).get("3") == "END", 60, "version 3 to fail")
        assert _answer(http) == 2
        assert "3" in http.get(f"/v1/models/{NAME}/versions/3").text
        write_constant(folder / "3", 3.0)  # repaired
        _wait_for(http, {"3": "AVAILABLE"})
        assert _answer(http) == 3
        wait_until(lambda: seen[-1] == 3, 60, "the other client's first answer of version 3")
    finally:
        ended.set()
        thread.join(30)
    assert sorted(set(seen)) == [1, 2, 3]
    assert seen == sorted(seen)
