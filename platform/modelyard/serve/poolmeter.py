# SPDX-License-Identifier: Apache-2.0
"""What the replicas of pools do, as metrics of Ray, which each node exports for Prometheus with the prefix ``ray_``."""

from __future__ import annotations

from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from modelyard.serve.residents import PoolCounts, Residents, process_memory

_TAGS: Final = ("pool",)
_LOAD_S: Final = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]

POOL_METRICS: Final = {
    "modelyard_pool_hits": "Counter: calls that found their model loaded.",
    "modelyard_pool_misses": "Counter: calls that waited until their model was loaded.",
    "modelyard_pool_loads": "Counter: models that were loaded.",
    "modelyard_pool_evictions": "Counter: models that made room for others.",
    "modelyard_pool_load_seconds": "Histogram: how long a model took to load.",
    "modelyard_pool_models": "Gauge: models that are loaded.",
    "modelyard_pool_memory_bytes": "Gauge: memory that the process takes.",
    "modelyard_pool_memory_limit_bytes": "Gauge: memory that it may take (pools.memory_mb).",
}
"""What there is; each has the tag ``pool``."""


class PoolMeter:
    """The metrics of one replica.

    Args:
        pool: Its Serve application.
    """

    def __init__(self, pool: str) -> None:
        tags = {"pool": pool}
        counters = ("hits", "misses", "loads", "evictions")
        self._counters = {one: Counter(*_describe(one), _TAGS) for one in counters}
        self._gauges = {one: Gauge(*_describe(one), _TAGS) for one in ("models", "memory_bytes", "memory_limit_bytes")}
        self._load = Histogram(*_describe("load_seconds"), _LOAD_S, _TAGS)
        for metric in (*self._counters.values(), *self._gauges.values(), self._load):
            metric.set_default_tags(tags)
        self._last = PoolCounts()

    def record(self, residents: Residents) -> None:
        """Takes what has come since the last time; from one thread, every few seconds."""
        counts, last = residents.counts, self._last
        self._last = PoolCounts(counts.hits, counts.misses, counts.loads, counts.evictions)
        for name, metric in self._counters.items():
            if more := getattr(self._last, name) - getattr(last, name):
                metric.inc(more)
        durations, counts.load_s = counts.load_s, []
        for load_s in durations:
            self._load.observe(load_s)
        self._gauges["models"].set(len(residents.loaded))
        self._gauges["memory_bytes"].set(process_memory())
        self._gauges["memory_limit_bytes"].set(residents.budget_bytes)


def _describe(name: str) -> tuple[str, str]:
    full = f"modelyard_pool_{name}"
    return full, POOL_METRICS[full]
