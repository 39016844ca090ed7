# SPDX-License-Identifier: Apache-2.0
"""The HTTP edge: routes, limits, deadlines, and the one function that turns errors into replies.

"One request": first and last on the way. Handlers return an :class:`~modelyard.protocol.http.Encoded` (or a
:class:`~modelyard.protocol.http.Streamed`) or raise; they never see ASGI messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from starlette.requests import cookie_parser
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from modelyard.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ModelyardError,
    RouteNotFound,
    TooLarge,
    UnsupportedMediaType,
)
from modelyard.protocol.compression import ENCODINGS, find_encoding
from modelyard.protocol.errors import as_modelyard_error, encode_http
from modelyard.protocol.http import Encoded, Streamed, encode_json
from modelyard.protocol.mlflow import encode_error as encode_mlflow
from modelyard.protocol.openai import encode_error as encode_openai
from modelyard.protocol.openai import is_openai_path
from modelyard.serve.compression import compress_reply, inflate_body
from modelyard.serve.edge import SHORT_WAY, send_whole

logger = logging.getLogger(__name__)

_WATCH_AFTER_S: Final = 0.05
_MAX_DIGITS: Final = 18
"""More is no length; Python itself refuses to read thousands of them."""
_BODY_TYPES: Final = frozenset(
    {b"", b"application/json", b"application/octet-stream", b"application/x-www-form-urlencoded"}
)
_ACCEPTED: Final = (b"accept-encoding", ", ".join(ENCODINGS).encode())
"""Of every 415. Source: RFC 9110, section 12.5.3."""


class HttpRequest:
    """One request as handlers see it.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        max_body_bytes: Beyond that the body is refused.
    """

    __slots__ = ("headers", "is_read", "max_body_bytes", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, max_body_bytes: int) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.receive = receive
        self.max_body_bytes = max_body_bytes
        self.is_read = False

    def path(self, name: str) -> str:
        """A part of the path by its name in the route, percent-decoded; empty where this route has none."""
        value: str = self.scope["path_params"].get(name, "")
        return value

    def header(self, name: str) -> str:
        """The value of a header; empty where it has none."""
        return self.headers.get(name.lower().encode("latin-1"), b"").decode("latin-1")

    def cookie(self, name: str) -> str:
        """The value of a cookie; empty where it has none."""
        return cookie_parser(self.header("cookie")).get(name, "")

    def timeout_s(self) -> float | None:
        """The deadline in ``x-request-timeout-ms``, in seconds.

        Raises:
            InvalidRequest: It is not a number above zero.
        """
        raw = self.headers.get(b"x-request-timeout-ms")
        if raw is None:
            return None
        try:
            timeout_ms = float(raw)
        except ValueError:
            timeout_ms = -1.0
        if not 0 < timeout_ms < float("inf"):
            got = raw[:40].decode("latin-1")
            raise InvalidRequest(f'header x-request-timeout-ms: expected milliseconds > 0, got "{got}"')
        return timeout_ms / 1000

    async def body(self) -> bytes:
        """The whole body, decompressed.

        Raises:
            TooLarge: It is over the limit, as it comes or decompressed.
            UnsupportedMediaType: Its type or encoding is not one we read.
            InvalidRequest: Its compressed data is damaged.
            DeadlineExceeded: The client has set a deadline and has not sent all of it by then.
        """
        self._check_type()
        return await self.raw_body()

    async def raw_body(self) -> bytes:
        """As :meth:`body`, of any type: for handlers that read others than JSON and binary data.

        Raises:
            UnsupportedMediaType: Its encoding is not one we read.
            TooLarge: As :meth:`body`, which has the others too.
        """
        header = self.headers.get(b"content-encoding")
        encoding = None if header is None else find_encoding(header.decode("latin-1"))
        limit_s = self.timeout_s()
        body = await (self._receive_body() if limit_s is None else self._receive_body_within(limit_s))
        return body if encoding is None else await inflate_body(body, encoding, self.max_body_bytes)

    async def _receive_body_within(self, limit_s: float) -> bytes:
        try:
            async with asyncio.timeout(limit_s):
                return await self._receive_body()
        except TimeoutError as exc:
            raise DeadlineExceeded(limit_s, "the request body has not come whole") from exc

    async def _receive_body(self) -> bytes:
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:_MAX_DIGITS]) > self.max_body_bytes:
            raise TooLarge("request body", self.max_body_bytes, int(length[:_MAX_DIGITS]))
        message = await self._receive_part()
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            self.is_read = True
            return self._checked(first)
        chunks, size = [first], len(first)
        while message.get("more_body", False):
            message = await self._receive_part()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self.max_body_bytes:
                raise TooLarge("request body", self.max_body_bytes)
            chunks.append(chunk)
        self.is_read = True
        return b"".join(chunks)

    async def _receive_part(self) -> Message:
        """The next part of the body. What came of a body whose client went away is not the body."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequest("the request body ended before it was whole")
        return message

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self.max_body_bytes:
            raise TooLarge("request body", self.max_body_bytes, len(body))
        return body

    def _check_type(self) -> None:
        raw = self.headers.get(b"content-type", b"")
        kind = raw.partition(b";")[0].strip().lower()
        if kind not in _BODY_TYPES and not kind.endswith(b"+json"):
            got = raw[:80].decode("latin-1")
            raise UnsupportedMediaType(f'content type: expected application/json or octet-stream, got "{got}"')


