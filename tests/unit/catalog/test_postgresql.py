# SPDX-License-Identifier: Apache-2.0
"""What the catalog expects of a PostgreSQL server, and what it says when that is away."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.engine import make_url

from modelyard.catalog import Catalog, ModelEntry, Owner, schema
from modelyard.catalog.engine import open_engine, reading, writing
from modelyard.errors import InternalError, InvalidConfig, Unavailable

PASSWORD = "hunter2"
"""How the server's begins, before the characters that a URL has to escape."""
EVENT = insert(schema.events).values(at="", model="m", kind="k", actor="", message="", detail={})


@pytest.fixture
def engine(postgresql_url: str) -> Iterator[Engine]:
    Catalog(postgresql_url).close()
    found = open_engine(postgresql_url)
    yield found
    found.dispose()


def _put(catalog: Catalog, digest: str = "d1", **arguments: Any) -> None:
    catalog.put_model(ModelEntry("iris", {}, {}, digest), owner=Owner.REGISTERED, **arguments)


def _setting(engine: Engine, name: str) -> str:
    with reading(engine) as connection:
        return str(connection.execute(text(f"SHOW {name}")).scalar())


@pytest.mark.parametrize("name", ["postgresql", "postgresql+psycopg"])
def test_the_driver_may_be_left_out(postgresql_url: str, name: str) -> None:
    with Catalog(postgresql_url.replace("postgresql", name, 1)) as catalog:
        assert catalog.list_models() == ()


def test_a_reader_sees_one_picture(engine: Engine, postgresql_url: str) -> None:
    with Catalog(postgresql_url) as catalog, reading(engine) as connection:
        assert connection.execute(select(schema.models.c.name)).all() == []
        _put(catalog)
        assert connection.execute(select(schema.revisions.c.number)).all() == []
    with reading(engine) as connection:
        assert connection.execute(select(schema.revisions.c.number)).all() == [(1,)]


def test_a_reader_cannot_write(engine: Engine) -> None:
    with pytest.raises(InternalError, match="read-only transaction"), reading(engine) as connection:
        connection.execute(EVENT)


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_a_writer_waits_and_sees_what_the_one_before_it_has_written(postgresql_url: str, isolation: str) -> None:
    options = f"%20-cdefault_transaction_isolation={isolation.replace(' ', '%5C%20')}"
    with Catalog(postgresql_url + options) as catalog, ThreadPoolExecutor(1) as pool:
        with writing(catalog._engine) as connection:
            waiting = pool.submit(_kinds, catalog)
            _wait_for_a_waiting_writer(postgresql_url)
            connection.execute(EVENT)
        assert waiting.result(timeout=60) == ["k"]


def _kinds(catalog: Catalog) -> list[str]:
    with writing(catalog._engine) as connection:
        return list(connection.execute(select(schema.events.c.kind)).scalars())


def _wait_for_a_waiting_writer(url: str) -> None:
    engine = open_engine(url)
    query = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    give_up_at = time.monotonic() + 60
    is_waiting = False
    while not is_waiting:
        assert time.monotonic() < give_up_at
        with reading(engine) as connection:
            is_waiting = bool(connection.execute(query).scalar())
    engine.dispose()


@pytest.mark.parametrize(("name", "value"), [("lock_timeout", "30s"), ("idle_in_transaction_session_timeout", "1min")])
def test_a_writer_neither_waits_nor_holds_the_lock_forever(engine: Engine, name: str, value: str) -> None:
    assert _setting(engine, name) == value


