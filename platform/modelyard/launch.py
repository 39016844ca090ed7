# SPDX-License-Identifier: Apache-2.0
"""Starting the platform on this machine: check the configuration, then run Ray Serve as a child process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from modelyard.config import PlatformConfig, ServeFile, load_serve_file
from modelyard.errors import Forbidden, InternalError, InvalidConfig
from modelyard.model import get_framework
from modelyard.store import check_allowed, resolve

FAST: Final[Mapping[str, str]] = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Ray reads these when its processes start, so they belong into the environment of the command."""


def check_file(path: Path) -> ServeFile:
    """Reads a Serve file and refuses what would fail later.

    Raises:
        InvalidConfig: With one problem for each key that is wrong.
    """
    found = load_serve_file(path)
    problems = check_locations(found.platform)
    if problems:
        raise InvalidConfig(problems)
    return found


def check_locations(config: PlatformConfig) -> tuple[str, ...]:
    """What is wrong with where the declared models are: stores not supported, code outside the allowed locations.

    An artifact that is missing is no problem here: it may arrive later, and fails its own model only.
    """
    problems: list[str] = []
    for index, spec in enumerate(config.models):
        try:
            path = resolve(spec.uri)
            if get_framework(spec.framework).loads_code:
                check_allowed(path, config.security.model_roots)
        except InvalidConfig as exc:
            problems += [f"models[{index}].{problem}" for problem in exc.problems]
        except Forbidden as exc:
            problems.append(f"models[{index}].{exc}")
    return tuple(problems)


def serve_command() -> str:
    """Path of Ray Serve's command, first the one beside this Python.

    Raises:
        InternalError: It is not installed.
    """
    beside = Path(sys.executable).with_name("serve")
    found = str(beside) if beside.exists() else shutil.which("serve")
    if found is None:
        raise InternalError('Ray Serve\'s command "serve" is not installed: pip install modelyard')
    return found


def run_serve(path: Path, environment: Mapping[str, str] | None = None) -> int:
    """Runs ``serve run`` until it ends; interrupts and terminations reach it once, as an interrupt.

    Args:
        path: The Serve file.
        environment: For the child, with the fast settings added where it has no opinion; None for this process's.

    Returns:
        The child's exit status; 0 where it ended because of a signal sent to us.
    """
    inherited = os.environ if environment is None else environment
    # Its own session: a terminal's Ctrl-C would otherwise reach the child twice, and the second one cuts its clean-up.
    child = subprocess.Popen(  # noqa: S603  # our own command
        [serve_command(), "run", str(path)], env={**FAST, **inherited}, start_new_session=True
    )
    stopped = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        child.send_signal(signal.SIGINT)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if stopped else status
