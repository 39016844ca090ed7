# SPDX-License-Identifier: Apache-2.0
"""Routes that also take CloudEvents.

"One request": between the HTTP edge and a protocol's handler, which sees the event's data as its body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from typing import Final

from modelyard.protocol.events import Event, ReplyAttributes, decode_event, encode_event, is_event
from modelyard.protocol.http import Encoded, Streamed
from modelyard.serve.http import Handler, HttpRequest, RouteEntry

DEFAULT_TYPE: Final = "io.kserve.inference.response"
"""Source: KServe ``constants``, ``CE_TYPE`` and ``CE_SOURCE``."""
DEFAULT_SOURCE: Final = "io.kserve.inference."
_TAKEN: Final = (":predict", ":explain", "/infer")


class CloudEvents:
    """Wraps the handlers of inference; requests that are no events go past it.

    Args:
        response_type: The ``type`` of replies.
        response_source: The ``source`` of replies; None is KServe's, which ends in the model's name.
        merge_attributes: Replies take over what they do not set themselves.
    """

    def __init__(
        self, response_type: str = DEFAULT_TYPE, response_source: str | None = None, merge_attributes: bool = False
    ) -> None:
        self._type = response_type
        self._source = response_source
        self._merge = merge_attributes

    def wrap(self, routes: Iterable[RouteEntry]) -> list[RouteEntry]:
        """The routes; those of inference then take their body also inside of an event and answer with one."""
        return [
            (method, path, self._wrap(handler) if method == "POST" and path.endswith(_TAKEN) else handler)
            for method, path, handler in routes
        ]

    def _wrap(self, handler: Handler) -> Handler:
        def handle(request: HttpRequest) -> Awaitable[Encoded | Streamed]:
            return self._handle(request, handler) if is_event(request.headers) else handler(request)

        return handle

    async def _handle(self, request: HttpRequest, handler: Handler) -> Encoded | Streamed:
        event = decode_event(request.headers, await request.body())
        reply = await handler(_EventRequest(request, event))
        if isinstance(reply, Streamed):
            return reply
        model = request.path("model")
        own = ReplyAttributes(self._type, self._source or f"{DEFAULT_SOURCE}{model}", self._merge)
        return encode_event(reply, event, own)


class _EventRequest(HttpRequest):
    """The request as it would have come without the event around it."""

    __slots__ = ("_data",)

    def __init__(self, request: HttpRequest, event: Event) -> None:
        super().__init__(request.scope, request.receive, request.max_body_bytes)
        self._data = event.data
        self.is_read = True
        if event.is_structured:
            self.headers.pop(b"inference-header-content-length", None)

    async def body(self) -> bytes:
        """The event's data."""
        return self._data
