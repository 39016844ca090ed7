# SPDX-License-Identifier: Apache-2.0
"""HTTP load by wrk, one thread, a fixed number of connections."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

from load_tests.measurement import Measurement

SCRIPT = Path(__file__).parent / "wrk_post.lua"


def check_installed() -> None:
    """Raise RuntimeError when there is no wrk."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")


def _run(url: str, arguments: list[str], connections: int, seconds: float) -> Measurement:
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(["wrk", *options, url, "--", *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"wrk {url}: {done.stderr.strip() or done.stdout.strip()}")
    counted = json.loads(done.stdout.strip().splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(**counted, client_cpu=cpu / counted["seconds"])


def measure(
    url: str, body: bytes, connections: int, seconds: float, warmup_s: float, json_length: int | None = None
) -> Measurement:
    """Warm up and measure with the same load; the warm-up's numbers are dropped.

    `json_length` is that of the JSON part of a body with binary tensors; None: all of it is JSON.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(body)
        file.flush()
        arguments = [file.name] if json_length is None else [file.name, str(json_length)]
        _run(url, arguments, connections, warmup_s)
        return _run(url, arguments, connections, seconds)
