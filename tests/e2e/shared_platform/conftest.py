# SPDX-License-Identifier: Apache-2.0
"""One platform for the tests of this folder, which ends with the last of them: idle ones take the time of others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import CUSTOM, KNOWN_OUTPUT
from platform_process import PlatformProcess, base_document, running
from s3_server import keep_port, s3_settings

MAX_BODY_BYTES = 1_000_000


@pytest.fixture(scope="package")
def platform(make_folder: object) -> Iterator[PlatformProcess]:
    """The platform all tests share; afterwards nothing of it may be left, and its output has to be clean."""
    document = base_document()
    arguments = document["applications"][0]["args"]
    arguments["ingress"] = {"max_body_bytes": MAX_BODY_BYTES}
    arguments["autoscaling_policies"] = {"one-less": "my_policies:one_less"}
    arguments["models"] += [_custom("scores", "model:Scores"), _custom("words", "model:Words")]
    arguments["security"] = {"model_roots": [".", "s3://models"]}
    folder = make_folder()  # type: ignore[operator]
    shutil.copy(CUSTOM.with_name("my_policies.py"), folder)
    with running(PlatformProcess(folder, document, settings=s3_settings(keep_port()))) as process:
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []


def _custom(name: str, entrypoint: str) -> dict[str, Any]:
    spec = {"name": name, "framework": "custom", "uri": f"models/{name}", "options": {"entrypoint": entrypoint}}
    return {**spec, "resources": {"num_cpus": 0.05}}


@pytest.fixture(scope="package")
def http(platform: PlatformProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=platform.url, timeout=60) as client:
        yield client
