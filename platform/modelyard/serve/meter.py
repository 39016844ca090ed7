# SPDX-License-Identifier: Apache-2.0
"""What engines of language models do, as metrics of Ray: the same names for every backend.

Ray's agent on each node exports them for Prometheus, with the prefix ``ray_``.
"""

from __future__ import annotations

from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from modelyard.openai import EngineStep, Meter

_TAGS: Final = ("model", "revision")
_FIRST_S: Final = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
_BETWEEN_S: Final = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]

METRICS: Final = {
    "modelyard_llm_time_to_first_token_seconds": "Histogram: from a request's arrival to its first token.",
    "modelyard_llm_inter_token_latency_seconds": "Histogram: between two tokens of one request.",
    "modelyard_llm_prompt_tokens": "Counter: tokens of prompts that were read.",
    "modelyard_llm_generated_tokens": "Counter: tokens that were generated.",
    "modelyard_llm_requests_running": "Gauge: requests in the batch.",
    "modelyard_llm_requests_waiting": "Gauge: requests that wait for a place in the batch.",
    "modelyard_llm_cache_usage_ratio": "Gauge: part of the cache of keys and values that is taken, from 0 to 1.",
    "modelyard_llm_prefix_cache_queries": "Counter: tokens of prompts that were looked for in the cache.",
    "modelyard_llm_prefix_cache_hits": "Counter: those of them that were there.",
}
"""What there is; each has the tags ``model`` and ``revision``."""


class RayMeter(Meter):
    """The metrics of one replica.

    Args:
        application: Its Serve application, ``llama@3``.
    """

    def __init__(self, application: str) -> None:
        model, _, revision = application.rpartition("@")
        tags = {"model": model, "revision": revision}

        def counter(name: str) -> Counter:
            made = Counter(f"modelyard_llm_{name}", METRICS[f"modelyard_llm_{name}"], _TAGS)
            made.set_default_tags(tags)
            return made

        def gauge(name: str) -> Gauge:
            made = Gauge(f"modelyard_llm_{name}", METRICS[f"modelyard_llm_{name}"], _TAGS)
            made.set_default_tags(tags)
            return made

        def histogram(name: str, bounds: list[float]) -> Histogram:
            made = Histogram(f"modelyard_llm_{name}", METRICS[f"modelyard_llm_{name}"], bounds, _TAGS)
            made.set_default_tags(tags)
            return made

        self._first = histogram("time_to_first_token_seconds", _FIRST_S)
        self._between = histogram("inter_token_latency_seconds", _BETWEEN_S)
        self._prompt = counter("prompt_tokens")
        self._generated = counter("generated_tokens")
        self._running = gauge("requests_running")
        self._waiting = gauge("requests_waiting")
        self._cache = gauge("cache_usage_ratio")
        self._queries = counter("prefix_cache_queries")
        self._hits = counter("prefix_cache_hits")
        self._last = EngineStep()
        self.generated = 0
        """Tokens that were generated since it was made."""

    def record(self, step: EngineStep) -> None:
        """See the base class."""
        self.generated += step.generated_tokens
        for first_s in step.first_token_s:
            self._first.observe(first_s)
        for between_s in step.between_tokens_s:
            self._between.observe(between_s)
        for metric, amount in (
            (self._prompt, step.prompt_tokens),
            (self._generated, step.generated_tokens),
            (self._queries, step.prefix_queries),
            (self._hits, step.prefix_hits),
        ):
            if amount:
                metric.inc(amount)
        self._last = step

    def refresh(self) -> None:
        """Sets the gauges to what the last step told; from any thread. Ray forgets gauges that are not set for long."""
        step = self._last
        self._running.set(step.running)
        self._waiting.set(step.waiting)
        self._cache.set(step.cache_usage)
