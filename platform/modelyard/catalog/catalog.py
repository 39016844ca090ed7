# SPDX-License-Identifier: Apache-2.0
"""The catalog's operations, each one transaction.

Blocking, and safe to call from several threads and processes; ``serve/`` calls it in a thread. What a method returned
is on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, and_, delete, func, insert, select, update

from modelyard.admin import Action, Plan
from modelyard.catalog import schema, traffic
from modelyard.catalog.engine import open_engine, reading, trying, writing
from modelyard.catalog.migrations import migrate
from modelyard.catalog.records import EventRecord, ModelEntry, ModelRecord, Owner, RevisionRecord, VersionEntry, Wanted
from modelyard.catalog.traffic import CANARY, SHADOW, STABLE
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound
from modelyard.rollout import ALL, Rollout, RolloutState, Shadow

_FOLLOWING: Final = frozenset(traffic.FOLLOWING)
_CONFIGURATION: Final = "configuration"
_ACTIONS: Final[Mapping[str, Action]] = {
    "created": Action.CREATE,
    "revised": Action.REVISE,
    "changed": Action.CHANGE,
    "loaded": Action.LOAD,
    "restored": Action.LOAD,
}
"""By the kind of event."""


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
                migrate(connection)
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

        The digest of the active revision, or of the latest, makes no new revision: the spec is changed in place. Any
        other digest makes the next revision - also one that an older revision had, for history only grows. It gets its
        traffic by a rollout, as the spec's ``rollout`` says; where nothing of the model runs it has all of it at once.
        A model being removed comes back, and then its name is free for either owner; an unloaded one is loaded.
        Nothing is written, and the generation stays, where nothing changes. With ``versions`` these are the revisions
        in use, under their own numbers; one that has changed replaces the older one of its number.

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
            old = _find_changeable(connection, name, owner, expected_generation)
            return _put(connection, old, entry, _Change(owner, actor, message, again=again))

    def plan_model(
        self, entry: ModelEntry, *, owner: Owner, expected_generation: int | None = None, again: bool = False
    ) -> Plan:
        """What :meth:`put_model` would do with these arguments, and raise; nothing is kept."""
        with trying(self._engine) as connection:
            old = _find_changeable(connection, entry.name, owner, expected_generation)
            new = _put(connection, old, entry, _Change(owner, "", "", again=again))
            return _to_plan(connection, old, new)

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
            _update_model(connection, old, {"wanted": Wanted.UNLOADED.value}, traffic.now())
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

    # -- traffic

    def set_traffic(
        self,
        name: str,
        weights: Mapping[int, float] | None = None,
        *,
        shadow: Shadow | None = None,
        keep_shadow: bool = True,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """Sends a model's traffic where these weights say.

        Args:
            name: The model.
            weights: Percent by number of revision, whole tenths, 100 in sum; a revision with 0 runs for those who ask
                for it. None leaves them as they are.
            shadow: Which revision gets copies of the requests.
            keep_shadow: Without ``shadow``, leave it as it is instead of ending it.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if it is still at this generation.

        Raises:
            InvalidConfig: The weights are none.
            ModelNotFound: There is no such model or revision.
            Conflict: A rollout with steps is on its way, the model is not running, or it is at another generation.
        """
        with writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            values: dict[str, Any] = {}
            detail: dict[str, Any] = {}
            if weights is not None:
                if old.rollout is not None and old.is_rolling_out:
                    if old.rollout.steps:
                        raise Conflict(f'model "{name}": a rollout is on its way: promote it or roll it back first')
                    values["rollout"] = None  # it was dark, and waited for this
                traffic.check_weights(connection, name, weights)
                if old.is_versioned and (unserved := sorted(weights.keys() - old.traffic.keys())):
                    raise Conflict(
                        f'model "{name}": version {unserved[0]} is not served: its folder and version_policy say which'
                    )
                served = dict.fromkeys(old.traffic, 0.0) if old.is_versioned else {}
                traffic.write_weights(connection, name, served | dict(weights))
                if not old.is_versioned and weights.get(old.labels.get(CANARY, 0), ALL) in (0, ALL):
                    traffic.write_label(connection, name, CANARY, None)
                (whole, *_) = [*(number for number, weight in weights.items() if weight >= ALL), None]
                if whole is not None and whole != old.labels.get(STABLE):
                    traffic.mark_promoted(connection, name, whole, traffic.now(), old.own_labels)
                detail["weights"] = {str(number): weight for number, weight in weights.items()}
            if shadow is not None:
                traffic.check_revision(connection, name, shadow.revision)
            if shadow is not None or not keep_shadow:
                traffic.write_label(connection, name, SHADOW, shadow.revision if shadow is not None else None)
                values["shadow"] = detail["shadow"] = shadow.to_dict() if shadow is not None else None
            _update_model(connection, old, values, traffic.now())
            _add_event(connection, name, "traffic", actor, message, detail)
            return _get(connection, name)

    def set_label(
        self, name: str, label: str, number: int | None, *, actor: str = "", message: str = ""
    ) -> ModelRecord:
        """Points a label at a revision, which then runs also without traffic; None takes the label away.

        ``stable`` is the revision that had all traffic last, ``canary`` that of a rollout on its way, ``shadow`` that
        which gets copies.

        Raises:
            InvalidConfig: The label is the platform's own.
            ModelNotFound: There is no such model, revision or label.
            Conflict: The model is not running, or its labels are the version policy's.
        """
        if label in _FOLLOWING:
            raise InvalidConfig((f'label: expected one of your own, got "{label}", which follows the traffic',))
        with writing(self._engine) as connection:
            old = _get_running(connection, name)
            if old.is_versioned:
                raise Conflict(f'model "{name}" is a folder of versions: set its labels in version_policy.labels')
            if number is not None:
                traffic.check_revision(connection, name, number)
            elif label not in old.labels:
                raise ModelNotFound(name, label)
            if old.labels.get(label) == number:
                return old
            traffic.write_label(connection, name, label, number)
            _update_model(connection, old, {}, traffic.now())
            _add_event(connection, name, "label", actor, message, {"label": label, "revision": number})
            return _get(connection, name)

    def begin_rollout(self, name: str, rollout: Rollout, *, actor: str = "", message: str = "") -> ModelRecord:
        """Brings a revision of the history on its way to all traffic; one that is on its way already is replaced.

        Args:
            name: The model.
            rollout: Its ``base`` is filled in here.
            actor: Who wants it.
            message: Why.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: The model is not running, or the revision has all traffic already.
        """
        with writing(self._engine) as connection:
            old = _get_running(connection, name)
            traffic.check_revision(connection, name, rollout.to)
            return _begin(connection, old, rollout, "rollout", actor, message)

    def promote(
        self, name: str, number: int | None = None, *, is_ready: bool = False, actor: str = "", message: str = ""
    ) -> ModelRecord:
        """Gives a revision all traffic, as soon as it is ready.

        Args:
            name: The model.
            number: The revision; None for the one of the rollout on its way.
            is_ready: It can answer, so the traffic goes there at once.
            actor: Who wants it.
            message: Why.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to promote, or the model is not running.
        """
        with writing(self._engine) as connection:
            old = _get_running(connection, name)
            if number is None:
                if old.rollout is None or not old.is_rolling_out:
                    raise Conflict(f'model "{name}" has no rollout on its way: say which revision to promote')
                number = old.rollout.to
            traffic.check_revision(connection, name, number)
            return _begin(connection, old, _plain(number, is_ready=is_ready), "rollout", actor, message)

    def roll_back(
        self, name: str, number: int | None = None, *, is_ready: bool = False, actor: str = "", message: str = ""
    ) -> ModelRecord:
        """Takes a rollout back, or without one returns to the revision that had all traffic before.

        Args:
            name: The model.
            number: A revision to return to in place of that.
            is_ready: It can answer, so the traffic goes there at once.
            actor: Who wants it.
            message: Why.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to return to, or the model is not running.
        """
        with writing(self._engine) as connection:
            old = _get_running(connection, name)
            if number is None and old.rollout is not None and old.is_rolling_out:
                ended = old.rollout.rolled_back(message or "taken back")
                return _advance(connection, old, ended, actor, message)
            number = traffic.find_previous(connection, old) if number is None else number
            if number is None:
                raise Conflict(f'model "{name}" has no earlier revision to return to')
            traffic.check_revision(connection, name, number)
            return _begin(connection, old, _plain(number, is_ready=is_ready), "rolled_back", actor, message)

    def find_rollback(self, name: str) -> int | None:
        """The revision that :meth:`roll_back` would return to where no rollout is on its way."""
        with reading(self._engine) as connection:
            return traffic.find_previous(connection, _get_running(connection, name))

    def advance_rollout(
        self, name: str, rollout: Rollout, *, expected_generation: int | None = None, actor: str = "", message: str = ""
    ) -> ModelRecord:
        """Writes down what has become of the rollout on its way: its weights and labels follow.

        Args:
            name: The model.
            rollout: As it is now.
            expected_generation: Only if the model is still at this generation.
            actor: Who decided.
            message: Why.

        Raises:
            ModelNotFound: There is no such model.
            Conflict: Another rollout is on its way, or none, or the model is at another generation.
        """
        with writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            if old.rollout is None or not old.is_rolling_out or old.rollout.to != rollout.to:
                raise Conflict(f'model "{name}" has no rollout of revision {rollout.to} on its way')
            return _advance(connection, old, rollout, actor, message)

    def add_event(
        self, model: str, kind: str, *, actor: str = "", message: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        """Adds to the history what is not itself a change of the catalog, for example that a model failed to load."""
        with writing(self._engine) as connection:
            _add_event(connection, model, kind, actor, message, detail or {})

    def list_events(
        self, model: str | None = None, limit: int = 100, *, after: int | None = None
    ) -> tuple[EventRecord, ...]:
        """The latest events, newest first; or those after one, oldest first.

        Args:
            model: Only this model's, which may be gone; None for all.
            limit: How many at most.
            after: Id of an event.
        """
        table = schema.events
        query = select(table).limit(limit)
        if after is None:
            query = query.order_by(table.c.id.desc())
        else:
            query = query.where(table.c.id > after).order_by(table.c.id)
        if model is not None:
            query = query.where(table.c.model == model)
        with reading(self._engine) as connection:
            return tuple(EventRecord(**row._mapping) for row in connection.execute(query))


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


def _find_changeable(
    connection: Connection, name: str, owner: Owner, expected_generation: int | None
) -> ModelRecord | None:
    """The model, which is this owner's or nobody's yet, and at this generation."""
    old = _find(connection, name)
    _check_owner(name, old, owner)
    _check_generation(name, old, expected_generation)
    return old


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
    _update_model(connection, old, values, traffic.now())
    detail: dict[str, Any] = {"revision": number, "changed": changed}
    _add_event(connection, entry.name, kind, change.actor, change.message, detail)
    return _get(connection, entry.name)


def _to_plan(connection: Connection, old: ModelRecord | None, new: ModelRecord) -> Plan:
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
    rollout = traffic.revision_rollout(number, entry.spec, _base(old))
    traffic.write_rollout(connection, old, rollout)
    return {"rollout": rollout.to_dict()}


def _share_versions(connection: Connection, old: ModelRecord, entry: ModelEntry) -> None:
    """The traffic of a folder of versions: all to a highest one that is new, else as it was."""
    served = [version.number for version in entry.versions]
    kept = {number: weight for number, weight in _base(old).items() if number in served}
    if served[-1] > max(old.traffic) or sum(kept.values()) < ALL:
        _give_all(connection, old, entry, served[-1])
        return
    traffic.write_weights(connection, entry.name, dict.fromkeys(served, 0.0) | kept)
    stable = old.active.number if STABLE in old.own_labels else old.labels.get(STABLE, old.active.number)
    _write_policy_labels(connection, old, entry, stable)


def _base(model: ModelRecord) -> dict[int, float]:
    """The weights without those of a rollout on its way, which another one replaces."""
    if model.rollout is not None and model.is_rolling_out:
        return dict(model.rollout.base)
    return {number: weight for number, weight in model.traffic.items() if weight > 0}


def _plain(number: int, *, is_ready: bool) -> Rollout:
    return Rollout(number, state=RolloutState.PROMOTED if is_ready else RolloutState.WAITING)


def _begin(
    connection: Connection, old: ModelRecord, rollout: Rollout, kind: str, actor: str, message: str
) -> ModelRecord:
    """A rollout of a revision of the history; see :meth:`Catalog.begin_rollout`."""
    if not old.is_rolling_out and old.traffic.get(rollout.to, 0.0) >= ALL:
        raise Conflict(f'model "{old.name}": revision {rollout.to} has all traffic already')
    if old.is_versioned and rollout.to not in old.traffic:
        raise Conflict(
            f'model "{old.name}": version {rollout.to} is not served: its folder and version_policy say which'
        )
    begun = replace(rollout, base=_base(old))
    traffic.write_rollout(connection, old, begun)
    _update_model(connection, old, {"rollout": begun.to_dict()}, traffic.now())
    _add_event(connection, old.name, kind, actor, message, _rollout_detail(begun))
    if begun.state is RolloutState.PROMOTED:
        _add_event(connection, old.name, "promoted", actor, message, {"revision": begun.to})
    return _get(connection, old.name)


def _advance(connection: Connection, old: ModelRecord, rollout: Rollout, actor: str, message: str) -> ModelRecord:
    before = old.rollout
    traffic.write_rollout(connection, old, rollout)
    _update_model(connection, old, {"rollout": rollout.to_dict()}, traffic.now())
    kind: str = rollout.state.value
    if rollout.state in (RolloutState.RUNNING, RolloutState.WAITING):
        kind = "resumed" if before is not None and before.step == rollout.step else "step"
    _add_event(connection, old.name, kind, actor, message or rollout.reason, _rollout_detail(rollout))
    return _get(connection, old.name)


def _rollout_detail(rollout: Rollout) -> dict[str, Any]:
    weights = {str(number): weight for number, weight in rollout.weights.items()}
    return {"revision": rollout.to, "weights": weights, "reason": rollout.reason, "measured": dict(rollout.measured)}


def _create(connection: Connection, entry: ModelEntry, change: _Change) -> ModelRecord:
    now = traffic.now()
    values = {"owner": change.owner.value, "spec": entry.spec, "wanted": Wanted.SERVING.value, "generation": 1}
    connection.execute(insert(schema.models).values(name=entry.name, **values, created_at=now, updated_at=now))
    number = _add_revision(connection, entry, change)
    _give_all(connection, None, entry, number)
    _add_event(connection, entry.name, "created", change.actor, change.message, {"revision": number})
    return _get(connection, entry.name)


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs, by key: before and after. A runtime may hold secrets, so of it this says only that it does."""
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return {key: [] if key == "runtime" else [old.get(key), new.get(key)] for key in keys}


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
        latest = old.latest or old.active
        return entry.digest == latest.digest or (entry.digest == old.active.digest and not old.is_rolling_out)
    digests = {revision.number: revision.digest for revision in old.revisions}
    own = {*entry.labels, *old.own_labels} | (old.labels.keys() - _FOLLOWING)
    named = {label: old.labels.get(label) for label in own}
    is_same = digests == {version.number: version.digest for version in entry.versions}
    return is_same and named == dict(entry.labels)


