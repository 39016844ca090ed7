# SPDX-License-Identifier: Apache-2.0
"""vLLM's statistics of each step, for the platform's own metrics."""

from __future__ import annotations

from typing import Any

from modelyard.openai import EngineStep, Meter


class StatLogger:
    """One of vLLM's loggers of statistics (``AggregateStatLoggerBase``).

    Args:
        meter: Where the steps are told.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._is_busy = False

    def settle(self) -> None:
        """Nothing runs any more. vLLM tells of steps only, and where the last requests were cancelled there is none."""
        if self._is_busy:
            self._is_busy = False
            self._meter.record(EngineStep())

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM with what one step gave."""
        if scheduler_stats is None:
            return
        self._is_busy = True
        prefix = scheduler_stats.prefix_cache_stats
        tokens = iteration_stats
        self._meter.record(
            EngineStep(
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                cache_usage=scheduler_stats.kv_cache_usage,
                prompt_tokens=tokens.num_prompt_tokens if tokens else 0,
                generated_tokens=tokens.num_generation_tokens if tokens else 0,
                first_token_s=tokens.time_to_first_tokens_iter if tokens else (),
                between_tokens_s=tokens.inter_token_latencies_iter if tokens else (),
                prefix_queries=prefix.queries if prefix else 0,
                prefix_hits=prefix.hits if prefix else 0,
            )
        )

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Not told."""

    def log(self) -> None:
        """Nothing is gathered here."""

    def log_engine_initialized(self) -> None:
        """Nothing to tell."""