Handler = Callable[[HttpRequest], Awaitable[Encoded | Streamed]]
RouteEntry = tuple[str, str, Handler]
"""Method, path and handler."""


class Endpoint:
    """Runs a handler as an ASGI application.

    Args:
        handler: What answers.
        max_body_bytes: Limit of a request's body.
        compress_from: Length from which a reply is compressed for clients that take it; None never does.
    """

    def __init__(self, handler: Handler, max_body_bytes: int, compress_from: int | None) -> None:
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._compress_from = compress_from

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = HttpRequest(scope, receive, self._max_body_bytes)
        if SHORT_WAY not in scope:
            await _send(await self._answer(request), scope, send)
            return
        watch = _DisconnectWatch(request, receive)
        try:
            reply = await self._answer(request)
            if isinstance(reply, Streamed):
                await _stream(reply, scope, send)
                return
        except asyncio.CancelledError:
            if not watch.is_disconnected:
                raise
            return
        finally:
            watch.stop()
        await _send(reply, scope, send)

    async def _answer(self, request: HttpRequest) -> Encoded | Streamed:
        try:
            reply = await self._handler(request)
            if self._compress_from is None or isinstance(reply, Streamed) or reply.status != 200:
                return reply
            accept = request.headers.get(b"accept-encoding", b"")
            if len(reply.body) < self._compress_from and b"=0" not in accept:  # where nothing is refused
                return reply
            return await compress_reply(reply, accept, self._compress_from)
        except Exception as exc:  # noqa: BLE001  # the edge: everything becomes a reply
            return error_reply(exc, request.scope)


class _DisconnectWatch:
    """Cancels the current task when its client goes away.

    Most requests are answered before anybody would notice, so watching begins late and costs them a timer only.
    """

    def __init__(self, request: HttpRequest, receive: Receive) -> None:
        self.is_disconnected = False
        self._request = request
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._owner = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(_WATCH_AFTER_S, self._begin)

    def _begin(self) -> None:
        if self._request.is_read:
            self._task = self._loop.create_task(self._watch())
        else:  # the handler itself still receives
            self._timer = self._loop.call_later(_WATCH_AFTER_S, self._begin)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_disconnected = True
        if self._owner is not None:
            self._owner.cancel()

    def stop(self) -> None:
        """The request is answered."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


def error_reply(exc: Exception, scope: Scope) -> Encoded:
    """The reply to whatever a handler raised; faults of our own are logged here, once."""
    error = as_modelyard_error(exc)
    if isinstance(error, InternalError):
        ident = scope.get(SHORT_WAY) or dict(scope["headers"]).get(b"x-request-id", b"")
        logger.error("request %s to %s failed", ident.decode("latin-1"), scope["path"], exc_info=exc)
    if scope["path"].startswith("/platform/"):
        return _admin_error(error)
    if is_openai_path(scope["path"]):
        reply = encode_openai(error)
    else:
        reply = encode_mlflow(error) if scope["path"].startswith("/mlflow/") else encode_http(error)
    return replace(reply, headers=(*reply.headers, _ACCEPTED)) if error.http_status == 415 else reply


def _admin_error(error: ModelyardError) -> Encoded:
    document: dict[str, Any] = {"error": str(error), "code": error.code}
    problems = getattr(error, "problems", None)
    if problems is not None:
        document["problems"] = list(problems)
    plain = encode_http(error)
    extra = tuple(pair for pair in plain.headers if pair[0] == b"retry-after")
    return encode_json(document, error.http_status, extra)


class _TrailingSlash:
    """Accepts ``/v2/models/`` where ``/v2/models`` is the route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path = scope.get("path", "")
        if scope["type"] == "http" and len(path) > 1 and path.endswith("/"):
            scope["path"] = path.rstrip("/") or "/"
        await self._app(scope, receive, send)


