# SPDX-License-Identifier: Apache-2.0
"""The catalog in PostgreSQL, through psycopg 3."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event

from modelyard.errors import InvalidConfig

if TYPE_CHECKING:  # an extra: whoever keeps the catalog in a file has no psycopg
    from psycopg.abc import Buffer, Dumper

_DRIVER: Final = "postgresql+psycopg"
_WRITERS: Final = int.from_bytes(b"modelyar")
"""Key of the advisory lock that writers take; such locks belong to one database."""
_CONNECTING: Final = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""Where the URL does not say otherwise: a host that has vanished is noticed within a minute, not after two hours."""
_SESSION: Final = """
SELECT set_config('lock_timeout', '30s', false),
       set_config('idle_in_transaction_session_timeout', '60s', false),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                                        ELSE current_setting('synchronous_commit') END, false)
"""
"""A writer that has vanished does not keep the lock; what is acknowledged is on disk whatever the server's default."""


def make_engine(url: URL) -> Engine:
    """An engine for the server.

    Raises:
        InvalidConfig: psycopg is not installed, or the URL wants another driver or cannot be meant so.
    """
    if url.drivername not in ("postgresql", _DRIVER):
        raise InvalidConfig((f"catalog.url: expected {_DRIVER}://…, got {url.drivername}://…",))
    if "@" in (url.host or ""):  # the rest of a password, which the server's name in an error would show
        raise InvalidConfig(("catalog.url: expected the password percent-encoded (%40 for @)",))
    defaults = {key: value for key, value in _CONNECTING.items() if key not in url.query}
    try:
        engine = create_engine(
            url.set(drivername=_DRIVER),
            isolation_level="READ COMMITTED",  # what a writer reads after its lock, it must see
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=defaults,
        )
    except ImportError as exc:
        raise InvalidConfig(('catalog.url: PostgreSQL needs psycopg: pip install "modelyard[postgres]"',)) from exc
    event.listen(engine, "connect", _set_up)
    return engine


def prepare(engine: Engine) -> None:
    """Looks whether the server can be reached."""
    engine.connect().close()


def begin(connection: Connection, *, writes: bool) -> None:
    """Waits for all other writers where the transaction is going to write; one picture for all it reads otherwise."""
    if writes:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _set_up(dbapi: Any, _record: Any) -> None:
    dbapi.adapters.register_dumper(str, _text_dumper())
    dbapi.execute(_SESSION)
    dbapi.commit()


@cache
def _text_dumper() -> type[Dumper]:
    """How texts are sent: PostgreSQL's cannot hold NUL characters, those of messages and paths from outside may."""
    from psycopg.types.string import StrDumperUnknown

    class TextDumper(StrDumperUnknown):
        def dump(self, obj: str) -> Buffer | None:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    return TextDumper
