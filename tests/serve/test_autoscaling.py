# SPDX-License-Identifier: Apache-2.0
"""How many replicas Serve is told that a load asks for."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from modelyard.config import parse_model_spec
from modelyard.scaling import Decision, Load
from modelyard.serve import autoscaling as module
from modelyard.serve.applications import to_autoscaling
from modelyard.serve.autoscaling import (
    CPUS,
    GPU_PERCENT,
    LATENCY_MS,
    ONGOING,
    OWN,
    QUEUE_MS,
    RATE,
    TOKENS,
    FollowLoad,
    Pace,
    Processes,
    Work,
    find_decision,
    find_policy,
    to_load,
    to_work,
)
from modelyard.statistics import Statistics


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> dict[bytes, bytes]:
    """Ray's key-value store; and how often something was put."""
    kept: dict[bytes, bytes] = {}
    monkeypatch.setattr(module, "_internal_kv_put", lambda key, value, **_: kept.update({key: value}))
    monkeypatch.setattr(module, "_internal_kv_get", lambda key, **_: kept.get(key))
    return kept


def make_context(ongoing: float = 0, rate: float = 0, queued: float = 0, running: int = 1, target: int = 1) -> Any:
    """Of a model with 0 to 5 replicas."""
    return SimpleNamespace(
        app_name="m@1",
        aggregated_metrics={ONGOING: {"a": ongoing / 2, "b": ongoing / 2}, RATE: {"a": rate}} if running else {},
        total_num_requests=queued,
        current_num_replicas=running,
        target_num_replicas=target,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=5,
    )


def wanted(policy: str = "", requests_per_s: float | None = None, **load: Any) -> int:
    """Each replica is good for 4 requests in flight."""
    targets = {"in_flight": 4, "requests_per_s": requests_per_s}
    follow = FollowLoad(targets, {"min_replicas": 0, "max_replicas": 9}, policy)
    number, state = follow(make_context(**load))
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
        ({"ongoing": 1, "rate": 25, "requests_per_s": 10}, 3),
        ({"running": 0, "target": 0, "queued": 1}, 1),
        ({"running": 0, "target": 0}, 0),
        ({"running": 0, "target": 1}, 1),
        ({"running": 0, "target": 3}, 1),
    ],
)
def test_as_many_as_the_most_demanding_target_asks_for(load: dict[str, Any], number: int) -> None:
    assert wanted(**load) == number


def test_what_replicas_report_adds_up_or_is_averaged_by_what_each_has_answered() -> None:
    context = make_context(running=2, queued=3)
    context.aggregated_metrics = {
        ONGOING: {"a": 1.0, "b": 4.0},
        RATE: {"a": 30.0, "b": 10.0},
        QUEUE_MS: {"a": 2.0, "b": 10.0},
        LATENCY_MS: {"a": 4.0, "b": 8.0},
        TOKENS: {"a": 100.0, "b": 50.0},
        CPUS: {"a": 0.5, "b": 0.25},
        GPU_PERCENT: {"a": 90.0, "b": 40.0},
        OWN + "depth": {"a": 7.0, "b": 8.0},
    }
    expected = Load(2, 5.0, 40.0, 4.0, 5.0, 150.0, 0.75, 65.0, {"depth": 15.0})
    assert to_load(context) == expected


def quarter(load: Load, decision: Decision) -> int:
    return decision.replicas // 4


def never(load: Load, decision: Decision) -> int:
    raise LookupError("no forecast today")


def test_a_policy_of_the_users_has_the_last_word_and_the_targets_stand_in_for_it(store: dict[bytes, bytes]) -> None:
    assert wanted(f"{__name__}:quarter", ongoing=32) == 2
    assert json.loads(store[b"m@1"])["reason"] == f"{__name__}:quarter says so"
    assert wanted(f"{__name__}:never", ongoing=12) == 3
    assert json.loads(store[b"m@1"])["reason"].endswith(":never failed: LookupError: no forecast today)")


