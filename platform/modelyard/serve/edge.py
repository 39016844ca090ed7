# SPDX-License-Identifier: Apache-2.0
"""The short way in: Serve's hook for HTTP middleware, used to answer inference before Serve's own request wrappers.

Behind HAProxy each ingress replica has an HTTP server of its own, and Serve wraps every request on it in two tasks, a
queue, a log record and metrics: about as much work as the request itself. The environment variable
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=modelyard.serve.edge:middlewares`` puts :class:`ShortWay` in front of that.
Health checks and paths that are not ours take Serve's way, and without the variable everything does.
"""

from __future__ import annotations

from asyncio import Transport
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from modelyard.dataplane import new_id
from modelyard.protocol.openai import BARE

SHORT_WAY: Final = "modelyard.short_way"
"""Key in an ASGI scope, with the request's id: nobody in front returns it or watches for its client to go away."""

_ONE_PIECE_BYTES: Final = 64 * 1024
"""Longer bodies are not worth a copy."""
_PREFIXES: Final = ("/v1/", "/v2/", "/openai/", "/mlflow/", "/platform/", *(f"/{name}" for name in BARE))

_local: list[ASGIApp] = []


def serve_locally(app: ASGIApp) -> None:
    """Says that this process is an ingress replica, and what answers in it."""
    _local[:] = [app]


def middlewares() -> list[Middleware]:
    """What Serve calls in each process that listens for HTTP."""
    return [Middleware(ShortWay)]


class ShortWay:
    """Gives inference to the platform's application where that lives in this process."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if _local and scope["type"] == "http" and scope["path"].startswith(_PREFIXES) and not scope.get("root_path"):
            scope[SHORT_WAY] = _request_id(scope)
            await _local[0](scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def send_whole(start: Message, body: bytes, send: Send) -> None:
    """Sends a reply, where it is short in one piece.

    uvicorn writes head and body one after the other, and uvloop passes each on at once: twice the work for everybody
    up to the client, and a process that dies in between leaves half a reply.

    Args:
        start: The message ``http.response.start``.
        body: All of the body.
        send: ASGI's.
    """
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or len(body) > _ONE_PIECE_BYTES:
        await send(start)
        await send({"type": "http.response.body", "body": body})
        return
    transport = cycle.transport
    pieces = _Pieces(transport)
    cycle.transport = pieces
    try:
        await send(start)
        await send({"type": "http.response.body", "body": body})
    finally:
        cycle.transport = transport
        pieces.flush()


class _Pieces(Transport):
    """Keeps what is written to a connection until it is flushed or closed."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self._transport = transport
        self._pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._pieces.append(bytes(data))

    def flush(self) -> None:
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self.flush()
        self._transport.close()


def _request_id(scope: Scope) -> bytes:
    """The caller's ``x-request-id``, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and value:
            found: bytes = value
            return found
    return new_id().encode()
