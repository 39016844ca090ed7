# SPDX-License-Identifier: Apache-2.0
"""What the controller does next, decided without doing it: catalog and observation in, instructions out.

Level-triggered: the plan depends on nothing but its arguments, so the controller may die between any two of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Wanted
from modelyard.serve.applications import Observed, application_name


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
        deploy: The newest revision's application must exist.
        delete: Applications to take down.
        purge: Nothing of it is left: forget it.
    """

    serving: RevisionState | None
    newest: RevisionState
    deploy: bool = False
    delete: tuple[str, ...] = ()
    purge: bool = False


def revision_state(number: int, observed: Observed | None, is_described: bool, failure: str | None) -> RevisionState:
    """Where one revision is.

    Args:
        number: The revision's number.
        observed: Its application; None where there is none.
        is_described: A replica has told its signature.
        failure: Why it could not be loaded, as far as known.
    """
    if observed is not None and observed.running and is_described:
        return RevisionState(number, ModelState.READY, "", observed.running, observed.wanted)
    if failure is not None:
        return RevisionState(number, ModelState.FAILED, failure)
    if observed is None or observed.is_deleting:
        return RevisionState(number, ModelState.PENDING, "its replicas are being created")
    if observed.has_failed:
        return RevisionState(number, ModelState.FAILED, observed.message)
    return RevisionState(number, ModelState.LOADING, "its replicas are starting", observed.running, observed.wanted)


def plan_model(
    model: ModelRecord, observed: Mapping[str, Observed], described: Mapping[str, object], failures: Mapping[str, str]
) -> ModelPlan:
    """Decides about one model.

    The newest revision is deployed; an older one goes on answering until the newest is ready, and for good if the
    newest fails.

    Args:
        model: From the catalog.
        observed: This model's applications, by name.
        described: Applications whose signature is known.
        failures: Why applications could not be loaded.
    """
    numbers = {application_name(model.name, revision.number): revision.number for revision in model.revisions}
    newest_number = max(numbers.values())

    def state(number: int) -> RevisionState:
        name = application_name(model.name, number)
        return revision_state(number, observed.get(name), name in described, failures.get(name))

    newest = state(newest_number)
    if model.wanted is Wanted.REMOVED:
        leaving = tuple(name for name, seen in observed.items() if not seen.is_deleting)
        return ModelPlan(None, newest, delete=leaving, purge=not observed)
    serving = newest
    if newest.state is not ModelState.READY:
        older = [int(name.rpartition("@")[2]) for name in observed]
        ready = [number for number in older if number != newest_number and state(number).state is ModelState.READY]
        serving = state(max(ready)) if ready else newest
    wants_newest = newest.state is not ModelState.FAILED
    kept = {application_name(model.name, number.number) for number in (serving, newest)}
    newest_name = application_name(model.name, newest_number)
    has_given_up = newest_name in observed and observed[newest_name].has_failed
    if not wants_newest and (has_given_up or serving is not newest):
        kept.discard(newest_name)
    delete = tuple(name for name, seen in observed.items() if name not in kept and not seen.is_deleting)
    return ModelPlan(serving, newest, deploy=wants_newest, delete=delete)
