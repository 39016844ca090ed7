# SPDX-License-Identifier: Apache-2.0
"""One platform for the session, started as `modelyard serve` starts it, on a Ray cluster of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import Answers, ask_libraries
from platform_process import PlatformProcess, base_document, running

KNOWN_OUTPUT = {
    r"authentication_token_setup\.py.* Token authentication is enabled": "Ray found a token of this user and says so",
    r"WARNING: \d+ PYTHON worker processes have been started": "Ray's advice where many models share few cores",
    r"Failed to get queue length from Replica": "Serve asks again where a busy machine is late with an answer",
    r"Task ServeController\.graceful_shutdown failed\. There are infinite retries": "how Serve ends its own controller",
}
"""Lines that Ray itself prints in a clean run, and why."""

MAX_BODY_BYTES = 1_000_000

CUSTOM = Path(__file__).parent / "custom"
"""Models as users write them, see ``framework: custom``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example models, trained by the command that users have."""
    folder = tmp_path_factory.mktemp("e2e") / "models"
    subprocess.run([sys.executable, "-m", "modelyard_deployments.examples", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def answers(models: Path) -> dict[str, Answers]:
    return ask_libraries(models)


@pytest.fixture(scope="session")
def make_folder(models: Path) -> Iterator[object]:
    """Makes working directories with the models in them; short, since Ray's sockets must fit into 107 characters."""
    folders: list[Path] = []

    def make() -> Path:
        folders.append(Path(tempfile.mkdtemp(prefix="my-")))
        shutil.copytree(models, folders[-1] / "models")
        shutil.copytree(CUSTOM, folders[-1] / "models", dirs_exist_ok=True)
        return folders[-1]

    yield make
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def platform(make_folder: object) -> Iterator[PlatformProcess]:
    """The platform all tests share; afterwards nothing of it may be left, and its output has to be clean."""
    document = base_document()
    arguments = document["applications"][0]["args"]
    arguments["ingress"] = {"max_body_bytes": MAX_BODY_BYTES}
    arguments["autoscaling_policies"] = {"one-less": "my_policies:one_less"}
    arguments["models"] += [_custom("scores", "model:Scores"), _custom("words", "model:Words")]
    folder = make_folder()  # type: ignore[operator]
    shutil.copy(CUSTOM.with_name("my_policies.py"), folder)
    with running(PlatformProcess(folder, document)) as process:
        yield process
        assert process.stop() == 0
        assert process.unexplained(KNOWN_OUTPUT) == []


def _custom(name: str, entrypoint: str) -> dict[str, Any]:
    spec = {"name": name, "framework": "custom", "uri": f"models/{name}", "options": {"entrypoint": entrypoint}}
    return {**spec, "resources": {"num_cpus": 0.05}}


@pytest.fixture(scope="session")
def http(platform: PlatformProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=platform.url, timeout=60) as client:
        yield client
