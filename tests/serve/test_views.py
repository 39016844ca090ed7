# SPDX-License-Identifier: Apache-2.0
"""What others see of a model whose revisions differ."""

from __future__ import annotations

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.config import ModelSpec
from modelyard.rollout import Rollout, RolloutState
from modelyard.serve.observed import Observed
from modelyard.serve.plan import plan_model
from modelyard.serve.views import model_route, model_status
from modelyard.signature import Description, Signature, TensorSpec

NOW = "2026-01-01T00:00:00.000000+00:00"
SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def test_each_revision_is_of_its_own_framework_and_place() -> None:
    spec = ModelSpec(name="m", framework="xgboost", uri="models/new")
    revisions = tuple(
        RevisionRecord("m", number, f"d{number}", {"framework": framework, "uri": uri}, NOW, "", "", promoted)
        for number, framework, uri, promoted in (
            (1, "sklearn", "models/old", NOW),
            (2, "xgboost", "models/new", None),
        )
    )
    rollout = Rollout(2, (10, 100), 60, base={1: 100.0}, state=RolloutState.RUNNING, step=0, since=NOW)
    model = ModelRecord(
        name="m",
        owner=Owner.REGISTERED,
        spec=spec.to_json(),
        wanted=Wanted.SERVING,
        generation=2,
        created_at=NOW,
        updated_at=NOW,
        revisions=revisions,
        traffic={1: 90.0, 2: 10.0},
        labels={"canary": 2, "stable": 1},
        latest=revisions[1],
        rollout=rollout,
    )
    described = {f"m@{number}": Description(SIGNATURE) for number in (1, 2)}
    running = dict.fromkeys(described, Observed(running=1, wanted=1))
    plan = plan_model(model, running, described, {})
    route = model_route(model, plan, described, {}, 1000)
    assert {number: one.framework for number, one in route.revisions.items()} == {"1": "sklearn", "2": "xgboost"}
    assert (route.active, route.weights, route.labels) == ("1", {"1": 90.0, "2": 10.0}, {"canary": "2", "stable": "1"})
    status = model_status(model, plan, described)
    assert (status.version, status.framework, status.uri) == ("1", "sklearn", "models/old")
    assert (status.state, status.traffic) == (ModelState.READY, {"1": 90.0, "2": 10.0})
