# SPDX-License-Identifier: Apache-2.0
"""A whole cluster: a head, workers, Redis, PostgreSQL, and the platform as an overlay of ``kuberay/`` has it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from load_tests.drills.nodes import DASHBOARD, Node
from load_tests.drills.services import POSTGRES_PORT, REDIS_PORT, PostgreSQL, Redis
from modelyard import Platform
from modelyard.admin import ModelState

ROOT = Path(__file__).parents[2]
_INHERITED = ("HOME", "LANG", "USER", "VIRTUAL_ENV")


class Cluster:
    """Started in the constructor; ends with the ``with`` block.

    Args:
        folder: An empty one, with a short path: sockets lie in it.
        overlay: Whose platform file and switches it has.
        workers: How many worker nodes.
    """

    def __init__(self, folder: Path, overlay: str, workers: int) -> None:
        self._folder = folder
        self.text = (ROOT / "kuberay" / "overlays" / overlay / "platform.yaml").read_text()
        redis, postgres = secrets.token_hex(8), secrets.token_hex(8)
        for name in ("redis", "postgres"):
            (folder / name).mkdir()
        self._redis = Redis(folder / "redis", redis)
        self.postgres = PostgreSQL(folder / "postgres", postgres)
        switches = dict(
            line.split("=", 1)
            for line in (ROOT / "kuberay" / "base" / "ray.env").read_text().splitlines()
            if line and not line.startswith("#")
        )
        self._environment = {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            **switches,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(POSTGRES_PORT),
            "PGUSER": "modelyard",
            "PGPASSWORD": postgres,
        }
        head = {
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{REDIS_PORT}",
            "REDIS_PASSWORD": redis,
            "RAY_external_storage_namespace": "drills",
        }
        self.head = Node(0, folder, self._environment | head)
        self.workers = [Node(number, folder, self._environment) for number in range(1, workers + 1)]

    @property
    def nodes(self) -> Sequence[Node]:
        """The head and the workers."""
        return [self.head, *self.workers]

    def start(self) -> None:
        """Starts the nodes one after the other, then the platform; returns when it is ready.

        Raises:
            TimeoutError: It is not ready in time.
        """
        command = [sys.executable, "-m", "modelyard_deployments.examples", "models"]
        subprocess.run(command, cwd=self._folder, check=True, stdout=subprocess.DEVNULL)
        self.head.start()
        self.until(lambda: self._is_head_up(), 120, "the head")
        for count, worker in enumerate(self.workers, 1):
            worker.start()
            self.until(partial(self._has_nodes, count + 1), 120, f"worker {count}")
        self.deploy(self.text)
        self.until(lambda: self.application() == "RUNNING", 300, "the platform")
        self.until(lambda: len(self.answering()) >= self.ingress_replicas, 120, "every ingress process")

    @property
    def ingress_replicas(self) -> int:
        """How many processes the platform file wants for what every request passes."""
        return int(yaml.safe_load(self.text)["applications"][0]["args"]["ingress"]["num_replicas"])

    def deploy(self, text: str) -> None:
        """Sends a Serve file to the head, as KubeRay's operator does."""
        reply = self._ask("PUT", "/api/serve/applications/", json=yaml.safe_load(text))
        reply.raise_for_status()

    def application(self) -> str:
        """The state of the platform's application, in Serve's words; empty where nobody says."""
        try:
            applications = self._ask("GET", "/api/serve/applications/").json()["applications"]
            return str(applications["platform"]["status"])
        except (httpx.HTTPError, KeyError, ValueError):
            return ""

    def answering(self) -> list[int]:
        """Ports of the workers that a Service would send requests to: those whose probe answers 200."""
        ports = []
        for worker in self.workers:
            try:
                if worker.is_running and httpx.get(f"{worker.url}/-/healthz", timeout=2).status_code == httpx.codes.OK:
                    ports.append(worker.http_port)
            except httpx.HTTPError:
                continue
        return ports

    def client(self) -> Platform:
        """A client of the platform, by a worker that answers."""
        return Platform.connect(f"http://127.0.0.1:{self.answering()[0]}", timeout_s=30)

    def is_whole(self, model: str, replicas: int) -> bool:
        """The model has its replicas, and every ingress process answers."""
        try:
            with self.client() as platform:
                status = platform.status(model)
        except Exception:  # noqa: BLE001  # whatever is away just now
            return False
        is_ready = status.state is ModelState.READY and status.replicas_ready >= replicas
        return is_ready and len(self.answering()) >= self.ingress_replicas

    def until(self, condition: Callable[[], object], timeout_s: float, what: str) -> float:
        """Waits; how long it took, in seconds.

        Raises:
            TimeoutError: It did not come true.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                raise TimeoutError(f"waited {timeout_s:g} s for {what}")
            time.sleep(0.5)
        return time.monotonic() - began

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers: Mapping[str, str] = {"authorization": f"Bearer {self._environment['RAY_AUTH_TOKEN']}"}
        return httpx.request(method, DASHBOARD + path, headers=headers, timeout=30, **more)

    def _is_head_up(self) -> bool:
        try:
            return self._ask("GET", "/api/version").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _has_nodes(self, count: int) -> bool:
        try:
            found = self._ask("GET", "/api/v0/nodes").json()["data"]["result"]["result"]
            return bool(sum(node["state"] == "ALIVE" for node in found) >= count)
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for node in reversed(self.nodes):
            node.kill()
        for node in self.nodes:
            node.wait(30)
        self.postgres.stop()
        self._redis.stop()
