# SPDX-License-Identifier: Apache-2.0
"""The database behind the catalog: transactions that keep what they acknowledge, and the errors they raise.

Where SQLite and PostgreSQL differ is in :mod:`~modelyard.catalog.sqlite` and :mod:`~modelyard.catalog.postgresql`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from modelyard.catalog import postgresql, sqlite
from modelyard.errors import InternalError, InvalidConfig, Unavailable

_WRITES: Final = "modelyard_writes"
_Failed = DBAPIError, PoolTimeoutError, sqlite3.Error  # what setting up a connection to SQLite raises comes unwrapped


class _Database(Protocol):
    """What differs between the databases; modules."""

    def make_engine(self, url: URL) -> Engine:
        """An engine, not connected yet; raises InvalidConfig for what the URL alone tells."""

    def prepare(self, engine: Engine) -> None:
        """Connects for the first time."""

    def begin(self, connection: Connection, *, writes: bool) -> None:
        """The first statement of a transaction."""


_DATABASES: Final[Mapping[str, _Database]] = {"sqlite": sqlite, "postgresql": postgresql}


def open_engine(url: str) -> Engine:
    """An engine for the catalog's URL, which has been connected once; makes the folder of an SQLite file.

    Raises:
        InvalidConfig: The URL cannot be used, or the database cannot be opened.
    """
    try:
        parsed = make_url(url)
        database = _DATABASES[parsed.get_backend_name()]
    except (ArgumentError, ValueError, KeyError) as exc:
        expected = "expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
        raise InvalidConfig((f"catalog.url: cannot be used: {expected}",)) from exc
    engine = database.make_engine(parsed)
    event.listen(engine, "begin", lambda connection: database.begin(connection, writes=_writes(connection)))
    try:
        database.prepare(engine)
    except _Failed as exc:
        engine.dispose()
        raise InvalidConfig((f"catalog.url: the database cannot be opened: {_reason(exc)}",)) from exc
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent picture of the database."""
    with _mapped_errors(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that is durable when this returns, and leaves nothing when it raises.

    It has waited for all other writers first, so that what it reads cannot change before it writes.
    """
    with _mapped_errors(), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITES: True})
        with connection.begin():
            yield connection


@contextmanager
def trying(engine: Engine) -> Iterator[Connection]:
    """As :func:`writing`, but of what is written nothing is kept."""
    with _mapped_errors(), engine.connect() as connection:
        connection = connection.execution_options(**{_WRITES: True})
        transaction = connection.begin()
        try:
            yield connection
        finally:
            transaction.rollback()


def _writes(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get(_WRITES, False))


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except _Failed as exc:
        kind = Unavailable if _is_away(exc) else InternalError
        raise kind(f"the catalog's database failed: {_reason(exc)}") from exc


def _is_away(exc: BaseException) -> bool:
    """It does not answer, or others keep it busy; what is asked of it is not wrong."""
    if isinstance(error := getattr(exc, "orig", exc), sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return isinstance(exc, OperationalError | InterfaceError | PoolTimeoutError)


def _reason(exc: BaseException) -> str:
    """What the database says, on one line and without the rows that PostgreSQL adds: they may hold secrets."""
    error = getattr(exc, "orig", None) or exc
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return " ".join(str(primary or error).split())
