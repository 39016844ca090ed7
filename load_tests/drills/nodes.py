# SPDX-License-Identifier: Apache-2.0
"""Ray nodes on this machine, each with an address, ports, temporary files and process ids of its own, as pods have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent


@dataclass
class Node:
    """One node.

    Args:
        number: Of its own among all nodes of this machine.
        folder: Where the platform's relative paths count from.
        environment: Of all nodes.
        head: The number of its cluster's head.
        autoscaling: For a head, the file from which Ray's autoscaler adds nodes.
    """

    number: int
    folder: Path
    environment: Mapping[str, str]
    head: int
    autoscaling: Path | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        """Of its own on the loopback interface."""
        return f"127.0.0.{self.number + 1}"

    @property
    def gcs(self) -> str:
        """Where its cluster's head keeps the state."""
        return f"127.0.0.1:{6380 + self.head}"

    @property
    def dashboard(self) -> str:
        """Where its cluster's head takes Serve files."""
        return f"http://127.0.0.1:{8265 + self.head}"

    @property
    def http_port(self) -> int:
        """Where it answers HTTP; pods would all have the same."""
        return 8000 + self.number

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self) -> None:
        """Begins to start; it is there when Ray says so."""
        command = ["ray", "start", "--block", f"--node-ip-address={self.address}", "--object-store-memory=100000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        if self.number != self.head:
            command += [f"--address={self.gcs}", "--num-cpus=2", "--dashboard-agent-listen-port=0"]
        else:
            command += ["--head", f"--port={self.gcs.rpartition(':')[2]}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
            command += [f"--dashboard-port={self.dashboard.rpartition(':')[2]}", "--include-dashboard=true"]
            command += [
                f"--temp-dir={self.folder / f'ray-{self.number}'}",
                f"--ray-client-server-port={10001 + self.number}",
            ]
            command += [f"--redis-password={self.environment['REDIS_PASSWORD']}"]
            if self.autoscaling is not None:
                command.append(f"--autoscaling-config={self.autoscaling}")
        with (self.folder / f"node-{self.number}.log").open("ab") as log:
            self._process = subprocess.Popen(  # its own process ids: a signal to the first of them ends them all
                ["unshare", "--pid", "--fork", "--mount-proc", str(_BIN / command[0]), *command[1:]],
                cwd=self.folder,
                env=self.environment | self.own_environment() | {"PYTHONPATH": str(_ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def own_environment(self) -> dict[str, str]:
        """What other nodes have otherwise: ports and the folder of temporary files."""
        temporary = self.folder / f"tmp-{self.number}"
        temporary.mkdir(exist_ok=True)
        first = 20_000 + 600 * self.number
        ports = {
            "RAY_SERVE_HAPROXY_STATS_PORT": 8400 + self.number,
            "RAY_SERVE_HAPROXY_METRICS_PORT": 9100 + self.number,
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500 + self.number,
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 8600 + self.number,
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": first,
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": first + 250,
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": first + 300,
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": first + 550,
        }
        if self.number != self.head:
            ports["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = self.http_port
            ports["RAY_SERVE_WORKER_PROXY_GRPC_PORT"] = 9000 + self.number
        return {
            **{name: str(port) for name, port in ports.items()},
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(temporary),
        }

    @property
    def is_running(self) -> bool:
        """Its first process runs."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """As a pod is deleted: SIGTERM to ``ray start``, which moves the replicas elsewhere first."""
        os.kill(self._first(), signal.SIGTERM)

    def kill(self) -> None:
        """As a machine dies: all its processes at once."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self._first(), signal.SIGKILL)

    def wait(self, timeout_s: float) -> None:
        """Waits until it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not.
        """
        if self._process is not None:
            self._process.wait(timeout_s)

    def _first(self) -> int:
        """The process that has number 1 in its namespace."""
        assert self._process is not None  # it was started
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(child)

    def processes(self, title: str) -> set[int]:
        """Process ids, as this process sees them, of those whose title begins so."""
        marker = f"TMPDIR={self.folder / f'tmp-{self.number}'}\0".encode()
        found = set()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and marker in (entry / "environ").read_bytes() + b"\0":
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command.startswith(title):
                        found.add(int(entry.name))
        return found
