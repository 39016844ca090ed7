# SPDX-License-Identifier: Apache-2.0
"""The platform as a process: start it from a Serve file, wait, find its processes, stop it, judge what it printed."""

from __future__ import annotations

import copy
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from load_tests.processes import free_ports

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

SUSPICIOUS = re.compile(
    r"Traceback|\bwarn|\bW\d{4}\b|\bE\d{4}\b|error|exception|deprecat|\bfailed\b|\bdied\b", re.IGNORECASE
)
"""What a line of a clean run's output has not."""


def wait_until(is_done: Callable[[], Any], timeout_s: float, what: str, every_s: float = 0.1) -> Any:
    """Asks until the answer is true, and returns it.

    Raises:
        TimeoutError: It did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := is_done()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(every_s)
    return answer


def base_document() -> dict[str, Any]:
    """The platform's own Serve file."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "platform.yaml").read_text())
    return document


@dataclass
class PlatformProcess:
    """One platform on a Ray cluster of its own, in a folder of its own: models, catalog, Ray's files, output.

    Args:
        folder: Its working directory; the paths in the Serve file count from it. Short, since sockets lie below it.
        document: The Serve file; its ports are replaced by free ones.
        command: What starts it, before the file's name.
        settings: Further environment variables.
    """

    folder: Path
    document: dict[str, Any]
    command: tuple[str, ...] = (str(BIN / "modelyard"), "serve")
    ports: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.document = copy.deepcopy(self.document)
        names = ("http", "grpc", "stats", "metrics", "fallback_http", "fallback_grpc")
        self.ports = self.ports or dict(zip(names, free_ports(len(names)), strict=True))
        self.document["http_options"]["port"] = self.ports["http"]
        self.document["grpc_options"]["port"] = self.ports["grpc"]
        self.log = self.folder / "output.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.ports['http']}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The declared models by name; changing one changes the file at the next :meth:`write_file`."""
        return {model["name"]: model for model in self.document["applications"][0]["args"]["models"]}

    def environment(self) -> dict[str, str]:
        """Keeps this cluster apart from others on the machine: Ray's folder, and every port Ray would fix.

        Below 32768, since from there on the kernel gives ports to outgoing connections.
        """
        http, grpc = random.randrange(20_000, 24_000), random.randrange(25_000, 29_000)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MODELYARD_"))}
        return (
            inherited
            | self.settings
            | {
                "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
                "TMPDIR": str(self.folder),
                "RAY_TMPDIR": str(self.folder),
                "MODELYARD_ENVIRONMENTS": str(self.folder / "environments"),
                "MODELYARD_CACHE": str(self.folder / "cache"),
                "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(200 * 1024 * 1024),
                "RAY_SERVE_HAPROXY_STATS_PORT": str(self.ports["stats"]),
                "RAY_SERVE_HAPROXY_METRICS_PORT": str(self.ports["metrics"]),
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(self.ports["fallback_http"]),
                "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(self.ports["fallback_grpc"]),
                "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
                "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + 200),
                "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
                "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + 200),
            }
        )

    def write_file(self) -> Path:
        path = self.folder / "platform.yaml"
        path.write_text(yaml.safe_dump(self.document, sort_keys=False))
        return path

    def start(self, timeout_s: float = 240) -> None:
        """Returns when the platform says that it is ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; with the end of its output.
        """
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.command, self.write_file().name],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until(self._has_begun, timeout_s, "the platform to be ready", 0.25)
        except (TimeoutError, RuntimeError) as exc:
            self.kill()
            raise RuntimeError(f"{exc}; its output ends with:\n{self.tail()}") from exc

    def _has_begun(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the platform ended with status {self._process.returncode}")
        return self.is_ready()

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/v2/health/ready", timeout=2).status_code == httpx.codes.OK
        return False

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def processes(self) -> dict[int, str]:
        """Command line (a Ray worker's is its title) of each process of this cluster, found by its environment."""
        marker = f"RAY_TMPDIR={self.folder}\0".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes() + b"\0":
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if title:  # else it has ended, and its parent has not yet asked
                        found[int(entry.name)] = title
        return found

    def replicas(self, application: str, deployment: str = "Model") -> set[int]:
        """Process ids of the replicas of one deployment; ``iris-sklearn@1`` is a revision's application."""
        title = f"ray::ServeReplica:{application}:{deployment}"
        return {pid for pid, found in self.processes().items() if found.split(".")[0].startswith(title)}

    def all_replicas(self) -> dict[str, set[int]]:
        """Process ids of the models' replicas, by application."""
        found: dict[str, set[int]] = {}
        for pid, title in self.processes().items():
            matched = re.match(r"ray::ServeReplica:([^:]+@\d+):Model", title)
            if matched:
                found.setdefault(matched[1], set()).add(pid)
        return found

    def stop(self, timeout_s: float = 60) -> int:
        """Ctrl-C, and its exit status.

        Raises:
            RuntimeError: It did not end in time, or left processes; they are killed.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(timeout_s)
            wait_until(lambda: not self.processes(), 30, "the platform's processes to end")
        except (TimeoutError, subprocess.TimeoutExpired) as exc:
            left = self.processes()
            self.kill()
            raise RuntimeError(f"{exc}; left: {left}; its output ends with:\n{self.tail()}") from exc
        return status

    def kill(self) -> None:
        """Ends what is left, by process id, all at once: none is left to say that another has died."""
        for ending in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, ending)
        if self._process is not None:
            self._process.wait()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def unexplained(self, known: Mapping[str, str]) -> list[str]:
        """Suspicious lines of the output, without those that match a pattern in ``known``."""
        explained = [re.compile(pattern) for pattern in known]
        lines = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace")).splitlines()
        return [
            line for line in lines if SUSPICIOUS.search(line) and not any(pattern.search(line) for pattern in explained)
        ]


@contextmanager
def running(process: PlatformProcess, timeout_s: float = 240) -> Iterator[PlatformProcess]:
    """The platform, started; whatever happens, nothing of it is left afterwards."""
    process.start(timeout_s)
    try:
        yield process
    finally:
        process.kill()
