# SPDX-License-Identifier: Apache-2.0
"""Models for the platforms that tests start, as `modelyard serve` does, each on a Ray cluster of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import Answers, ask_libraries

KNOWN_OUTPUT = {
    r"authentication_token_setup\.py.* Token authentication is enabled": "Ray found a token of this user and says so",
    r"WARNING: \d+ PYTHON worker processes have been started": "Ray's advice where many models share few cores",
    r"Failed to get queue length from Replica": "Serve asks again where a busy machine is late with an answer",
    r"Task ServeController\.graceful_shutdown failed\. There are infinite retries": "how Serve ends its own controller",
}
"""Lines that Ray itself prints in a clean run, and why."""

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
