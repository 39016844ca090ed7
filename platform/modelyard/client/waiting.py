# SPDX-License-Identifier: Apache-2.0
"""Waiting for what the platform does on its own: models that get ready, rollouts that end, events that come.

Each looks again and again; what is between two looks belongs to the caller, who may be sync or async.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Final

from modelyard.admin import AdminTransport, Event, ModelState, ModelStatus
from modelyard.client.failures import ApiError, PlatformUnreachable, RolledBack
from modelyard.errors import (
    Conflict,
    DeadlineExceeded,
    InternalError,
    ModelNotFound,
    ModelNotReady,
    ModelyardError,
    Unavailable,
)
from modelyard.outcomes import Outcomes
from modelyard.rollout import ALL, Rollout, RolloutState

_POLL_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between two looks; the last one repeats."""
_STOPPING: Final = frozenset({ModelState.UNLOADING, ModelState.UNLOADED, ModelState.REMOVING})
_COMING: Final = frozenset({ModelState.LOADING, ModelState.READY})
_NOT_COMING: Final = _STOPPING | {ModelState.FAILED}
_BATCH: Final = 1000
_AWAY: Final = (DeadlineExceeded, InternalError, PlatformUnreachable, Unavailable)
"""What becomes of a question while the platform starts anew."""


class Waits:
    """Growing pauses up to a time limit.

    Args:
        timeout_s: The limit.
    """

    def __init__(self, timeout_s: float) -> None:
        self._give_up_at = time.monotonic() + timeout_s
        self._count = 0

    async def pause(self) -> bool:
        """False when the time is over."""
        left_s = self._give_up_at - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(left_s, _POLL_S[min(self._count, len(_POLL_S) - 1)]))
        self._count += 1
        return True


class Wait(ABC):
    """Something that the platform does to a model, until it is done; a platform that is away meanwhile is waited for.

    Args:
        transport: How to reach the platform.
        status: The model's, as the verb has answered it.
        timeout_s: How long to wait.

    Attributes:
        status: The last one.
    """

    def __init__(self, transport: AdminTransport, status: ModelStatus, timeout_s: float) -> None:
        self.status = status
        self._transport = transport
        self._timeout_s = timeout_s
        self._waits = Waits(timeout_s)
        self._is_over: bool | None = None

    async def next(self) -> ModelStatus | None:
        """The next status that differs from the last; None when it is done and all have been told.

        Raises:
            ModelyardError: It is not to be expected any more, or the time is over; see each kind.
        """
        last = self.status
        if self._is_over is None:
            self._is_over = await self._look(last) is None
        while not self._is_over:
            if not await self._waits.pause():
                raise self._too_late()
            self._is_over = await self._look() is None
            if self.status != last:
                return self.status
        return None

    async def _look(self, status: ModelStatus | None = None) -> ModelStatus | None:
        """The present status; None when it is done."""
        try:
            if status is None:
                status = await self._ask()
            is_done = status is None or await self._is_done(status)
        except ModelyardError as exc:
            _check_away(exc)
            return self.status
        if status is not None:
            self.status = status
        return None if is_done else status

    async def _ask(self) -> ModelStatus | None:
        """The present status; None where the model is gone and that is its end."""
        return await self._transport.status(self.status.name)

    @abstractmethod
    async def _is_done(self, status: ModelStatus) -> bool:
        """Whether this status is the end; raises where that is not to be expected any more."""

    @abstractmethod
    def _too_late(self) -> ModelyardError:
        """What to raise when the time is over."""


class ReadyWait(Wait):
    """A revision, until it can answer.

    With a rollout that has further conditions it may have no traffic by then.

    Args:
        transport: How to reach the platform.
        status: The model's.
        timeout_s: How long to wait.
        revision: Its number; empty for whatever answers for the model.

    Raises:
        ModelNotReady: It has failed, the model is unloaded or removed, or the time is over.
        RolledBack: Its rollout was taken back.
        Conflict: Something else has taken its place.
    """

    def __init__(self, transport: AdminTransport, status: ModelStatus, timeout_s: float, revision: str = "") -> None:
        super().__init__(transport, status, timeout_s)
        self._revision = revision
        self._where = _describe(status)

    async def _is_done(self, status: ModelStatus) -> bool:
        if self._revision in ("", status.version) or status.state in _STOPPING:
            state, self._where = status.state, _describe(status)
        else:  # the status speaks of what answers meanwhile
            _check_kept(status, self._revision)
            state, self._where = await _find_state(self._transport, status.name, self._revision)
        if state in _NOT_COMING:
            raise ModelNotReady(status.name, self._where)
        return state is ModelState.READY

    def _too_late(self) -> ModelyardError:
        return ModelNotReady(self.status.name, f"{self._where} (waited {self._timeout_s:g} s)")


async def _find_state(transport: AdminTransport, name: str, number: str) -> tuple[ModelState, str]:
    """Of a revision that is to come, and what to say of it."""
    found = next((one for one in await transport.revisions(name) if str(one.number) == number), None)
    state, reason = (found.state, found.reason) if found is not None else ("", "")
    if state == ModelState.FAILED:
        return ModelState.FAILED, f"revision {number} failed and gets no traffic: {reason}"
    # What was unloaded before this change may be told to be so for a moment.
    known = ModelState(state) if state in _COMING else ModelState.PENDING
    return known, f"revision {number} is {known}" + (f": {reason}" if reason else "")


def _check_kept(status: ModelStatus, revision: str) -> None:
    rollout = status.rollout
    if rollout is not None and str(rollout.to) == revision and rollout.state is RolloutState.ROLLED_BACK:
        raise RolledBack(status.name, rollout.to, rollout.reason)
    if revision not in status.traffic:
        raise Conflict(f'model "{status.name}": something else has taken the place of revision {revision}')


