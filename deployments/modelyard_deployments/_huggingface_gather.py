# SPDX-License-Identifier: Apache-2.0
"""Rows of many calls computed together: while some are computed, those that come meanwhile gather."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

Row = TypeVar("Row")
Answer = TypeVar("Answer")
T = TypeVar("T")

_ROWS: Final = 256
"""Rows that are computed before the first of their calls is answered; a call with more goes by itself."""


class Gatherer(Generic[Row, Answer]):
    """Computes in one thread, off the event loop.

    Args:
        compute: An answer for each row, in their order.
    """

    def __init__(self, compute: Callable[[Sequence[Row]], Sequence[Answer]]) -> None:
        self._compute = compute
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gather")
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[Sequence[Answer]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """What a function returns, called in the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def run(self, rows: Sequence[Row]) -> Sequence[Answer]:
        """The answers to these rows.

        Raises:
            Exception: What ``compute`` raises, for all that were computed together.
        """
        answers: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, answers))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await answers

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while group := self._take():
            rows = [row for some, _ in group for row in some]
            done = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, rows)
            await asyncio.wait([done])
            exc = done.exception()
            start = 0
            for some, waiting in group:
                if waiting.done():  # cancelled: nobody waits any more
                    pass
                elif exc is not None:
                    waiting.set_exception(exc)
                else:
                    waiting.set_result(done.result()[start : start + len(some)])
                start += len(some)
        self._task = None

    def _take(self) -> list[tuple[Sequence[Row], asyncio.Future[Sequence[Answer]]]]:
        """The calls that come next: as many as have so many rows, without those that nobody waits for."""
        group: list[tuple[Sequence[Row], asyncio.Future[Sequence[Answer]]]] = []
        self._waiting = [one for one in self._waiting if not one[1].done()]
        count = 0
        while self._waiting and (not group or count + len(self._waiting[0][0]) <= _ROWS):
            group.append(self._waiting.pop(0))
            count += len(group[-1][0])
        return group
