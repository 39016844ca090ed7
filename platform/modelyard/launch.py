# SPDX-License-Identifier: Apache-2.0
"""Starting the platform on this machine: check the configuration, then run Ray Serve as a child process."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import httpx

from modelyard.config import PlatformConfig, ServeFile, load_serve_file
from modelyard.errors import Forbidden, InternalError, InvalidConfig
from modelyard.model import get_framework, runs_elsewhere
from modelyard.store import check_allowed, resolve
from modelyard.store.remote import Remote, is_remote

FAST: Final[Mapping[str, str]] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "modelyard.serve.edge:middlewares",
    # What Ray chooses by itself, without the warning that it chose.
    "RAY_AUTH_MODE": "token",
    # Why a model failed to load is in its status and in the log; Serve's controller would print it once more, with its
    # traceback, where the model is removed meanwhile.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Ray starts its workers at niceness 15, behind everything else on the machine; these are the ones that serve.
    "RAY_worker_niceness": "0",
    # A log line for each request, read again by Serve, costs more than it tells. The port 9101 stays open.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Messages of usual size pass HAProxy in one piece, without waiting for windows to open.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(128 * 1024),
    "RAY_SERVE_HAPROXY_H2_BE_INITIAL_WINDOW_SIZE": str(4 * 1024 * 1024),
    "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": str(4 * 1024 * 1024),
    # An ingress replica that dies with a request, before it has said anything of the answer: another one gets it, where
    # HAProxy has all of it. Once, for the request may be the cause.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    # For load balancers on other machines; here the one HAProxy knows within a second.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # Replicas' gRPC ports: Ray's own 40000 to 41000 are among those the kernel gives to outgoing connections.
    "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": "31001",
    "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": "32001",
}
"""Ray reads these when its processes start, so they belong into the environment of the command."""

_POLL_S: Final = 0.5
_HAPROXY_COMMAND: Final = "RAY_SERVE_HAPROXY_BINARY_PATH"
_HAPROXY_MAXCONN: Final = "RAY_SERVE_HAPROXY_MAXCONN"
_CONNECTIONS: Final = 4096
"""What Serve lets HAProxy have at once. Source: ``ray/serve/_private/constants.py``."""
_OTHER_FILES: Final = 200


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
            framework = get_framework(spec.framework)
            if runs_elsewhere(framework, spec.uri):
                continue
            if is_remote(spec.uri):
                Remote(spec.uri)
            else:
                resolve(spec.uri)
            for location in framework.code_locations(spec.uri, spec.options):
                check_allowed(location, config.security.model_roots)
        except InvalidConfig as exc:
            problems += [f"models[{index}].{problem}" for problem in exc.problems]
        except Forbidden as exc:
            problems.append(f"models[{index}].{exc}")
    return tuple(problems)


def find_command(name: str) -> str:
    """Path of an installed command, first the one beside this Python.

    Raises:
        InternalError: It is not installed.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InternalError(f'the command "{name}" is not installed: pip install modelyard')
    return found


def check_ports(found: ServeFile) -> None:
    """Refuses to start where another process already listens.

    Raises:
        InvalidConfig: With one problem for each address.
    """
    problems = []
    for key, address in (("http_options.port", found.http_url), ("grpc_options.port", found.grpc_address)):
        parts = urlsplit(address if address and "//" in address else f"//{address}")
        if address and _is_taken(parts.hostname or "127.0.0.1", parts.port or 80):
            problems.append(f"{key}: expected a free port, got {parts.netloc}, where another process listens")
    if problems:
        raise InvalidConfig(tuple(problems))


def check_open_files(environment: Mapping[str, str] | None = None) -> None:
    """Refuses to start where HAProxy would end at once for want of file descriptors.

    Two for each connection, and one of a pipe's for every second one. Who may raise the limit for what is started here
    has it raised; the soft one HAProxy raises by itself.

    Source: HAProxy "Management Guide", section 5, ``maxsock``.

    Args:
        environment: As for :func:`run_serve`.

    Raises:
        InvalidConfig: The hard limit is too low, or the number of connections is none.
    """
    asked = {**FAST, **(os.environ if environment is None else environment)}
    if asked["RAY_SERVE_ENABLE_HA_PROXY"] != "1":
        return
    try:
        connections = int(asked.get(_HAPROXY_MAXCONN, _CONNECTIONS))
    except ValueError as exc:
        problem = f'{_HAPROXY_MAXCONN}: expected a number of connections, got "{asked[_HAPROXY_MAXCONN]}"'
        raise InvalidConfig((problem,)) from exc
    needed = connections * 5 // 2 + _OTHER_FILES
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != limit < needed:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, needed))
            return
        fitting = max(1, (limit - _OTHER_FILES) * 2 // 5)
        problem = (
            f"open files: expected a hard limit of at least {needed} (`ulimit -Hn`) for the {connections} connections "
            f"that HAProxy may have, got {limit}; raise it, or set {_HAPROXY_MAXCONN}={fitting}"
        )
        raise InvalidConfig((problem,))


def _is_taken(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def run_serve(
    path: Path,
    environment: Mapping[str, str] | None = None,
    on_ready: Callable[[], None] = lambda: None,
    ready_url: str = "",
) -> int:
    """Runs ``serve run`` until it ends; interrupts and terminations reach it once, as an interrupt.

    When it returns, nothing that it started is left.

    Args:
        path: The Serve file.
        environment: For the child, with the fast settings added where it has no opinion; None for this process's.
        on_ready: Called once when ``ready_url`` answers 200.
        ready_url: Where to ask; empty for not at all.

    Returns:
        The child's exit status; 0 where it ended because of a signal sent to us.
    """
    inherited = os.environ if environment is None else environment
    settings = {**FAST, **inherited}
    if settings["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and not settings.get(_HAPROXY_COMMAND):
        settings[_HAPROXY_COMMAND] = str(Path(find_command("modelyard-haproxy")).absolute())
    stopped = interrupted = False
    child: subprocess.Popen[bytes] | None = None

    def interrupt() -> None:
        nonlocal interrupted
        if child is not None and not interrupted:
            interrupted = True
            child.send_signal(signal.SIGINT)

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        interrupt()

    # Before the child: it would inherit "ignored" from a shell that starts us in the background.
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    # Its own session: a terminal's Ctrl-C would otherwise reach the child twice, and the second one cuts its clean-up.
    child = subprocess.Popen(  # noqa: S603  # our own command
        [find_command("serve"), "run", str(path)], env=settings, start_new_session=True
    )
    if stopped:  # the signal came while the child was being started
        interrupt()
    try:
        status = _wait(child, ready_url, on_ready)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        with contextlib.suppress(ProcessLookupError):  # Ray's own processes, where they outlive their driver
            os.killpg(child.pid, signal.SIGKILL)
    return 0 if stopped else status


def _wait(child: subprocess.Popen[bytes], ready_url: str, on_ready: Callable[[], None]) -> int:
    while ready_url:
        try:
            return child.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if _answers(ready_url):
                on_ready()
                break
    return child.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
