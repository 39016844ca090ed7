# SPDX-License-Identifier: Apache-2.0
"""How traffic moves to a revision: in steps, while gates hold. The state of it, and what comes next.

No I/O and no clock: the controller keeps a :class:`Rollout` in the catalog and asks :func:`decide` again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Self

from modelyard.outcomes import Outcomes

ALL: Final = 100.0
"""Percent."""
_P99: Final = 0.99


@dataclass(frozen=True, slots=True)
class Shadow:
    """Copies of requests, whose answers are compared and then thrown away.

    Attributes:
        revision: Number of the revision that gets them.
        percent: Of the requests that are copied.
        tolerance: Numbers that differ by so much, relatively or absolutely, are the same.
        measured: What has become of the copies, see :func:`measure_shadow`; of now, and kept nowhere.
    """

    revision: int
    percent: float = ALL
    tolerance: float = 1e-5
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "measured" or value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know are ignored."""
        return cls(**{key: data[key] for key in cls.__slots__ if key in data})


class RolloutState(StrEnum):
    """Where a rollout is."""

    WAITING = "waiting"
    """Its revision gets no traffic: it is not ready yet, or nobody has promoted it."""
    RUNNING = "running"
    PAUSED = "paused"
    """It stays at its step, where its gates go on holding, or does not begin."""
    PROMOTED = "promoted"
    """The revision has all traffic."""
    ROLLED_BACK = "rolled_back"
    """The revision has none again: a gate did not hold, or somebody took it back."""


ACTIVE: Final = frozenset({RolloutState.WAITING, RolloutState.RUNNING, RolloutState.PAUSED})


