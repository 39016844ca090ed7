# SPDX-License-Identifier: Apache-2.0
"""What the controller does next, decided without doing it: catalog and observation in, instructions out.

Level-triggered: the plan depends on nothing but its arguments, so the controller may die between any two of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Wanted
from modelyard.serve.applications import Observed, application_name

_CREATED: Final = "its replicas are being created"


@dataclass(frozen=True, slots=True)
class RevisionState:
    """One revision as it is now.

    Attributes:
        number: Its number.
        state: Where it is.
        reason: Why, when it is not ready.
        running: Replicas that can answer.
        wanted: Replicas there should be.
    """

    number: int
    state: ModelState
    reason: str
    running: int = 0
    wanted: int = 0


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What is to be done about one model.

    Attributes:
        serving: The revision that answers (or would, if it were ready); None when the model is being removed.
        newest: State of the newest revision.
        generation: Of the catalog's record that this follows.
        others: Further revisions that answer who asks for them, or will.
        deploy: Numbers of the revisions whose applications must exist.
        delete: Applications to take down.
        purge: Nothing of it is left: forget it.
    """

    serving: RevisionState | None
    newest: RevisionState
    generation: int
    others: tuple[RevisionState, ...] = ()
    deploy: tuple[int, ...] = ()
    delete: tuple[str, ...] = ()
    purge: bool = False


def revision_state(
    number: int, observed: Observed | None, is_described: bool, failure: str | None, waiting: str = _CREATED
) -> RevisionState:
    """Where one revision is.

    Args:
        number: The revision's number.
        observed: Its application; None where there is none.
        is_described: A replica has told its signature.
        failure: Why it could not be loaded, as far as known.
        waiting: What goes on while there is no application.
    """
    if observed is not None and observed.running and is_described and not observed.is_deleting:
        return RevisionState(number, ModelState.READY, "", observed.running, observed.wanted)
    if failure is not None:
        return RevisionState(number, ModelState.FAILED, failure)
    if observed is None or observed.is_deleting:
        return RevisionState(number, ModelState.PENDING, waiting)
    if observed.has_failed:
        return RevisionState(number, ModelState.FAILED, observed.message)
    return RevisionState(number, ModelState.LOADING, "its replicas are starting", observed.running, observed.wanted)


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
) -> ModelPlan:
    """Decides about one model.

    The revisions in use are deployed. Until the newest is ready the last one that is goes on answering, and for good if
    the newest fails. Of a model that is unloaded or removed nothing is left running.

    Args:
        model: From the catalog.
        observed: This model's applications, by name.
        described: Applications whose signature is known.
        failures: Why applications could not be loaded.
        waiting: What applications wait for that cannot be deployed yet.
    """
    newest_number = newest_revision(model)

    def state(number: int) -> RevisionState:
        name = application_name(model.name, number)
        what = waiting.get(name, _CREATED)
        return revision_state(number, observed.get(name), name in described, failures.get(name), what)

    leaving = tuple(name for name, seen in observed.items() if not seen.is_deleting)
    if model.wanted is Wanted.UNLOADED:
        gone = unloaded_state(newest_number, is_running=bool(observed))
        return ModelPlan(gone, gone, model.generation, delete=leaving)
    newest = state(newest_number)
    if model.wanted is Wanted.REMOVED:
        return ModelPlan(None, newest, model.generation, delete=leaving, purge=not observed)
    wanted = {revision.number: state(revision.number) for revision in model.revisions} | {newest_number: newest}
    running = {number: state(number) for number in map(_number, observed)}
    ready = {number: one for number, one in running.items() if one.state is ModelState.READY}
    serving = newest
    if newest.state is not ModelState.READY and (older := ready.keys() - {newest_number}):
        serving = ready[max(older)]
    shown = wanted | {serving.number: serving}
    kept = {
        application_name(model.name, number)
        for number, one in shown.items()
        if one.state is not ModelState.FAILED
        or (number == serving.number and not _has_given_up(model, number, observed))
    }
    return ModelPlan(
        serving,
        newest,
        model.generation,
        others=tuple(one for number, one in sorted(shown.items()) if number not in (serving.number, newest_number)),
        deploy=tuple(number for number, one in sorted(wanted.items()) if one.state is not ModelState.FAILED),
        delete=tuple(name for name in leaving if name not in kept),
    )


def _has_given_up(model: ModelRecord, number: int, observed: Mapping[str, Observed]) -> bool:
    seen = observed.get(application_name(model.name, number))
    return seen is not None and seen.has_failed


def _number(application: str) -> int:
    return int(application.rpartition("@")[2])
