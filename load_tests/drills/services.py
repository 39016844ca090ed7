# SPDX-License-Identifier: Apache-2.0
"""What somebody else runs for a cluster: Redis for Ray's state, PostgreSQL for the platform's."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from load_tests.drills.nodes import BRIDGE


class Redis:
    """A server that keeps what it has acknowledged.

    Args:
        folder: An empty one.
        password: That clients need.
    """

    def __init__(self, folder: Path, password: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is missing: apt-get install redis-server")
        arguments = ["--bind", BRIDGE, "--dir", str(folder), "--appendonly", "yes"]
        arguments += ["--requirepass", password]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(30)


class PostgreSQL:
    """A server with a database ``modelyard``.

    Args:
        folder: An empty one, which the user ``postgres`` can enter.
        password: Of its user ``modelyard``.
    """

    def __init__(self, folder: Path, password: str) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            raise RuntimeError("PostgreSQL is missing: python tests/install_postgres.py")
        self._programs = found[-1].parent
        self._folder, self._data = folder, folder / "data"
        (folder / "password").write_text(password)
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
        arguments = ["-D", str(self._data), "-U", "modelyard", f"--pwfile={folder / 'password'}", "-A", "scram-sha-256"]
        self._run("initdb", *arguments, "--locale=C", "-E", "UTF8", "--no-sync")
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host modelyard modelyard {BRIDGE}/24 scram-sha-256\n")
        self.start()
        self._run("createdb", "-h", str(folder), "-U", "modelyard", "modelyard", PGPASSWORD=password)

    def start(self) -> None:
        """Starts it, also after a kill."""
        options = f"-c listen_addresses={BRIDGE} -c unix_socket_directories={self._folder}"
        arguments = ("-D", str(self._data), "-w", "-l", str(self._folder / "log"), "-o", options)
        until = time.monotonic() + 30
        while True:
            try:
                return self._run("pg_ctl", *arguments, "start")
            except subprocess.CalledProcessError:  # what is left of it has not gone yet
                if time.monotonic() > until:
                    raise

    def stop(self) -> None:
        """Ends it; whoever is connected is cut off."""
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str, **environment: str) -> None:
        command = ["runuser", "-u", "postgres", "--", str(self._programs / program), *arguments]
        subprocess.run(
            command, check=True, cwd=self._folder, env=os.environ | environment, stdout=subprocess.DEVNULL, timeout=60
        )
