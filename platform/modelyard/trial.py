# SPDX-License-Identifier: Apache-2.0
"""A revision on trial: its requests are counted, and copies of others' requests are sent to it.

"One request": between the data plane and the transport, for revisions that a rollout watches or a shadow follows; all
others do not come by here. Copies are sent when the caller has its answer, so they cost it nothing but the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np

from modelyard.batching import Call
from modelyard.errors import DeadlineExceeded, InternalError, ModelyardError, Overloaded
from modelyard.openai import MEMBER, part_from_tensors, request_from_tensors
from modelyard.outcomes import Outcomes
from modelyard.protocol.openai_answers import DONE, is_fault, is_same_answer, is_sampled
from modelyard.routing import RevisionRoute, ShadowRoute
from modelyard.tensor import Array, Tensors

logger = logging.getLogger(__name__)

_COPIES_AT_ONCE: Final = 64
"""To one revision; further ones are dropped."""
_HURRY_S: Final = 0.1
"""A client that waits for less, of its own will, says nothing against a model that has not answered by then."""
_LARGEST_COPY: Final = 16 * 1024 * 1024
"""Bytes of a stream's answers that are kept to compare them; a longer stream is not copied."""
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
        self._under_way: Counter[str] = Counter()

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
            self._record(revision, began, timeout_s, exc)
            raise
        self._record(revision, began, timeout_s, None)
        if (shadow := self._draw(revision)) is not None:
            self._copy(shadow.revision, self._compare(shadow, call, outputs))
        return outputs

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See :class:`Way`. A stream is counted, and copied, at its end."""
        began = perf_counter()
        shadow, kept = self._draw(revision), _Kept()
        fault: Exception | None = None
        is_over = False
        try:
            async with contextlib.aclosing(self._way.stream(revision, call, timeout_s)) as answers:
                async for outputs in answers:
                    if call.member == MEMBER:
                        part = part_from_tensors(outputs)
                        is_over = part.data.endswith(DONE)
                        if is_fault(part):
                            fault = InternalError("the model says so")
                    if shadow is not None:
                        kept.add(outputs)
                    yield outputs
            is_over = True
        except Overloaded:
            raise
        except Exception as exc:
            is_over = False
            self._record(revision, began, timeout_s, exc)
            raise
        finally:
            if is_over:
                self._record(revision, began, timeout_s, fault)
                if shadow is not None and fault is None:
                    self._copy_stream(shadow, call, kept)

    def _record(self, revision: RevisionRoute, began: float, timeout_s: float, error: Exception | None) -> None:
        is_hurried = isinstance(error, DeadlineExceeded) and timeout_s < min(_HURRY_S, revision.request_timeout_s)
        if revision.is_watched and not is_hurried:
            self._get(revision.application).record(perf_counter() - began, error)

    def _draw(self, revision: RevisionRoute) -> ShadowRoute | None:
        """Where a copy of this request is to go; None for nowhere."""
        shadow = revision.shadow
        if shadow is None or (shadow.percent < 100 and _chance.random() * 100 >= shadow.percent):
            return None
        if self._under_way[shadow.revision.application] < _COPIES_AT_ONCE:
            return shadow
        self._get(shadow.revision.application).dropped += 1
        return None

    def _copy_stream(self, shadow: ShadowRoute, call: Call, kept: _Kept) -> None:
        application = shadow.revision.application
        if kept.size > _LARGEST_COPY or self._under_way[application] >= _COPIES_AT_ONCE:
            self._get(application).dropped += 1
        else:
            self._copy(shadow.revision, self._compare_stream(shadow, call, kept.answers))

    def _copy(self, shadow: RevisionRoute, compare: Coroutine[Any, Any, bool]) -> None:
        task = asyncio.create_task(self._count_copy(shadow, compare))
        self._copies.add(task)
        self._under_way[shadow.application] += 1
        task.add_done_callback(lambda done: self._on_copied(shadow.application, done))

    def _on_copied(self, application: str, task: asyncio.Task[None]) -> None:
        self._copies.discard(task)
        self._under_way[application] -= 1
        if not self._under_way[application]:
            del self._under_way[application]

    async def _count_copy(self, shadow: RevisionRoute, compare: Coroutine[Any, Any, bool]) -> None:
        try:
            is_alike = await compare
        except Overloaded:
            self._get(shadow.application).dropped += 1
            return
        except ModelyardError:  # the caller had an answer
            is_alike = False
        except Exception:  # what cannot be compared is not the same, and no task ends unheard
            logger.exception('model "%s": a copy cannot be compared', shadow.model)
            is_alike = False
        counts = self._get(shadow.application)
        if is_alike:
            counts.same += 1
        else:
            counts.different += 1

    async def _compare(self, shadow: ShadowRoute, call: Call, outputs: Tensors) -> bool:
        copied = await self._way.call(shadow.revision, call, shadow.revision.request_timeout_s)
        if sum(array.size for array in outputs.values()) <= _INLINE_NUMBERS:
            return is_same(outputs, copied, shadow.tolerance)
        return await asyncio.to_thread(is_same, outputs, copied, shadow.tolerance)

    async def _compare_stream(self, shadow: ShadowRoute, call: Call, answers: Sequence[Tensors]) -> bool:
        stream = self._way.stream(shadow.revision, call, shadow.revision.request_timeout_s)
        async with contextlib.aclosing(stream) as answered:
            copied = [outputs async for outputs in answered]
        compare = is_same_reply if call.member == MEMBER else is_same_stream
        return await asyncio.to_thread(compare, call, answers, copied, shadow.tolerance)


class _Kept:
    """The answers of a stream; none of one that is too long to be copied."""

    def __init__(self) -> None:
        self.answers: list[Tensors] = []
        self.size = 0

    def add(self, outputs: Tensors) -> None:
        """The next one."""
        self.size += sum(_size(array) for array in outputs.values())
        if self.size <= _LARGEST_COPY:
            self.answers.append(outputs)
        else:
            self.answers.clear()


def _size(array: Array) -> int:
    return sum(map(len, map(_to_bytes, array.flat))) if array.dtype.kind == "O" else array.nbytes


def is_same_reply(call: Call, one: Sequence[Tensors], other: Sequence[Tensors], tolerance: float) -> bool:
    """Whether two replies of the OpenAI protocol say the same; what is sampled need only be answered.

    Args:
        call: What was asked.
        one: The parts of the caller's.
        other: The parts of the copy's.
        tolerance: See :func:`is_same`.
    """
    in_words = not is_sampled(request_from_tensors(call.inputs))
    own, copied = ([part_from_tensors(outputs) for outputs in answers] for answers in (one, other))
    return is_same_answer(own, copied, tolerance, in_words=in_words)


def is_same_stream(_call: Call, one: Sequence[Tensors], other: Sequence[Tensors], tolerance: float) -> bool:
    """Whether two streams say the same: the same text and numbers of each output, in however many answers.

    Args:
        one: The caller's answers.
        other: The copy's answers.
        tolerance: See :func:`is_same`.
    """
    return is_same(_join(one), _join(other), tolerance)


def _join(answers: Sequence[Tensors]) -> Tensors:
    """All answers as one: pieces of a text joined, everything else one after another."""
    found: dict[str, list[Array]] = {}
    for outputs in answers:
        for name, array in outputs.items():
            found.setdefault(name, []).append(array.ravel())
    joined: dict[str, Array] = {}
    for name, arrays in found.items():
        is_text = all(array.dtype.kind == "O" and array.size == 1 for array in arrays)
        joined[name] = (
            np.array([b"".join(_to_bytes(array[0]) for array in arrays)], object) if is_text else np.concatenate(arrays)
        )
    return joined


def _to_bytes(text: object) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")


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