@pytest.mark.parametrize(("wanted", "got"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
def test_what_is_acknowledged_is_on_disk_whatever_the_default(postgresql_url: str, wanted: str, got: str) -> None:
    engine = open_engine(f"{postgresql_url}%20-csynchronous_commit={wanted}")
    assert _setting(engine, "synchronous_commit") == got
    engine.dispose()


def test_none_is_null(postgresql_url: str) -> None:
    with Catalog(postgresql_url) as catalog:
        _put(catalog)
        assert (catalog.get_model("iris").rollout, catalog.get_model("iris").shadow) == (None, None)
        nulls = select(schema.models.c.name).where(schema.models.c.rollout.is_(None), schema.models.c.shadow.is_(None))
        with reading(catalog._engine) as connection:
            assert connection.execute(nulls).all() == [("iris",)]


def test_characters_that_its_texts_cannot_hold_are_replaced(postgresql_url: str) -> None:
    with Catalog(postgresql_url) as catalog:
        _put(catalog, message="a\0b", actor="ä")
        assert catalog.get_model("iris").active.message == "a\N{REPLACEMENT CHARACTER}b"
        assert catalog.list_events()[0].actor == "ä"
        assert catalog.find_model("iris\0") is None


def test_it_goes_on_after_a_restart_of_the_server(server: Any, postgresql_url: str) -> None:
    with Catalog(postgresql_url) as catalog:
        _put(catalog)
        with server.stopped():
            with pytest.raises(Unavailable, match="the catalog's database failed: connection") as read:
                catalog.list_models()
            with pytest.raises(Unavailable) as written:
                _put(catalog, "d2")
        assert PASSWORD not in f"{read.value}{written.value}"
        _put(catalog, "d2")
        assert [one.number for one in catalog.list_revisions("iris")] == [1, 2]


def test_a_server_that_restarts_during_a_change_leaves_nothing_of_it(server: Any, postgresql_url: str) -> None:
    with Catalog(postgresql_url) as catalog:
        with pytest.raises(Unavailable, match="the catalog's database failed: "):
            _write_around_a_kill(catalog, server)
        assert catalog.list_events() == ()


def _write_around_a_kill(catalog: Catalog, server: Any) -> None:
    with writing(catalog._engine) as connection:
        connection.execute(EVENT)
        with server.killed():
            pass
        connection.execute(EVENT)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "postgresql://me:hunter2@127.0.0.1:1/db",
            'cannot be opened: .* "127.0.0.1", port 1 failed: Connection refused',
        ),
        ("postgresql://me:hunter2@127.0.0.1:port/db", "cannot be used: expected sqlite"),
        ("postgresql://me:x@hunter2@127.0.0.1/db", "expected the password percent-encoded"),
        ("postgresql+psycopg2://me:hunter2@host/db", r"expected postgresql\+psycopg://…, got postgresql\+psycopg2"),
        ("postgres://me:hunter2@host/db", "expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"),
        ("mysql://me:hunter2@host/db", "expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused_without_its_password(url: str, problem: str) -> None:
    with pytest.raises(InvalidConfig, match=problem) as caught:
        Catalog(url)
    assert PASSWORD not in str(caught.value)


def test_who_is_not_let_in_is_told_why(server: Any) -> None:
    url = make_url(server.url())
    wrong = url.set(password="hunter2wrong").render_as_string(hide_password=False)
    with pytest.raises(InvalidConfig, match='password authentication failed for user "modelyard"') as caught:
        Catalog(wrong)
    assert PASSWORD not in str(caught.value)
    with pytest.raises(InvalidConfig, match='database "missing" does not exist'):
        Catalog(url.set(database="missing").render_as_string(hide_password=False))


def test_without_psycopg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InvalidConfig, match=r'PostgreSQL needs psycopg: pip install "modelyard\[postgres\]"'):
        Catalog("postgresql://me@host/db")


def test_a_refused_row_is_not_repeated(engine: Engine) -> None:
    values = {"name": "iris", "owner": "o", "spec": {"a": "hunter2"}, "wanted": "w", "generation": 1}
    values |= {"created_at": "", "updated_at": ""}
    with pytest.raises(InternalError, match="violates not-null constraint") as caught, writing(engine) as connection:
        connection.execute(text("INSERT INTO models (name, owner) VALUES ('iris', 'hunter2')"))
    assert PASSWORD not in str(caught.value)
    with pytest.raises(InternalError, match="violates unique constraint") as caught, writing(engine) as connection:
        connection.execute(insert(schema.models), [values, values])
    assert PASSWORD not in str(caught.value) + str(caught.value.__cause__)
