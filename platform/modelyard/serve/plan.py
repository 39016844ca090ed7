# SPDX-License-Identifier: Apache-2.0
"""What the controller does next, decided without doing it: catalog and observation in, instructions out.

Level-triggered: the plan depends on nothing but its arguments, so the controller may die between any two of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Wanted
from modelyard.serve.applications import application_name, may_sleep
from modelyard.serve.observed import Observed

_CREATED: Final = "its replicas are being created"
_SLEEPS: Final = "scaled to zero: the next request starts a replica, and waits for it"
_WAKES: Final = "a replica is starting; requests wait for it"
_SLEEPS_ON_STANDBY: Final = "scaled to zero: its pool answers the next request, which starts a replica"
_RETURNS: Final = "its last replica has ended; requests wait for the next one"
_WAKES_ON_STANDBY: Final = "a replica is starting; its pool answers meanwhile"


@dataclass(frozen=True, slots=True)
class RevisionState:
    """One revision as it is now.

    Attributes:
        number: Its number.
        state: Where it is.
        reason: Why, when it is not ready.
        running: Replicas that can answer.
        wanted: Replicas there should be.
        replicas: Names of those that can answer.
        has_no_place: No node has room for a replica now: that may last.
        is_held: Its last replica has just ended, and requests wait for the next one.
    """

    number: int
    state: ModelState
    reason: str
    running: int = 0
    wanted: int = 0
    replicas: tuple[str, ...] = ()
    has_no_place: bool = False
    is_held: bool = False

    @property
    def can_answer(self) -> bool:
        """It is ready, and not only expected back."""
        return self.state is ModelState.READY and not self.is_held


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What is to be done about one model.

    Attributes:
        serving: The revision that answers (or would, if it were ready); None when the model is being removed.
        newest: State of the newest revision.
        generation: Of the catalog's record that this follows.
        others: Further revisions that answer who asks for them, or will.
        weights: Percent by number of those that answer who asks for none, where they are several.
        deploy: Numbers of the revisions whose applications must exist.
        delete: Applications to take down.
        purge: Nothing of it is left: forget it.
    """

    serving: RevisionState | None
    newest: RevisionState
    generation: int
    others: tuple[RevisionState, ...] = ()
    weights: Mapping[int, float] = field(default_factory=dict)
    deploy: tuple[int, ...] = ()
    delete: tuple[str, ...] = ()
    purge: bool = False

    def find(self, number: int) -> RevisionState | None:
        """The state of a revision; None where this plan has none of that number."""
        known = (self.newest, *self.others) if self.serving is None else (self.serving, self.newest, *self.others)
        return next((one for one in known if one.number == number), None)


def revision_state(
    number: int,
    observed: Observed | None,
    is_described: bool,
    failure: str | None,
    waiting: str = _CREATED,
    *,
    may_sleep: bool = False,
    has_standby: bool = False,
) -> RevisionState:
    """Where one revision is.

    One that is scaled to zero has loaded before, and is ready: the next request waits for its replica.

    Args:
        number: The revision's number.
        observed: Its application; None where there is none.
        is_described: A replica has told its signature.
        failure: Why it could not be loaded, as far as known.
        waiting: What goes on while there is no application, or none of the attempt that is wanted.
        may_sleep: Its model may run without any replica.
        has_standby: A pool answers for it then.
    """
    if observed is not None and observed.running and is_described and not observed.is_deleting:
        return RevisionState(number, ModelState.READY, "", observed.running, observed.wanted, observed.replicas)
    if failure is not None:
        return RevisionState(number, ModelState.FAILED, failure)
    if may_sleep and is_described and observed is not None and observed.may_sleep:
        sleeps, wakes = (_SLEEPS_ON_STANDBY, _WAKES_ON_STANDBY) if has_standby else (_SLEEPS, _WAKES)
        wakes = _find_obstacle(observed) or wakes
        return RevisionState(number, ModelState.READY, wakes if observed.wanted else sleeps, 0, observed.wanted)
    if observed is None or observed.is_deleting or waiting != _CREATED:
        return RevisionState(number, ModelState.PENDING, waiting)
    if observed.has_failed:
        return RevisionState(number, ModelState.FAILED, observed.message)
    if obstacle := _find_obstacle(observed):
        return RevisionState(number, ModelState.PENDING, obstacle, has_no_place=True)
    return RevisionState(number, ModelState.LOADING, "its replicas are starting", observed.running, observed.wanted)


def _find_obstacle(observed: Observed) -> str:
    """Why no node takes a replica; empty where one does."""
    if observed.misfit:
        return f"no node of the cluster is large enough for a replica: {observed.misfit}"
    return f"no node has room for a replica: {observed.place}" if observed.place else ""


def unloaded_state(number: int, is_running: bool) -> RevisionState:
    """The newest revision of a model of which nothing is to run.

    Args:
        number: Its number.
        is_running: Something of the model still runs, or has not quite gone.
    """
    if is_running:
        return RevisionState(number, ModelState.UNLOADING, "it is being unloaded")
    return RevisionState(number, ModelState.UNLOADED, "unloaded")


def failed_plan(model: ModelRecord, reason: str) -> ModelPlan:
    """For a model whose record in the catalog cannot be followed: what runs of it is left as it is."""
    failed = RevisionState(newest_revision(model), ModelState.FAILED, reason)
    return ModelPlan(failed, failed, model.generation)


