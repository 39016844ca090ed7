# SPDX-License-Identifier: Apache-2.0
"""How many replicas a load asks for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.serve.autoscaling import ONGOING, RATE, FollowLoad, Rate


def wanted(
    ongoing: float = 0, rate: float = 0, queued: float = 0, running: int = 1, target: int = 1, **targets: Any
) -> int:
    """Of a model with 0 to 5 replicas, each good for 4 requests in flight."""
    context: Any = SimpleNamespace(
        aggregated_metrics={ONGOING: {"a": ongoing / 2, "b": ongoing / 2}, RATE: {"a": rate}} if running else {},
        total_num_requests=queued,
        config=SimpleNamespace(target_ongoing_requests=4),
        current_num_replicas=running,
        target_num_replicas=target,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=5,
    )
    number, state = FollowLoad(**targets)(context)
    assert state == {}
    return number


@pytest.mark.parametrize(
    ("load", "number"),
    [
        ({}, 0),
        ({"ongoing": 1}, 1),
        ({"ongoing": 9}, 3),
        ({"ongoing": 1, "queued": 9}, 3),
        ({"ongoing": 100}, 5),
        ({"ongoing": 1, "rate": 25}, 1),
        ({"ongoing": 1, "rate": 25, "target_requests_per_s": 10}, 3),
        ({"ongoing": 20, "rate": 25, "target_requests_per_s": 10}, 5),
        ({"running": 0, "target": 0, "queued": 1}, 1),
        ({"running": 0, "target": 0}, 0),
        ({"running": 0, "target": 1}, 1),
        ({"running": 0, "target": 3}, 1),
    ],
)
def test_as_many_as_the_most_demanding_target_asks_for(load: dict[str, Any], number: int) -> None:
    assert wanted(**load) == number


def test_a_rate_is_of_what_came_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("modelyard.serve.autoscaling.time.monotonic", lambda: now)
    rate = Rate()
    now = 102.0
    assert rate.take(10) == 5
    now = 104.0
    assert rate.take(10) == 0
    assert rate.take(0) == 0, "counts that begin anew are no negative rate"
