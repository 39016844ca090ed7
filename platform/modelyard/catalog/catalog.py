# SPDX-License-Identifier: Apache-2.0
"""The catalog's operations, each one transaction.

Blocking, and safe to call from several threads and processes; ``serve/`` calls it in a thread. What a method returned
is on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from modelyard.catalog import schema
from modelyard.catalog.engine import open_engine, reading, writing
from modelyard.catalog.records import EventRecord, ModelEntry, ModelRecord, Owner, RevisionRecord, VersionEntry, Wanted
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound

STABLE: Final = "stable"
_CONFIGURATION: Final = "configuration"


@dataclass(frozen=True, slots=True)
class _Change:
    """Who changes a model, and how.

    Attributes:
        owner: On whose behalf.
        actor: Who.
        message: Why.
        loads: An unloaded model is loaded.
        again: The model has failed and is to be tried again: a change, also where nothing in it differs.
    """

    owner: Owner
    actor: str
    message: str
    loads: bool = True
    again: bool = False


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

    def get_model(self, name: str) -> ModelRecord:
        """The model of that name, which is not being removed.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed.
        """
        with reading(self._engine) as connection:
            return _get_kept(connection, name)

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
        versions: tuple[VersionEntry, ...] = (),
        labels: Mapping[str, int] | None = None,
        expected_generation: int | None = None,
        again: bool = False,
    ) -> ModelRecord:
        """Creates a model or changes it.

        The digest of the active revision makes no new revision: the spec is changed in place. Any other digest makes
        the next revision, which gets all traffic and the label ``stable`` - also one that an older revision had, for
        history only grows. A model being removed comes back, and then its name is free for either owner; an unloaded
        one is loaded. Nothing is written, and the generation stays, where nothing changes. With ``versions`` these are
        the revisions in use, under their own numbers; one that has changed replaces the older one of its number.

        Args:
            name: The model.
            owner: Who asks for it.
            spec: ``ModelSpec.to_json()``.
            content: ``ModelSpec.revision_content()``.
            digest: ``ModelSpec.revision_digest(…)``.
            versions: See :class:`~modelyard.catalog.ModelEntry`.
            labels: See :class:`~modelyard.catalog.ModelEntry`.
            actor: Who changes it, for the history.
            message: Why, for the history.
            expected_generation: Change it only if it is still at this generation; 0 for a model that must be new.
            again: It has failed and is to be tried again: a change, also where nothing in it differs.

        Raises:
            Conflict: The name belongs to the other owner, or the model is at another generation.
        """
        entry = ModelEntry(name, spec, content, digest, versions, labels or {})
        with writing(self._engine) as connection:
            old = _find(connection, name)
            _check_owner(name, old, owner)
            _check_generation(name, old, expected_generation)
            return _put(connection, old, entry, _Change(owner, actor, message, again=again))

    def load_model(
        self,
        name: str,
        *,
        content: Mapping[str, Any],
        digest: str,
        actor: str = "",
        message: str = "",
        versions: tuple[VersionEntry, ...] = (),
        labels: Mapping[str, int] | None = None,
        expected_generation: int | None = None,
        again: bool = False,
    ) -> ModelRecord:
        """Wants a model to run, as its spec has it; another digest makes the next revision.

        Args:
            name: The model.
            content: As for :meth:`put_model`.
            digest: As for :meth:`put_model`; of the artifact as it is now.
            actor: Who loads it.
            message: Why.
            versions: As for :meth:`put_model`.
            labels: As for :meth:`put_model`.
            expected_generation: As for :meth:`put_model`.
            again: As for :meth:`put_model`.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed, or at another generation.
        """
        with writing(self._engine) as connection:
            old = _get_kept(connection, name)
            _check_generation(name, old, expected_generation)
            entry = ModelEntry(name, old.spec, content, digest, versions, labels or {})
            return _put(connection, old, entry, _Change(old.owner, actor, message, again=again))

    def unload_model(self, name: str, *, actor: str = "", message: str = "") -> ModelRecord:
        """Wants nothing of a model to run; one that is unloaded already stays as it is.

        Args:
            name: The model.
            actor: Who unloads it.
            message: Why.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed.
        """
        with writing(self._engine) as connection:
            old = _get_kept(connection, name)
            if old.wanted is Wanted.UNLOADED:
                return old
            _update_model(connection, old, {"wanted": Wanted.UNLOADED.value}, _now())
            _add_event(connection, name, "unloaded", actor, message, {})
            return _get(connection, name)

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
        """Makes the declared models exactly these, in one transaction.

        Declared models that are not among them are marked as removed; those of run time are left alone, and keep their
        names. One that was unloaded stays so.

        Returns:
            The given models, in their order, without those whose name belongs to one of run time.
        """
        entries = tuple(entries)
        names = {entry.name for entry in entries}
        change = _Change(Owner.DECLARED, actor, message, loads=False)
        with writing(self._engine) as connection:
            known = {record.name: record for record in _read_models(connection)}
            for record in known.values():
                if _is_declared(record) and record.name not in names:
                    _remove(connection, record, actor, message)
            return tuple(
                _put(connection, known.get(entry.name), entry, change)
                for entry in entries
                if not _is_of_run_time(known.get(entry.name))
            )

    def sync_reloaded(
        self, entries: Iterable[ModelEntry], *, actor: str = "", message: str = "", again: Collection[str] = ()
    ) -> tuple[tuple[ModelRecord, ...], tuple[ModelRecord, ...]]:
        """Makes the reloaded models exactly these, in one transaction; all others are left alone.

        Args:
            entries: The models.
            actor: Who sends the list.
            message: Why, for the history.
            again: Names of those that have failed and are to be tried again.

        Returns:
            The given models, in their order, and those that are being removed.

        Raises:
            InvalidConfig: Names belong to another owner, with one problem for each; nothing is changed.
        """
        entries = tuple(entries)
        names = {entry.name for entry in entries}
        with writing(self._engine) as connection:
            known = {record.name: record for record in _read_models(connection)}
            _check_reloadable(entries, known)
            left = [
                _remove(connection, record, actor, message)
                for record in known.values()
                if record.owner is Owner.RELOADED and record.wanted is not Wanted.REMOVED and record.name not in names
            ]
            changes = {name: _Change(Owner.RELOADED, actor, message, again=name in again) for name in names}
            kept = [_put(connection, known.get(entry.name), entry, changes[entry.name]) for entry in entries]
        return tuple(kept), tuple(left)

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
    elif int(found) > schema.SCHEMA_VERSION:
        known = f"expected a database with schema version {schema.SCHEMA_VERSION} or older"
        raise InvalidConfig((f"catalog.url: {known}, got version {found}",))
    elif int(found) < schema.SCHEMA_VERSION:
        is_version = table.c.key == "schema_version"
        connection.execute(update(table).where(is_version).values(value=str(schema.SCHEMA_VERSION)))


def _is_declared(record: ModelRecord) -> bool:
    return record.owner is Owner.DECLARED and record.wanted is not Wanted.REMOVED


def _is_of_run_time(record: ModelRecord | None) -> bool:
    return record is not None and record.owner is not Owner.DECLARED and record.wanted is not Wanted.REMOVED


def _check_owner(name: str, old: ModelRecord | None, owner: Owner) -> None:
    if old is None or old.wanted is Wanted.REMOVED or old.owner is owner:
        return
    if old.owner is Owner.DECLARED:
        raise Conflict(f'model "{name}" is declared in the configuration file: change it there')
    if owner is Owner.DECLARED or old.owner is not Owner.RELOADED:
        where = "configuration file" if owner is Owner.DECLARED else "list"
        raise Conflict(f'model "{name}" is registered at run time: unregister it, or take it out of the {where}')


def _check_reloadable(entries: Iterable[ModelEntry], known: Mapping[str, ModelRecord]) -> None:
    problems: list[str] = []
    for index, entry in enumerate(entries):
        try:
            _check_owner(entry.name, known.get(entry.name), Owner.RELOADED)
        except Conflict as exc:
            problems.append(f"model_config_list.config[{index}].name: {exc}")
    if problems:
        raise InvalidConfig(tuple(problems))


def _check_generation(name: str, old: ModelRecord | None, expected: int | None) -> None:
    got = old.generation if old is not None else 0
    if expected is not None and expected != got:
        raise Conflict(f'model "{name}" was changed meanwhile: expected generation {expected}, got {got}')


def _put(connection: Connection, old: ModelRecord | None, entry: ModelEntry, change: _Change) -> ModelRecord:
    if old is None:
        return _create(connection, entry, change)
    is_new_revision = not old.revisions or not _is_current(old, entry)
    changed = sorted(key for key in {*old.spec, *entry.spec} if old.spec.get(key) != entry.spec.get(key))
    kind = _kind_of_change(old, change, is_new_revision, bool(changed))
    if kind is None:
        return old
    stays_unloaded = old.wanted is Wanted.UNLOADED and not change.loads
    wanted = Wanted.UNLOADED if stays_unloaded else Wanted.SERVING
    now = _now()
    _update_model(connection, old, {"owner": change.owner.value, "spec": entry.spec, "wanted": wanted.value}, now)
    number = _add_revision(connection, entry, now, change) if is_new_revision else old.active.number
    detail: dict[str, Any] = {"revision": number, "changed": {key: _diff(key, old.spec, entry.spec) for key in changed}}
    _add_event(connection, entry.name, kind, change.actor, change.message, detail)
    return _get(connection, entry.name)


def _create(connection: Connection, entry: ModelEntry, change: _Change) -> ModelRecord:
    now = _now()
    values = {"owner": change.owner.value, "spec": entry.spec, "wanted": Wanted.SERVING.value, "generation": 1}
    connection.execute(insert(schema.models).values(name=entry.name, **values, created_at=now, updated_at=now))
    number = _add_revision(connection, entry, now, change)
    _add_event(connection, entry.name, "created", change.actor, change.message, {"revision": number})
    return _get(connection, entry.name)


def _diff(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Any]:
    """Before and after; the runtime may hold secrets, so the history says only that it changed."""
    return [] if key == "runtime" else [old.get(key), new.get(key)]


def _kind_of_change(old: ModelRecord, change: _Change, is_new_revision: bool, is_changed: bool) -> str | None:
    if old.wanted is Wanted.REMOVED:
        return "restored"
    if is_new_revision:
        return "revised"
    if change.again or (change.loads and old.wanted is Wanted.UNLOADED):
        return "loaded"
    return "changed" if is_changed or old.problem else None


def _is_current(old: ModelRecord, entry: ModelEntry) -> bool:
    """The model has just these revisions and labels already."""
    if not entry.versions:
        return old.active.digest == entry.digest
    digests = {revision.number: revision.digest for revision in old.revisions}
    labels = {STABLE: entry.versions[-1].number} | dict(entry.labels)
    return digests == {version.number: version.digest for version in entry.versions} and labels == old.labels


def _add_revision(connection: Connection, entry: ModelEntry, now: str, change: _Change) -> int:
    """Adds the next revision, or those the artifact numbers; the last gets all traffic and the label ``stable``."""
    table = schema.revisions
    for in_use in (schema.traffic, schema.labels):
        connection.execute(delete(in_use).where(in_use.c.model == entry.name))
    versions = entry.versions
    if not versions:
        highest = connection.execute(select(func.max(table.c.number)).where(table.c.model == entry.name)).scalar()
        versions = (VersionEntry((highest or 0) + 1, entry.content, entry.digest),)
    for version in versions:
        is_it = and_(table.c.model == entry.name, table.c.number == version.number)
        if connection.execute(select(table.c.digest).where(is_it)).scalar() != version.digest:
            connection.execute(delete(table).where(is_it))
            values = {"digest": version.digest, "content": version.content, "number": version.number}
            by = {"actor": change.actor, "message": change.message}
            connection.execute(insert(table).values(model=entry.name, created_at=now, **values, **by))
        weight = 100.0 if version is versions[-1] else 0.0
        connection.execute(insert(schema.traffic).values(model=entry.name, revision=version.number, weight=weight))
    active = versions[-1].number
    for label, number in ({STABLE: active} | dict(entry.labels)).items():
        connection.execute(insert(schema.labels).values(model=entry.name, label=label, revision=number))
    return active


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


def _get_kept(connection: Connection, name: str) -> ModelRecord:
    record = _find(connection, name)
    if record is None:
        raise ModelNotFound(name)
    if record.wanted is Wanted.REMOVED:
        raise Conflict(f'model "{name}" is being removed: register it again to keep it')
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
            owner=Owner(row.owner) if row.owner in set(Owner) else Owner.REGISTERED,
            spec=row.spec if isinstance(row.spec, dict) else {},
            wanted=Wanted(row.wanted) if row.wanted in set(Wanted) else Wanted.SERVING,
            generation=row.generation,
            created_at=row.created_at,
            updated_at=row.updated_at,
            revisions=tuple(found[row.name]),
            traffic=weights[row.name],
            labels=marked[row.name],
            problem=_find_problem(row, found[row.name]),
        )
        for row in connection.execute(rows)
    )


def _find_problem(row: Row[Any], revisions: Sequence[RevisionRecord]) -> str:
    """What no Modelyard writes into the row of a model, for one bad row must not hide all the others."""
    for column, known in (("owner", Owner), ("wanted", Wanted)):
        value = getattr(row, column)
        if value not in set(known):
            return f'{column}: expected one of {", ".join(known)}, got "{value}"'
    if not isinstance(row.spec, dict):
        return f"spec: expected an object, got {type(row.spec).__name__}"
    return "" if revisions else "it has no revision that carries traffic"


def _to_revision(row: Row[Any]) -> RevisionRecord:
    return RevisionRecord(**row._mapping)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
