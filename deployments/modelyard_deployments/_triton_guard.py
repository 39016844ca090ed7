# SPDX-License-Identifier: Apache-2.0
"""The process between a replica and its Triton: sees to it that nothing of the server outlives the replica.

Run as ``python -P -m modelyard_deployments._triton_guard PLAN``. Its input is a pipe from the replica: a byte means
that the server is to end in order, the pipe's end that the replica is gone (killed, perhaps) and the server with it.
Its output is the server's. It ends when the server and every process of it have ended and their shared memory is
removed; whoever reads the output then reads its end.

Standard library only, so that it is small and there at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # where Linux has it
_CHILDREN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        command: The server and its arguments.
        folder: Where its socket is; is removed.
        regions: How the names of the server's shared memory begin.
        exit_s: Seconds that the server has to end in order, then it is killed.
        environment: Added to this process's own.
    """

    command: list[str]
    folder: str
    regions: str
    exit_s: float
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text that :func:`main` takes."""
        return json.dumps(asdict(self))


class _Cause(enum.Enum):
    """Why the server is no more needed, or no more."""

    ENDED = enum.auto()
    ASKED = enum.auto()
    ORPHANED = enum.auto()


def remove_regions(prefix: str) -> None:
    """Removes the shared memory that servers leave behind when they are killed; that of one server only."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _start(plan: Plan, libc: ctypes.CDLL) -> subprocess.Popen[bytes]:
    guard = os.getpid()

    def die_with_guard() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)

    return subprocess.Popen(  # noqa: S603  # the operator's Triton
        plan.command,
        env=os.environ | plan.environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_guard,
    )


def _wait(server: subprocess.Popen[bytes], ended: int) -> _Cause:
    """Until the server ends or somebody wants it to; ``ended`` becomes readable whenever a child ends."""
    while server.poll() is None:
        readable, _, _ = select.select([sys.stdin.fileno(), ended], [], [])
        if sys.stdin.fileno() in readable:
            return _Cause.ASKED if os.read(sys.stdin.fileno(), 1) else _Cause.ORPHANED
        os.read(ended, 4096)
    return _Cause.ENDED


def _end(server: subprocess.Popen[bytes], cause: _Cause, exit_s: float) -> None:
    if cause is _Cause.ASKED:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(exit_s)
    if server.poll() is None:
        server.kill()
        server.wait()


def _children() -> Iterator[int]:
    """Those of this process, and what they have left behind: a subreaper is given their orphans."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything.
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(entry.name)


def _end_children() -> None:
    """Kills them until there are none; one that cannot be killed is left after some seconds."""
    deadline = time.monotonic() + _CHILDREN_S
    while (children := list(_children())) and time.monotonic() < deadline:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _guard(plan: Plan) -> None:
    libc = ctypes.CDLL(None)
    os.setsid()
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ended, signals = os.pipe()
    os.set_blocking(signals, False)
    signal.set_wakeup_fd(signals)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the replica, never before
    try:
        server = _start(plan, libc)
        cause = _wait(server, ended)
        _end(server, cause, plan.exit_s)
        if cause is _Cause.ENDED:
            print(f"tritonserver ended with status {server.returncode}", flush=True)  # noqa: T201  # one more line of it
    except OSError as exc:
        print(f"tritonserver cannot be started: {exc.strerror}", flush=True)  # noqa: T201  # instead of its output
    finally:
        _end_children()
        remove_regions(plan.regions)
        shutil.rmtree(plan.folder, ignore_errors=True)


def main() -> None:
    """Becomes the guard, which is nobody's child: Ray kills the children of a worker that it ends."""
    if os.fork() == 0:
        _guard(Plan(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
