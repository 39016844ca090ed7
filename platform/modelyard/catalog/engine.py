# SPDX-License-Identifier: Apache-2.0
"""The database behind the catalog: connections that keep what they acknowledge, and the errors they raise."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from modelyard.errors import InternalError, InvalidConfig

_BUSY_TIMEOUT_S: Final = 30.0
_WRITE: Final = "modelyard_write"


def open_engine(url: str) -> Engine:
    """An engine for the catalog's URL; makes the folder of an SQLite file.

    Raises:
        InvalidConfig: The URL cannot be used.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, ImportError) as exc:  # no URL, no such dialect, or its driver is not installed
        raise InvalidConfig((f"catalog.url: cannot be used: {type(exc).__name__}",)) from exc
    try:
        Path(parsed.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidConfig((f"catalog.url: its folder cannot be made: {exc.strerror}",)) from exc
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    _use_wal(engine)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent picture of the database."""
    with _mapped_errors(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that is durable when this returns, and leaves nothing when it raises.

    On SQLite it takes the write lock at once, so that what it reads cannot change before it writes.
    """
    with _mapped_errors(), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITE: True})
        with connection.begin():
            yield connection


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error) as exc:  # what setting up a connection raises comes unwrapped
        reason = exc.orig if isinstance(exc, DBAPIError) else exc
        raise InternalError(f"the catalog's database failed: {reason}") from exc


def _set_up_sqlite(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # the driver begins nothing by itself: _begin_sqlite does
    dbapi.execute("PRAGMA synchronous=FULL")
    dbapi.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _use_wal(engine: Engine) -> None:
    """Write-ahead logging, which stays set in the file.

    Two processes that open a new file at once collide here, and SQLite does not wait for this lock by itself.

    Raises:
        InvalidConfig: The file cannot be opened or is not a database.
    """
    give_up_at = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            with engine.connect() as connection:
                dbapi = connection.connection.cursor()
                dbapi.execute("PRAGMA journal_mode=WAL")
                dbapi.close()
        except (DBAPIError, sqlite3.Error) as exc:  # what setting up a connection raises comes unwrapped
            reason = exc.orig if isinstance(exc, DBAPIError) else exc
            if "locked" not in str(reason) or time.monotonic() > give_up_at:
                engine.dispose()
                raise InvalidConfig((f"catalog.url: the database cannot be opened: {reason}",)) from exc
            time.sleep(0.02)
        else:
            return
