# SPDX-License-Identifier: Apache-2.0
"""A revision on trial: its requests are counted, and copies of others' requests are sent to it.

"One request": between the data plane and the transport, for revisions that a rollout watches or a shadow follows; all
others do not come by here. Copies are sent when the caller has its answer, so they cost it nothing but the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Mapping
from time import perf_counter
from typing import Final, Protocol

import numpy as np

from modelyard.batching import Call
from modelyard.errors import ModelyardError, Overloaded
from modelyard.outcomes import Outcomes
from modelyard.routing import RevisionRoute, ShadowRoute
from modelyard.tensor import Array, Tensors

_COPIES_AT_ONCE: Final = 64
"""Of all models together; further ones are dropped."""
_INLINE_NUMBERS: Final = 100_000
"""Up to so many are compared on the event loop: a millisecond at most."""
_chance: Final = random.Random()  # noqa: S311  # guards nothing


class Way(Protocol):
    """How a call reaches the replicas of a revision."""

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """Sends one call and waits for its outputs.

        Raises:
            ModelyardError: The model's, the replica's or the transport's.
        """

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """Sends one call of a decoupled model; its answers as they come. Closing it ends the model's work.

        Raises:
            ModelyardError: As for ``call``, also after some answers.
        """


class Trial:
    """The same way with eyes on it.

    Args:
        way: What is counted and copied.
    """

    def __init__(self, way: Way) -> None:
        self._way = way
        self._counts: dict[str, Outcomes] = {}
        self._copies: set[asyncio.Task[None]] = set()

    def take(self) -> dict[str, Outcomes]:
        """What was counted since the last time, by application."""
        taken, self._counts = self._counts, {}
        return taken

    def put_back(self, counts: Mapping[str, Outcomes]) -> None:
        """What was taken and is to be taken again."""
        for application, outcomes in counts.items():
            self._counts[application] = self._get(application) + outcomes

    def _get(self, application: str) -> Outcomes:
        return self._counts.setdefault(application, Outcomes())

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """See :class:`Way`."""
        began = perf_counter()
        try:
            outputs = await self._way.call(revision, call, timeout_s)
        except Overloaded:  # it was not asked, and must not look fast for that
            raise
        except Exception as exc:
            self._record(revision, began, exc)
            raise
        self._record(revision, began, None)
        if revision.shadow is not None:
            self._copy(revision.shadow, call, outputs)
        return outputs

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See :class:`Way`. A stream is counted at its end; streams are not copied."""
        began = perf_counter()
        try:
            async with contextlib.aclosing(self._way.stream(revision, call, timeout_s)) as answers:
                async for outputs in answers:
                    yield outputs
        except Overloaded:
            raise
        except Exception as exc:
            self._record(revision, began, exc)
            raise
        self._record(revision, began, None)

    def _record(self, revision: RevisionRoute, began: float, error: Exception | None) -> None:
        if revision.is_watched:
            self._get(revision.application).record(perf_counter() - began, error)

    def _copy(self, shadow: ShadowRoute, call: Call, outputs: Tensors) -> None:
        if shadow.percent < 100 and _chance.random() * 100 >= shadow.percent:
            return
        if len(self._copies) >= _COPIES_AT_ONCE:
            self._get(shadow.revision.application).dropped += 1
            return
        task = asyncio.create_task(self._compare(shadow, call, outputs))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _compare(self, shadow: ShadowRoute, call: Call, outputs: Tensors) -> None:
        application = shadow.revision.application
        try:
            copied = await self._way.call(shadow.revision, call, shadow.revision.request_timeout_s)
        except Overloaded:
            self._get(application).dropped += 1
            return
        except ModelyardError:  # the caller had an answer
            self._get(application).different += 1
            return
        if sum(array.size for array in outputs.values()) <= _INLINE_NUMBERS:
            same = is_same(outputs, copied, shadow.tolerance)
        else:
            same = await asyncio.to_thread(is_same, outputs, copied, shadow.tolerance)
        counts = self._get(application)
        if same:
            counts.same += 1
        else:
            counts.different += 1


def is_same(one: Tensors, other: Tensors, tolerance: float) -> bool:
    """Whether two answers say the same: the same outputs, of the same shape and kind, with the same values.

    Args:
        one: The caller's.
        other: The copy's.
        tolerance: Numbers that differ by so much, relatively or absolutely, are the same; so are two that are none.
    """
    return one.keys() == other.keys() and all(_is_alike(one[name], other[name], tolerance) for name in one)


def _is_alike(one: Array, other: Array, tolerance: float) -> bool:
    if one.shape != other.shape or (one.dtype.kind == "O") != (other.dtype.kind == "O"):
        return False
    if one.dtype.kind == "O":
        return bool(np.array_equal(one, other))
    if one.dtype.kind in "biu" and other.dtype.kind in "biu":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one.astype(np.float64), other.astype(np.float64), tolerance, tolerance, equal_nan=True))
