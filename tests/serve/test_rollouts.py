# SPDX-License-Identifier: Apache-2.0
"""Rollouts as the controller carries them on, where the catalog or a revision is in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.admin import ModelState
from modelyard.catalog import ModelRecord, Owner, RevisionRecord, Wanted
from modelyard.errors import InternalError, ModelyardError, Unavailable
from modelyard.rollout import Rollout, RolloutState
from modelyard.serve.plan import ModelPlan, RevisionState
from modelyard.serve.rollouts import Rollouts


def _model() -> ModelRecord:
    """At the first of two steps, from revision 1 to 2."""
    revisions = tuple(RevisionRecord("m", number, f"d{number}", {}, "", "", "") for number in (1, 2))
    rollout = Rollout(2, (10, 100), base={1: 100.0}, state=RolloutState.RUNNING, step=0)
    return ModelRecord(
        "m", Owner.REGISTERED, {}, Wanted.SERVING, 1, "", "", revisions, {1: 90, 2: 10}, {}, rollout=rollout
    )


def _advance(model: ModelRecord, write: Callable[..., Any]) -> tuple[ModelRecord, list[tuple[str, int]]]:
    """One look at it while its new revision has failed; and what is tried again then."""
    again: list[tuple[str, int]] = []
    rollouts = Rollouts(SimpleNamespace(advance_rollout=write), lambda *one: again.append(one))  # type: ignore[arg-type]
    serving, failed = RevisionState(1, ModelState.READY, ""), RevisionState(2, ModelState.FAILED, "no memory")
    return rollouts.advance(model, ModelPlan(serving, failed, 1)), again


def test_what_a_rollout_returns_to_is_tried_again() -> None:
    model = _model()
    moved, again = _advance(model, lambda name, rollout, **_: replace(model, rollout=rollout))
    assert moved.rollout is not None
    assert moved.rollout.state is RolloutState.ROLLED_BACK
    assert again == [("m", 1)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("the catalog's database failed: no answer"), ["a"]),
        (InternalError("the catalog's database failed: that row"), ["a", "b"]),
    ],
    ids=["away", "one model's"],
)
def test_no_other_rollout_waits_for_a_catalog_that_is_away(error: ModelyardError, expected: list[str]) -> None:
    asked: list[str] = []

    def write(name: str, *_: object, **__: object) -> None:
        asked.append(name)
        raise error

    rollouts = Rollouts(SimpleNamespace(advance_rollout=write), lambda *_: None)  # type: ignore[arg-type]
    serving, failed = RevisionState(1, ModelState.READY, ""), RevisionState(2, ModelState.FAILED, "no memory")
    for name in ("a", "b", "a"):
        model = replace(_model(), name=name)
        assert rollouts.advance(model, ModelPlan(serving, failed, 1)) is model
    assert asked == expected


def test_a_catalog_that_takes_nothing_now_leaves_the_rollout_where_it_is() -> None:
    model = _model()

    def write(*_: object, **__: object) -> ModelyardError:
        raise Unavailable("the catalog's database failed: disk full")

    assert _advance(model, write) == (model, [])
