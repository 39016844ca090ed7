# SPDX-License-Identifier: Apache-2.0
"""vLLM's statistics of each step, for the platform's own metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelyard.openai import EngineStep, Meter


@dataclass(frozen=True, slots=True)
class _State:
    """What one of the engines last told."""

    running: int
    waiting: int
    cache_usage: float


class StatLogger:
    """One of vLLM's loggers of statistics (``AggregateStatLoggerBase``).

    Where a replica has several engines (``data_parallel_size``), each tells of its own steps; what goes on is of all.

    Args:
        meter: Where the steps are told.
        keeps_cache: Blocks are kept for another engine when their request is over.
    """

    def __init__(self, meter: Meter, keeps_cache: bool = False) -> None:
        self._meter = meter
        self._keeps_cache = keeps_cache
        self._states: dict[int, _State] = {}

    def settle(self) -> None:
        """Nothing runs any more. vLLM tells of steps only, and where the last requests were cancelled there is none."""
        settled = {
            index: _State(0, 0, state.cache_usage if self._keeps_cache else 0.0)
            for index, state in self._states.items()
        }
        if settled != self._states:
            self._states = settled
            self._meter.record(EngineStep(cache_usage=self._cache_usage))

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM with what one step gave."""
        if scheduler_stats is None:
            return
        self._states[engine_idx] = _State(
            scheduler_stats.num_running_reqs,
            scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
            scheduler_stats.kv_cache_usage,
        )
        states = self._states.values()
        prefix = scheduler_stats.prefix_cache_stats
        tokens = iteration_stats
        self._meter.record(
            EngineStep(
                running=sum(state.running for state in states),
                waiting=sum(state.waiting for state in states),
                cache_usage=self._cache_usage,
                prompt_tokens=tokens.num_prompt_tokens if tokens else 0,
                generated_tokens=tokens.num_generation_tokens if tokens else 0,
                first_token_s=tokens.time_to_first_tokens_iter if tokens else (),
                between_tokens_s=tokens.inter_token_latencies_iter if tokens else (),
                prefix_queries=prefix.queries if prefix else 0,
                prefix_hits=prefix.hits if prefix else 0,
            )
        )

    @property
    def _cache_usage(self) -> float:
        return sum(state.cache_usage for state in self._states.values()) / len(self._states)

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Not told."""

    def log(self) -> None:
        """Nothing is gathered here."""

    def log_engine_initialized(self) -> None:
        """Nothing to tell."""
