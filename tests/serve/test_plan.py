# SPDX-License-Identifier: Apache-2.0
"""What the controller does next, as a table: catalog and observation in, instructions out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.rollout import Rollout
from modelyard.serve.observed import Observed, is_revision_application
from modelyard.serve.plan import failed_plan, plan_model

RUNNING = Observed(running=1, wanted=1)
STARTING = Observed(running=0, wanted=1)
CRASHED = Observed(running=0, wanted=1, has_failed=True, message="it gave up")
DELETING = Observed(is_deleting=True)
LAST = Observed(running=1, wanted=1, is_deleting=True)
"""Deleted, with a replica that has not heard of it yet."""


def _model(*numbers: int, wanted: Wanted = Wanted.SERVING) -> ModelRecord:
    revisions = tuple(RevisionRecord("m", number, f"d{number}", {}, "", "", "") for number in numbers)
    traffic = {max(numbers): 100.0}
    spec = {"version_policy": {"all": True}} if len(numbers) > 1 else {}
    return ModelRecord("m", Owner.REGISTERED, spec, wanted, 1, "", "", revisions, traffic, {"stable": max(numbers)})


@pytest.mark.parametrize(
    ("numbers", "observed", "failed", "state", "serving", "deploy", "delete"),
    [
        pytest.param([1], {}, [], "pending", 1, True, [], id="new"),
        pytest.param([1], {1: STARTING}, [], "loading", 1, True, [], id="starting"),
        pytest.param([1], {1: RUNNING}, [], "ready", 1, True, [], id="running"),
        pytest.param([1], {1: DELETING}, [], "pending", 1, True, [], id="deleted by somebody"),
        pytest.param([1], {1: LAST}, [], "pending", 1, True, [], id="loaded while it is being unloaded"),
        pytest.param([1], {}, [1], "failed", 1, False, [], id="artifact missing"),
        pytest.param([1], {1: STARTING}, [1], "failed", 1, False, [], id="one attempt failed"),
        pytest.param([1], {1: CRASHED}, [], "failed", 1, False, [1], id="Serve gave up"),
        pytest.param([2], {1: RUNNING}, [], "pending", 1, True, [], id="changed"),
        pytest.param([2], {1: RUNNING, 2: STARTING}, [], "loading", 1, True, [], id="the old one serves meanwhile"),
        pytest.param([2], {1: RUNNING, 2: RUNNING}, [], "ready", 2, True, [1], id="the new one takes over"),
        pytest.param([2], {1: DELETING, 2: RUNNING}, [], "ready", 2, True, [], id="the old one goes"),
        pytest.param([2], {1: RUNNING, 2: CRASHED}, [2], "failed", 1, False, [2], id="the new one fails"),
        pytest.param([2], {1: RUNNING}, [2], "failed", 1, False, [], id="the old one stays"),
        pytest.param([2], {1: LAST, 2: STARTING}, [], "loading", 2, True, [], id="the old one has to go"),
        pytest.param([3], {1: RUNNING, 2: RUNNING, 3: STARTING}, [], "loading", 2, True, [1], id="two old ones"),
        pytest.param([3], {1: RUNNING, 2: CRASHED}, [2], "pending", 1, True, [2], id="repaired after a failure"),
        pytest.param([1, 2], {1: RUNNING, 2: RUNNING}, [], "ready", 2, True, [], id="both in use"),
        pytest.param([1, 2], {2: RUNNING}, [], "ready", 2, True, [], id="another one in use"),
        pytest.param([1, 2], {1: RUNNING, 2: STARTING}, [], "loading", 1, True, [], id="one of two ready"),
        pytest.param([2, 3], {1: RUNNING, 2: RUNNING, 3: STARTING}, [], "loading", 2, True, [1], id="window moves"),
        pytest.param([1, 2], {1: CRASHED, 2: RUNNING}, [1], "ready", 2, True, [1], id="one of two fails"),
    ],
)
def test_a_wanted_model(numbers, observed, failed, state, serving, deploy, delete):
    plan = plan_model(
        _model(*numbers),
        {f"m@{number}": seen for number, seen in observed.items()},
        {f"m@{number}" for number, seen in observed.items() if seen.running},
        {f"m@{number}": "why" for number in failed},
    )
    assert (plan.newest.number, plan.newest.state) == (max(numbers), state)
    assert plan.serving is not None
    assert plan.serving.number == serving
    assert (bool(plan.deploy), list(plan.delete), plan.purge) == (deploy, [f"m@{number}" for number in delete], False)


def _in_rollout(weights: dict[int, float]) -> ModelRecord:
    """A model whose traffic is shared; those with some have had all of it once, the highest is being rolled out."""
    revisions = tuple(
        RevisionRecord("m", number, f"d{number}", {}, "", "", "", "then" if number < max(weights) else None)
        for number in sorted(weights)
    )
    rollout = Rollout(max(weights), (10, 100), base={1: 100.0})
    return replace(_model(*weights), spec={}, traffic=weights, revisions=revisions, rollout=rollout)


@pytest.mark.parametrize(
    ("weights", "observed", "serving", "shared"),
    [
        pytest.param({1: 90, 2: 10}, {1: RUNNING, 2: RUNNING}, 1, {1: 90, 2: 10}, id="both ready"),
        pytest.param({1: 90, 2: 10}, {1: RUNNING, 2: STARTING}, 1, {}, id="the canary is not there yet"),
        pytest.param({1: 90, 2: 10}, {1: CRASHED, 2: RUNNING}, 2, {}, id="the canary takes over"),
        pytest.param({1: 100, 2: 0}, {1: RUNNING, 2: RUNNING}, 1, {}, id="a dark one"),
        pytest.param({1: 100, 2: 0}, {1: STARTING, 2: RUNNING}, 1, {}, id="a dark one is no stand-in"),
        pytest.param({2: 100, 3: 0}, {1: RUNNING, 2: STARTING, 3: RUNNING}, 1, {}, id="what has answered so far is"),
        pytest.param({1: 0, 2: 100, 3: 0}, {1: RUNNING, 2: STARTING, 3: RUNNING}, 1, {}, id="one with weight 0 too"),
    ],
)
def test_traffic_goes_to_those_that_are_ready(weights, observed, serving, shared):
    seen = {f"m@{number}": one for number, one in observed.items()}
    described = {name for name, one in seen.items() if one.running}
    plan = plan_model(_in_rollout(weights), seen, described, {})
    assert plan.serving is not None
    assert (plan.serving.number, plan.weights) == (serving, shared)
    assert "m@1" not in plan.delete or serving != 1


@pytest.mark.parametrize(
    ("stable", "failed", "serving", "shared", "deleted"),
    [
        pytest.param(STARTING, [], 1, {1: 90, 2: 10}, [], id="its requests wait"),
        pytest.param(STARTING, [1], 2, {}, [], id="its restart has failed once"),
        pytest.param(CRASHED, [1], 2, {}, ["m@1"], id="Serve has given it up"),
    ],
)
def test_a_revision_that_has_answered_comes_back_in_the_middle_of_a_rollout(stable, failed, serving, shared, deleted):
    seen = {"m@1": stable, "m@2": RUNNING}
    failures = {f"m@{number}": "no memory" for number in failed}
    plan = plan_model(_in_rollout({1: 90, 2: 10}), seen, set(seen), failures, ran_lately=lambda _: True)
    assert plan.serving is not None
    assert (plan.serving.number, plan.weights, list(plan.delete)) == (serving, shared, deleted)
    assert plan.serving.is_held == (serving == 1)


def test_what_is_waited_for_is_shown_so_also_where_it_is_the_newest():
    model = _in_rollout({1: 10, 2: 90})
    model = replace(model, rollout=Rollout(1, (10, 90), base={2: 100.0}))
    seen = {"m@1": RUNNING, "m@2": STARTING}
    plan = plan_model(model, seen, set(seen), {}, ran_lately=lambda _: True)
    assert plan.weights == {1: 10, 2: 90}
    for number in plan.weights:
        state = plan.find(number)
        assert state is not None
        assert state.state is ModelState.READY


def test_what_is_on_trial_is_not_waited_for():
    seen = {"m@1": RUNNING, "m@2": STARTING}
    plan = plan_model(_in_rollout({1: 90, 2: 10}), seen, set(seen), {}, ran_lately=lambda _: True)
    assert plan.serving is not None
    assert (plan.serving.number, plan.weights) == (1, {})


def test_of_versions_only_a_lower_one_stands_in():
    model = replace(_model(1, 2, 3), traffic={1: 0.0, 2: 100.0, 3: 0.0})
    seen = {"m@1": RUNNING, "m@2": STARTING, "m@3": RUNNING}
    plan = plan_model(model, seen, {"m@1", "m@3"}, {})
    assert plan.serving is not None
    assert plan.serving.number == 1, "3 was taken back"


def test_every_revision_in_use_is_deployed_and_shown_but_those_that_failed():
    observed = {"m@1": RUNNING, "m@3": RUNNING}
    plan = plan_model(_model(1, 2, 3), observed, {"m@1", "m@3"}, {"m@2": "broken"})
    assert (plan.deploy, plan.delete) == ((1, 3), ())
    assert [(one.number, one.state) for one in plan.others] == [(1, ModelState.READY), (2, ModelState.FAILED)]


@pytest.mark.parametrize(
    ("observed", "delete", "purge"),
    [
        ({1: RUNNING, 2: STARTING}, [1, 2], False),
        ({1: DELETING, 2: CRASHED}, [2], False),
        ({1: LAST}, [], False),
        ({}, [], True),
    ],
    ids=["running", "one gone", "draining", "nothing left"],
)
def test_a_removed_model_is_taken_down_then_forgotten(observed, delete, purge):
    seen = {f"m@{number}": application for number, application in observed.items()}
    plan = plan_model(_model(1, wanted=Wanted.REMOVED), seen, {"m@1"}, {})
    assert plan.serving is None
    assert (list(plan.delete), plan.purge, plan.deploy) == ([f"m@{number}" for number in delete], purge, ())


@pytest.mark.parametrize(
    ("observed", "state", "delete"),
    [
        ({1: RUNNING, 2: STARTING}, "unloading", [1, 2]),
        ({1: DELETING, 2: CRASHED}, "unloading", [2]),
        ({2: LAST}, "unloading", []),
        ({}, "unloaded", []),
    ],
    ids=["running", "one gone", "draining", "nothing left"],
)
def test_of_an_unloaded_model_nothing_runs_and_nothing_is_forgotten(observed, state, delete):
    seen = {f"m@{number}": application for number, application in observed.items()}
    plan = plan_model(_model(2, wanted=Wanted.UNLOADED), seen, {"m@1", "m@2"}, {"m@2": "it had failed"})
    assert plan.serving == plan.newest
    assert (plan.newest.number, plan.newest.state, plan.newest.running) == (2, state, 0)
    assert (list(plan.delete), plan.purge, plan.deploy) == ([f"m@{number}" for number in delete], False, ())


def test_a_model_whose_record_cannot_be_followed_is_left_as_it_is():
    plan = failed_plan(_model(2), "its entry is broken")
    assert (plan.newest.state, plan.newest.reason, plan.newest.number) == (ModelState.FAILED, "its entry is broken", 2)
    assert (plan.deploy, plan.delete, plan.purge) == ((), (), False)


def test_a_replica_that_has_not_described_itself_is_loading():
    assert plan_model(_model(1), {"m@1": RUNNING}, {}, {}).newest.state is ModelState.LOADING


def test_why_it_failed_is_the_replicas_reason_before_serves():
    plan = plan_model(_model(1), {"m@1": CRASHED}, {}, {"m@1": "expected a number"})
    assert plan.newest.reason == "expected a number"
    assert plan_model(_model(1), {"m@1": CRASHED}, {}, {}).newest.reason == "it gave up"


# -- what is observed


def _details(states: dict[str, int], status: str = "RUNNING") -> dict[str, Any]:
    all_states = [state for state, count in states.items() for _ in range(count)]
    replicas = [{"replica_id": f"r{number}", "state": state} for number, state in enumerate(all_states)]
    return {"status": status, "message": "", "deployments": {"Model": {"message": "", "replicas": replicas}}}


@pytest.mark.parametrize(
    ("states", "running", "wanted", "reached"),
    [
        ({}, 0, 0, 0),
        ({"STARTING": 2}, 0, 2, 0),
        ({"RUNNING": 2, "STARTING": 1, "STOPPING": 1}, 2, 3, 2),
        ({"UPDATING": 1}, 1, 1, 0),
        ({"RECOVERING": 2}, 2, 2, 0),
    ],
    ids=["nothing", "starting", "some", "takes new settings", "Serve itself restarted"],
)
def test_replicas_that_answer_count_as_running(states, running, wanted, reached):
    observed = Observed.from_details(_details(states))
    assert (observed.running, observed.wanted, len(observed.replicas)) == (running, wanted, reached)


@pytest.mark.parametrize(
    ("name", "deployments", "expected"),
    [
        ("iris@1", ["Model"], True),
        ("iris@12", [], True),
        ("iris", ["Model"], False),
        ("iris@blue", [], False),
        ("@1", ["Model"], False),
        ("iris@1", ["Other"], False),
        ("iris@1", ["Model", "Other"], False),
        ("platform", ["Ingress", "Controller"], False),
    ],
)
def test_only_our_applications_are_ours(name, deployments, expected):
    assert is_revision_application(name, dict.fromkeys(deployments)) is expected
