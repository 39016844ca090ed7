# SPDX-License-Identifier: Apache-2.0
"""What others see of a model whose revisions differ."""

from __future__ import annotations

from modelyard.admin import ModelState, ModelStatus
from modelyard.catalog import ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.config import ModelSpec
from modelyard.rollout import Rollout, RolloutState
from modelyard.serve.observed import Observed
from modelyard.serve.plan import plan_model
from modelyard.serve.views import model_route, model_status
from modelyard.signature import Description, Signature, TensorSpec

NOW = "2026-01-01T00:00:00.000000+00:00"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def _model(rollout: Rollout | None, traffic: dict[int, float]) -> ModelRecord:
    """Of two revisions, of different frameworks and places."""
    spec = ModelSpec(name="m", framework="xgboost", uri="models/new")
    revisions = tuple(
        RevisionRecord("m", number, f"d{number}", {"framework": framework, "uri": uri}, NOW, "", "", promoted)
        for number, framework, uri, promoted in (
            (1, "sklearn", "models/old", NOW),
            (2, "xgboost", "models/new", None),
        )
    )
    return ModelRecord(
        name="m",
        owner=Owner.REGISTERED,
        spec=spec.to_json(),
        wanted=Wanted.SERVING,
        generation=2,
        created_at=NOW,
        updated_at=NOW,
        revisions=revisions,
        traffic=traffic,
        labels={"canary": 2, "stable": 1},
        latest=revisions[1],
        rollout=rollout,
    )


def test_each_revision_is_of_its_own_framework_and_place() -> None:
    rollout = Rollout(2, (10, 100), 60, base={1: 100.0}, state=RolloutState.RUNNING, step=0, since=NOW)
    model = _model(rollout, {1: 90.0, 2: 10.0})
    described = {f"m@{number}": Description(SIGNATURE) for number in (1, 2)}
    running = dict.fromkeys(described, Observed(running=1, wanted=1))
    plan = plan_model(model, running, described, {})
    route = model_route(model, plan, described, {}, 1000)
    assert {number: one.framework for number, one in route.revisions.items()} == {"1": "sklearn", "2": "xgboost"}
    assert (route.active, route.weights, route.labels) == ("1", {"1": 90.0, "2": 10.0}, {"canary": "2", "stable": "1"})
    status = model_status(model, plan, described)
    assert (status.version, status.framework, status.uri) == ("1", "sklearn", "models/old")
    assert (status.state, status.traffic) == (ModelState.READY, {"1": 90.0, "2": 10.0})


def _look(model: ModelRecord, failed: int = 0, loading: int = 0) -> ModelStatus:
    described = {f"m@{number}": Description(SIGNATURE) for number in (1, 2) if number not in (failed, loading)}
    seen = {f"m@{number}": Observed(running=int(f"m@{number}" in described), wanted=1) for number in (1, 2)}
    failures = {f"m@{failed}": "no memory"} if failed else {}
    return model_status(model, plan_model(model, seen, described, failures), described)


def test_a_failed_revision_that_is_in_use_is_named_while_another_one_answers() -> None:
    by_hand = _look(_model(None, {1: 90.0, 2: 10.0}), failed=2)
    assert (by_hand.state, by_hand.version) == (ModelState.READY, "1")
    assert by_hand.reason == "revision 2 failed and gets no traffic: no memory"


def test_it_does_not_hide_one_that_is_about_to_take_over() -> None:
    status = _look(_model(Rollout(2, base={1: 100.0}), {1: 100.0, 2: 0.0}), failed=1, loading=2)
    assert (status.state, status.version) == (ModelState.LOADING, "2")


def test_one_that_is_kept_from_taking_over_is_not_spoken_of_as_if_it_did() -> None:
    paused = Rollout(2, base={1: 100.0}, state=RolloutState.PAUSED)
    status = _look(_model(paused, {1: 100.0, 2: 0.0}))
    assert (status.state, status.version, status.reason) == (ModelState.READY, "1", "")
