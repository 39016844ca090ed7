# SPDX-License-Identifier: Apache-2.0
"""Overlays of several nodes, really started from their own text, with a drill each; `make drills` does all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("ip", "nsenter", "unshare", "runuser", "redis-server")
LIMIT_S = 600


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    if os.geteuid() != 0:
        pytest.skip("drills make namespaces and need root")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: apt-get install iproute2 util-linux redis-server")
    if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("PostgreSQL is missing: python tests/install_postgres.py")
    bridge = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "ip", "link", "add", "one", "type", "bridge"]
    made = subprocess.run(bridge, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no networks can be made here: {made.stderr.strip()}")


@pytest.mark.parametrize(
    ("overlay", "drill"), [("ha", "kill-worker"), ("cpu", "break-file"), ("incremental-upgrade", "break-file")]
)
def test_no_request_fails(overlay: str, drill: str) -> None:
    command = [sys.executable, "-m", "load_tests.drills", "--overlay", overlay, drill]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (numbers,) = [line.split()[1:4] for line in done.stdout.splitlines() if line.startswith(drill)]
    requests, _, failures = map(int, numbers)
    assert requests > 100
    assert failures == 0
