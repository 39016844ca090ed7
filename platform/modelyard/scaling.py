# SPDX-License-Identifier: Apache-2.0
"""How many replicas a load asks for, and why; decided without doing anything.

What adds up over replicas (requests in flight, requests a second) is divided by its target. What does not (how long
requests wait or take, how busy GPUs are) changes the number that runs by as much as it is off, as Kubernetes'
HorizontalPodAutoscaler does, with its tolerance of a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TOLERANCE: Final = 0.1
"""Source: Kubernetes "Horizontal Pod Autoscaling", algorithm details."""
_MOST_AT_ONCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a model's replicas do, over the last seconds.

    Attributes:
        replicas: How many run.
        in_flight: Requests that wait or run, wherever they are.
        requests_per_s: Requests answered in a second.
        queue_ms: How long the requests that were answered had waited, on average.
        latency_ms: How long they took altogether, from the ingress to their answer, on average.
        tokens_per_s: Tokens generated in a second.
        cpus: CPUs that the replicas use.
        gpu_percent: How busy their GPUs are, 0 to 100, on average; None where nobody knows.
        own: What the model itself reports (``Model.report_load``), added up over its replicas.
    """

    replicas: int = 0
    in_flight: float = 0.0
    requests_per_s: float = 0.0
    queue_ms: float = 0.0
    latency_ms: float = 0.0
    tokens_per_s: float = 0.0
    cpus: float = 0.0
    gpu_percent: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Targets:
    """What each replica is to have of it; None for what does not count.

    Attributes:
        in_flight: As in :class:`Load`, for each replica; so for the others.
        requests_per_s: For each replica.
        queue_ms: On average.
        latency_ms: On average.
        tokens_per_s: For each replica.
        cpus: For each replica.
        gpu_percent: On average.
        own: For each replica, by name.
    """

    in_flight: float | None = None
    requests_per_s: float | None = None
    queue_ms: float | None = None
    latency_ms: float | None = None
    tokens_per_s: float | None = None
    cpus: float | None = None
    gpu_percent: float | None = None
    own: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Window:
    """Hours in which other bounds hold.

    Attributes:
        days: On which it begins, of :data:`DAYS`.
        start: When it begins, ``08:00``.
        end: When it ends; not later than ``start`` means on the next day.
        timezone: Where, by its IANA name.
        min_replicas: Replicas at least.
        max_replicas: Replicas at most.
    """

    days: Sequence[str]
    start: str
    end: str
    timezone: str
    min_replicas: int
    max_replicas: int

    def has(self, now: datetime) -> bool:
        """Whether it is open.

        Args:
            now: With a timezone, whichever.
        """
        here = now.astimezone(ZoneInfo(self.timezone))
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        if start < end:
            return DAYS[here.weekday()] in self.days and start <= here.time() < end
        yesterday = DAYS[(here - timedelta(days=1)).weekday()]
        began_today = DAYS[here.weekday()] in self.days and here.time() >= start
        return began_today or (yesterday in self.days and here.time() < end)


@dataclass(frozen=True, slots=True)
class Bounds:
    """Between what the number of replicas stays.

    Attributes:
        min_replicas: At least.
        max_replicas: At most.
        windows: When others hold; the first that is open counts.
    """

    min_replicas: int
    max_replicas: int
    windows: Sequence[Window] = ()

    def at(self, now: datetime) -> tuple[int, int, str]:
        """The least, the most, and why they are not the usual ones."""
        for window in self.windows:
            if window.has(now):
                return window.min_replicas, window.max_replicas, f"from {window.start} to {window.end}"
        return self.min_replicas, self.max_replicas, ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, and why.

    Attributes:
        replicas: How many there should be.
        reason: In one sentence.
        load: What it follows from.
        at: ISO 8601, UTC.
    """

    replicas: int
    reason: str
    load: Load
    at: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``.

        Raises:
            KeyError: A key is missing.
        """
        load = {key: data["load"][key] for key in Load.__slots__ if key in data["load"]}
        return cls(data["replicas"], data["reason"], Load(**load), data["at"])


def decide(load: Load, targets: Targets, bounds: Bounds, now: datetime) -> Decision:
    """The most that any target asks for, within the bounds."""
    wanted, reason = max(_ask_each(load, targets), default=(0, ""), key=lambda one: one[0])
    if not wanted:
        wanted, reason = 0, "nobody asks for it"
    if targets.gpu_percent is not None and load.gpu_percent is None and load.replicas:
        reason += " (nobody knows how busy its GPUs are)"
    return bound(wanted, reason, load, bounds, now)


def bound(wanted: int, reason: str, load: Load, bounds: Bounds, now: datetime) -> Decision:
    """The number within its bounds; where they change it, the reason says so."""
    low, high, when = bounds.at(now)
    when = f" {when}" if when else ""
    at = now.astimezone(UTC).isoformat(timespec="seconds")
    if wanted > high:
        return Decision(high, f"at most {high}{when}; {reason} ask for {wanted}", load, at)
    if wanted < low:
        return Decision(low, f"at least {low}{when}", load, at)
    return Decision(wanted, reason, load, at)


def _ask_each(load: Load, targets: Targets) -> Iterator[tuple[int, str]]:
    added = [
        (load.in_flight, targets.in_flight, "requests in flight"),
        (load.requests_per_s, targets.requests_per_s, "requests a second"),
        (load.tokens_per_s, targets.tokens_per_s, "tokens a second"),
        (load.cpus, targets.cpus, "CPUs in use"),
        *((load.own.get(name, 0.0), target, name) for name, target in targets.own.items()),
    ]
    for value, target, what in added:
        if target is not None and value > 0:
            yield math.ceil(value / target), f"{value:.4g} {what}, {target:g} for each"
    averages = [
        (load.queue_ms, targets.queue_ms, "ms in the queue"),
        (load.latency_ms, targets.latency_ms, "ms for each request"),
        (load.gpu_percent or 0.0, targets.gpu_percent, "% of its GPUs in use"),
    ]
    for value, target, what in averages:
        if target is not None and value > 0 and load.replicas:
            ratio = value / target
            ratio = 1.0 if abs(ratio - 1) <= _TOLERANCE else min(ratio, _MOST_AT_ONCE)
            yield math.ceil(load.replicas * ratio), f"{value:.4g} {what}, {target:g} at most"
