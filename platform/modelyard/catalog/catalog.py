# SPDX-License-Identifier: Apache-2.0
"""The catalog's operations, each one transaction.

Blocking, and safe to call from several threads and processes; ``serve/`` calls it in a thread. What a method returned
is on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from modelyard.catalog import schema
from modelyard.catalog.engine import open_engine, reading, writing
from modelyard.catalog.records import EventRecord, ModelEntry, ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound

STABLE: Final = "stable"
_CONFIGURATION: Final = "configuration"


class Catalog:
    """Models, their revisions, where traffic goes, and who changed what.

    Args:
        url: SQLAlchemy URL of the database.

    Raises:
        InvalidConfig: The database cannot be opened, or a newer Modelyard has written it.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        try:
            with writing(self._engine) as connection:
                _create_tables(connection)
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def list_models(self) -> tuple[ModelRecord, ...]:
        """All models by name, those being removed included."""
        with reading(self._engine) as connection:
            return _read_models(connection)

    def find_model(self, name: str) -> ModelRecord | None:
        """The model of that name, also while it is being removed."""
        with reading(self._engine) as connection:
            return _find(connection, name)

    def list_revisions(self, name: str) -> tuple[RevisionRecord, ...]:
        """Every revision the model ever had, by number; empty for an unknown one."""
        table = schema.revisions
        query = select(table).where(table.c.model == name).order_by(table.c.number)
        with reading(self._engine) as connection:
            return tuple(_to_revision(row) for row in connection.execute(query))

    def put_model(
        self,
        name: str,
        *,
        owner: Owner,
        spec: Mapping[str, Any],
        content: Mapping[str, Any],
        digest: str,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """Creates a model or changes it.

        The digest of the active revision makes no new revision: the spec is changed in place. Any other digest makes
        the next revision, which gets all traffic and the label ``stable`` - also one that an older revision had, for
        history only grows. A model being removed comes back, and then its name is free for either owner. Nothing is
        written, and the generation stays, where nothing changes.

        Args:
            name: The model.
            owner: Who asks for it.
            spec: ``ModelSpec.to_json()``.
            content: ``ModelSpec.revision_content()``.
            digest: ``ModelSpec.revision_digest(…)``.
            actor: Who changes it, for the history.
            message: Why, for the history.
            expected_generation: Change it only if it is still at this generation; 0 for a model that must be new.

        Raises:
            Conflict: The name belongs to the other owner, or the model is at another generation.
        """
        entry = ModelEntry(name, spec, content, digest)
        with writing(self._engine) as connection:
            old = _find(connection, name)
            _check_owner(name, old, owner)
            _check_generation(name, old, expected_generation)
            return _put(connection, old, entry, owner, actor, message)

    def remove_model(self, name: str, *, actor: str = "", message: str = "", owner: Owner | None = None) -> ModelRecord:
        """Marks a model as no longer wanted; one that already is stays as it is.

        Args:
            name: The model.
            actor: Who removes it.
            message: Why.
            owner: On whose behalf; None for any.

        Raises:
            ModelNotFound: There is none.
            Conflict: It belongs to the other owner.
        """
        with writing(self._engine) as connection:
            old = _find(connection, name)
            if old is None:
                raise ModelNotFound(name)
            if old.wanted is Wanted.REMOVED:
                return old
            if owner is not None:
                _check_owner(name, old, owner)
            return _remove(connection, old, actor, message)

    def purge_model(self, name: str) -> None:
        """Forgets a removed model with all its revisions; its events stay. No effect where there is none.

        Raises:
            Conflict: The model is wanted (again).
        """
        with writing(self._engine) as connection:
            old = _find(connection, name)
            if old is None:
                return
            if old.wanted is not Wanted.REMOVED:
                raise Conflict(f'model "{name}" is being served: remove it before it is purged')
            for table in (schema.labels, schema.traffic, schema.revisions):
                connection.execute(delete(table).where(table.c.model == name))
            connection.execute(delete(schema.models).where(schema.models.c.name == name))
            _add_event(connection, name, "purged", "", "", {})

    def sync_declared(
        self, entries: Iterable[ModelEntry], *, actor: str = _CONFIGURATION, message: str = ""
    ) -> tuple[ModelRecord, ...]:
        """Makes the declared models exactly these: all or, where one is refused, none.

        Declared models that are not among them are marked as removed; registered ones are left alone.

        Returns:
            The given models, in their order.

        Raises:
            Conflict: A name belongs to a registered model.
        """
        entries = tuple(entries)
        names = {entry.name for entry in entries}
        with writing(self._engine) as connection:
            known = {record.name: record for record in _read_models(connection)}
            for entry in entries:
                _check_owner(entry.name, known.get(entry.name), Owner.DECLARED)
            for record in known.values():
                if _is_declared(record) and record.name not in names:
                    _remove(connection, record, actor, message)
            return tuple(
                _put(connection, known.get(entry.name), entry, Owner.DECLARED, actor, message) for entry in entries
            )

    def add_event(
        self, model: str, kind: str, *, actor: str = "", message: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        """Adds to the history what is not itself a change of the catalog, for example that a model failed to load."""
        with writing(self._engine) as connection:
            _add_event(connection, model, kind, actor, message, detail or {})

    def list_events(self, model: str | None = None, limit: int = 100) -> tuple[EventRecord, ...]:
        """The latest events, newest first.

        Args:
            model: Only this model's, which may be gone; None for all.
            limit: How many at most.
        """
        table = schema.events
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if model is not None:
            query = query.where(table.c.model == model)
        with reading(self._engine) as connection:
            return tuple(EventRecord(**row._mapping) for row in connection.execute(query))


def _create_tables(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    table = schema.meta
    found = connection.execute(select(table.c.value).where(table.c.key == "schema_version")).scalar()
    if found is None:
        connection.execute(insert(table).values(key="schema_version", value=str(schema.SCHEMA_VERSION)))
    elif int(found) != schema.SCHEMA_VERSION:
        raise InvalidConfig(
            (f"catalog.url: expected a database with schema version {schema.SCHEMA_VERSION}, got version {found}",)
        )


def _is_declared(record: ModelRecord) -> bool:
    return record.owner is Owner.DECLARED and record.wanted is Wanted.SERVING


def _check_owner(name: str, old: ModelRecord | None, owner: Owner) -> None:
    if old is None or old.wanted is Wanted.REMOVED or old.owner is owner:
        return
    if old.owner is Owner.DECLARED:
        raise Conflict(f'model "{name}" is declared in the configuration file: change it there')
    raise Conflict(f'model "{name}" is registered at run time: unregister it, or take it out of the configuration file')


def _check_generation(name: str, old: ModelRecord | None, expected: int | None) -> None:
    got = old.generation if old is not None else 0
    if expected is not None and expected != got:
        raise Conflict(f'model "{name}" was changed meanwhile: expected generation {expected}, got {got}')


def _put(
    connection: Connection, old: ModelRecord | None, entry: ModelEntry, owner: Owner, actor: str, message: str
) -> ModelRecord:
    now = _now()
    if old is None:
        values = {
            "name": entry.name,
            "owner": owner.value,
            "spec": entry.spec,
            "wanted": Wanted.SERVING.value,
            "generation": 1,
        }
        connection.execute(insert(schema.models).values(**values, created_at=now, updated_at=now))
        number = _add_revision(connection, entry, now, actor, message)
        _add_event(connection, entry.name, "created", actor, message, {"revision": number})
        return _get(connection, entry.name)
    is_new_revision = old.active.digest != entry.digest
    changed = sorted(key for key in {*old.spec, *entry.spec} if old.spec.get(key) != entry.spec.get(key))
    kind = _kind_of_change(old, is_new_revision, bool(changed))
    if kind is None:
        return old
    values = {"owner": owner.value, "spec": entry.spec, "wanted": Wanted.SERVING.value}
    _update_model(connection, old, values, now)
    number = _add_revision(connection, entry, now, actor, message) if is_new_revision else old.active.number
    diff = {key: _diff(key, old.spec, entry.spec) for key in changed}
    _add_event(connection, entry.name, kind, actor, message, {"revision": number, "changed": diff})
    return _get(connection, entry.name)


def _diff(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Any]:
    """Before and after; the environment may hold secrets, so the history says only that it changed."""
    return [] if key == "environment" else [old.get(key), new.get(key)]


def _kind_of_change(old: ModelRecord, is_new_revision: bool, is_changed: bool) -> str | None:
    if old.wanted is Wanted.REMOVED:
        return "restored"
    if is_new_revision:
        return "revised"
    return "changed" if is_changed else None


def _add_revision(connection: Connection, entry: ModelEntry, now: str, actor: str, message: str) -> int:
    """Adds the next revision and gives it all traffic and the label ``stable``."""
    table = schema.revisions
    highest = connection.execute(select(func.max(table.c.number)).where(table.c.model == entry.name)).scalar()
    number: int = (highest or 0) + 1
    values = {"digest": entry.digest, "content": entry.content, "created_at": now, "actor": actor, "message": message}
    connection.execute(insert(table).values(model=entry.name, number=number, **values))
    connection.execute(delete(schema.traffic).where(schema.traffic.c.model == entry.name))
    connection.execute(insert(schema.traffic).values(model=entry.name, revision=number, weight=100.0))
    is_stable = and_(schema.labels.c.model == entry.name, schema.labels.c.label == STABLE)
    connection.execute(delete(schema.labels).where(is_stable))
    connection.execute(insert(schema.labels).values(model=entry.name, label=STABLE, revision=number))
    return number


def _remove(connection: Connection, old: ModelRecord, actor: str, message: str) -> ModelRecord:
    _update_model(connection, old, {"wanted": Wanted.REMOVED.value}, _now())
    _add_event(connection, old.name, "removed", actor, message, {})
    return _get(connection, old.name)


def _update_model(connection: Connection, old: ModelRecord, values: Mapping[str, Any], now: str) -> None:
    table = schema.models
    statement = update(table).where(table.c.name == old.name, table.c.generation == old.generation)
    result = connection.execute(statement.values(**values, generation=old.generation + 1, updated_at=now))
    if result.rowcount != 1:  # cannot happen on SQLite, where the writer holds the lock since it read
        raise Conflict(f'model "{old.name}" was changed meanwhile: try again')


def _add_event(
    connection: Connection, model: str, kind: str, actor: str, message: str, detail: Mapping[str, Any]
) -> None:
    values = {"model": model, "kind": kind, "actor": actor, "message": message, "detail": detail}
    connection.execute(insert(schema.events).values(at=_now(), **values))


def _get(connection: Connection, name: str) -> ModelRecord:
    (record,) = _read_models(connection, name)
    return record


def _find(connection: Connection, name: str) -> ModelRecord | None:
    return next(iter(_read_models(connection, name)), None)


def _read_models(connection: Connection, name: str | None = None) -> tuple[ModelRecord, ...]:
    """All models, or the one, in four queries whatever their number."""
    models, traffic, labels, revisions = schema.models, schema.traffic, schema.labels, schema.revisions
    weights: dict[str, dict[int, float]] = defaultdict(dict)
    marked: dict[str, dict[str, int]] = defaultdict(dict)
    found: dict[str, list[RevisionRecord]] = defaultdict(list)
    in_use = select(traffic.c.model, traffic.c.revision).union(select(labels.c.model, labels.c.revision)).subquery()
    used = select(revisions).join(
        in_use, and_(in_use.c.model == revisions.c.model, in_use.c.revision == revisions.c.number)
    )
    rows = select(models).order_by(models.c.name)
    shares, names = select(traffic), select(labels).order_by(labels.c.label)
    if name is not None:
        rows, used = rows.where(models.c.name == name), used.where(revisions.c.model == name)
        shares, names = shares.where(traffic.c.model == name), names.where(labels.c.model == name)
    for row in connection.execute(shares.order_by(traffic.c.revision)):
        weights[row.model][row.revision] = row.weight
    for row in connection.execute(names):
        marked[row.model][row.label] = row.revision
    for row in connection.execute(used.order_by(revisions.c.number)):
        found[row.model].append(_to_revision(row))
    return tuple(
        ModelRecord(
            name=row.name,
            owner=Owner(row.owner),
            spec=row.spec,
            wanted=Wanted(row.wanted),
            generation=row.generation,
            created_at=row.created_at,
            updated_at=row.updated_at,
            revisions=tuple(found[row.name]),
            traffic=weights[row.name],
            labels=marked[row.name],
        )
        for row in connection.execute(rows)
    )


def _to_revision(row: Row[Any]) -> RevisionRecord:
    return RevisionRecord(**row._mapping)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
