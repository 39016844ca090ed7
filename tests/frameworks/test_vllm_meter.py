# SPDX-License-Identifier: Apache-2.0
"""What vLLM tells of its steps becomes what the platform tells, of one engine or of several in one replica."""

from __future__ import annotations

from types import SimpleNamespace

from modelyard.openai import EngineStep, Meter
from modelyard_deployments._vllm_meter import StatLogger


class Told(Meter):
    def __init__(self) -> None:
        self.steps: list[EngineStep] = []

    def record(self, step: EngineStep) -> None:
        self.steps.append(step)

    @property
    def last(self) -> tuple[int, int, float]:
        step = self.steps[-1]
        return step.running, step.waiting, step.cache_usage


def scheduler(running: int, waiting: int = 0, usage: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(
        num_running_reqs=running,
        num_waiting_reqs=waiting,
        num_skipped_waiting_reqs=0,
        kv_cache_usage=usage,
        prefix_cache_stats=None,
    )


def test_of_several_engines_all_are_told() -> None:
    told = Told()
    logger = StatLogger(told)
    logger.record(scheduler(3, 1, 0.5), None, engine_idx=0)
    assert told.last == (3, 1, 0.5)
    logger.record(scheduler(2, 2, 0.25), None, engine_idx=1)
    assert told.last == (5, 3, 0.375)
    logger.record(scheduler(0), None, engine_idx=0)
    assert told.last == (2, 2, 0.125)


def test_what_was_cancelled_is_told_once_nothing_runs() -> None:
    told = Told()
    logger = StatLogger(told)
    logger.settle()
    assert told.steps == []
    logger.record(scheduler(3, 0, 0.5), None, engine_idx=1)
    logger.settle()
    logger.settle()
    assert [step.running for step in told.steps] == [3, 0]
    logger.record(scheduler(1), None, engine_idx=0)
    assert told.last == (1, 0, 0.0)


def test_what_is_kept_for_another_engine_stays_when_nothing_runs() -> None:
    told = Told()
    logger = StatLogger(told, keeps_cache=True)
    logger.record(scheduler(0, 0, 0.5), None)
    logger.settle()
    assert len(told.steps) == 1
    logger.record(scheduler(3, 0, 0.75), None)
    logger.settle()
    logger.settle()
    assert len(told.steps) == 3
    assert told.last == (0, 0, 0.75)
