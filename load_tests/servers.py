# SPDX-License-Identifier: Apache-2.0
"""A server under load: where it listens, what it speaks, and whether it answers."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Literal

import httpx

from load_tests.processes import ServerProcess, all_pids, cpu_s, descendants, rss_mb, title, wait_until

Protocol = Literal["v1", "v2", "grpc"]
REPLICA = "ray::ServeReplica:"


@dataclass(frozen=True, slots=True)
class Server:
    """Where one server listens. `process` is None when it was running before the benchmark."""

    name: str
    url: str
    grpc: str
    protocols: tuple[Protocol, ...]
    version: str
    process: ServerProcess | None = None

    def infer_url(self, protocol: Protocol, model: str) -> str:
        path = f"v1/models/{model}:predict" if protocol == "v1" else f"v2/models/{model}/infer"
        return f"{self.url}/{path}"

    def pids(self) -> list[int]:
        """Return the server's processes; for a platform that was running before, all Ray processes of the machine."""
        if self.process:
            return descendants(self.process.pid)
        return [pid for pid in all_pids() if title(pid).startswith(("ray::", "haproxy")) or "/haproxy" in title(pid)]

    def memory_mb(self) -> dict[str, float]:
        """Return resident memory: of each Serve replica by its name, and of everything together."""
        pids = self.pids()
        replicas = {title(pid).removeprefix(REPLICA): rss_mb([pid]) for pid in pids if title(pid).startswith(REPLICA)}
        return {**replicas, "total": rss_mb(pids)}

    def idle_cpu(self, seconds: float = 2) -> float:
        """Return the share of one core that the server uses with nobody asking."""
        pids = self.pids()
        before = cpu_s(pids)
        time.sleep(seconds)
        return (cpu_s(pids) - before) / seconds


def is_ok(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def wait_ready(server: Server, models: list[str], timeout_s: float) -> float:
    """Wait until the server and these models are ready; return the seconds since its start.

    Raises:
        TimeoutError: when it is not ready in time.
        RuntimeError: when its process has ended.
    """
    started_s = server.process.started_s if server.process else time.monotonic()
    for path in ("health/ready", *(f"models/{model}/ready" for model in models)):

        def is_ready(url: str = f"{server.url}/v2/{path}") -> bool:
            if server.process:
                server.process.check_running()
            return is_ok(url)

        if not wait_until(is_ready, timeout_s):
            log = f"; see {server.process.log}" if server.process else ""
            raise TimeoutError(f"{server.name}: /v2/{path} is not ready after {timeout_s:g} s{log}")
    return time.monotonic() - started_s


def output_of(command: list[str]) -> str:
    """Return what a command prints, stripped, or an empty string when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
