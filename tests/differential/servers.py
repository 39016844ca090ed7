# SPDX-License-Identifier: Apache-2.0
"""The same models on the real Triton and on the platform."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import platform_process
import triton_server
from platform_process import PlatformProcess, base_document, wait_until
from triton_server import REPOSITORY, TritonServer

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = Path(__file__).with_name("ours")
MODELS = ("broken", "classes", "echo", "seen", "stream", "sums", "text")
NOT_LOADABLE = "unloadable"
MAX_BATCH_SIZE = {"sums": 8, "classes": 4, "seen": 4}


@dataclass(frozen=True, slots=True)
class Pair:
    """Where both listen."""

    ours: PlatformProcess
    theirs: TritonServer


def copy_models(folder: Path) -> None:
    """These models of the repository, once as Triton reads them and once with what the platform needs beside them."""
    for name in (*MODELS, NOT_LOADABLE):
        for copy in ("repository", "models"):
            shutil.copytree(REPOSITORY / name, folder / copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in OURS.glob("*.py"):
            shutil.copy(file, folder / "models" / name)


def to_document() -> dict[str, Any]:
    """The platform's Serve file with these models."""
    document = base_document()
    document["applications"][0]["args"]["models"] = [
        {
            "name": name,
            "framework": "custom",
            "uri": f"models/{name}",
            "options": {"entrypoint": "triton_model:TritonModel"},
            "batching": {"max_batch_size": MAX_BATCH_SIZE.get(name, 64)},
            "resources": {"num_cpus": 0.01},
        }
        for name in (*MODELS, NOT_LOADABLE)
    ]
    return document


def is_ready(url: str) -> bool:
    found = httpx.post(f"{url}/v2/repository/index", content=b"", timeout=10).json()
    ready = {entry["name"] for entry in found if entry.get("state") == "READY"}
    failed = any(entry["name"] == NOT_LOADABLE and entry.get("state") == "UNAVAILABLE" for entry in found)
    return ready == set(MODELS) and failed


@contextmanager
def both(folder: Path) -> Iterator[Pair]:
    """Both servers, started side by side; whatever happens, nothing of them is left afterwards."""
    copy_models(folder)
    ours = PlatformProcess(folder, to_document())
    theirs = TritonServer(folder / "repository", MODELS)
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = [pool.submit(ours.start), pool.submit(theirs.start)]
        stack.callback(ours.kill)
        stack.callback(theirs.stop)
        for one in started:
            one.result()
        httpx.post(f"{theirs.url}/v2/repository/models/{NOT_LOADABLE}/load", timeout=30)
        wait_until(lambda: is_ready(ours.url), 120, "the platform's models")
        yield Pair(ours, theirs)


__all__ = ["MODELS", "Pair", "both", "platform_process", "triton_server"]
