# SPDX-License-Identifier: Apache-2.0
"""The catalog in an SQLite file."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from modelyard.errors import InvalidConfig

_BUSY_TIMEOUT_S: Final = 30.0


def make_engine(url: URL) -> Engine:
    """An engine for the file; makes its folder.

    Raises:
        InvalidConfig: The folder cannot be made.
    """
    try:
        Path(url.database or "").absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InvalidConfig((f"catalog.url: its folder cannot be made: {exc.strerror}",)) from exc
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _set_up)
    return engine


def prepare(engine: Engine) -> None:
    """Sets write-ahead logging, which stays set in the file.

    Two processes that open a new file at once collide here, and SQLite does not wait for this lock by itself.
    """
    give_up_at = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            with engine.connect() as connection:
                dbapi = connection.connection.cursor()
                dbapi.execute("PRAGMA journal_mode=WAL")
                dbapi.close()
        except (DBAPIError, sqlite3.Error) as exc:  # what setting up a connection raises comes unwrapped
            if "locked" not in str(exc) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
        else:
            return


def begin(connection: Connection, *, writes: bool) -> None:
    """Takes the write lock at once where the transaction is going to write."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _set_up(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # the driver begins nothing by itself: begin does
    dbapi.execute("PRAGMA synchronous=FULL")
    dbapi.execute("PRAGMA foreign_keys=ON")
