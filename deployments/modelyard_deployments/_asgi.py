# SPDX-License-Identifier: Apache-2.0
"""Calls an ASGI application in its own process: a library's whole HTTP server without a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

from modelyard.errors import InternalError
from modelyard.openai import Part

_WINDOW: Final = 16
"""Chunks that may wait; then the application does."""

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
        InternalError: The application failed without a reply.
    """
    exchange = _Exchange(body)
    task = asyncio.create_task(exchange.run(app, _scope(path, len(body), content_type, headers)))
    try:
        while (item := await exchange.parts.get()) is not None:
            if isinstance(item, Exception):
                raise InternalError(f"{type(item).__name__}: {item}") from item
            yield item
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Exchange:
    """The server's side of one request."""

    def __init__(self, body: bytes) -> None:
        self.parts: asyncio.Queue[Part | Exception | None] = asyncio.Queue(_WINDOW)
        self._body: bytes | None = body
        self._status = 200
        self._content_type = ""

    async def run(self, app: Application, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as exc:  # noqa: BLE001  # whatever a library raises is its reply
            await self.parts.put(exc)
        await self.parts.put(None)

    async def _receive(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # the client stays; where it goes, the task is cancelled
        body, self._body = self._body, None
        return {"type": "http.request", "body": body}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            self._content_type = kinds[0].decode("latin-1") if kinds else ""
        elif message["type"] == "http.response.body" and message.get("body"):
            await self.parts.put(Part(bytes(message["body"]), self._status, self._content_type))


def _scope(path: str, length: int, content_type: str, headers: tuple[tuple[bytes, bytes], ...]) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
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
