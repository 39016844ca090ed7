# SPDX-License-Identifier: Apache-2.0
"""Installs the PostgreSQL that the catalog's tests start.

Run ``python tests/install_postgres.py``. It does nothing where a server is there. Those tests are skipped where it
cannot install one, and it says why.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")
_CLUSTERS = Path("/etc/postgresql-common/createcluster.conf")
_INSTALL = ("apt-get", "install", "-y", "-qq", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confold")


def is_installed() -> bool:
    """Whether there is a server to start."""
    return shutil.which("initdb") is not None or any(_DEBIAN.glob("*/bin/initdb"))


def install() -> str:
    """Installs the server where it is missing.

    Returns:
        Why it could not; empty where it is there now.
    """
    if is_installed():
        return ""
    if shutil.which("apt-get") is None:
        return "there is no apt-get here"
    if os.geteuid() != 0:
        return "apt-get needs root"
    if not _CLUSTERS.exists():  # or Debian makes a cluster of its own, which listens from then on
        _CLUSTERS.parent.mkdir(parents=True, exist_ok=True)
        _CLUSTERS.write_text("create_main_cluster = false\n")
    if _run(*_INSTALL, "postgresql") and (_run("apt-get", "update", "-qq") or _run(*_INSTALL, "postgresql")):
        return "apt-get failed"
    return ""


def _run(*command: str) -> int:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "UCF_FORCE_CONFFOLD": "1"}
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    if problem := install():
        sys.stdout.write(f"the catalog's tests on PostgreSQL are skipped, it cannot be installed: {problem}\n")
