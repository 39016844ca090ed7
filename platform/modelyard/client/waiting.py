# SPDX-License-Identifier: Apache-2.0
"""Waiting for what the platform does on its own: models that get ready, rollouts that end, events that come.

Each looks again and again; what is between two looks belongs to the caller, who may be sync or async.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from modelyard.admin import AdminTransport, Event, ModelStatus
from modelyard.client.failures import ApiError, PlatformUnreachable, RolledBack
from modelyard.errors import Conflict, DeadlineExceeded, InternalError, ModelNotReady, ModelyardError
from modelyard.rollout import Rollout, RolloutState

_POLL_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Pauses between two looks; the last one repeats."""
_BATCH: Final = 1000
_AWAY: Final = (DeadlineExceeded, InternalError, PlatformUnreachable)
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


class RolloutWait:
    """A rollout on its way, until it ends.

    Args:
        transport: How to reach the platform.
        status: The model's, with the rollout.
        timeout_s: How long to wait.
    """

    def __init__(self, transport: AdminTransport, status: ModelStatus, timeout_s: float) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._waits = Waits(timeout_s)
        self.status = status

    async def next(self) -> ModelStatus | None:
        """The next status that differs from the last; None when the rollout has ended and all have been told.

        Raises:
            RolledBack: Its revision has lost its traffic again.
            ModelNotReady: It waits for its revision, which cannot be loaded.
            Conflict: Another rollout has taken its place.
            DeadlineExceeded: The time is over; the rollout goes on.
            ModelNotFound: The model is gone.
        """
        rollout = self.status.rollout
        if rollout is None or not rollout.is_active:
            return None
        _check_progress(self.status, rollout)
        while True:
            if not await self._waits.pause():
                raise DeadlineExceeded(
                    self._timeout_s, f"the rollout of revision {rollout.to} goes on: {rollout.state}"
                )
            try:
                status = await self._transport.status(self.status.name)
            except ModelyardError as exc:
                _check_away(exc)
                continue
            if status == self.status:
                continue
            self.status = status
            _check_progress(status, rollout)
            return status


def _check_progress(status: ModelStatus, before: Rollout) -> None:
    rollout = status.rollout
    if rollout is None or rollout.to != before.to:
        raise Conflict(f'model "{status.name}": something else has taken the place of the rollout of {before.to}')
    if rollout.state is RolloutState.WAITING and rollout.reason:
        raise ModelNotReady(status.name, f"the rollout of revision {rollout.to} waits: {rollout.reason}")
    if rollout.state is RolloutState.ROLLED_BACK:
        raise RolledBack(status.name, rollout.to, rollout.reason)


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
