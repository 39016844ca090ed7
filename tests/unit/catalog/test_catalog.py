# SPDX-License-Identifier: Apache-2.0
"""What the catalog remembers, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from modelyard.catalog import Catalog, ModelEntry, ModelRecord, Owner, Wanted, schema
from modelyard.catalog.engine import reading
from modelyard.errors import Conflict, InternalError, InvalidConfig, ModelNotFound
from modelyard.rollout import Rollout, Shadow

Edit = Callable[[str], None]


def _entry(name: str = "iris", digest: str = "d1", **spec: Any) -> ModelEntry:
    return ModelEntry(name, {"name": name, **spec}, {"framework": "sklearn"}, digest)


def _put(
    catalog: Catalog,
    name: str = "iris",
    digest: str = "d1",
    *,
    owner: Owner = Owner.REGISTERED,
    expected: int | None = None,
    **spec: Any,
) -> ModelRecord:
    entry = _entry(name, digest, **spec)
    return catalog.put_model(entry, owner=owner, actor="ann", message="why", expected_generation=expected)


def latest(record: ModelRecord) -> int:
    assert record.latest is not None
    return record.latest.number


def _kinds(catalog: Catalog, name: str = "iris") -> list[str]:
    return [event.kind for event in reversed(catalog.list_events(name))]


def test_a_new_model_has_revision_one_with_all_traffic(catalog: Catalog) -> None:
    record = _put(catalog)
    assert (record.generation, record.wanted, record.owner) == (1, Wanted.SERVING, Owner.REGISTERED)
    assert (record.traffic, record.labels) == ({1: 100.0}, {"stable": 1})
    assert (record.active.number, record.active.digest, record.active.actor) == (1, "d1", "ann")
    assert catalog.list_models() == (record,)
    assert catalog.find_model("iris") == record


def test_an_unknown_model_is_not_found(catalog: Catalog) -> None:
    assert catalog.find_model("iris") is None
    with pytest.raises(ModelNotFound):
        catalog.remove_model("iris")


def test_putting_the_same_again_changes_nothing(catalog: Catalog) -> None:
    first = _put(catalog)
    assert _put(catalog) == first
    assert _kinds(catalog) == ["created"]


def test_a_changed_setting_makes_no_revision(catalog: Catalog) -> None:
    _put(catalog, batching=1)
    record = _put(catalog, batching=2)
    assert (record.generation, record.active.number, record.spec["batching"]) == (2, 1, 2)
    assert catalog.list_events()[0].detail == {"revision": 1, "changed": {"batching": [1, 2]}}


def test_the_history_does_not_repeat_the_runtime(catalog: Catalog) -> None:
    _put(catalog, runtime={"env_vars": {"TOKEN": "hunter2"}})
    _put(catalog, "iris", "d2", runtime={"env_vars": {"TOKEN": "hunter3"}})
    assert "hunter" not in repr(catalog.list_events())
    assert "runtime" in catalog.list_events()[0].detail["changed"]


def test_a_new_digest_makes_the_next_revision(catalog: Catalog) -> None:
    _put(catalog)
    record = _put(catalog, digest="d2")
    assert (record.generation, record.traffic, record.labels) == (2, {1: 100.0, 2: 0.0}, {"stable": 1})
    assert [revision.number for revision in record.revisions] == [1, 2]
    assert record.rollout == Rollout(2, base={1: 100.0})
    assert [revision.number for revision in catalog.list_revisions("iris")] == [1, 2]
    assert _kinds(catalog) == ["created", "revised"]


def test_an_older_digest_is_a_new_revision(catalog: Catalog) -> None:
    for digest in ("d1", "d2", "d1"):
        record = _put(catalog, digest=digest)
    assert record.latest is not None
    assert (record.latest.number, record.latest.digest) == (3, "d1")


def test_a_removed_model_is_listed_until_it_is_purged(catalog: Catalog) -> None:
    _put(catalog)
    removed = catalog.remove_model("iris", actor="bob", message="old")
    assert (removed.wanted, removed.generation, removed.active.number) == (Wanted.REMOVED, 2, 1)
    assert catalog.remove_model("iris") == removed
    catalog.purge_model("iris")
    catalog.purge_model("iris")
    assert catalog.list_models() == ()
    assert catalog.list_revisions("iris") == ()
    assert _kinds(catalog) == ["created", "removed", "purged"]


def test_a_served_model_is_not_purged(catalog: Catalog) -> None:
    _put(catalog)
    with pytest.raises(Conflict, match="is being served"):
        catalog.purge_model("iris")


def test_putting_a_removed_model_brings_it_back(catalog: Catalog) -> None:
    _put(catalog)
    catalog.remove_model("iris")
    record = _put(catalog, owner=Owner.DECLARED)
    assert (record.wanted, record.owner, record.active.number) == (Wanted.SERVING, Owner.DECLARED, 1)
    assert _kinds(catalog) == ["created", "removed", "restored"]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (Owner.DECLARED, Owner.REGISTERED, "is declared in the configuration file"),
        (Owner.REGISTERED, Owner.DECLARED, "is registered at run time"),
    ],
)
def test_the_other_owner_may_not_change_a_model(catalog: Catalog, first: Owner, second: Owner, reason: str) -> None:
    before = _put(catalog, owner=first)
    with pytest.raises(Conflict, match=reason):
        _put(catalog, owner=second, digest="d2")
    with pytest.raises(Conflict, match=reason):
        catalog.remove_model("iris", owner=second)
    assert catalog.find_model("iris") == before


def test_a_change_made_meanwhile_is_a_conflict(catalog: Catalog) -> None:
    with pytest.raises(Conflict, match="expected generation 1, got 0"):
        _put(catalog, expected=1)
    _put(catalog, expected=0)
    _put(catalog, batching=2, expected=1)
    with pytest.raises(Conflict, match="expected generation 1, got 2"):
        _put(catalog, batching=3, expected=1)


def test_declared_models_become_what_the_file_says(catalog: Catalog) -> None:
    _put(catalog, "mine")
    catalog.sync_declared([_entry("a"), _entry("b")])
    first, second = catalog.sync_declared([_entry("b", "d2"), _entry("c")])
    assert (first.name, latest(first), second.name) == ("b", 2, "c")
    wanted = {record.name: record.wanted for record in catalog.list_models()}
    assert wanted == {"a": Wanted.REMOVED, "b": Wanted.SERVING, "c": Wanted.SERVING, "mine": Wanted.SERVING}


def test_an_unchanged_file_changes_nothing(catalog: Catalog) -> None:
    first = catalog.sync_declared([_entry("a"), _entry("b")])
    events = catalog.list_events()
    assert catalog.sync_declared([_entry("a"), _entry("b")]) == first
    assert catalog.list_events() == events


def test_a_registered_model_keeps_its_name_from_the_file(catalog: Catalog) -> None:
    mine = _put(catalog, "mine")
    (declared,) = catalog.sync_declared([_entry("mine", "d9"), _entry("new")])
    assert declared.name == "new"
    assert catalog.find_model("mine") == mine


def test_a_reload_leaves_exactly_its_models_of_those_that_reloads_have_made(catalog: Catalog) -> None:
    catalog.sync_declared([_entry("file")])
    _put(catalog, "mine")
    kept, left = catalog.sync_reloaded([_entry("a"), _entry("b")], actor="grpc", message="first")
    assert ([record.name for record in kept], left) == (["a", "b"], ())
    assert {record.owner for record in kept} == {Owner.RELOADED}
    assert kept[0].active.actor == "grpc"
    kept, left = catalog.sync_reloaded([_entry("b", "d2"), _entry("c")])
    assert [(record.name, latest(record)) for record in kept] == [("b", 2), ("c", 1)]
    assert [(record.name, record.wanted) for record in left] == [("a", Wanted.REMOVED)]
    wanted = {record.name: record.wanted for record in catalog.list_models()}
    assert {name for name, value in wanted.items() if value is Wanted.SERVING} == {"file", "mine", "b", "c"}
    assert catalog.sync_reloaded([_entry("b", "d2"), _entry("c")]) == (kept, ())  # what goes already is not told again


def test_a_reload_that_names_others_models_changes_nothing(catalog: Catalog) -> None:
    catalog.sync_declared([_entry("file")])
    _put(catalog, "mine")
    catalog.sync_reloaded([_entry("a")])
    before = catalog.list_models()
    with pytest.raises(InvalidConfig) as caught:
        catalog.sync_reloaded([_entry("b"), _entry("file"), _entry("mine")])
    first, second = caught.value.problems
    assert first.startswith('model_config_list.config[1].name: model "file" is declared in the configuration file')
    assert second.startswith('model_config_list.config[2].name: model "mine" is registered at run time')
    assert catalog.list_models() == before


def test_an_operator_may_take_over_what_a_reload_has_made(catalog: Catalog) -> None:
    catalog.sync_reloaded([_entry("a"), _entry("b")])
    assert catalog.remove_model("b", owner=Owner.REGISTERED).wanted is Wanted.REMOVED
    assert _put(catalog, "a", "d2").owner is Owner.REGISTERED
    with pytest.raises(InvalidConfig, match="registered at run time"):
        catalog.sync_reloaded([_entry("a")])
    assert catalog.sync_reloaded([]) == ((), ())
    kept, _ = catalog.sync_reloaded([_entry("b")])  # its name is free while it goes
    assert kept[0].wanted is Wanted.SERVING


def test_a_reloaded_model_keeps_its_name_from_the_file(catalog: Catalog) -> None:
    (mine,), _ = catalog.sync_reloaded([_entry("a")])
    assert catalog.sync_declared([_entry("a", "d9")]) == ()
    assert catalog.find_model("a") == mine
    with pytest.raises(Conflict, match="take it out of the configuration file"):
        _put(catalog, "a", owner=Owner.DECLARED)


def test_a_reload_tries_again_what_has_failed(catalog: Catalog) -> None:
    catalog.sync_reloaded([_entry("a"), _entry("b")])
    kept, _ = catalog.sync_reloaded([_entry("a"), _entry("b")], again={"a"})
    assert [record.generation for record in kept] == [2, 1]
    assert _kinds(catalog, "a") == ["created", "loaded"]


CHANGES: dict[str, Callable[[Catalog], ModelRecord]] = {
    "put": lambda catalog: _put(catalog, digest="d3"),
    "load": lambda catalog: _load(catalog, "d3"),
    "unload": lambda catalog: catalog.unload_model("iris"),
    "remove": lambda catalog: catalog.remove_model("iris"),
    "set_traffic": lambda catalog: catalog.set_traffic("iris", {1: 50.0, 2: 50.0}, shadow=Shadow(1)),
    "set_label": lambda catalog: catalog.set_label("iris", "mine", 1),
    "begin_rollout": lambda catalog: catalog.begin_rollout("iris", Rollout(1, steps=(10.0, 100.0))),
    "promote": lambda catalog: catalog.promote("iris", 1, is_ready=True),
    "roll_back": lambda catalog: catalog.roll_back("iris", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_of_a_rehearsal_nothing_is_kept(catalog: Catalog, change: Callable[[Catalog], ModelRecord]) -> None:
    _put(catalog)
    _put(catalog, digest="d2")
    catalog.promote("iris", is_ready=True)
    before = catalog.list_models(), catalog.list_revisions("iris"), catalog.list_events()
    rehearsed = change(catalog.rehearsal())
    assert (catalog.list_models(), catalog.list_revisions("iris"), catalog.list_events()) == before
    done = change(catalog)
    assert rehearsed.generation == done.generation == before[0][0].generation + 1
    assert (rehearsed.traffic, rehearsed.labels, rehearsed.wanted) == (done.traffic, done.labels, done.wanted)
    assert catalog.list_events() != before[2]


def test_a_rehearsal_refuses_what_would_be_refused(catalog: Catalog) -> None:
    _put(catalog)
    with pytest.raises(Conflict, match="expected generation 7, got 1"):
        catalog.rehearsal().unload_model("iris", expected_generation=7)


def _load(catalog: Catalog, digest: str = "d1", **arguments: Any) -> ModelRecord:
    return catalog.load_model(_entry(digest=digest), **arguments)


def test_an_unloaded_model_stays_with_its_revision_until_it_is_loaded(catalog: Catalog, url: str) -> None:
    before = _put(catalog)
    unloaded = catalog.unload_model("iris", actor="bob", message="night")
    assert (unloaded.wanted, unloaded.generation, unloaded.revisions) == (Wanted.UNLOADED, 2, before.revisions)
    assert catalog.unload_model("iris") == unloaded
    with Catalog(url) as again:
        assert again.find_model("iris") == unloaded
    loaded = _load(catalog)
    assert (loaded.wanted, loaded.generation, loaded.active.number) == (Wanted.SERVING, 3, 1)
    assert _kinds(catalog) == ["created", "unloaded", "loaded"]
    event = catalog.list_events("iris")[1]
    assert (event.actor, event.message) == ("bob", "night")


def test_loading_what_is_loaded_changes_nothing(catalog: Catalog) -> None:
    record = _put(catalog)
    assert _load(catalog) == record
    assert _kinds(catalog) == ["created"]


def test_loading_a_changed_artifact_makes_the_next_revision(catalog: Catalog) -> None:
    _put(catalog, batching=1)
    record = _load(catalog, "d2", message="retrained")
    assert record.latest is not None
    assert (record.latest.number, record.latest.message, record.spec["batching"]) == (2, "retrained", 1)
    assert record.owner is Owner.REGISTERED


def test_trying_again_is_a_change(catalog: Catalog) -> None:
    record = _put(catalog)
    assert _load(catalog, again=True).generation == record.generation + 1
    assert _kinds(catalog) == ["created", "loaded"]


def test_registering_an_unloaded_model_again_loads_it(catalog: Catalog) -> None:
    _put(catalog)
    catalog.unload_model("iris")
    assert _put(catalog).wanted is Wanted.SERVING
    assert _kinds(catalog) == ["created", "unloaded", "loaded"]


def test_the_file_does_not_load_what_was_unloaded(catalog: Catalog) -> None:
    catalog.sync_declared([_entry("a")])
    catalog.unload_model("a")
    (same,) = catalog.sync_declared([_entry("a")])
    (changed,) = catalog.sync_declared([_entry("a", "d2")])
    assert (same.wanted, changed.wanted, changed.active.number) == (Wanted.UNLOADED, Wanted.UNLOADED, 2)
    catalog.sync_declared([])
    assert [record.wanted for record in catalog.list_models()] == [Wanted.REMOVED]


def test_an_unknown_model_or_one_that_goes_is_neither_loaded_nor_unloaded(catalog: Catalog) -> None:
    for verb in (catalog.unload_model, lambda _: _load(catalog)):
        with pytest.raises(ModelNotFound):
            verb("iris")
    _put(catalog)
    catalog.remove_model("iris")
    for verb in (catalog.unload_model, lambda _: _load(catalog)):
        with pytest.raises(Conflict, match="is being removed"):
            verb("iris")
    assert _kinds(catalog) == ["created", "removed"]


def test_an_unloaded_model_can_be_removed(catalog: Catalog) -> None:
    _put(catalog)
    catalog.unload_model("iris")
    assert catalog.remove_model("iris").wanted is Wanted.REMOVED
    assert _put(catalog).wanted is Wanted.SERVING


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        ("UPDATE models SET wanted = 'asleep' WHERE name = 'iris'", 'wanted: expected one of serving, .*got "asleep"'),
        ("UPDATE models SET owner = 'me' WHERE name = 'iris'", 'owner: expected one of declared, .*got "me"'),
        ("UPDATE models SET spec = '[1]' WHERE name = 'iris'", "spec: expected an object, got list"),
        (
            "DELETE FROM labels WHERE model = 'iris'; DELETE FROM traffic WHERE model = 'iris'",
            "it has no revision that carries traffic",
        ),
    ],
)
def test_a_bad_row_is_told_hides_no_other_and_can_be_repaired(
    catalog: Catalog, edit: Edit, statements: str, problem: str
) -> None:
    good = _put(catalog, "good")
    _put(catalog)
    edit(statements)
    first, bad = catalog.list_models()
    assert first == good
    assert re.search(problem, bad.problem)
    assert not _put(catalog).problem


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shadow", '{"percent": 5}'),
        ("shadow", "[1]"),
        ("rollout", '{"steps": [1]}'),
        ("rollout", '{"to": 1, "base": [1]}'),
        ("rollout", '{"to": 1, "state": "asleep"}'),
    ],
)
def test_a_shadow_or_rollout_that_nobody_writes_is_none_and_hides_no_model(
    catalog: Catalog, edit: Edit, column: str, value: str
) -> None:
    _put(catalog)
    edit(f"UPDATE models SET {column} = '{value}'")
    (record,) = catalog.list_models()
    assert (record.shadow, record.rollout, record.problem) == (None, None, "")


def test_of_the_history_the_newest_events_are_kept(url: str) -> None:
    event = {"model": "m", "kind": "ready", "actor": "", "message": "", "detail": {}}
    with Catalog(url, keep_events=200) as catalog:
        catalog.add_events([event] * 150)
        first = catalog.list_events(limit=1000)[-1].id
        catalog.add_events([event] * 450)
        kept = [one.id for one in catalog.list_events(limit=1000)][::-1]
        assert 200 <= len(kept) < 300
        assert kept == list(range(kept[0], first + 600))
        assert [one.id for one in catalog.list_events(after=first, limit=2)] == kept[:2]
        with pytest.raises(ZeroDivisionError):
            catalog.add_events({**event, "detail": {"nothing": 1 // (499 - number)}} for number in range(600))
        assert [one.id for one in catalog.list_events(limit=1000)][::-1] == kept


def test_events_are_newest_first_and_limited(catalog: Catalog) -> None:
    _put(catalog)
    event = {"model": "iris", "kind": "failed", "actor": "", "message": "no such file", "detail": {"replica": 1}}
    catalog.add_events([event])
    (event,) = catalog.list_events(limit=1)
    assert (event.kind, event.message, event.detail) == ("failed", "no such file", {"replica": 1})
    assert event.at.endswith("+00:00")
    assert catalog.list_events("other") == ()


def test_it_is_all_there_after_reopening(url: str) -> None:
    with Catalog(url) as catalog:
        before = (_put(catalog), _put(catalog, "b"))
    with Catalog(url) as catalog:
        assert catalog.list_models() == (before[1], before[0])


def test_a_newer_schema_is_refused(url: str, edit: Edit) -> None:
    Catalog(url).close()
    edit("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(InvalidConfig, match="expected a database with schema version 0002 or older, got version 0099"):
        Catalog(url)


def test_a_database_from_before_the_migrations_is_brought_up_to_date(url: str, edit: Edit) -> None:
    """As the first versions wrote it: without a version of Alembic's, with one of their own."""
    with Catalog(url) as catalog:
        record = _put(catalog)
    edit(
        "DROP TABLE alembic_version; ALTER TABLE models DROP COLUMN rollout; ALTER TABLE models DROP COLUMN shadow;"
        "ALTER TABLE revisions DROP COLUMN promoted_at;"
        "CREATE TABLE meta (key VARCHAR(63) PRIMARY KEY, value TEXT NOT NULL);"
        "INSERT INTO meta VALUES ('schema_version', '2')",
    )
    with Catalog(url) as catalog:
        (found,) = catalog.list_models()
    assert found.active.promoted_at == found.active.created_at
    assert replace(found, revisions=(), latest=None) == replace(record, revisions=(), latest=None)


def test_the_scripts_make_the_tables_that_the_code_knows(url: str) -> None:
    with Catalog(url) as catalog, reading(catalog._engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_what_is_not_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("this is not a database, whatever its name says" * 100)
    with pytest.raises(InvalidConfig, match="cannot be opened: file is not a database"):
        Catalog(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(InvalidConfig, match="its folder cannot be made"):
        Catalog(f"sqlite:///{tmp_path}/x.db/y.db")
    with pytest.raises(InvalidConfig, match=r"catalog\.url: cannot be used"):
        Catalog("nonsense")


def test_a_database_error_is_the_platforms(catalog: Catalog, edit: Edit) -> None:
    edit("DROP TABLE events")
    with pytest.raises(InternalError, match="events"):
        _put(catalog)
    assert catalog.find_model("iris") is None


def test_threads_lose_no_change(catalog: Catalog) -> None:
    _put(catalog, count=0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: _put(catalog, digest=f"t{number}"), range(20)))
    assert [revision.number for revision in catalog.list_revisions("iris")] == list(range(1, 22))
