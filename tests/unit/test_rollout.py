# SPDX-License-Identifier: Apache-2.0
"""What becomes of a rollout, decided without a clock or a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelyard.errors import InvalidRequest, ModelFailed, Overloaded, Unsupported
from modelyard.outcomes import Outcomes
from modelyard.rollout import Gates, Rollout, RolloutState, decide

NOW = "2026-01-01T00:00:00.000000+00:00"
CANARY = Rollout(2, (1, 10, 100), 60, 100, Gates(error_rate=0.01, p99_ms=50), {1: 100.0})
RUNNING = replace(CANARY, state=RolloutState.RUNNING, step=0, since="earlier")


def seen(requests: int, errors: int = 0, seconds: float = 0.01, **counts: int) -> Outcomes:
    outcomes = Outcomes(**counts)
    for number in range(requests):
        outcomes.record(seconds, ModelFailed("m", "no") if number < errors else None)
    return outcomes


def look(rollout: Rollout, outcomes: Outcomes | None = None, elapsed_s: float = 61, **more: Any) -> Rollout:
    known = {"is_ready": True, "failure": ""} | more
    return decide(rollout, seen=outcomes or Outcomes(), elapsed_s=elapsed_s, now=NOW, **known)


def test_it_begins_when_its_revision_is_ready() -> None:
    assert look(CANARY, is_ready=False) is CANARY
    assert look(CANARY, is_ready=False, failure="no file") is CANARY, "whoever repairs it is not made to begin again"
    begun = look(CANARY)
    assert (begun.state, begun.step, begun.percent, begun.since) == (RolloutState.RUNNING, 0, 1, NOW)
    assert begun.weights == {1: 99.0, 2: 1.0}


def test_a_plain_one_ends_as_it_begins() -> None:
    plain = Rollout(2, base={1: 100.0})
    assert plain.weights == {1: 100.0, 2: 0.0}
    done = look(plain)
    assert (done.state, done.weights) == (RolloutState.PROMOTED, {2: 100.0})


def test_without_steps_it_stays_dark() -> None:
    dark = Rollout(2, (), base={1: 100.0})
    assert look(dark) is dark
    assert dark.weights == {1: 100.0, 2: 0.0}


def test_a_step_takes_its_time_and_enough_requests() -> None:
    assert look(RUNNING, seen(100), elapsed_s=59) is RUNNING
    assert look(RUNNING, seen(99)) is RUNNING
    after = look(RUNNING, seen(100))
    assert (after.step, after.percent, after.since) == (1, 10, NOW)
    assert after.measured["requests"] == 100


def test_the_last_step_is_watched_too_before_it_ends() -> None:
    last = replace(RUNNING, step=2)
    assert last.weights == {1: 0.0, 2: 100.0}, "the old one runs on"
    assert look(last, seen(50)) is last
    assert look(last, seen(100)).state is RolloutState.PROMOTED
    assert look(last, seen(100, errors=2)).state is RolloutState.ROLLED_BACK


def test_without_100_at_the_end_it_stays_at_its_last_step() -> None:
    half = replace(RUNNING, steps=(50,))
    assert look(half, seen(1000)) is half


@pytest.mark.parametrize(
    ("gates", "outcomes", "reason"),
    [
        (Gates(error_rate=0.01), seen(100, 2), "at 1 % 2 of 100 requests failed (2.00%): expected at most 1.00%"),
        (Gates(error_rate=0.01), seen(2, 2), "at 1 % 2 of 2 requests failed (100.00%): expected at most 1.00%"),
        (Gates(error_rate=0), seen(1, 1), "at 1 % 1 of 1 requests failed (100.00%): expected at most 0.00%"),
        (Gates(p99_ms=50), seen(100, seconds=0.2), "99 % of 100 requests took up to"),
        (
            Gates(shadow_mismatch=0.1),
            seen(0, same=85, different=15),
            "at 1 % 15 of 100 shadow copies had another answer (15.00%): expected at most 10.00%",
        ),
    ],
)
def test_a_gate_that_does_not_hold_takes_it_back_at_once(gates: Gates, outcomes: Outcomes, reason: str) -> None:
    for state in (RolloutState.RUNNING, RolloutState.PAUSED):
        back = look(replace(RUNNING, gates=gates, state=state), outcomes, elapsed_s=1)
        assert back.state is RolloutState.ROLLED_BACK
        assert reason in back.reason
        assert back.weights == {1: 100.0}


@pytest.mark.parametrize(
    ("gates", "outcomes"),
    [
        (Gates(error_rate=0.01), seen(50, 1)),
        (Gates(p99_ms=50), seen(99, seconds=0.2)),
        (Gates(shadow_mismatch=0.1), seen(0, same=1, different=10)),
    ],
)
def test_too_little_is_known_to_take_it_back(gates: Gates, outcomes: Outcomes) -> None:
    begun = replace(RUNNING, gates=gates)
    assert look(begun, outcomes) is begun


def test_shadow_copies_are_waited_for_until_it_has_all_traffic() -> None:
    begun = replace(RUNNING, gates=Gates(shadow_mismatch=0.1))
    assert begun.wants_shadow
    assert look(begun, seen(1000)) is begun
    assert look(begun, seen(0, same=100)).step == 1
    last = replace(begun, step=2)
    assert not last.wants_shadow
    assert look(last).state is RolloutState.PROMOTED


def test_a_step_of_0_percent_has_only_copies() -> None:
    dark = replace(RUNNING, steps=(0, 100), gates=Gates(error_rate=0.01, shadow_mismatch=0))
    assert look(dark, seen(0, same=100)).percent == 100


def test_a_revision_that_fails_on_its_way_is_taken_back() -> None:
    back = look(RUNNING, is_ready=False, failure="out of memory")
    assert (back.state, back.reason) == (RolloutState.ROLLED_BACK, "its revision has failed: out of memory")


def test_it_waits_while_its_revision_is_not_ready_for_a_moment() -> None:
    assert look(RUNNING, seen(100), is_ready=False) is RUNNING


def test_a_paused_one_stays() -> None:
    paused = replace(RUNNING, state=RolloutState.PAUSED)
    assert look(paused, seen(1000)) is paused
    assert paused.resumed() == replace(RUNNING, reason="")


def test_one_that_is_paused_before_it_begins_does_not_and_waits_again_afterwards() -> None:
    paused = CANARY.paused("later")
    assert look(paused, seen(1000)) is paused
    assert look(paused, is_ready=False, failure="no file") is paused
    assert paused.weights == {1: 100.0, 2: 0.0}
    assert look(paused.resumed()).percent == 1
    assert paused.resumed("all clear").reason == "", "a reason would say that it cannot begin"


def test_what_has_ended_stays_so() -> None:
    for ended in (RUNNING.promoted(), RUNNING.rolled_back("because")):
        assert look(ended, seen(1000, 1000)) is ended


def test_where_nothing_else_has_traffic_it_has_all() -> None:
    assert Rollout(2, (1, 100)).weights == {2: 100.0}


def test_it_reads_back_equal() -> None:
    for rollout in (CANARY, RUNNING, replace(RUNNING, measured={"requests": 3.0}), RUNNING.rolled_back("why")):
        assert Rollout.from_dict(rollout.to_dict()) == rollout
    assert Rollout.from_dict({**CANARY.to_dict(), "from_the_future": 1}) == CANARY


def test_the_clients_own_mistakes_do_not_speak_against_a_revision() -> None:
    outcomes = Outcomes()
    for error in (InvalidRequest("x"), Overloaded("full"), Unsupported("no"), ModelFailed("m", "x"), OSError()):
        outcomes.record(0.1, error)
    assert (outcomes.requests, outcomes.errors) == (5, 2)


def test_percentiles_are_a_tenth_exact() -> None:
    outcomes = Outcomes()
    for number in range(1, 1001):
        outcomes.record(number / 1000, None)
    for share in (0.5, 0.9, 0.99):
        assert share <= outcomes.percentile_s(share) <= share * 1.11
    assert Outcomes().percentile_s(0.99) == 0


def test_counts_add_up_and_can_be_told_apart() -> None:
    early, late = seen(10, 1), seen(5, 2, seconds=1.0, same=1, different=2, dropped=3)
    both = early + late
    assert (both.requests, both.errors, both.compared, both.dropped) == (15, 3, 3, 3)
    assert both - early == late
