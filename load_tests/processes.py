# SPDX-License-Identifier: Apache-2.0
"""Start, watch and end the servers of a benchmark. Linux: process facts come from /proc."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PORTS = range(29_300, 31_000)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> list[int]:
    """Return `count` different loopback ports that were free a moment ago.

    Below those that the kernel gives to outgoing connections, and none that Ray takes by itself.
    """
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(port)
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name: state, parent, …; empty when the process is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def descendants(root: int) -> list[int]:
    """Return `root` and every process below it, parents first."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        if fields := _stat(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def session(leader: int) -> list[int]:
    """Return the processes of a session, also those whose parent has ended."""
    return [pid for pid in all_pids() if (fields := _stat(pid)) and int(fields[3]) == leader]


def title(pid: int) -> str:
    """Return the command line, which for a Ray worker is its title, such as `ray::ServeReplica:app:Deployment`."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def rss_mb(pids: Iterable[int]) -> float:
    """Return the resident memory in MB, shared pages counted in each process."""
    return sum(int(fields[21]) for pid in pids if (fields := _stat(pid))) * PAGE_BYTES / 1e6


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time used so far, user and system."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid))) / TICKS_PER_S


def _start_times(pids: Iterable[int]) -> dict[int, str]:
    """Return each process's start time, which tells it from a later one with the same id."""
    return {pid: fields[19] for pid in pids if (fields := _stat(pid)) and fields[0] != "Z"}


def wait_until(is_done: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Poll `is_done`; return whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not is_done():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


class ServerProcess:
    """A server in a process group of its own, logging to a file, ended with everything it started.

    Raises:
        OSError: when the command cannot be started.
    """

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.started_s = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def check_running(self) -> None:
        """Raise RuntimeError with the end of the log when the process has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.log.stem} ended with {self._process.returncode}; {self.log}:\n{tail}")

    def stop(self, grace_s: float = 20) -> None:
        """Ask for an end as Ctrl-C would, wait, then kill what is left, children in other groups included."""
        family = _start_times({*descendants(self.pid), *session(self.pid)})
        try:
            self._ask_to_end(family, grace_s)
        finally:  # also when a second Ctrl-C cuts the waiting short
            for pid in self._left(family):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def _ask_to_end(self, family: dict[int, str], grace_s: float) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        wait_until(lambda: not self._left(family), 3 if self._process.poll() is not None else 0)

    @staticmethod
    def _left(family: dict[int, str]) -> list[int]:
        now = _start_times(family)
        return [pid for pid, started in family.items() if now.get(pid) == started]
