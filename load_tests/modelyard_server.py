# SPDX-License-Identifier: Apache-2.0
"""The platform under load: started here as a process, or found running at an address."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from load_tests.processes import ServerProcess
from load_tests.servers import Protocol, Server

NAME = "modelyard"
PROTOCOLS: tuple[Protocol, ...] = ("v1", "v2", "grpc")


def platform_command(config: Path) -> list[str]:
    """Return the command that starts the platform, from the environment this Python belongs to."""
    return [str(Path(sys.executable).parent / "modelyard"), "serve", str(config)]


def _version() -> str:
    try:
        return version("modelyard")
    except PackageNotFoundError:
        return ""


def connect(url: str, grpc: str) -> Server:
    """Return a platform that is already running."""
    return Server(NAME, url.rstrip("/"), grpc, PROTOCOLS, _version())


def start(command: list[str], url: str, grpc: str, logs: Path) -> Server:
    """Start the platform; `url` and `grpc` are where its configuration makes it listen."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = ServerProcess(command, logs / "modelyard.log", {"PATH": path})
    return Server(NAME, url.rstrip("/"), grpc, PROTOCOLS, _version(), process)


def find_input(server: Server, model: str) -> tuple[str, str]:
    """Return name and datatype of the model's one input tensor, from its v2 metadata.

    Raises:
        ValueError: when the model has several inputs: the peers read one matrix.
    """
    inputs = httpx.get(f"{server.url}/v2/models/{model}", timeout=10).raise_for_status().json()["inputs"]
    if len(inputs) != 1:
        raise ValueError(f"{model}: expected one input, its metadata has {len(inputs)}")
    return inputs[0]["name"], inputs[0]["datatype"]
