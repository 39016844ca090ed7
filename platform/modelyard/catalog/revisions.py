# SPDX-License-Identifier: Apache-2.0
"""What putting a model makes of it: a new one, its next revision, other settings, or nothing.

Functions on an open transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, and_, delete, func, insert, select

from modelyard.admin import Action, Plan
from modelyard.catalog import rows, schema, traffic
from modelyard.catalog.records import ModelEntry, ModelRecord, Owner, VersionEntry, Wanted
from modelyard.catalog.traffic import CANARY, FOLLOWING, SHADOW, STABLE
from modelyard.rollout import ALL

_FOLLOWING: Final = frozenset(FOLLOWING)
_ACTIONS: Final[Mapping[str, Action]] = {
    "created": Action.CREATE,
    "revised": Action.REVISE,
    "changed": Action.CHANGE,
    "loaded": Action.LOAD,
    "restored": Action.LOAD,
}
"""By the kind of event."""


@dataclass(frozen=True, slots=True)
class Change:
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


def put(connection: Connection, old: ModelRecord | None, entry: ModelEntry, change: Change) -> ModelRecord:
    """Creates a model or changes it, as ``Catalog.put_model`` says; the same record where nothing changes."""
    if old is None:
        return _create(connection, entry, change)
    is_new_revision = not old.revisions or not _is_current(old, entry)
    changed = compare(old.spec, entry.spec)
    kind = _kind_of_change(old, change, is_new_revision, bool(changed))
    if kind is None:
        return old
    stays_unloaded = old.wanted is Wanted.UNLOADED and not change.loads
    wanted = Wanted.UNLOADED if stays_unloaded else Wanted.SERVING
    values: dict[str, Any] = {"owner": change.owner.value, "spec": entry.spec, "wanted": wanted.value}
    number = (old.latest or old.active).number if not is_new_revision else 0
    if is_new_revision:
        number = _add_revision(connection, entry, change)
        values |= _send_traffic(connection, old, entry, number)
    rows.update_model(connection, old, values, traffic.now())
    detail: dict[str, Any] = {"revision": number, "changed": changed}
    rows.add_event(connection, entry.name, kind, change.actor, change.message, detail)
    return rows.get(connection, entry.name)


def to_plan(connection: Connection, old: ModelRecord | None, new: ModelRecord) -> Plan:
    """What has been done to a model in this transaction: the event about it says so."""
    if new is old:
        return Plan(new.name, Action.NOTHING, (new.latest or new.active).number, new.generation)
    table = schema.events
    query = select(table).where(table.c.model == new.name).order_by(table.c.id.desc()).limit(1)
    event = connection.execute(query).one()
    action = _ACTIONS[event.kind]
    if action is Action.LOAD and old is not None and new.latest != old.latest:  # restored as something else
        action = Action.REVISE
    return Plan(
        name=new.name,
        action=action,
        revision=event.detail["revision"],
        generation=old.generation if old is not None else 0,
        changed=event.detail.get("changed", {}),
        rollout=new.rollout if action is Action.REVISE else None,
    )


def _send_traffic(connection: Connection, old: ModelRecord, entry: ModelEntry, number: int) -> dict[str, Any]:
    """A new revision's way to its traffic: a rollout, or all of it at once where nothing of the model runs.

    The highest version of a folder gets all of it at once too: until it is ready the one before it goes on answering.

    Returns:
        What changes in the model's own row.
    """
    if old.wanted is not Wanted.SERVING or not old.traffic:
        _give_all(connection, old, entry, number)
        return {"rollout": None, "shadow": None}
    if entry.versions:
        _share_versions(connection, old, entry)
        return {"rollout": None}
    rollout = traffic.revision_rollout(number, entry.spec, base_weights(old))
    traffic.write_rollout(connection, old, rollout)
    return {"rollout": rollout.to_dict()}


def _share_versions(connection: Connection, old: ModelRecord, entry: ModelEntry) -> None:
    """The traffic of a folder of versions: all to a highest one that is new, else as it was."""
    served = [version.number for version in entry.versions]
    kept = {number: weight for number, weight in base_weights(old).items() if number in served}
    if served[-1] > max(old.traffic) or sum(kept.values()) < ALL:
        _give_all(connection, old, entry, served[-1])
        return
    traffic.write_weights(connection, entry.name, dict.fromkeys(served, 0.0) | kept)
    stable = old.active.number if STABLE in old.own_labels else old.labels.get(STABLE, old.active.number)
    _write_policy_labels(connection, old, entry, stable)


def base_weights(model: ModelRecord) -> dict[int, float]:
    """The weights without those of a rollout on its way, which another one replaces."""
    if model.rollout is not None and model.is_rolling_out:
        return dict(model.rollout.base)
    return {number: weight for number, weight in model.traffic.items() if weight > 0}


def _create(connection: Connection, entry: ModelEntry, change: Change) -> ModelRecord:
    now = traffic.now()
    values = {"owner": change.owner.value, "spec": entry.spec, "wanted": Wanted.SERVING.value, "generation": 1}
    connection.execute(insert(schema.models).values(name=entry.name, **values, created_at=now, updated_at=now))
    number = _add_revision(connection, entry, change)
    _give_all(connection, None, entry, number)
    rows.add_event(connection, entry.name, "created", change.actor, change.message, {"revision": number})
    return rows.get(connection, entry.name)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs, by key: before and after. A runtime may hold secrets, so of it this says only that it does."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return {key: [] if key == "runtime" else [old.get(key), new.get(key)] for key in keys}


def _kind_of_change(old: ModelRecord, change: Change, is_new_revision: bool, is_changed: bool) -> str | None:
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
        latest = old.latest or old.active
        return entry.digest == latest.digest or (entry.digest == old.active.digest and not old.is_rolling_out)
    digests = {revision.number: revision.digest for revision in old.revisions}
    own = {*entry.labels, *old.own_labels} | (old.labels.keys() - _FOLLOWING)
    named = {label: old.labels.get(label) for label in own}
    is_same = digests == {version.number: version.digest for version in entry.versions}
    return is_same and named == dict(entry.labels)


def _add_revision(connection: Connection, entry: ModelEntry, change: Change) -> int:
    """Adds the next revision, or those the artifact numbers; returns the number of the one to get the traffic."""
    table, now = schema.revisions, traffic.now()
    versions = entry.versions
    if not versions:
        highest = connection.execute(select(func.max(table.c.number)).where(table.c.model == entry.name)).scalar()
        versions = (VersionEntry((highest or 0) + 1, entry.content, entry.digest),)
    for version in versions:
        is_it = and_(table.c.model == entry.name, table.c.number == version.number)
        if connection.execute(select(table.c.digest).where(is_it)).scalar() != version.digest:
            for in_use, column in ((schema.traffic, "revision"), (schema.labels, "revision")):
                pointing = and_(in_use.c.model == entry.name, in_use.c[column] == version.number)
                connection.execute(delete(in_use).where(pointing))
            connection.execute(delete(table).where(is_it))
            values = {"digest": version.digest, "content": version.content, "number": version.number}
            by = {"actor": change.actor, "message": change.message}
            connection.execute(insert(table).values(model=entry.name, created_at=now, **values, **by))
    return versions[-1].number


def _give_all(connection: Connection, old: ModelRecord | None, entry: ModelEntry, number: int) -> None:
    """All traffic to one revision, and the label ``stable``; the other versions of its artifact run beside it."""
    others = dict.fromkeys((version.number for version in entry.versions), 0.0)
    traffic.write_weights(connection, entry.name, others | {number: ALL})
    for label in (CANARY, SHADOW):
        traffic.write_label(connection, entry.name, label, None)
    traffic.mark_promoted(connection, entry.name, number, traffic.now())
    if entry.versions:
        _write_policy_labels(connection, old, entry, number)


def _write_policy_labels(connection: Connection, old: ModelRecord | None, entry: ModelEntry, stable: int) -> None:
    """The labels that the version policy has, ``stable`` where it has none of that name, and no others."""
    known = old.labels.keys() - {SHADOW} if old is not None else set()
    labels = dict.fromkeys(known, None) | {STABLE: stable} | dict(entry.labels)
    for label, number in labels.items():
        traffic.write_label(connection, entry.name, label, number)
