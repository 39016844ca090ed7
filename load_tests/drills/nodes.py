# SPDX-License-Identifier: Apache-2.0
"""Ray nodes on this machine, each with a network, process ids and temporary files of its own, as pods have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

BRIDGE: Final = "10.99.0.1"
"""Where the drill's own processes are for the nodes: the clients, Redis and PostgreSQL."""
_BRIDGE_NAME: Final = "drills"
_SESSIONS: Final = "/tmp/ray"
"""Where Ray has its sockets and logs, on the head and, by what that says, on all other nodes."""
_ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent
_ENTER: Final = f'mkdir -p {_SESSIONS} && mount --bind "$0" {_SESSIONS} && exec "$@"'


def make_bridge() -> None:
    """What connects the nodes, in the network namespace of this process: nothing leads out of it."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", _BRIDGE_NAME, "type", "bridge")
    _ip("address", "add", f"{BRIDGE}/24", "dev", _BRIDGE_NAME)
    _ip("link", "set", _BRIDGE_NAME, "up")


@dataclass
class Node:
    """One node.

    Args:
        number: Of its own among all nodes of this machine.
        folder: Where the platform's relative paths count from.
        environment: Of all nodes.
        gcs: Where its cluster's head keeps the state; empty for the head itself.
        autoscaling: For a head, the file from which Ray's autoscaler adds nodes.
    """

    number: int
    folder: Path
    environment: Mapping[str, str]
    gcs: str = ""
    autoscaling: Path | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> str:
        """Of its own on the bridge."""
        return f"10.99.0.{10 + self.number}"

    @property
    def _link(self) -> str:
        """Its network's end at the bridge."""
        return f"node-{self.number}"

    @property
    def endpoint(self) -> str:
        """Where it answers HTTP."""
        return f"{self.address}:8000"

    @property
    def dashboard(self) -> str:
        """Where a head takes Serve files."""
        return f"http://{self.address}:8265"

    def start(self) -> None:
        """Begins to start; it is there when Ray says so."""
        self._make_network()
        temporary, sessions = self._path("tmp"), self._path("ray")
        for own in (temporary, sessions):
            own.mkdir(exist_ok=True)
        command = ["ray", "start", "--block", f"--node-ip-address={self.address}", "--object-store-memory=100000000"]
        command += ["--metrics-export-port=8080", "--disable-usage-stats"]
        if self.gcs:
            command += [f"--address={self.gcs}", "--num-cpus=2"]
        else:
            command += ["--head", "--num-cpus=0", "--dashboard-host=0.0.0.0", "--include-dashboard=true"]
            command += [f"--redis-password={self.environment['REDIS_PASSWORD']}"]
            if self.autoscaling is not None:
                command.append(f"--autoscaling-config={self.autoscaling}")
        with self._path("log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("nsenter", f"--net={self._path('net')}"),
                    # Its own process ids: a signal to the first of them ends them all.
                    *("unshare", "--pid", "--fork", "--mount-proc"),
                    *("sh", "-c", _ENTER, str(sessions), str(_BIN / command[0]), *command[1:]),
                ],
                cwd=self.folder,
                env={
                    **self.environment,
                    "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": str(_ROOT),
                    "RAY_TMPDIR": str(Path(_SESSIONS).parent),
                    "TMPDIR": str(temporary),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _make_network(self) -> None:
        """Once: it stays while nothing of the node runs, and refuses connections then, as the kernel of a pod does."""
        network, link = self._path("net"), self._link
        if network.exists():
            return
        network.touch()
        subprocess.run(["unshare", f"--net={network}", "true"], check=True)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(network))
        _ip("link", "set", link, "master", _BRIDGE_NAME, "up")
        changes = ["link set lo up", f"address add {self.address}/24 dev eth0", "link set eth0 up"]
        changes.append(f"route add default via {BRIDGE}")  # by which Ray finds a node's own address
        for change in changes:
            subprocess.run(["nsenter", f"--net={network}", "ip", *change.split()], check=True)

    def _path(self, what: str) -> Path:
        return self.folder / f"node-{self.number}.{what}"

    @property
    def is_running(self) -> bool:
        """Its first process runs."""
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        """As a pod is deleted: SIGTERM to ``ray start``, which moves the replicas elsewhere first."""
        os.kill(self._first(), signal.SIGTERM)

    def kill(self) -> None:
        """All its processes at once."""
        if self.is_running:
            with suppress(ProcessLookupError):
                os.kill(self._first(), signal.SIGKILL)

    def disconnect(self) -> None:
        """Nothing reaches it and nothing comes from it; its processes run on."""
        _ip("link", "set", self._link, "down")

    def connect(self) -> None:
        """Undoes that."""
        _ip("link", "set", self._link, "up")

    def wait(self, timeout_s: float) -> None:
        """Waits until it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not.
        """
        if self._process is not None:
            self._process.wait(timeout_s)

    def close(self) -> None:
        """Kills it, and gives its network back."""
        self.kill()
        self.wait(30)
        if (network := self._path("net")).exists():
            subprocess.run(["umount", str(network)], check=True)

    def _first(self) -> int:
        """The process that has number 1 in its namespace."""
        assert self._process is not None  # it was started
        (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(child)

    def processes(self, title: str) -> set[int]:
        """Process ids, as this process sees them, of those whose title begins so."""
        if not (network := self._path("net")).exists():
            return set()
        found, own = set(), network.stat().st_ino
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (entry / "ns" / "net").stat().st_ino == own:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if command.startswith(title):
                        found.add(int(entry.name))
        return found


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
