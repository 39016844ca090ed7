# SPDX-License-Identifier: Apache-2.0
"""The one Serve deployment class that serves every framework: loads one revision and answers calls for it.

"One request": the model's process. Loading happens in the constructor, so Serve counts a replica as started only when
it can answer. Calls are answered on an event loop in a thread of this class's own, so that Serve's loop (health checks,
control) never waits for them, whichever way Serve was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import threading
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass, replace
from time import monotonic_ns
from typing import Any, Final, TypeVar

import uvloop
from ray import serve

from modelyard.batching import Answer, Call
from modelyard.environments.start import check_started
from modelyard.errors import ModelyardError
from modelyard.model import Model, describe, get_framework, load_model, runs_elsewhere
from modelyard.openai import OpenAIModel
from modelyard.peers import NEVER_NS, set_peers
from modelyard.serve.autoscaling import ONGOING, RATE, Rate
from modelyard.serve.counts import keep_counts
from modelyard.serve.failures import clear_failure, report_failure
from modelyard.serve.handle import session_id
from modelyard.serve.lane import STREAM_WINDOW, lane_folder, socket_path
from modelyard.serve.laneserver import LaneServer
from modelyard.serve.logs import join_serve_log
from modelyard.serve.meter import RayMeter
from modelyard.serve.peers import ControllerLink, ReplicaPeers
from modelyard.serve.runners import Runners
from modelyard.serve.warmup import warm_up
from modelyard.signature import Description
from modelyard.statistics import Statistics
from modelyard.store import check_unchanged, resolve
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_DRAIN_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class RevisionSpec:
    """What a replica needs to load one revision; equal text means equal replica.

    Attributes:
        model: Name of the model, for messages.
        framework: Name of its framework.
        uri: Where the artifact is.
        options: The framework's options.
        digest: Identity of the revision.
        artifact: Digest of the artifact's contents when the revision was made; empty where nobody wrote it down.
        platform: The platform's application, by whose controller the model finds others; empty where it finds none.
        warmup: Requests that it answers before it counts as loaded.
    """

    model: str
    framework: str
    uri: str
    options: dict[str, Any]
    digest: str
    artifact: str = ""
    platform: str = ""
    warmup: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Batching:
    """The limits a replica takes while it runs."""

    max_batch_size: int
    batch_wait_timeout_s: float
    max_queued_requests: int


def _load(spec: RevisionSpec) -> Model:
    if runs_elsewhere(get_framework(spec.framework), spec.uri):
        return load_model(spec.framework, spec.uri, spec.options)
    path = resolve(spec.uri)
    if spec.artifact:
        check_unchanged(path, spec.artifact)
    return load_model(spec.framework, path, spec.options)


class ModelReplica:
    """Serves one revision.

    Args:
        application: The Serve application it belongs to.
        spec: What to load.

    Raises:
        ModelLoadError: The model cannot be loaded; why is kept for the controller.
    """

    def __init__(self, application: str, spec: RevisionSpec) -> None:
        join_serve_log()
        self._application = application
        self._spec = spec
        self._stopped = False
        self._replica: str = serve.get_replica_context().replica_tag
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lane", daemon=True)
        self._thread.start()
        link = ControllerLink(spec.platform)
        self._peers = ReplicaPeers(application, link.watch, self._loop, report=link.report)
        set_peers(self._peers)
        self._server: LaneServer | None = None
        self._rate = Rate()
        try:
            check_started()
            self._model = _load(spec)
            self._model.name = spec.model
            self._meter: RayMeter | None = None
            if isinstance(self._model, OpenAIModel):
                self._model.meter = self._meter = RayMeter(application)
            self._run(self._model.start())
            self._runners = Runners(spec.model, self._model)
            self._run(self._begin())
        except Exception as exc:
            # Whatever a library raises while it loads is the reason that ``status`` shows.
            reason = str(exc) if isinstance(exc, ModelyardError) else f"{type(exc).__name__}: {exc}"
            report_failure(application, reason)
            raise
        clear_failure(application)  # of an attempt before this one
        self._run(self._open_lane())

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _begin(self) -> None:
        self._runners.start()
        if self._spec.warmup:
            await warm_up(self._runners, self._model.signature, self._spec.warmup)

    async def _open_lane(self) -> None:
        try:
            path = socket_path(lane_folder(session_id()), self._application, self._replica)
            server = LaneServer(path, self._runners)
            await server.start()
        except OSError as exc:
            # Calls then come through the Serve handle only: slower, not wrong.
            logger.warning("no lane: %s", exc)
        else:
            self._server = server

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Takes new batching limits without a restart; Serve calls it with ``user_config``."""
        batching = Batching(**settings)

        async def configure() -> None:
            self._runners.configure(
                batching.max_batch_size, batching.batch_wait_timeout_s, batching.max_queued_requests
            )

        self._run(configure())

    async def describe(self) -> Description:
        """What the loaded model takes and gives."""
        return describe(self._model)

    async def call(self, call: Call, sent_ns: int) -> Answer:
        """Answers one call that came through the Serve handle; errors are part of the answer.

        Args:
            call: With a deadline on the sender's clock.
            sent_ns: What that clock said.
        """
        here = _on_this_clock(call, sent_ns)

        async def submit() -> Answer:
            return await self._runners.submit(here)

        try:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(submit(), self._loop))
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
                async with contextlib.aclosing(self._runners.stream(here)) as outputs:
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

    async def statistics(self, member: str) -> tuple[str, Statistics]:
        """This replica's name, and what it has counted of the model or of a published member since it started."""

        async def copy_now() -> Statistics:
            return copy.deepcopy(self._runners.statistics[member])

        counts = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(copy_now(), self._loop))
        return self._replica, counts

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Requests that wait or run for this replica, in it and in the ingress; Serve asks for it every two seconds."""
        if self._meter is not None:
            self._meter.refresh()
        backlog = self._server.backlog if self._server is not None else 0
        answered = self._rate.take(self._runners.answered)
        return {ONGOING: float(self._runners.ongoing + backlog), RATE: answered}

    def check_health(self) -> None:
        """Healthy while the loop that answers is alive, and the runner in it, and the model says nothing else.

        Raises:
            RuntimeError: It is not.
            Exception: What the model says.
        """
        if not self._thread.is_alive() or not self._runners.is_alive:
            raise RuntimeError("what answers calls has ended")
        self._model.check_health()

    async def _drain(self) -> None:
        self._keep_counts()  # from now on Serve does not ask it
        if self._server is not None:
            self._server.stop_accepting()
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT_S):
                if self._server is not None:
                    await self._server.drain()
                await self._runners.drain()
        except TimeoutError:
            logger.warning("model still busy after %s s of draining", _DRAIN_TIMEOUT_S)
        if self._server is not None:
            await self._server.stop()
        await self._peers.close()
        self._keep_counts()

    def _keep_counts(self) -> None:
        for member, counts in self._runners.statistics.items():
            keep_counts(self._application, member, self._replica, counts)

    def __del__(self) -> None:
        """Serve calls it when the replica stops: answers what it has, takes nothing new."""
        if self._stopped or not hasattr(self, "_runners"):
            return
        self._stopped = True
        self._run(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)


def _on_this_clock(call: Call, sent_ns: int) -> Call:
    """The call with its deadline moved from the sender's clock to this host's."""
    if call.deadline_ns == NEVER_NS:
        return call
    return replace(call, deadline_ns=call.deadline_ns + monotonic_ns() - sent_ns)
