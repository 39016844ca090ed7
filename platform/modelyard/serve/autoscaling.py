# SPDX-License-Identifier: Apache-2.0
"""How many replicas a model gets: Serve's view of :mod:`modelyard.scaling`.

Serve's own policy sees only what goes through its handles; most calls go over lanes, and most waiting requests wait in
the ingress. Each replica therefore reports what it holds plus its share of what the ingress replicas hold, and what it
has done since it was asked last.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import psutil
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.serve.config import AutoscalingContext

from modelyard.gpus import busy_percent
from modelyard.scaling import Bounds, Decision, Load, Targets, Window, bound, decide
from modelyard.statistics import Statistics

ONGOING: Final = "ongoing"
RATE: Final = "requests_per_s"
QUEUE_MS: Final = "queue_ms"
LATENCY_MS: Final = "latency_ms"
TOKENS: Final = "tokens_per_s"
CPUS: Final = "cpus"
GPU_PERCENT: Final = "gpu_percent"
OWN: Final = "own."
"""Before the names that a model itself reports."""

_NAMESPACE: Final = b"modelyard-scaling"
_TELL_S: Final = 2.0
_LOOK_S: Final = 30.0
_NS_PER_MS: Final = 1_000_000

Policy = Callable[[Load, Decision], int]
"""A user's own: the load and what the targets would decide, to the number of replicas it wants."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a replica has done since it started.

    Attributes:
        answered: Requests that were answered, with an answer or an error.
        answered_ns: How long those took altogether.
        queued_ns: How long the ones answered without an error had waited.
        tokens: Tokens that it generated.
    """

    answered: int = 0
    answered_ns: int = 0
    queued_ns: int = 0
    tokens: int = 0


def to_work(counts: Iterable[Statistics]) -> Work:
    """What was counted of several models, as work."""
    known = list(counts)
    return Work(
        answered=sum(one.success.count + one.fail.count for one in known),
        answered_ns=sum(one.success.ns + one.fail.ns for one in known),
        queued_ns=sum(one.queue.ns for one in known),
    )


class Processes:
    """This process and those that it has started: some frameworks compute in servers of their own."""

    def __init__(self) -> None:
        self._own = psutil.Process()
        self._known: dict[psutil.Process, float | None] = {}
        self._next_look = 0.0
        self.take_cpu_s()  # the first answer means nothing

    def take_cpu_s(self) -> float:
        """Seconds of a CPU that they took since the last call."""
        self._look()
        taken = 0.0
        for process, before in list(self._known.items()):
            try:
                times = process.cpu_times()
            except psutil.Error:  # it has ended
                del self._known[process]
                continue
            self._known[process] = now = times.user + times.system
            taken += now - (now if before is None else before)
        return taken

    def _look(self) -> None:
        """Now and then: it reads the parent of each process of the machine."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        try:
            family = [self._own, *self._own.children(recursive=True)]
        except psutil.Error:  # what others run may not be seen everywhere
            family = [self._own]
        self._known = {process: self._known.get(process) for process in family}


class Pace:
    """What a replica does in a second, from counts that only grow."""

    def __init__(self) -> None:
        self._work = Work()
        self._at = time.monotonic()
        self._processes = Processes()

    def take(self, work: Work) -> dict[str, float]:
        """Since the last call, from what the counts were then and are now."""
        now, last = time.monotonic(), self._work
        seconds = max(now - self._at, 1e-3)
        self._work, self._at = work, now
        answered = max(0, work.answered - last.answered)
        each = _NS_PER_MS * max(answered, 1)
        busy = busy_percent()
        gpus = {} if busy is None else {GPU_PERCENT: busy}
        return gpus | {
            RATE: answered / seconds,
            QUEUE_MS: max(0, work.queued_ns - last.queued_ns) / each,
            LATENCY_MS: max(0, work.answered_ns - last.answered_ns) / each,
            TOKENS: max(0, work.tokens - last.tokens) / seconds,
            CPUS: self._processes.take_cpu_s() / seconds,
        }