def _add_revision(connection: Connection, entry: ModelEntry, change: _Change) -> int:
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


def _remove(connection: Connection, old: ModelRecord, actor: str, message: str) -> ModelRecord:
    _update_model(connection, old, {"wanted": Wanted.REMOVED.value}, traffic.now())
    _add_event(connection, old.name, "removed", actor, message, {})
    return _get(connection, old.name)


def _get_running(connection: Connection, name: str, expected_generation: int | None = None) -> ModelRecord:
    """The model, whose traffic can be changed.

    Raises:
        ModelNotFound: There is none.
        Conflict: It is being removed, unloaded, cannot be used, or is at another generation.
    """
    record = _get_kept(connection, name)
    _check_generation(name, record, expected_generation)
    if record.wanted is Wanted.UNLOADED:
        raise Conflict(f'model "{name}" is unloaded: load it first')
    if record.problem:
        raise Conflict(f'model "{name}": its entry in the catalog cannot be used: register it again')
    return record


def _update_model(connection: Connection, old: ModelRecord, values: Mapping[str, Any], now: str) -> None:
    table = schema.models
    statement = update(table).where(table.c.name == old.name, table.c.generation == old.generation)
    result = connection.execute(statement.values(**values, generation=old.generation + 1, updated_at=now))
    if result.rowcount != 1:  # cannot happen while writers wait for each other
        raise Conflict(f'model "{old.name}" was changed meanwhile: try again')


def _add_event(
    connection: Connection, model: str, kind: str, actor: str, message: str, detail: Mapping[str, Any]
) -> None:
    values = {"model": model, "kind": kind, "actor": actor, "message": message, "detail": detail}
    connection.execute(insert(schema.events).values(at=traffic.now(), **values))


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
        found[row.model].append(_to_revision(row))
    for row in connection.execute(newest):
        latest[row.model] = _to_revision(row)
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
            shadow=Shadow.from_dict(row.shadow) if isinstance(row.shadow, dict) else None,
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
    except (KeyError, TypeError, ValueError):
        return None


def _to_revision(row: Row[Any]) -> RevisionRecord:
    return RevisionRecord(**row._mapping)
