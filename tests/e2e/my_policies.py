# SPDX-License-Identifier: Apache-2.0
"""An autoscaling policy as users write it, beside their Serve file."""

from __future__ import annotations

from modelyard.scaling import Decision, Load


def one_less(load: Load, decision: Decision) -> int:
    """What the targets ask for, but one replica."""
    return decision.replicas - 1