def make_app(
    routes: Iterable[RouteEntry], max_body_bytes: int, lifespan: Lifespan[Any], compress_from: int | None = None
) -> ASGIApp:
    """The whole HTTP surface.

    Args:
        routes: Method, path and handler of each route; of two paths that fit, the earlier wins.
        max_body_bytes: Limit of every request body.
        lifespan: Runs around the application's life.
        compress_from: Length from which replies are compressed for clients that take it; None never does.
    """
    by_path: dict[str, dict[str, Handler]] = {}
    # Routes are tried one after another; inference, which is all POST, first.
    for method, path, handler in sorted(routes, key=lambda route: route[0] != "POST"):
        by_path.setdefault(path, {})[method] = handler
    table = [
        Route(path, _ByMethod(handlers, max_body_bytes, compress_from if _is_compressed(path) else None))
        for path, handlers in by_path.items()
    ]
    # The bare router: endpoints answer their own errors, so Starlette's middleware would only cost time.
    router = Router(table, redirect_slashes=False, default=_not_found, lifespan=lifespan)
    return _TrailingSlash(router)


def _is_compressed(path: str) -> bool:
    """Triton's aio client always says that it takes gzip, but undoes it in the answers to inference only.

    Source: tritonclient ``http/aio/__init__.py``, ``get_model_metadata``.
    """
    return not path.startswith("/v2") or path.endswith(("/infer", "/generate"))


class _ByMethod:
    """One path: the endpoint of each method, 405 for the others."""

    def __init__(self, handlers: dict[str, Handler], max_body_bytes: int, compress_from: int | None) -> None:
        self._endpoints = {
            method: Endpoint(handler, max_body_bytes, compress_from) for method, handler in handlers.items()
        }
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]
        self._allow = ", ".join(sorted(self._endpoints))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            error = MethodNotAllowed(f"{scope['method']} {scope['path']}: expected {self._allow}")
            reply = error_reply(error, scope)
            allow = (b"allow", self._allow.encode())
            await _send(Encoded(reply.status, reply.body, (*reply.headers, allow)), scope, send)
            return
        await endpoint(scope, receive, send)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The router's answer where no route fits."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1000, "reason": "no such path"})
        return
    error = RouteNotFound(f"{scope['method']} {scope['path']}: no such path")
    await _send(error_reply(error, scope), scope, send)


async def _send(reply: Encoded | Streamed, scope: Scope, send: Send) -> None:
    if isinstance(reply, Streamed):
        await _stream(reply, scope, send)
        return
    await send_whole(_start(reply, scope), b"" if scope["method"] == "HEAD" else reply.body, send)


async def _stream(reply: Streamed, scope: Scope, send: Send) -> None:
    """Each chunk leaves as it comes; whatever happens on the way, the source is told to stop."""
    idle = _Idle(reply, send)
    async with contextlib.aclosing(reply.chunks) as chunks:
        await send(_start(reply, scope))
        try:
            idle.start()
            async for chunk in chunks:
                idle.heard()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            await idle.stop()
        await send({"type": "http.response.body", "body": b""})


class _Idle:
    """Says something where a stream is silent for long, so that nobody on the way takes it for dead.

    Costs a chunk nothing but the time of day.
    """

    def __init__(self, reply: Streamed, send: Send) -> None:
        self._reply = reply
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._heard_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.heard()
        if self._reply.idle_s > 0:
            self._task = self._loop.create_task(self._watch())

    def heard(self) -> None:
        self._heard_s = self._loop.time()

    async def _watch(self) -> None:
        while True:
            left_s = self._heard_s + self._reply.idle_s - self._loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            self.heard()
            await self._send({"type": "http.response.body", "body": self._reply.idle_chunk, "more_body": True})

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _start(reply: Encoded | Streamed, scope: Scope) -> Message:
    headers = list(reply.headers)
    ident = scope.get(SHORT_WAY)
    if ident is not None:
        headers.append((b"x-request-id", ident))
    return {"type": "http.response.start", "status": reply.status, "headers": headers}
