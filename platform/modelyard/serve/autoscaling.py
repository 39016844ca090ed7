# SPDX-License-Identifier: Apache-2.0
"""How many replicas a model gets: requests in flight, wherever they wait, or requests a second, against the target.

Serve's own policy sees only what goes through its handles; most calls go over lanes, and most waiting requests wait in
the ingress. Each replica therefore reports what it holds plus its share of what the ingress replicas hold, and what it
has answered since it was asked last.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

from ray.serve.config import AutoscalingContext

ONGOING: Final = "ongoing"
RATE: Final = "requests_per_s"


class Rate:
    """Events a second, from a count that only grows."""

    def __init__(self) -> None:
        self._count = 0
        self._at = time.monotonic()

    def take(self, count: int) -> float:
        """Since the last call, from what the count was then and is now."""
        now = time.monotonic()
        rate = (count - self._count) / max(now - self._at, 1e-3)
        self._count, self._at = count, now
        return max(0.0, rate)


class FollowLoad:
    """Serve's autoscaling policy for models: as many as the most demanding of the targets asks for.

    Args:
        target_requests_per_s: Requests a second for each replica; None for no such target.
    """

    def __init__(self, target_requests_per_s: float | None = None) -> None:
        self._target_requests_per_s = target_requests_per_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and Serve's state for the next call (none).

        Args:
            context: What Serve knows, with what the replicas have reported.
        """
        reported = context.aggregated_metrics or {}
        in_flight = max(sum(reported.get(ONGOING, {}).values()), context.total_num_requests)
        target = context.config.target_ongoing_requests if context.config else 1.0
        wanted = math.ceil(in_flight / target) if in_flight else 0
        if self._target_requests_per_s is not None:
            wanted = max(wanted, math.ceil(sum(reported.get(RATE, {}).values()) / self._target_requests_per_s))
        if not context.current_num_replicas:  # one that starts is not taken away before it has been seen to load
            wanted = max(wanted, min(1, context.target_num_replicas))
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, wanted)), {}