@dataclass(frozen=True, slots=True)
class Gates:
    """What has to hold for a rollout to go on; None asks for nothing.

    Attributes:
        error_rate: Faults of the server among the revision's requests at most, from 0 to 1.
        p99_ms: Milliseconds within which 99 of 100 of them are answered.
        shadow_mismatch: Different answers among shadow copies at most, from 0 to 1.
    """

    error_rate: float | None = None
    p99_ms: float | None = None
    shadow_mismatch: float | None = None

    @property
    def needs_requests(self) -> bool:
        """Some gate is about the revision's own requests."""
        return self.error_rate is not None or self.p99_ms is not None

    def find_broken(self, seen: Outcomes, min_requests: int) -> str:
        """What does not hold, with its numbers; empty where all hold or too little is known.

        Args:
            seen: Of the revision, since the step began.
            min_requests: From so many on a rate counts. So many wrong ones that it could not hold any more count at
                once.
        """
        if self.error_rate is not None and seen.errors > self.error_rate * max(min_requests, seen.requests):
            return (
                f"{seen.errors} of {seen.requests} requests failed ({seen.error_rate:.2%}): expected at most "
                f"{self.error_rate:.2%}"
            )
        p99_ms = seen.percentile_s(_P99) * 1000
        if self.p99_ms is not None and seen.requests >= min_requests and p99_ms > self.p99_ms:
            return f"99 % of {seen.requests} requests took up to {p99_ms:.3g} ms: expected at most {self.p99_ms:g} ms"
        limit = self.shadow_mismatch
        if limit is not None and seen.different > limit * max(min_requests, seen.compared):
            return (
                f"{seen.different} of {seen.compared} shadow copies had another answer ({seen.mismatch_rate:.2%}): "
                f"expected at most {limit:.2%}"
            )
        return ""

    def count_missing(self, seen: Outcomes, min_requests: int, percent: float) -> int:
        """How many more requests or shadow copies have to come before the gates can be said to hold.

        Args:
            seen: Of the revision, since the step began.
            min_requests: So many are enough.
            percent: Of the traffic that the revision has: without any it has no requests of its own, and with all of
                it no shadow copies.
        """
        missing = min_requests - seen.requests if self.needs_requests and percent > 0 else 0
        if self.shadow_mismatch is not None and percent < ALL:
            missing = max(missing, min_requests - seen.compared)
        return max(0, missing)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One revision on its way to all traffic.

    Attributes:
        to: Number of the revision.
        steps: Percent of the traffic, one after the other; without any it stays dark. One that does not end at 100
            stays at its last step until it is promoted or taken back.
        interval_s: Seconds that each step takes at least.
        min_requests: So many requests a step has to have seen before its gates can be said to hold.
        gates: What has to hold.
        base: The weights before it, by number of revision; what the new revision does not get is shared so.
        state: Where it is.
        step: Index of the step it is at; -1 before the first.
        since: When that began, ISO 8601, UTC; empty before the first.
        reason: Why it is where it is.
        measured: Numbers of the step, for people: ``requests``, ``error_rate``, ``p99_ms``, ``shadow_mismatch``.
    """

    to: int
    steps: tuple[float, ...] = (ALL,)
    interval_s: float = 0.0
    min_requests: int = 0
    gates: Gates = Gates()
    base: Mapping[int, float] = field(default_factory=dict)
    state: RolloutState = RolloutState.WAITING
    step: int = -1
    since: str = ""
    reason: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        """It has not ended."""
        return self.state in ACTIVE

    @property
    def is_plain(self) -> bool:
        """All traffic as soon as the revision is ready, with no further conditions."""
        return self.steps == (ALL,) and self.gates == Gates()

    @property
    def is_watched(self) -> bool:
        """Its gates want to know what becomes of the revision's requests."""
        return self.is_active and self.gates != Gates()

    @property
    def wants_shadow(self) -> bool:
        """Its revision is to get copies of the requests that others answer."""
        return self.is_active and self.gates.shadow_mismatch is not None and self.percent < ALL and bool(self.base)

    @property
    def percent(self) -> float:
        """Of the traffic that the revision has now."""
        if self.state is RolloutState.PROMOTED:
            return ALL
        return self.steps[self.step] if self.is_active and self.step >= 0 else 0.0

    @property
    def weights(self) -> dict[int, float]:
        """Percent by number of revision, as they are to be now; those with 0 run, and get none."""
        base = {number: weight for number, weight in self.base.items() if number != self.to}
        total = sum(base.values())
        if self.state is RolloutState.PROMOTED or (self.is_active and total <= 0):
            # Where nothing else has traffic there is nobody to share it with.
            return {self.to: ALL}
        if not self.is_active:
            return dict(self.base)
        share = (ALL - self.percent) / total
        return {number: weight * share for number, weight in base.items()} | {self.to: self.percent}

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        data = asdict(self)
        return data | {"base": {str(number): weight for number, weight in self.base.items()}, "steps": list(self.steps)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; keys it does not know (a newer Modelyard's) are ignored.

        Raises:
            KeyError: It has no revision.
            ValueError: Its state is none.
        """
        known: dict[str, Any] = {key: data[key] for key in cls.__slots__ if key in data} | {"to": int(data["to"])}
        gates = data.get("gates", {})
        known["gates"] = Gates(**{key: gates[key] for key in Gates.__slots__ if key in gates})
        known["base"] = {int(number): float(weight) for number, weight in data.get("base", {}).items()}
        known["steps"] = tuple(map(float, data.get("steps", (ALL,))))
        known["state"] = RolloutState(data.get("state", RolloutState.WAITING))
        return cls(**known)

    def rolled_back(self, reason: str) -> Rollout:
        """As it is when its revision has lost its traffic again."""
        return replace(self, state=RolloutState.ROLLED_BACK, reason=reason)

    def paused(self, reason: str = "") -> Rollout:
        """As it is when somebody wants it to stay where it is."""
        return replace(self, state=RolloutState.PAUSED, reason=reason)

    def resumed(self, reason: str = "") -> Rollout:
        """As it is when that is over; one that had not begun waits again."""
        if self.step < 0:
            return replace(self, state=RolloutState.WAITING, reason="")  # whose reason is that it cannot begin
        return replace(self, state=RolloutState.RUNNING, reason=reason)

    def promoted(self, reason: str = "") -> Rollout:
        """As it is when its revision has got all traffic."""
        return replace(self, state=RolloutState.PROMOTED, reason=reason)


def decide(rollout: Rollout, *, is_ready: bool, failure: str, seen: Outcomes, elapsed_s: float, now: str) -> Rollout:
    """What becomes of a rollout now; the same one where nothing does.

    Args:
        rollout: As it is.
        is_ready: Its revision can answer.
        failure: Why its revision cannot be loaded; empty while that is not known.
        seen: What became of the revision's requests since the step began.
        elapsed_s: Seconds since then.
        now: ISO 8601, UTC; when the next step begins.
    """
    if not rollout.is_active:
        return rollout
    if rollout.state is RolloutState.WAITING:
        return _begin(rollout, now) if is_ready and rollout.steps else rollout
    if rollout.step < 0:  # paused before it began: as long as it has no traffic, whoever repairs it has time
        return rollout
    if failure:
        return _measured(rollout, seen).rolled_back(f"its revision has failed: {failure}")
    if broken := rollout.gates.find_broken(seen, rollout.min_requests):
        return _measured(rollout, seen).rolled_back(f"at {rollout.percent:g} % {broken}")
    if rollout.state is RolloutState.PAUSED or not is_ready:
        return rollout
    share = rollout.percent if rollout.base else ALL
    missing = rollout.gates.count_missing(seen, rollout.min_requests, share)
    if missing or elapsed_s < rollout.interval_s:
        return rollout
    if rollout.step + 1 < len(rollout.steps):
        return _begin(_measured(rollout, seen), now)
    return _measured(rollout, seen).promoted() if rollout.percent >= ALL else rollout


def _begin(rollout: Rollout, now: str) -> Rollout:
    """At its next step; the last one ends it where nothing has to hold any more."""
    begun = replace(rollout, state=RolloutState.RUNNING, step=rollout.step + 1, since=now, reason="")
    is_last = begun.step + 1 == len(begun.steps)
    return begun.promoted() if is_last and begun.percent >= ALL and begun.gates == Gates() else begun


def _measured(rollout: Rollout, seen: Outcomes) -> Rollout:
    return replace(rollout, measured=measure(seen))


def measure_shadow(seen: Outcomes) -> dict[str, float]:
    """The numbers that people see of what became of copies."""
    return {"compared": seen.compared, "different": seen.different, "dropped": seen.dropped}


def measure(seen: Outcomes) -> dict[str, float]:
    """The numbers that people see of what became of requests."""
    return {
        "requests": seen.requests,
        "error_rate": seen.error_rate,
        "p99_ms": round(seen.percentile_s(_P99) * 1000, 3),
        "shadow_compared": seen.compared,
        "shadow_mismatch": seen.mismatch_rate,
    }
