# SPDX-License-Identifier: Apache-2.0
"""The real Triton on a model repository, on ports of its own, as those have it who run it themselves.

``python -m modelyard_deployments.triton install`` installs it. That one has the python backend only, which is enough:
each model of the repository is a ``model.py``.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from modelyard_deployments._triton_install import default_folder
from modelyard_deployments._triton_process import TritonProcess, make_folder

INSTALLED = default_folder()
NOT_INSTALLED = "the real Triton is not installed: python -m modelyard_deployments.triton install"
REPOSITORY = Path(__file__).with_name("repository")
VERSION = "2.51.0"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class TritonServer:
    """One Triton process on loopback, with explicit model control.

    Args:
        repository: The model repository; the server only reads it.
        models: What is loaded at the start.
        options: More of ``tritonserver``'s own options.
    """

    repository: Path
    models: Sequence[str] = ()
    options: Sequence[str] = ()
    _ports: list[int] = field(default_factory=lambda: _free_ports(3), init=False)
    _process: TritonProcess | None = field(default=None, init=False)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self._ports[2]}/metrics"

    def arguments(self) -> list[str]:
        address = "127.0.0.1"
        http, grpc, metrics = map(str, self._ports)
        return [
            *("--model-repository", str(self.repository)),
            *("--http-address", address, "--http-port", http),
            *("--grpc-address", address, "--grpc-port", grpc),
            *("--metrics-address", address, "--metrics-port", metrics),
            *("--model-control-mode", "explicit"),
            *(f"--load-model={model}" for model in self.models),
            *("--exit-on-error", "false"),
            *self.options,
        ]

    def start(self, timeout_s: float = 60) -> None:
        """Returns when the server and the models that it loads at the start are ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; with what it said.
        """
        self._process = TritonProcess(INSTALLED.to_installation(), self.arguments(), make_folder(), lambda _: None)
        self._process.start()
        if not self._process.wait_until(self.is_ready, timeout_s):
            self.stop()
            raise RuntimeError(f"Triton did not get ready; it said: {self._process.last_words}")

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == httpx.codes.OK
        return False

    def stop(self) -> None:
        """Ends it; nothing of it is left afterwards."""
        if self._process is not None:
            self._process.stop()


@contextmanager
def running(server: TritonServer) -> Iterator[TritonServer]:
    """The server, started; whatever happens, nothing of it is left afterwards."""
    try:
        server.start()
        yield server
    finally:
        server.stop()
