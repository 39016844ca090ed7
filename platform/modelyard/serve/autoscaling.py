# SPDX-License-Identifier: Apache-2.0
"""How many replicas a model gets: requests in flight, wherever they wait, against the target for one replica.

Serve's own policy sees only what goes through its handles; most calls go over lanes, and most waiting requests wait in
the ingress. Each replica therefore reports what it holds plus its share of what the ingress replicas hold.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext


def requests_in_flight(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy for models.

    Returns:
        The number of replicas, and Serve's state for the next call (none).
    """
    reported = (context.aggregated_metrics or {}).get("ongoing", {})
    in_flight = max(sum(reported.values()), context.total_num_requests)
    target = context.config.target_ongoing_requests if context.config else 1.0
    wanted = math.ceil(in_flight / target) if in_flight else 0
    low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return max(low, min(high, wanted)), {}