def made_revision(status: ModelStatus) -> str:
    """Number of the revision that a model is to have, by the status that a change of it has answered."""
    rollout = status.rollout
    return str(rollout.to) if rollout is not None and rollout.is_active else status.version


class UnloadWait(Wait):
    """A model, until nothing of it runs, or it is wanted again.

    Raises:
        ModelNotReady: The time is over.
    """

    async def _is_done(self, status: ModelStatus) -> bool:
        return status.state is not ModelState.UNLOADING

    def _too_late(self) -> ModelyardError:
        return ModelNotReady(self.status.name, f"still being unloaded (waited {self._timeout_s:g} s)")


class GoneWait(Wait):
    """A model, until it is gone, or registered again.

    Raises:
        ModelNotReady: The time is over.
    """

    async def _ask(self) -> ModelStatus | None:
        try:
            return await super()._ask()
        except ModelNotFound:
            return None

    async def _is_done(self, status: ModelStatus) -> bool:
        return status.state is not ModelState.REMOVING

    def _too_late(self) -> ModelyardError:
        return ModelNotReady(self.status.name, f"still being removed (waited {self._timeout_s:g} s)")


class RolloutWait(Wait):
    """A rollout on its way, until it ends, or has come to where it stays for somebody to decide.

    That is where it has no steps and its revision is ready, and where its last step gives less than all traffic and has
    had its time and its requests. The time is counted here, from when the step was first seen: clocks differ.

    Args:
        transport: How to reach the platform.
        status: The model's, with the rollout.
        timeout_s: How long to wait.

    Raises:
        RolledBack: Its revision has lost its traffic again.
        ModelNotReady: It waits for its revision, which cannot be loaded.
        Conflict: Another rollout has taken its place.
        DeadlineExceeded: The time is over; the rollout goes on.
        ModelNotFound: The model is gone.
    """

    def __init__(self, transport: AdminTransport, status: ModelStatus, timeout_s: float) -> None:
        super().__init__(transport, status, timeout_s)
        rollout = status.rollout
        self._begun = rollout if rollout is not None and rollout.is_active else None
        self._step = ""
        self._step_seen_at = 0.0

    async def _is_done(self, status: ModelStatus) -> bool:
        if self._begun is None:
            return True
        rollout = _check_progress(status, self._begun)
        if rollout.state is RolloutState.WAITING and not rollout.steps:
            state, _ = await _find_state(self._transport, status.name, str(rollout.to))
            return state is ModelState.READY
        return not rollout.is_active or self._stays(rollout)

    def _stays(self, rollout: Rollout) -> bool:
        """It is at a last step that is over and does not give all traffic."""
        if self._step != rollout.since:
            self._step, self._step_seen_at = rollout.since, time.monotonic()
        is_last = rollout.state is RolloutState.RUNNING and rollout.step + 1 == len(rollout.steps)
        if not is_last or rollout.percent >= ALL:
            return False
        measured = {key: int(rollout.measured.get(key, 0)) for key in ("requests", "shadow_compared")}
        seen = Outcomes(requests=measured["requests"], same=measured["shadow_compared"])
        is_seen = not rollout.gates.count_missing(seen, rollout.min_requests, rollout.percent)
        return is_seen and time.monotonic() - self._step_seen_at >= rollout.interval_s

    def _too_late(self) -> ModelyardError:
        rollout = self.status.rollout
        meanwhile = f"the rollout of revision {rollout.to} goes on: {rollout.state}" if rollout is not None else ""
        return DeadlineExceeded(self._timeout_s, meanwhile)


def _check_progress(status: ModelStatus, before: Rollout) -> Rollout:
    """The rollout as it now is; raises where it does not come to its end."""
    rollout = status.rollout
    if rollout is None or rollout.to != before.to:
        raise Conflict(f'model "{status.name}": something else has taken the place of the rollout of {before.to}')
    if rollout.state is RolloutState.WAITING and rollout.reason:
        raise ModelNotReady(status.name, f"the rollout of revision {rollout.to} waits: {rollout.reason}")
    if rollout.state is RolloutState.ROLLED_BACK:
        raise RolledBack(status.name, rollout.to, rollout.reason)
    return rollout


def _describe(status: ModelStatus) -> str:
    return f"{status.state}: {status.reason}" if status.reason else str(status.state)


class EventWatch:
    """Events as they come, whatever happens to the platform meanwhile.

    Args:
        transport: How to reach the platform.
        name: The model; None for all.
        after: Id of the event before the first; None for those that are still to come.
    """

    def __init__(self, transport: AdminTransport, name: str | None, after: int | None) -> None:
        self._transport = transport
        self._name = name
        self._after = after

    async def next(self) -> tuple[Event, ...]:
        """Those that came since the last time, oldest first; none after some seconds without one.

        Raises:
            ModelyardError: The platform refuses to tell, or does not answer when it is asked for the first time.
        """
        if self._after is None:
            latest = await self._transport.events(self._name, after=None, limit=1)
            self._after = latest[0].id if latest else 0
        try:
            found = await self._transport.events(self._name, after=self._after, limit=_BATCH)
        except ModelyardError as exc:
            _check_away(exc)
            found = ()
        if found:
            self._after = found[-1].id
        else:  # what is away says so at once
            await asyncio.sleep(_POLL_S[1])
        return found


def _check_away(error: ModelyardError) -> None:
    """Raises what does not go by when the platform is back."""
    is_proxy = isinstance(error, ApiError) and error.status >= 500  # HTTP's server errors
    if not is_proxy and not isinstance(error, _AWAY):
        raise error
