# SPDX-License-Identifier: Apache-2.0
"""Models as the catalog's rows have them: reading them whole, and the two writes that every change needs.

Functions on an open transaction.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from modelyard.catalog import schema, traffic
from modelyard.catalog.records import ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.errors import Conflict, ModelNotFound
from modelyard.rollout import Rollout, Shadow

KEEP_EVENTS: Final = "modelyard_keep_events"
"""The execution option that says how many lines of the history stay."""
_PRUNE_EVERY: Final = 97
"""Ids. A prime, for PostgreSQL gives ids to dry runs too, perhaps to every second change."""


def get(connection: Connection, name: str) -> ModelRecord:
    """The model of that name, which is there."""
    (record,) = read_models(connection, name)
    return record


def get_kept(connection: Connection, name: str) -> ModelRecord:
    """The model of that name, which is not being removed.

    Raises:
        ModelNotFound: There is none.
        Conflict: It is being removed.
    """
    record = find(connection, name)
    if record is None:
        raise ModelNotFound(name)
    if record.wanted is Wanted.REMOVED:
        raise Conflict(f'model "{name}" is being removed: register it again to keep it')
    return record


def find(connection: Connection, name: str) -> ModelRecord | None:
    """The model of that name; None where there is none."""
    return next(iter(read_models(connection, name)), None)


def read_models(connection: Connection, name: str | None = None) -> tuple[ModelRecord, ...]:
    """All models, or the one, in five queries whatever their number."""
    models, shares_of, labels, revisions = schema.models, schema.traffic, schema.labels, schema.revisions
    weights: dict[str, dict[int, float]] = defaultdict(dict)
    marked: dict[str, dict[str, int]] = defaultdict(dict)
    found: dict[str, list[RevisionRecord]] = defaultdict(list)
    latest: dict[str, RevisionRecord] = {}
    pairs = select(shares_of.c.model, shares_of.c.revision), select(labels.c.model, labels.c.revision)
    highest = select(revisions.c.model, func.max(revisions.c.number).label("number")).group_by(revisions.c.model)
    if name is not None:
        pairs = pairs[0].where(shares_of.c.model == name), pairs[1].where(labels.c.model == name)
        highest = highest.where(revisions.c.model == name)
    in_use, last = pairs[0].union(pairs[1]).subquery(), highest.subquery()
    newest = select(revisions).join(last, and_(last.c.model == revisions.c.model, last.c.number == revisions.c.number))
    used = select(revisions).join(
        in_use, and_(in_use.c.model == revisions.c.model, in_use.c.revision == revisions.c.number)
    )
    rows = select(models)
    shares, names = select(shares_of), select(labels).order_by(labels.c.label)
    if name is not None:
        rows = rows.where(models.c.name == name)
        shares, names = shares.where(shares_of.c.model == name), names.where(labels.c.model == name)
    for row in connection.execute(shares.order_by(shares_of.c.revision)):
        weights[row.model][row.revision] = row.weight
    for row in connection.execute(names):
        marked[row.model][row.label] = row.revision
    for row in connection.execute(used.order_by(revisions.c.number)):
        found[row.model].append(to_revision(row))
    for row in connection.execute(newest):
        latest[row.model] = to_revision(row)
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
            latest=latest.get(row.name),
            rollout=_to_rollout(row.rollout),
            shadow=_to_shadow(row.shadow),
            problem=_find_problem(row, found[row.name]),
        )
        for row in sorted(connection.execute(rows), key=lambda row: row.name)  # databases sort by their own rules
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


def _to_rollout(value: Any) -> Rollout | None:
    """The rollout in a model's row; None for one that no Modelyard writes, which then simply does not go on."""
    try:
        return Rollout.from_dict(value) if isinstance(value, dict) else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _to_shadow(value: Any) -> Shadow | None:
    """The shadow in a model's row; None for one that no Modelyard writes: nothing is copied then."""
    try:
        return Shadow.from_dict(value) if isinstance(value, dict) else None
    except TypeError:
        return None


def to_revision(row: Row[Any]) -> RevisionRecord:
    """One row of the revisions."""
    return RevisionRecord(**row._mapping)


def update_model(connection: Connection, old: ModelRecord, values: Mapping[str, Any], now: str) -> None:
    """Changes the model's own row, whose generation grows by one.

    Raises:
        Conflict: Somebody else has changed it since it was read.
    """
    table = schema.models
    statement = update(table).where(table.c.name == old.name, table.c.generation == old.generation)
    result = connection.execute(statement.values(**values, generation=old.generation + 1, updated_at=now))
    if result.rowcount != 1:  # cannot happen while writers wait for each other
        raise Conflict(f'model "{old.name}" was changed meanwhile: try again')


def add_event(
    connection: Connection, model: str, kind: str, actor: str, message: str, detail: Mapping[str, Any]
) -> None:
    """One more line of the history, which once in a while loses its oldest ones."""
    values = {"model": model, "kind": kind, "actor": actor, "message": message, "detail": detail}
    result = connection.execute(insert(schema.events).values(at=traffic.now(), **values))
    if result.inserted_primary_key is not None and result.inserted_primary_key[0] % _PRUNE_EVERY == 0:
        prune_events(connection, connection.get_execution_options().get(KEEP_EVENTS, sys.maxsize))


def prune_events(connection: Connection, keep: int) -> None:
    """Forgets all but the newest events; no id is ever given again."""
    table = schema.events
    oldest = select(table.c.id).order_by(table.c.id.desc()).limit(1).offset(keep).scalar_subquery()
    connection.execute(delete(table).where(table.c.id <= oldest))
