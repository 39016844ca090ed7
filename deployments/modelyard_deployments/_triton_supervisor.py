# SPDX-License-Identifier: Apache-2.0
"""Keeps one Triton running: starts it, and starts it again when it dies."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

from modelyard.errors import ModelLoadError
from modelyard_deployments._triton_install import Installation
from modelyard_deployments._triton_process import TritonProcess, make_again, make_folder

logger = logging.getLogger(__name__)

_LEVELS: Final = {"W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
_LINE: Final = re.compile(r"([IWEF])\d{4} ")
_STABLE_S: Final = 60.0
"""A server that ran as long is started again at once."""
_MAX_DELAY_S: Final = 30.0
_MAX_FAILURES: Final = 3


class Supervisor:
    """A Triton that listens on a socket in a private folder, and is there again soon after it has died.

    Args:
        installation: The server.
        arguments: Its arguments, without those for the socket.
        start_timeout_s: Seconds that it may take until it listens, which it does when all models are loaded.
    """

    def __init__(self, installation: Installation, arguments: Sequence[str], start_timeout_s: float) -> None:
        self._installation = installation
        self._folder = make_folder()
        # Triton puts a colon and the port behind the address, and gRPC takes all of it for the socket's path.
        self._socket = self._folder / "grpc:0"
        address = ("--grpc-address", f"unix:{self._folder / 'grpc'}", "--grpc-port", "0")
        self._arguments = (*arguments, *address)
        self._timeout_s = start_timeout_s
        self._failures = 0
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._process = self._start()
        self._thread: threading.Thread | None = None

    @property
    def target(self) -> str:
        """Where gRPC reaches it."""
        return f"unix:{self._socket}"

    def start(self) -> None:
        """Waits until it listens, and from then on keeps it running.

        Raises:
            ModelLoadError: It has ended or does not listen in time, with the end of its output.
        """
        if not self._process.wait_until(self._listens, self._timeout_s):
            ended = self._process.wait(0)
            self.close()
            what = "ended" if ended else f"did not listen within {self._timeout_s:g} s (option start_timeout_s)"
            raise ModelLoadError(f"Triton {what}; it said: {self._process.last_words}")
        self._thread = threading.Thread(target=self._keep_running, name="triton-supervisor", daemon=True)
        self._thread.start()

    @property
    def errors(self) -> Sequence[str]:
        """The last errors in its log."""
        return tuple(self._process.errors)

    def check_health(self) -> None:
        """Asked for periodically.

        Raises:
            RuntimeError: It has died too often.
        """
        if self._failures >= _MAX_FAILURES:
            raise RuntimeError(f"Triton has ended {self._failures} times, each time soon after it was started")

    def close(self) -> None:
        """Ends it; returns when all of it has ended."""
        with self._lock:
            self._stopping.set()
        self._process.stop()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> TritonProcess:
        process = TritonProcess(self._installation, self._arguments, self._folder, _log)
        process.start()
        return process

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as one:
            try:
                one.connect(str(self._socket))
            except OSError:
                return False
        return True

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            begun_s = time.monotonic()
            if not self._process.wait_until(self._listens, self._timeout_s):
                self._process.stop()  # in vain, where it has ended by itself
            self._process.wait()
            self._failures = 0 if time.monotonic() - begun_s > _STABLE_S else self._failures + 1
            delay_s = min(_MAX_DELAY_S, 2.0 ** (self._failures - 2)) if self._failures > 1 else 0.0
            if not self._stopping.is_set():
                logger.error("Triton has ended and is started again in %g s", delay_s)
            if not self._stopping.wait(delay_s):
                self._start_again()

    def _start_again(self) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            try:
                make_again(self._folder)
                self._process = self._start()
            except OSError as exc:  # the next attempt may do
                logger.error("Triton cannot be started again: %s", exc)


def _log(line: str) -> None:
    found = _LINE.match(line)
    logger.log(_LEVELS.get(found[1], logging.INFO) if found else logging.INFO, "triton: %s", line)
