# SPDX-License-Identifier: Apache-2.0
"""Many small models in one pool, asked as the few are asked often and the many seldom: ``python -m load_tests.pool``.

Starts a platform of its own in a folder of its own, with models that each answer with their own number, and asks them
at random with weights 1, 1/2, 1/3, … (Zipf). Prints how long registering took, what part of the calls found their model
loaded, what calls, loads and calls of loaded models took, and what memory the pool took of what it may take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import joblib
import numpy as np
import yaml
from sklearn.neighbors import KNeighborsClassifier

from load_tests.processes import free_ports
from modelyard import Platform
from modelyard.admin import ModelState

_OFTEN = 10
_ROWS = 8192
"""Each model holds so many points; about 200 KB."""


def write_models(folder: Path, count: int) -> list[str]:
    """Writes models, each of which answers any row with its own number, and returns their names."""
    points = np.random.default_rng(0).normal(size=(_ROWS, 4)).astype(np.float32)
    names = []
    for number in range(count):
        model = KNeighborsClassifier(1, algorithm="brute").fit(points + number, np.full(_ROWS, number))
        names.append(f"small-{number}")
        (folder / names[-1]).mkdir(parents=True)
        joblib.dump(model, folder / names[-1] / "model.joblib")
    return names


def register_all(platform: Platform, names: list[str]) -> None:
    """Registers the models and returns when all of them are ready.

    Raises:
        RuntimeError: One has failed.
    """
    with ThreadPoolExecutor(4) as workers:
        done = workers.map(
            lambda name: platform.register(name, framework="sklearn", uri=f"models/{name}", shared=True), names
        )
        list(done)
    open_ = names
    while open_:
        found = platform.list()
        failed = [f"{status.name}: {status.reason}" for status in found if status.state is ModelState.FAILED]
        if failed:
            raise RuntimeError(f"not loaded: {failed[:3]}")
        open_ = [status.name for status in found if status.state is not ModelState.READY]
        time.sleep(0.5)


def ask_all(url: str, names: list[str], clients: int, requests: int) -> list[float]:
    """Asks models at random from several threads, and checks every answer.

    Returns:
        What each call took, in seconds.

    Raises:
        RuntimeError: An answer is not the model's own.
    """
    weights = 1 / np.arange(1, len(names) + 1)
    weights /= weights.sum()

    def ask(number: int) -> float:
        began = time.perf_counter()
        reply = http.post(f"/v1/models/{names[number]}:predict", json={"instances": [[float(number)] * 4]})
        took = time.perf_counter() - began
        if reply.status_code != 200 or reply.json()["predictions"] != [number]:
            raise RuntimeError(f"{names[number]}: {reply.status_code} {reply.text}")
        return took

    chosen = np.random.default_rng(1).choice(len(names), size=requests, p=weights)
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(clients) as workers:
        return list(workers.map(ask, map(int, chosen)))


@contextmanager
def running(folder: Path, memory_mb: int, ingress: Mapping[str, Any] | None = None) -> Iterator[str]:
    """A platform with one pool, as ``modelyard serve`` starts it; its URL."""
    port, grpc = free_ports(2)
    pools = {"memory_mb": memory_mb, "resources": {"num_cpus": 0.2}}
    args: dict[str, Any] = {"models": [], "pools": pools, "ingress": dict(ingress or {})}
    application = {"name": "platform", "route_prefix": "/", "import_path": "modelyard.serve.app:build", "args": args}
    document = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "grpc_options": {"port": grpc, "grpc_servicer_functions": ["modelyard.serve.services.add_inference_service"]},
        "applications": [application],
    }
    (folder / "platform.yaml").write_text(yaml.safe_dump(document))
    command = [str(Path(sys.executable).with_name("modelyard")), "serve", "platform.yaml"]
    environment = os.environ | {"RAY_TMPDIR": str(folder), "TMPDIR": str(folder)}
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)  # ours
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, folder / "output.log")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(log.read_text()[-2000:])


def main() -> None:
    """Starts, registers, asks, reports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--memory-mb", type=int, default=400)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="my-"))
    names = write_models(folder / "models", options.models)
    with running(folder, options.memory_mb) as url, Platform.connect(url, timeout_s=60) as platform:
        began = time.perf_counter()
        register_all(platform, names)
        print(f"{len(names)} models registered and loaded once: {time.perf_counter() - began:.1f} s")
        (before,) = platform.pools()[0].replicas
        began = time.perf_counter()
        took = np.array(ask_all(url, names, options.clients, options.requests)) * 1e3
        seconds = time.perf_counter() - began
        (after,) = platform.pools()[0].replicas
        hits, misses = after.hits - before.hits, after.misses - before.misses
        p50, p99 = np.percentile(took, (50, 99))
        print(f"{len(took)} calls by {options.clients} clients in {seconds:.1f} s: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"found their model loaded: {hits / (hits + misses):.1%}; loads: {after.loads - before.loads}, each")
        print(f"  p50 {after.load_p50_ms:.1f} ms, p99 {after.load_p99_ms:.1f} ms")
        loaded = np.array(ask_all(url, names[:_OFTEN], options.clients, 1000)) * 1e3
        (last,) = platform.pools()[0].replicas
        p50, p99 = np.percentile(loaded, (50, 99))
        print(
            f"calls of the {_OFTEN} most asked: p50 {p50:.1f} ms, p99 {p99:.1f} ms; loads: {last.loads - after.loads}"
        )
        print(f"memory: {after.memory_mb} of {after.memory_limit_mb} MiB with {after.loaded} models")


if __name__ == "__main__":
    main()
