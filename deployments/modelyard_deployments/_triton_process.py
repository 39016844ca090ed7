# SPDX-License-Identifier: Apache-2.0
"""One ``tritonserver`` process behind its guard: start, read what it says, end."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from modelyard_deployments._triton_guard import Plan, remove_regions
from modelyard_deployments._triton_install import Installation
from modelyard_deployments._triton_reasons import clean_reason

_EXIT_S: Final = 3
"""How long the server waits for requests that it answers when it is told to end."""
_KILL_S: Final = _EXIT_S + 7.0
_STOP_S: Final = _KILL_S + 10.0
_FIRST_LINES: Final = 3
_ERRORS: Final = 20
_ERROR: Final = re.compile(r'[EF]\d{4} [^\]]*\] "?(.*?)"?$')
"""A line of its log, without the time and the place in its source."""
_INFORMS: Final = re.compile(r"[IW]\d{4} ")
_NO_GPU: Final = "CudaDriverHelper has not been initialized"
_MAX_FOLDER: Final = 60
"""Characters; a socket's path has 107 at most."""


def make_folder() -> Path:
    """A private folder for a server's socket."""
    short = len(tempfile.gettempdir()) <= _MAX_FOLDER
    return Path(tempfile.mkdtemp(prefix="modelyard-triton-", dir=None if short else "/tmp"))  # noqa: S108  # is private


def make_again(folder: Path) -> None:
    """The same folder, which was removed with its last server.

    Raises:
        OSError: It cannot be made, or is now somebody else's.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise FileExistsError(errno.EEXIST, "somebody else has made it", str(folder))


class TritonProcess:
    """A server that does not outlive this process, however this process ends.

    Args:
        installation: The server.
        arguments: Its arguments; those that concern its end and its shared memory are added here.
        folder: Where its socket is; is removed when it has ended.
        on_line: Is given each line that it writes, in a thread.
    """

    def __init__(
        self, installation: Installation, arguments: Sequence[str], folder: Path, on_line: Callable[[str], None]
    ) -> None:
        self._installation = installation
        self._arguments = arguments
        self._folder = folder
        self._on_line = on_line
        self._regions = f"modelyard_triton_{uuid.uuid4().hex}_"
        self._first: list[str] = []
        self._last = ""
        self.errors: deque[str] = deque(maxlen=_ERRORS)
        self._guard: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Returns at once; a server that cannot be started has then ended."""
        command = [sys.executable, "-P", "-m", "modelyard_deployments._triton_guard", self._to_plan().to_json()]
        self._guard = subprocess.Popen(  # noqa: S603  # this module's sibling
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._guard,), name="triton-output", daemon=True)
        self._reader.start()

    def _to_plan(self) -> Plan:
        backends = self._installation.backends
        command = [
            str(self._installation.program),
            *(() if backends is None else ("--backend-directory", str(backends))),
            *("--exit-timeout-secs", str(_EXIT_S)),
            f"--backend-config=python,shm-region-prefix-name={self._regions}",
            *self._arguments,
        ]
        return Plan(command, str(self._folder), self._regions, _KILL_S, dict(self._installation.environment))

    def _read(self, guard: subprocess.Popen[str]) -> None:
        assert guard.stdin is not None and guard.stdout is not None  # noqa: S101, PT018  # they were asked for
        for text in guard.stdout:
            self._remember(line := text.rstrip())
            self._on_line(line)
        guard.stdin.close()
        guard.stdout.close()
        guard.wait()
        remove_regions(self._regions)  # which the guard has done unless it was killed itself
        self._ended.set()

    def _remember(self, line: str) -> None:
        found = _ERROR.match(line)
        said = clean_reason(found[1] if found else line)
        if len(self._first) < _FIRST_LINES:
            self._first.append(said)
        if found and _NO_GPU not in line:
            self.errors.append(said)
        if not _INFORMS.match(line):
            self._last = said

    @property
    def last_words(self) -> str:
        """Why it ended, as far as it said so: its last errors, or where it logged none how its output begins."""
        return "\n".join([*(self.errors or self._first), *([self._last] if self._last not in self._first else [])])

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, all its processes with it; waits for that."""
        return self._ended.wait(timeout_s)

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it gets ready in time, and before it ends."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if is_ready():
                return True
            if self.wait(0.05):
                return False
        return False

    def stop(self) -> None:
        """Tells it to end, and waits until all of it has ended."""
        if self._guard is None or self._guard.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):  # it has ended; it has, and its pipe is closed already
            os.write(self._guard.stdin.fileno(), b"x")
        self._ended.wait(_STOP_S)
