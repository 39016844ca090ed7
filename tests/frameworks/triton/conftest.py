# SPDX-License-Identifier: Apache-2.0
"""A repository of several models, and the event loop of a replica."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import triton_server

from modelyard.model import Model, load_model

MODELS = ("broken", "classes", "echo", "queued", "seen", "slow", "stream", "sums", "text", "unloadable")
CHAINED = """
name: "chained"
platform: "ensemble"
max_batch_size: 8
input [{ name: "X" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]
ensemble_scheduling {
  step [
    {
      model_name: "sums" model_version: -1
      input_map { key: "INPUT" value: "X" }
      output_map { key: "OUTPUT" value: "doubled" }
    },
    {
      model_name: "sums" model_version: -1
      input_map { key: "INPUT" value: "doubled" }
      output_map { key: "SUM" value: "Y" }
    }
  ]
}
"""


@pytest.fixture(scope="session")
def server() -> str:
    if not triton_server.INSTALLED.is_installed:
        pytest.skip(triton_server.NOT_INSTALLED)
    return str(triton_server.INSTALLED.path)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, server: str) -> Path:
    """The repository of the differential tests, with an ensemble and a model whose configuration is none."""
    folder = tmp_path_factory.mktemp("repository")
    for name in MODELS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(triton_server.REPOSITORY / name, folder / name, ignore=ignored)
    (folder / "chained" / "1").mkdir(parents=True)
    (folder / "chained" / "config.pbtxt").write_text(CHAINED)
    (folder / "rubbish" / "1").mkdir(parents=True)
    (folder / "rubbish" / "config.pbtxt").write_text("max_batch_size: many")
    return folder


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One for all calls, as in a replica: a connection belongs to the loop that made it."""
    made = asyncio.new_event_loop()
    yield made
    made.run_until_complete(made.shutdown_asyncgens())
    made.close()


@pytest.fixture(scope="session")
def run(loop: asyncio.AbstractEventLoop) -> Callable[[Awaitable[Any]], Any]:
    async def within_a_minute(what: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(what, 60)

    return lambda what: loop.run_until_complete(within_a_minute(what))


@pytest.fixture(scope="session")
def host(repository: Path, server: str) -> Iterator[Model]:
    loaded = load_model("triton", repository, {"server": server})
    yield loaded
    loaded.close()
