# SPDX-License-Identifier: Apache-2.0
"""An S3 server on this machine for tests: rclone, over a folder whose folders are buckets."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from load_tests.processes import free_ports

KEYS = ("the-access-key", "the-secret-key")
_kept: dict[int, socket.socket] = {}


def keep_port() -> int:
    """A port that nobody else is given until it is first served on: a platform is told of it long before."""
    (port,) = free_ports(1)
    _kept[port] = socket.socket()
    _kept[port].bind(("127.0.0.1", port))
    return port


def s3_settings(port: int) -> dict[str, str]:
    """Environment variables with which clients find it."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEYS[0],
        "AWS_SECRET_ACCESS_KEY": KEYS[1],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextmanager
def serving_s3(folder: Path, port: int) -> Iterator[None]:
    """Serves until the context ends.

    Args:
        folder: Each folder in it is a bucket.
        port: On loopback.
    """
    log = folder.with_name(f"{folder.name}.log")
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    # Without a cache of its own: tests write to the folder, too.
    command += [
        "--auth-key",
        ",".join(KEYS),
        "--config",
        "",
        "--dir-cache-time",
        "0s",
        "--vfs-cache-mode",
        "off",
        str(folder),
    ]
    if (kept := _kept.pop(port, None)) is not None:
        kept.close()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # ours
        try:
            _wait(port, process, log)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as attempt:
            if not attempt.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.05)
    raise RuntimeError(f"rclone does not serve: {log.read_text()}")
