# SPDX-License-Identifier: Apache-2.0
"""What one measurement counts, whatever made the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Measurement:
    """Counts of one load on one server. `client_cpu` is the load generator's share of one core."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    client_cpu: float

    @property
    def rate(self) -> float:
        """Return answered requests a second."""
        return (self.requests - self.errors) / self.seconds


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank percentile of values in ascending order, NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def combine(rounds: Sequence[Measurement]) -> Measurement:
    """Return the typical round: the median of times and rate, the sum of errors."""
    rate = median(one.rate for one in rounds)
    seconds = sum(one.seconds for one in rounds)
    errors = sum(one.errors for one in rounds)
    return Measurement(
        requests=round(rate * seconds) + errors,
        seconds=seconds,
        p50_ms=median(one.p50_ms for one in rounds),
        p99_ms=median(one.p99_ms for one in rounds),
        errors=errors,
        client_cpu=median(one.client_cpu for one in rounds),
    )