class FollowLoad:
    """Serve's autoscaling policy for models: as many as the most demanding of the targets asks for.

    Args:
        targets: What each replica is to have, see :class:`~modelyard.scaling.Targets`.
        bounds: Between what the number stays, see :class:`~modelyard.scaling.Bounds`.
        policy: A function of the user's, ``module:name``, that has the last word; empty for none.
    """

    def __init__(self, targets: Mapping[str, Any], bounds: Mapping[str, Any], policy: str = "") -> None:
        self._targets = Targets(**targets)
        windows = tuple(Window(**window) for window in bounds.get("windows", ()))
        self._bounds = Bounds(bounds["min_replicas"], bounds["max_replicas"], windows)
        self._policy = policy
        self._told: tuple[float, Decision] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and Serve's state for the next call (none).

        Args:
            context: What Serve knows, with what the replicas have reported.
        """
        now = datetime.now(UTC)
        load = to_load(context)
        decision = decide(load, self._targets, self._bounds, now)
        if self._policy:
            decision = self._ask(decision, now)
        if not context.current_num_replicas and not decision.replicas and context.target_num_replicas:
            # One that starts is not taken away before it has been seen to load.
            decision = replace(decision, replicas=1, reason="its first replica starts")
        self._tell(context.app_name or "", decision)
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, decision.replicas)), {}

    def _ask(self, decision: Decision, now: datetime) -> Decision:
        try:
            wanted = int(find_policy(self._policy)(decision.load, decision))
        except Exception as exc:  # noqa: BLE001  # a user's code: the targets decide while it fails
            return replace(decision, reason=f"{decision.reason} ({self._policy} failed: {type(exc).__name__}: {exc})")
        return bound(wanted, f"{self._policy} says so", decision.load, self._bounds, now)

    def _tell(self, application: str, decision: Decision) -> None:
        """Keeps it where the platform's controller finds it: at once what is new, else from time to time."""
        if self._told is not None:
            at, last = self._told
            if last.replicas == decision.replicas and time.monotonic() - at < _TELL_S:
                return
        self._told = time.monotonic(), decision
        kept = json.dumps(asdict(decision)).encode()
        _internal_kv_put(application.encode(), kept, overwrite=True, namespace=_NAMESPACE)


def to_load(context: AutoscalingContext) -> Load:
    """What the replicas have reported, added up."""
    reported = context.aggregated_metrics or {}

    def total(name: str) -> float:
        return float(sum(reported.get(name, {}).values()))

    def mean(name: str) -> float | None:
        """Of the replicas that know."""
        known = reported.get(name, {})
        return total(name) / len(known) if known else None

    def average(name: str) -> float:
        """Of the replicas' averages, by how many requests each has answered."""
        rates = reported.get(RATE, {})
        rate = total(RATE)
        return sum(value * rates.get(one, 0.0) for one, value in reported.get(name, {}).items()) / rate if rate else 0.0

    return Load(
        replicas=context.current_num_replicas,
        in_flight=max(total(ONGOING), float(context.total_num_requests)),
        requests_per_s=total(RATE),
        queue_ms=average(QUEUE_MS),
        latency_ms=average(LATENCY_MS),
        tokens_per_s=total(TOKENS),
        cpus=total(CPUS),
        gpu_percent=mean(GPU_PERCENT),
        own={name.removeprefix(OWN): total(name) for name in reported if name.startswith(OWN)},
    )


def find_policy(path: str) -> Policy:
    """A user's function.

    Args:
        path: ``module:name``.

    Raises:
        ImportError: There is no such module.
        AttributeError: It has no such name.
        ValueError: The path has another form.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f'expected "module:name", got "{path}"')
    found: Policy = getattr(importlib.import_module(module), name)
    return found


def find_decision(application: str) -> Decision | None:
    """What was last decided for an application; None before anything was."""
    raw: bytes | None = _internal_kv_get(application.encode(), namespace=_NAMESPACE)
    try:
        return None if raw is None else Decision.from_dict(json.loads(raw))
    except (KeyError, TypeError, ValueError):  # another version's
        return None


def clear_decision(application: str) -> None:
    """Forgets it."""
    _internal_kv_del(application.encode(), namespace=_NAMESPACE)
