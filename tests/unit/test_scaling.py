# SPDX-License-Identifier: Apache-2.0
"""How many replicas a load asks for, when, and the reason that is given."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from modelyard.scaling import DAYS, Bounds, Decision, Load, Targets, Window, bound, decide

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
WIDE = Bounds(0, 10)


def wanted(load: Load, **targets: Any) -> int:
    return decide(load, Targets(**targets), WIDE, NOW).replicas


@pytest.mark.parametrize(
    ("load", "targets", "number"),
    [
        ({}, {"in_flight": 4}, 0),
        ({"in_flight": 1}, {"in_flight": 4}, 1),
        ({"in_flight": 9}, {"in_flight": 4}, 3),
        ({"requests_per_s": 25}, {"requests_per_s": 10}, 3),
        ({"requests_per_s": 25}, {"in_flight": 4}, 0),
        ({"in_flight": 20, "requests_per_s": 25}, {"in_flight": 4, "requests_per_s": 10}, 5),
        ({"tokens_per_s": 900}, {"tokens_per_s": 400}, 3),
        ({"cpus": 1.7}, {"cpus": 0.8}, 3),
        ({"own": {"depth": 21}}, {"own": {"depth": 5}}, 5),
        ({"own": {}}, {"own": {"depth": 5}}, 0),
        # What does not add up changes what runs by as much as it is off: no more than twice, and not within a tenth.
        ({"replicas": 2, "queue_ms": 30}, {"queue_ms": 20}, 3),
        ({"replicas": 2, "queue_ms": 900}, {"queue_ms": 20}, 4),
        ({"replicas": 4, "queue_ms": 21}, {"queue_ms": 20}, 4),
        ({"replicas": 4, "latency_ms": 10}, {"latency_ms": 20}, 2),
        ({"replicas": 0, "latency_ms": 10}, {"latency_ms": 1}, 0),
        ({"in_flight": 1000}, {"in_flight": 1}, 10),
    ],
)
def test_as_many_as_the_most_demanding_target_asks_for(
    load: dict[str, Any], targets: dict[str, Any], number: int
) -> None:
    assert wanted(Load(**load), **targets) == number


@pytest.mark.parametrize(
    ("load", "bounds", "reason"),
    [
        (Load(in_flight=41), WIDE, "41 requests in flight, 16 for each"),
        (Load(), WIDE, "nobody asks for it"),
        (Load(), Bounds(2, 3), "at least 2"),
        (Load(in_flight=41), Bounds(0, 2), "at most 2; 41 requests in flight, 16 for each ask for 3"),
    ],
)
def test_the_reason_is_given(load: Load, bounds: Bounds, reason: str) -> None:
    assert decide(load, Targets(in_flight=16), bounds, NOW).reason == reason


WORK = Window(("mon", "fri"), "08:00", "18:00", "Europe/Berlin", 3, 6)
NIGHT = Window(("mon",), "22:00", "06:00", "UTC", 0, 1)


@pytest.mark.parametrize(
    ("window", "when", "is_open"),
    [
        (WORK, "2026-03-02T07:00+00:00", True),  # 08:00 in Berlin
        (WORK, "2026-03-02T06:59+00:00", False),
        (WORK, "2026-03-02T17:00+00:00", False),  # 18:00 there
        (WORK, "2026-03-03T12:00+00:00", False),  # a Tuesday
        (WORK, "2026-07-06T06:00+00:00", True),  # in summer an hour earlier
        (NIGHT, "2026-03-02T21:59+00:00", False),
        (NIGHT, "2026-03-02T22:00+00:00", True),
        (NIGHT, "2026-03-03T05:59+00:00", True),  # it began on Monday
        (NIGHT, "2026-03-03T06:00+00:00", False),
        (NIGHT, "2026-03-02T05:00+00:00", False),  # that would have begun on Sunday
    ],
)
def test_hours_are_those_of_their_place(window: Window, when: str, is_open: bool) -> None:
    assert window.has(datetime.fromisoformat(when)) is is_open


def test_the_whole_day_is_open_where_it_ends_as_it_begins() -> None:
    window = Window(DAYS, "00:00", "00:00", "UTC", 1, 1)
    assert all(window.has(NOW.replace(hour=hour)) for hour in range(24))


def test_bounds_are_those_of_the_first_window_that_is_open() -> None:
    bounds = Bounds(0, 2, (NIGHT, WORK, Window(DAYS, "00:00", "00:00", "UTC", 9, 9)))
    morning = decide(Load(), Targets(), bounds, datetime.fromisoformat("2026-03-02T09:00+01:00"))
    assert (morning.replicas, morning.reason) == (3, "at least 3 from 08:00 to 18:00")
    busy = bound(50, "it", Load(), bounds, datetime.fromisoformat("2026-03-02T09:00+01:00"))
    assert busy.replicas == 6
    assert decide(Load(), Targets(), Bounds(1, 2, (NIGHT,)), NOW).replicas == 1


def test_a_decision_survives_its_way() -> None:
    decision = decide(Load(replicas=1, in_flight=3, own={"depth": 2}), Targets(in_flight=1), WIDE, NOW)
    assert Decision.from_dict(asdict(decision) | {"newer": 1}) == decision
    assert decision.at == "2026-03-02T12:00:00+00:00"
