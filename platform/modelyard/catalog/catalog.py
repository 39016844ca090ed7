# SPDX-License-Identifier: Apache-2.0
"""The catalog's operations, each one transaction.

Blocking, and safe to call from several threads and processes; ``serve/`` calls it in a thread. What a method returned
is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, delete, select

from modelyard.admin import Plan
from modelyard.catalog import revisions, rows, schema, traffic
from modelyard.catalog.engine import open_engine, reading, trying, writing
from modelyard.catalog.migrations import migrate
from modelyard.catalog.records import EventRecord, ModelEntry, ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.catalog.traffic import CANARY, SHADOW, STABLE
from modelyard.errors import Conflict, InvalidConfig, ModelNotFound
from modelyard.rollout import ALL, Rollout, RolloutState, Shadow

_FOLLOWING: Final = frozenset(traffic.FOLLOWING)
_CONFIGURATION: Final = "configuration"
KEEP_EVENTS: Final = 100_000
"""Of all models together."""


class Catalog:
    """Models, their revisions, where traffic goes, and who changed what.

    Args:
        url: SQLAlchemy URL of the database.
        keep_events: So many of the newest events are kept, and for a while some more.

    Raises:
        InvalidConfig: The database cannot be opened, or a newer Modelyard has written it.
    """

    def __init__(self, url: str, *, keep_events: int = KEEP_EVENTS) -> None:
        self._engine = open_engine(url)
        self._engine.update_execution_options(**{rows.KEEP_EVENTS: keep_events})
        self._writing: Callable[[Engine], AbstractContextManager[Connection]] = writing
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

    def rehearsal(self) -> Self:
        """The same catalog, of which nothing is kept: its changes return what they would, and raise what they would."""
        other = copy(self)
        other._writing = trying
        return other

    def list_models(self) -> tuple[ModelRecord, ...]:
        """All models by name, those being removed included."""
        with reading(self._engine) as connection:
            return rows.read_models(connection)

    def find_model(self, name: str) -> ModelRecord | None:
        """The model of that name, also while it is being removed."""
        with reading(self._engine) as connection:
            return rows.find(connection, name)

    def get_model(self, name: str, expected_generation: int | None = None) -> ModelRecord:
        """The model of that name, which is not being removed.

        Args:
            name: The model.
            expected_generation: At which it has to be; None for any.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed, or at another generation.
        """
        with reading(self._engine) as connection:
            record = rows.get_kept(connection, name)
        _check_generation(name, record, expected_generation)
        return record

    def list_revisions(self, name: str) -> tuple[RevisionRecord, ...]:
        """Every revision the model ever had, by number; empty for an unknown one."""
        table = schema.revisions
        query = select(table).where(table.c.model == name).order_by(table.c.number)
        with reading(self._engine) as connection:
            return tuple(rows.to_revision(row) for row in connection.execute(query))

    def put_model(
        self,
        entry: ModelEntry,
        *,
        owner: Owner,
        actor: str = "",
        message: str = "",
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
            entry: The model as it should be.
            owner: Who asks for it.
            actor: Who changes it, for the history.
            message: Why, for the history.
            expected_generation: Change it only if it is still at this generation; 0 for a model that must be new.
            again: It has failed and is to be tried again: a change, also where nothing in it differs.

        Raises:
            Conflict: The name belongs to the other owner, or the model is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _find_changeable(connection, entry.name, owner, expected_generation)
            return revisions.put(connection, old, entry, revisions.Change(owner, actor, message, again=again))

    def plan_model(
        self, entry: ModelEntry, *, owner: Owner, expected_generation: int | None = None, again: bool = False
    ) -> Plan:
        """What :meth:`put_model` would do with these arguments, and raise; nothing is kept."""
        with trying(self._engine) as connection:
            old = _find_changeable(connection, entry.name, owner, expected_generation)
            new = revisions.put(connection, old, entry, revisions.Change(owner, "", "", again=again))
            return revisions.to_plan(connection, old, new)

    def load_model(
        self,
        entry: ModelEntry,
        *,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
        again: bool = False,
    ) -> ModelRecord:
        """Wants a model to run, as its spec has it; another digest makes the next revision.

        Args:
            entry: The model with its artifact as it is now; its spec stays as the catalog has it.
            actor: Who loads it.
            message: Why.
            expected_generation: As for :meth:`put_model`.
            again: As for :meth:`put_model`.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed, or at another generation.
        """
        with self._writing(self._engine) as connection:
            old = rows.get_kept(connection, entry.name)
            _check_generation(entry.name, old, expected_generation)
            kept = replace(entry, spec=old.spec)
            return revisions.put(connection, old, kept, revisions.Change(old.owner, actor, message, again=again))

    def unload_model(
        self, name: str, *, actor: str = "", message: str = "", expected_generation: int | None = None
    ) -> ModelRecord:
        """Wants nothing of a model to run; one that is unloaded already stays as it is.

        Args:
            name: The model.
            actor: Who unloads it.
            message: Why.
            expected_generation: Change it only if it is still at this generation.

        Raises:
            ModelNotFound: There is none.
            Conflict: It is being removed, or at another generation.
        """
        with self._writing(self._engine) as connection:
            old = rows.get_kept(connection, name)
            _check_generation(name, old, expected_generation)
            if old.wanted is Wanted.UNLOADED:
                return old
            rows.update_model(connection, old, {"wanted": Wanted.UNLOADED.value}, traffic.now())
            rows.add_event(connection, name, "unloaded", actor, message, {})
            return rows.get(connection, name)

    def remove_model(
        self,
        name: str,
        *,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
        owner: Owner | None = None,
    ) -> ModelRecord:
        """Marks a model as no longer wanted; one that already is stays as it is.

        Args:
            name: The model.
            actor: Who removes it.
            message: Why.
            expected_generation: Change it only if it is still at this generation.
            owner: On whose behalf; None for any.

        Raises:
            ModelNotFound: There is none.
            Conflict: It belongs to the other owner, or is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = rows.find(connection, name)
            if old is None:
                raise ModelNotFound(name)
            _check_generation(name, old, expected_generation)
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
        with self._writing(self._engine) as connection:
            old = rows.find(connection, name)
            if old is None:
                return
            if old.wanted is not Wanted.REMOVED:
                raise Conflict(f'model "{name}" is being served: remove it before it is purged')
            for table in (schema.labels, schema.traffic, schema.revisions):
                connection.execute(delete(table).where(table.c.model == name))
            connection.execute(delete(schema.models).where(schema.models.c.name == name))
            rows.add_event(connection, name, "purged", "", "", {})

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
        change = revisions.Change(Owner.DECLARED, actor, message, loads=False)
        with self._writing(self._engine) as connection:
            known = {record.name: record for record in rows.read_models(connection)}
            for record in known.values():
                if _is_declared(record) and record.name not in names:
                    _remove(connection, record, actor, message)
            return tuple(
                revisions.put(connection, known.get(entry.name), entry, change)
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
        with self._writing(self._engine) as connection:
            known = {record.name: record for record in rows.read_models(connection)}
            _check_reloadable(entries, known)
            left = [
                _remove(connection, record, actor, message)
                for record in known.values()
                if record.owner is Owner.RELOADED and record.wanted is not Wanted.REMOVED and record.name not in names
            ]
            changes = {name: revisions.Change(Owner.RELOADED, actor, message, again=name in again) for name in names}
            kept = [revisions.put(connection, known.get(entry.name), entry, changes[entry.name]) for entry in entries]
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
        with self._writing(self._engine) as connection:
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
            rows.update_model(connection, old, values, traffic.now())
            rows.add_event(connection, name, "traffic", actor, message, detail)
            return rows.get(connection, name)

    def set_label(
        self,
        name: str,
        label: str,
        number: int | None,
        *,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """Points a label at a revision, which then runs also without traffic; None takes the label away.

        ``stable`` is the revision that had all traffic last, ``canary`` that of a rollout on its way, ``shadow`` that
        which gets copies.

        Args:
            name: The model.
            label: The label.
            number: The revision.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if it is still at this generation.

        Raises:
            InvalidConfig: The label is the platform's own.
            ModelNotFound: There is no such model, revision or label.
            Conflict: The model is not running, its labels are the version policy's, or it is at another generation.
        """
        if label in _FOLLOWING:
            raise InvalidConfig((f'label: expected one of your own, got "{label}", which follows the traffic',))
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            if old.is_versioned:
                raise Conflict(f'model "{name}" is a folder of versions: set its labels in version_policy.labels')
            if number is not None:
                traffic.check_revision(connection, name, number)
            elif label not in old.labels:
                raise ModelNotFound(name, label)
            if old.labels.get(label) == number:
                return old
            traffic.write_label(connection, name, label, number)
            rows.update_model(connection, old, {}, traffic.now())
            rows.add_event(connection, name, "label", actor, message, {"label": label, "revision": number})
            return rows.get(connection, name)

    def begin_rollout(
        self, name: str, rollout: Rollout, *, actor: str = "", message: str = "", expected_generation: int | None = None
    ) -> ModelRecord:
        """Brings a revision of the history on its way to all traffic; one that is on its way already is replaced.

        Args:
            name: The model.
            rollout: Its ``base`` is filled in here.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if it is still at this generation.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: The model is not running, the revision has all traffic already, or it is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            traffic.check_revision(connection, name, rollout.to)
            return _begin(connection, old, rollout, "rollout", actor, message)

    def promote(
        self,
        name: str,
        number: int | None = None,
        *,
        is_on_its_way: bool = False,
        is_ready: bool = False,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """Gives a revision all traffic, as soon as it is ready.

        Args:
            name: The model.
            number: The revision; None for the one of the rollout on its way.
            is_on_its_way: Only if the rollout on its way is still that of this revision.
            is_ready: It can answer, so the traffic goes there at once.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if the model is still at this generation.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to promote, the model is not running, or it is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            rolling = old.rollout.to if old.rollout is not None and old.is_rolling_out else None
            if is_on_its_way and number is not None and number != rolling:
                raise Conflict(f'model "{name}": the rollout of revision {number} has ended meanwhile')
            number = rolling if number is None else number
            if number is None:
                raise Conflict(f'model "{name}" has no rollout on its way: say which revision to promote')
            traffic.check_revision(connection, name, number)
            return _begin(connection, old, _plain(number, is_ready=is_ready), "rollout", actor, message)

    def roll_back(
        self,
        name: str,
        number: int | None = None,
        *,
        is_ready: bool = False,
        actor: str = "",
        message: str = "",
        expected_generation: int | None = None,
    ) -> ModelRecord:
        """Takes a rollout back, or without one returns to the revision that had all traffic before.

        Args:
            name: The model.
            number: A revision to return to in place of that.
            is_ready: It can answer, so the traffic goes there at once.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if the model is still at this generation.

        Raises:
            ModelNotFound: There is no such model or revision.
            Conflict: There is nothing to return to, the model is not running, or it is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            if number is None and old.rollout is not None and old.is_rolling_out:
                ended = old.rollout.rolled_back(message or "taken back")
                return _advance(connection, old, ended, actor, message)
            number = traffic.find_previous(connection, old) if number is None else number
            if number is None:
                raise Conflict(f'model "{name}" has no earlier revision to return to')
            traffic.check_revision(connection, name, number)
            return _begin(connection, old, _plain(number, is_ready=is_ready), "rolled_back", actor, message)

    def abort(
        self, name: str, *, actor: str = "", message: str = "", expected_generation: int | None = None
    ) -> ModelRecord:
        """Takes the rollout on its way back: its revision loses its traffic.

        Args:
            name: The model.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if the model is still at this generation.

        Raises:
            ModelNotFound: There is no such model.
            Conflict: No rollout is on its way, the model is not running, or it is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            if old.rollout is None or not old.is_rolling_out:
                raise Conflict(f'model "{name}" has no rollout on its way')
            return _advance(connection, old, old.rollout.rolled_back(message or "taken back"), actor, message)

    def pause(
        self, name: str, *, actor: str = "", message: str = "", expected_generation: int | None = None
    ) -> ModelRecord:
        """Keeps the rollout on its way where it is, whichever step that is by now; one that waits does not begin.

        Args:
            name: The model.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if the model is still at this generation.

        Raises:
            ModelNotFound: There is no such model.
            Conflict: No rollout is on its way, it is paused, or the model is not running, or at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            rollout = _check_rollout(old, RolloutState.WAITING, RolloutState.RUNNING)
            return _advance(connection, old, rollout.paused(message), actor, message)

    def resume(
        self, name: str, *, actor: str = "", message: str = "", expected_generation: int | None = None
    ) -> ModelRecord:
        """Lets a paused rollout go on.

        Args:
            name: The model.
            actor: Who wants it.
            message: Why.
            expected_generation: Change it only if the model is still at this generation.

        Raises:
            ModelNotFound: There is no such model.
            Conflict: It has no rollout that is paused, is not running, or is at another generation.
        """
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            rollout = _check_rollout(old, RolloutState.PAUSED)
            return _advance(connection, old, rollout.resumed(message), actor, message)

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
        with self._writing(self._engine) as connection:
            old = _get_running(connection, name, expected_generation)
            if old.rollout is None or not old.is_rolling_out or old.rollout.to != rollout.to:
                raise Conflict(f'model "{name}" has no rollout of revision {rollout.to} on its way')
            return _advance(connection, old, rollout, actor, message)

    def add_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Adds to the history what is not itself a change of the catalog, for example that a model failed to load.

        Args:
            events: Each with ``model``, ``kind``, ``actor``, ``message`` and ``detail``; see :class:`EventRecord`.
        """
        with self._writing(self._engine) as connection:
            for event in events:
                rows.add_event(connection, **event)

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
    old = rows.find(connection, name)
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


def _check_rollout(model: ModelRecord, *states: RolloutState) -> Rollout:
    """The model's rollout, which is in one of these states.

    Raises:
        Conflict: It has none, or one in another state.
    """
    rollout = model.rollout
    if rollout is None or rollout.state not in states:
        got = "none" if rollout is None else f"one that is {rollout.state}"
        raise Conflict(f'model "{model.name}": expected a rollout that is {" or ".join(states)}, got {got}')
    return rollout


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
    begun = replace(rollout, base=revisions.base_weights(old))
    traffic.write_rollout(connection, old, begun)
    rows.update_model(connection, old, {"rollout": begun.to_dict()}, traffic.now())
    rows.add_event(connection, old.name, kind, actor, message, _rollout_detail(begun))
    if begun.state is RolloutState.PROMOTED:
        rows.add_event(connection, old.name, "promoted", actor, message, {"revision": begun.to})
    return rows.get(connection, old.name)


def _advance(connection: Connection, old: ModelRecord, rollout: Rollout, actor: str, message: str) -> ModelRecord:
    before = old.rollout
    traffic.write_rollout(connection, old, rollout)
    rows.update_model(connection, old, {"rollout": rollout.to_dict()}, traffic.now())
    kind: str = rollout.state.value
    if rollout.state in (RolloutState.RUNNING, RolloutState.WAITING):
        kind = "resumed" if before is not None and before.step == rollout.step else "step"
    rows.add_event(connection, old.name, kind, actor, message or rollout.reason, _rollout_detail(rollout))
    return rows.get(connection, old.name)


def _rollout_detail(rollout: Rollout) -> dict[str, Any]:
    weights = {str(number): weight for number, weight in rollout.weights.items()}
    return {"revision": rollout.to, "weights": weights, "reason": rollout.reason, "measured": dict(rollout.measured)}


def _remove(connection: Connection, old: ModelRecord, actor: str, message: str) -> ModelRecord:
    rows.update_model(connection, old, {"wanted": Wanted.REMOVED.value}, traffic.now())
    rows.add_event(connection, old.name, "removed", actor, message, {})
    return rows.get(connection, old.name)


def _get_running(connection: Connection, name: str, expected_generation: int | None = None) -> ModelRecord:
    """The model, whose traffic can be changed.

    Raises:
        ModelNotFound: There is none.
        Conflict: It is being removed, unloaded, cannot be used, or is at another generation.
    """
    record = rows.get_kept(connection, name)
    _check_generation(name, record, expected_generation)
    if record.wanted is Wanted.UNLOADED:
        raise Conflict(f'model "{name}" is unloaded: load it first')
    if record.problem:
        raise Conflict(f'model "{name}": its entry in the catalog cannot be used: register it again')
    return record
