# SPDX-License-Identifier: Apache-2.0
"""The replica's end of the lanes: a Unix socket in front of what runs the model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from modelyard.batching import Answer, Call
from modelyard.errors import InternalError, ModelyardError
from modelyard.serve.lane import STREAM_WINDOW, Kind, LaneProtocol
from modelyard.tensor import Tensors

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """What answers calls."""

    def submit(self, call: Call) -> asyncio.Future[Answer]:
        """Queues one call."""

    def stream(self, call: Call) -> AsyncGenerator[Tensors]:
        """The answers to one call of a decoupled model."""


@dataclass(slots=True)
class _Connection:
    """What one ingress replica waits for.

    Attributes:
        calls: Calls and streams by their number.
        credits: How many more answers each stream may send.
    """

    calls: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    credits: dict[int, asyncio.Semaphore] = field(default_factory=dict)


class LaneServer:
    """Listens for ingress replicas and answers their calls.

    Args:
        path: Where the socket is; it appears only once it accepts connections.
        runner: What answers.
    """

    def __init__(self, path: Path, runner: Runner) -> None:
        self._path = path
        self._runner = runner
        self._server: asyncio.AbstractServer | None = None
        self._connections: dict[LaneProtocol, _Connection] = {}
        self._backlogs: dict[LaneProtocol, int] = {}
        self._told: set[LaneProtocol] = set()
        self._all_gone = asyncio.Event()
        self._is_leaving = False

    @property
    def backlog(self) -> int:
        """This replica's share of the requests that still wait in the ingress replicas, as they last said."""
        return sum(self._backlogs.values())

    async def start(self) -> None:
        """Begins to listen."""
        loop = asyncio.get_running_loop()
        hidden = self._path.with_suffix(".new")
        hidden.unlink(missing_ok=True)
        self._server = await loop.create_unix_server(self._connect, str(hidden), backlog=128)
        hidden.chmod(0o600)
        hidden.rename(self._path)

    def _connect(self) -> LaneProtocol:
        protocol = LaneProtocol(self._on_frame, self._on_lost)
        self._connections[protocol] = _Connection()
        return protocol

    def _on_lost(self, protocol: LaneProtocol) -> None:
        connection = self._connections.pop(protocol, None)
        for future in list(connection.calls.values()) if connection else ():
            future.cancel()
        self._backlogs.pop(protocol, None)
        self._told.discard(protocol)
        if not self._told:
            self._all_gone.set()

    def _on_frame(self, protocol: LaneProtocol, kind: Kind, ident: int, payload: Any) -> None:
        connection = self._connections.get(protocol)
        if connection is None:
            return
        calls = connection.calls
        if kind is Kind.CANCEL:
            future = calls.get(ident)
            if future is not None:
                future.cancel()
            return
        if kind is Kind.CREDIT:
            if ident in connection.credits:
                for _ in range(payload):
                    connection.credits[ident].release()
            return
        if self._is_leaving and protocol not in self._told:
            self._say_goodbye(protocol)  # it connected in the moment the socket went away
        if kind is Kind.STREAM:
            credit = connection.credits[ident] = asyncio.Semaphore(STREAM_WINDOW)
            task = asyncio.get_running_loop().create_task(self._stream(protocol, ident, payload, credit))
            calls[ident] = task
            task.add_done_callback(lambda _: self._forget_stream(protocol, ident))
            return
        call, self._backlogs[protocol] = payload
        try:
            future = self._runner.submit(call)
        except ModelyardError as error:
            protocol.send(Kind.ERROR, ident, error)
            return
        calls[ident] = future
        future.add_done_callback(lambda done: self._reply(protocol, ident, done))

    async def _stream(self, protocol: LaneProtocol, ident: int, call: Call, credit: asyncio.Semaphore) -> None:
        try:
            async with contextlib.aclosing(self._runner.stream(call)) as answers:
                async for outputs in answers:
                    await credit.acquire()
                    protocol.send(Kind.CHUNK, ident, outputs)
        except ModelyardError as error:
            protocol.send(Kind.ERROR, ident, error)
        except Exception as exc:
            # The client must not wait for an end that never comes.
            logger.exception("a stream failed outside the model")
            protocol.send(Kind.ERROR, ident, InternalError(type(exc).__name__))
        else:
            protocol.send(Kind.END, ident, None)

    def _forget_stream(self, protocol: LaneProtocol, ident: int) -> None:
        connection = self._connections.get(protocol)
        if connection is not None:
            connection.calls.pop(ident, None)
            connection.credits.pop(ident, None)

    def _reply(self, protocol: LaneProtocol, ident: int, future: asyncio.Future[Any]) -> None:
        connection = self._connections.get(protocol)
        if connection is None:
            return
        calls = connection.calls
        calls.pop(ident, None)
        if not calls:  # an ingress replica lets nothing wait while this replica has nothing of it
            self._backlogs.pop(protocol, None)
        if future.cancelled():
            protocol.send(Kind.ERROR, ident, InternalError("the call was cancelled"))
            return
        error = future.exception()
        if error is not None:
            known = error if isinstance(error, ModelyardError) else InternalError(f"{type(error).__name__}")
            protocol.send(Kind.ERROR, ident, known)
        else:
            protocol.send(Kind.ANSWER, ident, future.result())

    def stop_accepting(self) -> None:
        """No new connection finds this replica, and the connected ones send nothing new."""
        self._path.unlink(missing_ok=True)
        self._is_leaving = True
        if self._server is not None:
            self._server.close()
        for protocol in self._connections:
            if protocol.is_open:  # otherwise it hears it with its first call
                self._say_goodbye(protocol)

    def _say_goodbye(self, protocol: LaneProtocol) -> None:
        self._told.add(protocol)
        self._all_gone.clear()
        protocol.send(Kind.GOODBYE, 0, None)

    async def drain(self) -> None:
        """Waits until the connected ingress replicas have their answers and have closed; after ``stop_accepting``.

        Only they know that nothing of theirs is on its way here any more.
        """
        if self._told:
            await self._all_gone.wait()

    async def stop(self) -> None:
        """Closes what is left, after the runner has drained."""
        await asyncio.sleep(0)
        for protocol in list(self._connections):
            protocol.close()
