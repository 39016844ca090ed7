# SPDX-License-Identifier: Apache-2.0
"""The databases that the catalog is tested on: an SQLite file, and a PostgreSQL server of the session's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

from modelyard.catalog import Catalog

PASSWORD = "hunter2/@:%"
_USER = "modelyard"
_STARTING_S = 30.0


class PostgreSQLServer:
    """A server that listens on a socket in its folder and nowhere else.

    Args:
        programs: Where ``initdb`` and ``pg_ctl`` are.
        folder: An empty one, which the server's user can enter.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._numbers = count()
        password = folder / "password"
        password.write_text(PASSWORD)
        if os.geteuid() == 0:  # as root it does not run
            for path in (folder, password):
                shutil.chown(path, "postgres")
        arguments = ["-D", self._data, "-U", _USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8"]
        self._run("initdb", *arguments, "--locale=C", "--no-sync", check=True)

    def start(self) -> None:
        """Starts it; after a kill as soon as the last of its processes has gone."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}'"
        give_up_at = time.monotonic() + _STARTING_S
        while True:
            done = self._run("pg_ctl", "-D", self._data, "-w", "-l", self._folder / "log", "-o", options, "start")
            if done.returncode == 0:
                return
            assert time.monotonic() < give_up_at, (self._folder / "log").read_text()

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "fast", "stop", check=True)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It is away for a while."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def killed(self) -> Iterator[None]:
        """It dies by SIGKILL, and comes back at the end."""
        os.kill(int((self._data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        try:
            yield
        finally:
            self.start()

    def create_schema(self) -> str:
        """The URL of a new, empty schema, which is to the catalog what a new database is, and made much faster."""
        name = f"catalog{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return self.url(f"-csearch_path={name}")

    def url(self, options: str = "") -> str:
        """As operators write it, but with the folder of the socket in place of the host."""
        query = {"host": str(self._folder), "options": options}
        url = URL.create("postgresql", _USER, PASSWORD, database="postgres", query=query)
        return url.render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        arguments = {"user": _USER, "password": PASSWORD, "dbname": "postgres"}
        with psycopg.connect(host=str(self._folder), autocommit=True, **arguments) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str | Path, check: bool = False) -> subprocess.CompletedProcess[bytes]:
        other_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*other_user, self._programs / program, *arguments]
        return subprocess.run(command, cwd=self._folder, stdout=subprocess.DEVNULL, check=check)


def _find_programs() -> Path | None:
    """Where ``initdb`` is; Debian has it beside the PATH, one folder for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve())
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQLServer]:
    programs = _find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: tests/install_postgres.py does that")
    folder = Path(tempfile.mkdtemp(prefix="my-pg-", dir="/tmp"))  # pytest's own folders are closed to its user
    try:
        found = PostgreSQLServer(programs, folder)
        found.start()
        try:
            yield found
        finally:
            found.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(server: PostgreSQLServer) -> str:
    return server.create_schema()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/modelyard.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog(url) as opened:
        yield opened


@pytest.fixture
def edit(url: str) -> Callable[[str], None]:
    """Changes the database behind the catalog's back."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)

    def run(statements: str) -> None:
        with engine.begin() as connection:
            for statement in statements.split(";"):
                connection.exec_driver_sql(statement)

    return run
