# SPDX-License-Identifier: Apache-2.0
"""Calls an ASGI application in its own process: a library's whole HTTP server without a port."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from modelyard.errors import InternalError
from modelyard.openai import Part

_WINDOW: Final = 16
"""Chunks that may wait; then the application does."""

_LEAVE_S: Final = 1.0
"""How long an application has to notice that its client went away; then it is cancelled."""

_LOG: Final = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


async def call(
    app: Application, path: str, body: bytes, content_type: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> AsyncGenerator[Part]:
    """One POST; the parts of the reply as the application sends them.

    Closing the generator is the client going away: the application's work on it is cancelled.

    Args:
        app: What answers.
        path: Below its root.
        body: The whole body.
        content_type: Of the body.
        headers: Others, lower case.

    Raises:
        InternalError: The application failed before its reply was whole.
    """
    exchange = _Exchange(body)
    task = asyncio.ensure_future(app(_scope(path, len(body), content_type, headers), exchange.receive, exchange.send))
    task.add_done_callback(lambda _: exchange.parts.put_nowait(None))
    try:
        while (part := await exchange.parts.get()) is not None:
            exchange.room.release()
            yield part
    finally:
        exchange.gone.set()
        await asyncio.wait({task}, timeout=_LEAVE_S)  # who listens for it ends its work, and what it has begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    error = None if task.cancelled() else task.exception()
    if error is not None:
        _LOG.warning("%s failed", path, exc_info=error)
    if not exchange.is_whole:
        raise InternalError(type(error).__name__ if error is not None else "the reply has no end")


class _Exchange:
    """The server's side of one request.

    Attributes:
        parts: Of the reply; None at its end.
        room: For more of them.
        gone: The client has gone away.
        is_whole: The last part has been sent.
    """

    def __init__(self, body: bytes) -> None:
        self.parts: asyncio.Queue[Part | None] = asyncio.Queue()
        self.room = asyncio.Semaphore(_WINDOW)
        self.gone = asyncio.Event()
        self.is_whole = False
        self._body: bytes | None = body
        self._status = 200
        self._content_type = ""

    async def receive(self) -> Message:
        """The body, and then, when it happens, that the client went away."""
        if self._body is None:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body}

    async def send(self, message: Message) -> None:
        """Takes what the application answers."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            self._content_type = kinds[0].decode("latin-1") if kinds else ""
        elif message["type"] == "http.response.body":
            if message.get("body"):
                await self.room.acquire()
                self.parts.put_nowait(Part(bytes(message["body"]), self._status, self._content_type))
            self.is_whole = not message.get("more_body", False)


def _scope(path: str, length: int, content_type: str, headers: tuple[tuple[bytes, bytes], ...]) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", content_type.encode("latin-1")),
            (b"content-length", b"%d" % length),
            *headers,
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 80),
    }