@pytest.mark.parametrize(
    ("path", "error"), [("nowhere:f", ImportError), (f"{__name__}:none", AttributeError), ("plain", ValueError)]
)
def test_a_policy_that_is_not_there(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        find_policy(path)


def test_a_decision_is_kept_at_once_when_it_is_new_and_else_from_time_to_time(
    store: dict[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    follow = FollowLoad({"in_flight": 4}, {"min_replicas": 0, "max_replicas": 9})

    def shown(ongoing: float) -> tuple[int, float]:
        follow(make_context(ongoing=ongoing))
        decision = find_decision("m@1")
        assert decision is not None
        return decision.replicas, decision.load.in_flight

    assert [shown(1), shown(2), shown(9), shown(10)] == [(1, 1), (1, 1), (3, 9), (3, 9)]
    now += 3
    assert shown(11) == (3, 11)


def test_nothing_is_known_of_what_was_never_decided(store: dict[bytes, bytes]) -> None:
    assert find_decision("m@1") is None
    store[b"m@1"] = b'{"of": "another version"}'
    assert find_decision("m@1") is None


def test_a_pace_is_of_what_came_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    pace = Pace()
    now = 102.0
    took = pace.take(Work(answered=10, answered_ns=50_000_000, queued_ns=20_000_000, tokens=300))
    assert {key: took[key] for key in (RATE, QUEUE_MS, LATENCY_MS, TOKENS)} == {
        RATE: 5,
        QUEUE_MS: 2,
        LATENCY_MS: 5,
        TOKENS: 150,
    }
    now = 104.0
    assert pace.take(Work(10, 50_000_000, 20_000_000, 300))[RATE] == 0
    assert min(pace.take(Work()).values()) >= 0, "counts that begin anew are no negative pace"


def test_a_process_that_works_uses_cpus() -> None:
    pace = Pace()
    sum(range(3_000_000))
    assert pace.take(Work())[CPUS] > 0


def test_what_a_process_has_started_uses_cpus_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    processes = Processes()
    code = "import time; input()\nwhile time.process_time() < 1: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        processes.take_cpu_s()
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert processes.take_cpu_s() > 0.8
        child.stdin.close()
    assert 0 <= processes.take_cpu_s() < 0.8, "one that has ended is no negative use"


def test_how_busy_gpus_are_changes_the_number_by_as_much_as_it_is_off(store: dict[bytes, bytes]) -> None:
    follow = FollowLoad({"in_flight": 100, "gpu_percent": 60}, {"min_replicas": 1, "max_replicas": 9})
    context = make_context(ongoing=2, running=2)
    context.aggregated_metrics[GPU_PERCENT] = {"a": 95.0, "b": 85.0}
    assert follow(context)[0] == 3
    assert json.loads(store[b"m@1"])["reason"] == "90 % of its GPUs in use, 60 at most"
    del context.aggregated_metrics[GPU_PERCENT]
    assert follow(context)[0] == 1
    reason = json.loads(store[b"m@1"])["reason"]
    assert reason == "2 requests in flight, 100 for each (nobody knows how busy its GPUs are)"


def test_a_replica_without_gpus_says_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert GPU_PERCENT not in Pace().take(Work())
    monkeypatch.setattr(module, "busy_percent", lambda: 30.0)
    assert Pace().take(Work())[GPU_PERCENT] == 30


def test_work_is_what_was_counted() -> None:
    one, other = Statistics(), Statistics()
    one.success.add(3, 30)
    one.queue.add(3, 9)
    other.fail.add(2, 5)
    assert to_work([one, other]) == Work(answered=5, answered_ns=35, queued_ns=9)


def test_serve_has_the_bounds_of_all_hours_and_the_policy_all_there_is_to_know() -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_queue_ms": 50,
        "target_metrics": {"depth": 5},
        "schedule": [{"days": ["mon"], "start": "08:00", "end": "18:00", "min_replicas": 3}],
        "policy": "nightly",
    }
    spec = parse_model_spec({"name": "m", "framework": "sklearn", "uri": "m", "autoscaling": scaling})
    told = to_autoscaling(spec.autoscaling, 8.0, {"nightly": "mine:nightly"}, is_new=False)
    assert (told.min_replicas, told.max_replicas, told.target_ongoing_requests) == (0, 3, 8.0)
    kwargs = told.policy.policy_kwargs
    assert kwargs["targets"] | {"in_flight": 8.0, "queue_ms": 50.0, "own": {"depth": 5.0}} == kwargs["targets"]
    assert kwargs["policy"] == "mine:nightly"
    follow = FollowLoad(**json.loads(json.dumps(kwargs)))
    assert follow._bounds.windows[0].has(datetime.fromisoformat("2026-03-02T08:00+00:00"))
    assert follow._bounds.windows[0].min_replicas == 3
