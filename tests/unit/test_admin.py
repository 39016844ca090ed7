# SPDX-License-Identifier: Apache-2.0
"""What the admin API tells, on the wire: a model's status, its revisions, events."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from modelyard.admin import Action, Event, ModelState, ModelStatus, Plan, Revision
from modelyard.rollout import Gates, Rollout, RolloutState, Shadow
from modelyard.signature import TensorSpec

STATUS = ModelStatus(
    name="iris",
    framework="sklearn",
    uri="models/iris",
    owner="declared",
    state=ModelState.FAILED,
    reason="no such file",
    version="2",
    replicas_wanted=1,
    inputs=(TensorSpec("x", "FP32", (-1, 4)),),
    traffic={"1": 90.0, "2": 10.0},
    labels={"stable": "1", "canary": "2"},
    rollout=Rollout(2, (10.0, 100.0), gates=Gates(0.01), base={1: 100.0}, state=RolloutState.RUNNING, step=0),
    shadow=Shadow(2, 5.0),
)
REVISION = Revision(
    2, "d2", "2026-01-01T00:00:00+00:00", "http:10.0.0.1", "retrained", traffic=10.0, labels=("canary",), state="ready"
)
PLAN = Plan("iris", Action.REVISE, 2, 1, {"uri": ["a", "b"], "runtime": []}, Rollout(2, (10.0,), base={1: 100.0}))
EVENT = Event(7, "2026-01-01T00:00:00+00:00", "iris", "step", "rollout", "", {"revision": 2, "weights": {"2": 10.0}})


def test_a_status_survives_json() -> None:
    document = json.loads(json.dumps(STATUS.to_dict()))
    assert ModelStatus.from_dict(document) == STATUS
    assert document.keys() == {field.name for field in fields(ModelStatus)}


def test_a_newer_servers_keys_are_ignored() -> None:
    assert ModelStatus.from_dict({**STATUS.to_dict(), "from_the_future": "3"}) == STATUS


def test_an_incomplete_status_is_refused() -> None:
    with pytest.raises(KeyError):
        ModelStatus.from_dict({"name": "iris", "state": "ready"})
    with pytest.raises(ValueError, match="flying"):
        ModelStatus.from_dict({**STATUS.to_dict(), "state": "flying"})


@pytest.mark.parametrize("kept", [REVISION, EVENT, PLAN], ids=lambda kept: type(kept).__name__)
def test_history_and_plans_survive_json(kept: Revision | Event | Plan) -> None:
    document = json.loads(json.dumps(kept.to_dict()))
    assert type(kept).from_dict({**document, "from_the_future": "3"}) == kept
    assert document.keys() == {field.name for field in fields(kept)}


def test_what_changed_is_before_and_after() -> None:
    changed = Revision(2, "d2", "2026", changed={"uri": ("a", "b"), "runtime": ()})
    document = json.loads(json.dumps(changed.to_dict()))
    assert document["changed"] == {"uri": ["a", "b"], "runtime": []}
    assert Revision.from_dict(document).changed == {"uri": ["a", "b"], "runtime": []}


@pytest.mark.parametrize("kind", [Revision, Event, Plan])
def test_what_is_incomplete_is_refused(kind: type[Revision] | type[Event] | type[Plan]) -> None:
    with pytest.raises(KeyError):
        kind.from_dict({"actor": "me"})
