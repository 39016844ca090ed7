# SPDX-License-Identifier: Apache-2.0
"""What a RayService is: a head, workers, Redis, PostgreSQL, and the platform as an overlay of ``kuberay/`` has it."""

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

from load_tests.drills.autoscaler import write_autoscaling
from load_tests.drills.nodes import BRIDGE, Node
from load_tests.drills.services import PostgreSQL, Redis
from modelyard import Platform
from modelyard.admin import ModelState

ROOT = Path(__file__).parents[2]
_INHERITED = ("HOME", "LANG", "USER", "VIRTUAL_ENV")
_GRACE_S = 150.0
"""Of a pod that is deleted."""
_KEPT_S = 30.0
"""How long the old cluster goes on after a switch. KubeRay's own is 60 s."""


class Cluster:
    """Started in the constructor; ends with the ``with`` block.

    Args:
        folder: An empty one, with a short path: sockets lie in it.
        overlay: Whose platform file and switches it has.
        workers: How many worker nodes.

    Attributes:
        text: The platform file.
        lost: Endpoints of the nodes that were ended; connections to all others have to hold.
    """

    def __init__(self, folder: Path, overlay: str, workers: int) -> None:
        self._folder = folder
        self.text = platform_text(overlay)
        self.lost: set[str] = set()
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
            # The same command, which is elsewhere in an image.
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("modelyard-haproxy")),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "PGHOST": BRIDGE,
            "PGUSER": "modelyard",
            "PGPASSWORD": postgres,
        }
        self._of_heads = {"RAY_REDIS_ADDRESS": f"{BRIDGE}:6379", "REDIS_PASSWORD": redis}
        self._take_nodes(0, workers)
        self._serving: Sequence[Node] = ()
        self._leaving: list[Node] = []

    def _take_nodes(self, first: int, workers: int) -> None:
        environment = self._environment | self._of_heads | {"RAY_external_storage_namespace": f"drills-{first}"}
        self.head = Node(first, self._folder, environment)
        gcs = f"{self.head.address}:6379"
        self.head.autoscaling = write_autoscaling(self._folder / f"autoscaling-{first}.yaml", gcs)
        numbers = range(first + 1, first + 1 + workers)
        self.workers = [Node(number, self._folder, self._environment, gcs) for number in numbers]

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
        self._start_nodes()

    def _start_nodes(self) -> None:
        self.head.start()
        self.until(lambda: self._is_head_up(), 120, "the head")
        for count, worker in enumerate(self.workers, 1):
            worker.start()
            self.until(partial(self._has_nodes, count + 1), 120, f"worker {count}")
        self.deploy(self.text)
        self.until(lambda: self.application() == "RUNNING", 300, "the platform")
        wanted = self.ingress_replicas
        self.until(lambda: len(_find_answering(self.workers)) >= wanted, 120, "every ingress process")
        self._serving = self.workers

    @property
    def ingress_replicas(self) -> int:
        """How many processes the platform file wants for what every request passes."""
        return int(yaml.safe_load(self.text)["applications"][0]["args"]["ingress"]["num_replicas"])

    def deploy(self, text: str) -> None:
        """Sends a Serve file to the head, as KubeRay's operator does."""
        self._ask("PUT", "/api/serve/applications/", json=yaml.safe_load(text)).raise_for_status()

    def replace(self) -> None:
        """Another cluster beside this one, as for a new image; once it is ready it is asked, and this one ends.

        Raises:
            TimeoutError: The other is not ready in time.
        """
        self._leaving = list(self.nodes)
        self._take_nodes(self.head.number + 10, len(self.workers))
        self._start_nodes()
        time.sleep(_KEPT_S)
        for node in reversed(self._leaving):
            self.delete(node)
        for node in self._leaving:
            self.wait(node, _GRACE_S)
        self._leaving = []

    def delete(self, node: Node) -> None:
        """As its pod is deleted: it is asked to end, moves its replicas elsewhere first, and answers what it has."""
        node.terminate()

    def wait(self, node: Node, timeout_s: float) -> None:
        """Until a node has ended; connections to it may break from then on, and not before."""
        node.wait(timeout_s)
        self.lost.add(node.endpoint)

    def may_break(self, endpoint: str) -> bool:
        """Whether a connection to it may break: its process was ended."""
        return endpoint in self.lost

    def kill(self, node: Node) -> None:
        """As its machine dies."""
        self.lost.add(node.endpoint)
        node.kill()
        node.wait(30)

    def cut(self, node: Node) -> None:
        """As its machine vanishes from the network."""
        self.lost.add(node.endpoint)
        node.disconnect()

    def application(self) -> str:
        """The state of the platform's application, in Serve's words; empty where nobody says."""
        try:
            applications = self._ask("GET", "/api/serve/applications/").json()["applications"]
            return str(applications["platform"]["status"])
        except (httpx.HTTPError, KeyError, ValueError):
            return ""

    def answering(self) -> list[str]:
        """Endpoints of the workers that the Service sends requests to: those whose probe answers 200."""
        return _find_answering(self._serving)

    def client(self) -> Platform:
        """A client of the platform, by a worker that answers."""
        return Platform.connect(f"http://{self.answering()[0]}", timeout_s=30)

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
        return httpx.request(method, self.head.dashboard + path, headers=headers, timeout=30, **more)

    def _is_head_up(self) -> bool:
        try:
            return self._ask("GET", "/api/version").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _has_nodes(self, count: int) -> bool:
        return self.count_nodes() >= count

    def count_nodes(self) -> int:
        """How many nodes Ray knows of that are alive, the head among them; 0 where nobody says."""
        try:
            found = self._ask("GET", "/api/v0/nodes").json()["data"]["result"]["result"]
            return sum(node["state"] == "ALIVE" for node in found)
        except (httpx.HTTPError, KeyError, TypeError, ValueError):
            return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        nodes = [*self._leaving, *self.nodes]
        for node in reversed(nodes):
            node.close()
        self.postgres.stop()
        self._redis.stop()


def _find_answering(workers: Sequence[Node]) -> list[str]:
    found = []
    for worker in workers:
        url = f"http://{worker.endpoint}/-/healthz"
        try:
            if worker.is_running and httpx.get(url, timeout=2).status_code == httpx.codes.OK:
                found.append(worker.endpoint)
        except httpx.HTTPError:
            continue
    return found


def platform_text(overlay: str) -> str:
    """What the operator gets of the overlay's RayService, to the letter."""
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [str(kubectl), "kustomize", str(ROOT / "kuberay" / "overlays" / overlay)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (service,) = [document for document in yaml.safe_load_all(printed) if document["kind"] == "RayService"]
    text: str = service["spec"]["serveConfigV2"]
    return text
