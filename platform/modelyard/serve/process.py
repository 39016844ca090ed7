# SPDX-License-Identifier: Apache-2.0
"""What the processes of all replicas have: an event loop that answers, a lane, the calls that come through Serve.

"One request": the model's process. Calls are answered on an event loop in a thread of its own, so that Serve's loop
(health checks, control) never waits for them, whichever way Serve was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from time import monotonic_ns
from typing import Any, Final, Protocol, TypeVar

import uvloop
from ray import serve

from modelyard.batching import Answer, Call
from modelyard.errors import ModelyardError
from modelyard.peers import NEVER_NS
from modelyard.serve.autoscaling import ONGOING, Pace, Work
from modelyard.serve.handle import session_id
from modelyard.serve.lane import STREAM_WINDOW, lane_folder, socket_path
from modelyard.serve.laneserver import LaneServer, Runner
from modelyard.serve.logs import join_serve_log
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

DRAIN_TIMEOUT_S: Final = 30.0
"""How long a replica that stops answers what it has, unless its requests may take longer."""


class Answering(Runner, Protocol):
    """What a replica answers with."""

    @property
    def ongoing(self) -> int:
        """Requests waiting, being predicted or streaming."""

    @property
    def work(self) -> Work:
        """What it has done since it started."""

    async def drain(self) -> None:
        """Waits until everything submitted is answered, then closes."""


class Replica:
    """What all replicas have: an event loop in a thread of its own, a lane, the calls that come through Serve.

    A subclass loads what answers, then opens the lane.

    Args:
        application: The Serve application it belongs to.
    """

    _answering: Answering

    def __init__(self, application: str) -> None:
        join_serve_log()
        self._application = application
        self._stopped = False
        self._replica: str = serve.get_replica_context().replica_tag
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lane", daemon=True)
        self._thread.start()
        self._server: LaneServer | None = None
        self._pace = Pace()
        self._drain_timeout_s = DRAIN_TIMEOUT_S

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _here(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """The same from Serve's loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def _open_lane(self) -> None:
        try:
            path = socket_path(lane_folder(session_id()), self._application, self._replica)
            server = LaneServer(path, self._answering)
            await server.start()
        except OSError as exc:
            # Calls then come through the Serve handle only: slower, not wrong.
            logger.warning("no lane: %s", exc)
        else:
            self._server = server

    async def call(self, call: Call, sent_ns: int) -> Answer:
        """Answers one call that came through the Serve handle; errors are part of the answer.

        Args:
            call: With a deadline on the sender's clock.
            sent_ns: What that clock said.
        """
        here = _on_this_clock(call, sent_ns)

        async def submit() -> Answer:
            return await self._answering.submit(here)

        try:
            return await self._here(submit())
        except ModelyardError as error:
            return Answer(parts=(error,) * len(call.rows))

    async def stream(self, call: Call, sent_ns: int) -> AsyncGenerator[Tensors | ModelyardError]:
        """Answers one call of a decoupled model that came through the Serve handle; an error is its last item.

        The model's answers are made on this replica's own loop and carried over to Serve's. The arguments are those of
        :meth:`call`.
        """
        here = _on_this_clock(call, sent_ns)
        answers: asyncio.Queue[Tensors | ModelyardError | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_WINDOW)
        serve_loop = asyncio.get_running_loop()

        async def read() -> None:
            last: ModelyardError | None = None
            try:
                async with contextlib.aclosing(self._answering.stream(here)) as outputs:
                    async for item in outputs:
                        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(room.acquire(), serve_loop))
                        serve_loop.call_soon_threadsafe(answers.put_nowait, item)
            except ModelyardError as error:
                last = error
            if last is not None:
                serve_loop.call_soon_threadsafe(answers.put_nowait, last)
            serve_loop.call_soon_threadsafe(answers.put_nowait, None)

        reading = asyncio.run_coroutine_threadsafe(read(), self._loop)
        try:
            while (item := await answers.get()) is not None:
                yield item
                room.release()
        finally:
            reading.cancel()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What this replica does, for the policy; Serve asks for it every two seconds.

        Requests count that wait or run for it, in it and in the ingress.
        """
        backlog = self._server.backlog if self._server is not None else 0
        return {ONGOING: float(self._answering.ongoing + backlog)} | self._pace.take(self._work())

    def _work(self) -> Work:
        return self._answering.work

    def _keep_counts(self) -> None:
        """Keeps what was counted where it outlives this process."""

    async def _close(self) -> None:
        """Ends what else lives on the loop."""

    async def _drain(self) -> None:
        if self._server is not None:
            self._server.stop_accepting()
        await self._keep()  # from now on Serve does not ask it
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                if self._server is not None:
                    await self._server.drain()
                await self._answering.drain()
        except TimeoutError:
            logger.warning("model still busy after %s s of draining", self._drain_timeout_s)
        if self._server is not None:
            await self._server.stop()
        await self._close()
        await self._keep()

    async def _keep(self) -> None:
        try:
            await asyncio.to_thread(self._keep_counts)
        except Exception:
            # What was counted is worth less than the requests that are still to be answered.
            logger.exception("what was counted cannot be kept")

    def __del__(self) -> None:
        """Serve calls it when the replica stops: answers what it has, takes nothing new."""
        if self._stopped or not hasattr(self, "_answering"):
            return
        self._stopped = True
        self._run(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)


def _on_this_clock(call: Call, sent_ns: int) -> Call:
    """The call with its deadline moved from the sender's clock to this host's."""
    if call.deadline_ns == NEVER_NS:
        return call
    return replace(call, deadline_ns=call.deadline_ns + monotonic_ns() - sent_ns)
