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


def _run(url: str, body: Path, connections: int, seconds: float) -> Measurement:
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(SCRIPT)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(["wrk", *options, url, "--", str(body)], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"wrk {url}: {done.stderr.strip() or done.stdout.strip()}")
    counted = json.loads(done.stdout.strip().splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measurement(**counted, client_cpu=cpu / counted["seconds"])


def measure(url: str, body: bytes, connections: int, seconds: float, warmup_s: float) -> Measurement:
    """Warm up and measure with the same load; the warm-up's numbers are dropped."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(body)
        file.flush()
        _run(url, Path(file.name), connections, warmup_s)
        return _run(url, Path(file.name), connections, seconds)