def newest_revision(model: ModelRecord) -> int:
    """The highest number of its revisions in use; 0 where the catalog has lost them."""
    return max((revision.number for revision in model.revisions), default=0)


def plan_model(
    model: ModelRecord,
    observed: Mapping[str, Observed],
    described: Mapping[str, object],
    failures: Mapping[str, str],
    waiting: Mapping[str, str] = MappingProxyType({}),
    has_standby: Callable[[str], object] = lambda _: False,
    ran_lately: Callable[[str], bool] = lambda _: False,
) -> ModelPlan:
    """Decides about one model.

    The revisions in use are deployed. While none of those with traffic is ready, one that has been answering goes on;
    a revision that runs for a rollout, a label or a shadow never gets traffic for that. Of a model that is unloaded or
    removed nothing is left running.

    Args:
        model: From the catalog.
        observed: This model's applications, by name.
        described: Applications whose signature is known.
        failures: Why applications could not be loaded.
        waiting: What applications wait for that cannot be deployed yet.
        has_standby: Whether a pool answers for an application that has no replica.
        ran_lately: Whether an application had a replica a moment ago.
    """
    newest_number = newest_revision(model)

    def state(number: int) -> RevisionState:
        name = application_name(model.name, number)
        return revision_state(
            number,
            observed.get(name),
            name in described,
            failures.get(name),
            waiting.get(name, _CREATED),
            may_sleep=may_sleep(model),
            has_standby=bool(has_standby(name)),
        )

    leaving = tuple(name for name, seen in observed.items() if not seen.is_deleting)
    if model.wanted is Wanted.UNLOADED:
        gone = unloaded_state(newest_number, is_running=bool(observed))
        return ModelPlan(gone, gone, model.generation, delete=leaving)
    newest = state(newest_number)
    if model.wanted is Wanted.REMOVED:
        return ModelPlan(None, newest, model.generation, delete=leaving, purge=not observed)
    wanted = {revision.number: state(revision.number) for revision in model.revisions} | {newest_number: newest}

    def hold(one: RevisionState) -> RevisionState:
        name = application_name(model.name, one.number)
        return _hold(one, observed.get(name)) if name in described and ran_lately(name) else one

    if model.rollout is not None and model.is_rolling_out and not model.rollout.is_plain:
        # What is on trial does not get the share of what comes back in a moment.
        trying = model.rollout.to
        shares = [number for number in model.traffic.keys() & wanted.keys() if model.traffic[number] > 0]
        wanted |= {number: hold(wanted[number]) for number in shares if number != trying}
        newest = wanted[newest_number]
    weights = {
        number: weight
        for number, weight in model.traffic.items()
        if weight > 0 and number in wanted and wanted[number].state is ModelState.READY
    }
    serving = _most(weights, wanted) or _find_stand_in(model, observed, wanted, state) or _most(model.traffic, wanted)
    serving = hold(serving or newest)
    newest = serving if newest.number == serving.number else newest

    def may_come_back(number: int) -> bool:
        """It has answered before, or nothing else does: Serve tries it again and again."""
        return number == serving.number or application_name(model.name, number) in described

    shown = wanted | {serving.number: serving}
    kept = {
        application_name(model.name, number)
        for number, one in shown.items()
        if one.state is not ModelState.FAILED or (may_come_back(number) and not _has_given_up(model, number, observed))
    }
    return ModelPlan(
        serving,
        newest,
        model.generation,
        others=tuple(one for number, one in sorted(shown.items()) if number not in (serving.number, newest_number)),
        weights=weights if len(weights) > 1 else {},
        deploy=tuple(number for number, one in sorted(wanted.items()) if one.state is not ModelState.FAILED),
        delete=tuple(name for name in leaving if name not in kept),
    )


def _hold(state: RevisionState, observed: Observed | None) -> RevisionState:
    """Of a revision whose last replica has just ended, and that nothing stands in for, requests wait for the next."""
    is_coming = observed is not None and not observed.is_deleting and not observed.running
    if not is_coming or state.state not in (ModelState.LOADING, ModelState.PENDING):
        return state
    reason = state.reason if state.has_no_place else _RETURNS
    return replace(state, state=ModelState.READY, reason=reason, is_held=True)


def _most(weights: Mapping[int, float], states: Mapping[int, RevisionState]) -> RevisionState | None:
    """The one with the most traffic; the newest of equals."""
    number = max(weights, key=lambda one: (weights[one], one), default=None)
    return None if number is None else states[number]


def _find_stand_in(
    model: ModelRecord,
    observed: Mapping[str, Observed],
    wanted: Mapping[int, RevisionState],
    state: Callable[[int], RevisionState],
) -> RevisionState | None:
    """What answers while none that has traffic can: a revision that has had all of it, or the version before."""
    main = _most(model.traffic, wanted)
    trying = model.rollout.to if model.rollout is not None and not model.rollout.is_plain else None
    had_traffic = {one.number for one in model.revisions if one.promoted_at is not None and one.number != trying}
    for number in sorted(map(_number, observed), reverse=True):
        found = state(number)
        if model.is_versioned:
            may_stand_in = main is None or number < main.number
        else:
            may_stand_in = number in had_traffic or (number not in wanted and number != trying)
        if found.state is ModelState.READY and may_stand_in:
            return found
    return None


def _has_given_up(model: ModelRecord, number: int, observed: Mapping[str, Observed]) -> bool:
    seen = observed.get(application_name(model.name, number))
    return seen is not None and seen.has_failed


def _number(application: str) -> int:
    return int(application.rpartition("@")[2])
