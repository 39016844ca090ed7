# SPDX-License-Identifier: Apache-2.0
"""The routes that tell what was and is: the revisions of a model, pools, and events, also as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from modelyard.admin import AdminTransport, Event
from modelyard.errors import ModelyardError
from modelyard.protocol.generate import EVENT_HEADERS
from modelyard.protocol.http import Encoded, Streamed, dump_json, encode_json
from modelyard.protocol.openai import KEEP_ALIVE
from modelyard.serve.changes import MAX_ID, find_flag, find_number, to_number
from modelyard.serve.http import HttpRequest, RouteEntry

_LIMIT: Final = 100
_MAX_LIMIT: Final = 1000
_PAUSE_S: Final = 0.2
"""Between two questions without an answer, for a controller that is away says so at once."""


class HistoryHandlers:
    """``/platform/v1/events`` and ``…/pools`` and, for one model, ``…/revisions`` and ``…/events``.

    Args:
        transport: The way to the controller.
        keep_alive_s: How long a stream may be silent, in seconds; then a comment keeps it open.
    """

    def __init__(self, transport: AdminTransport, keep_alive_s: float) -> None:
        self._transport = transport
        self._keep_alive_s = keep_alive_s

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/platform/v1/models/{model}"
        return [
            ("GET", f"{model}/revisions", self.revisions),
            ("GET", f"{model}/events", self.events),
            ("GET", "/platform/v1/events", self.events),
            ("GET", "/platform/v1/pools", self.pools),
        ]

    async def revisions(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models/{model}/revisions``, newest first."""
        found = await self._transport.revisions(request.path("model"))
        return encode_json({"revisions": [revision.to_dict() for revision in found]})

    async def pools(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/pools``."""
        return encode_json({"pools": [pool.to_dict() for pool in await self._transport.pools()]})

    async def events(self, request: HttpRequest) -> Encoded | Streamed:
        """``GET /platform/v1[/models/{model}]/events?after=…&limit=…``.

        The latest, newest first; with ``after`` those after one, oldest first. With ``watch=true`` they are sent as
        they come, until the client goes away; a stream that begins anew after ``Last-Event-ID`` leaves none out.
        """
        name = request.path("model") or None
        after, limit = find_number(request, "after", 0, MAX_ID), find_number(request, "limit", 1, _MAX_LIMIT)
        if _is_watching(request):
            await request.raw_body()  # the edge looks for clients that go away when all of the request has come
            begin = await self._find_begin(request, name, after)
            return Streamed(200, self._follow(name, begin), EVENT_HEADERS, KEEP_ALIVE, self._keep_alive_s)
        found = await self._transport.events(name, after=after, limit=limit or _LIMIT)
        return encode_json({"events": [event.to_dict() for event in found]})

    async def _find_begin(self, request: HttpRequest, name: str | None, after: int | None) -> int:
        """The event after which a stream begins: where the last one ended, where the client says, or now."""
        last = request.header("last-event-id")
        if last:
            return to_number(last, "header last-event-id", 0, MAX_ID)
        if after is not None:
            return after
        latest = await self._transport.events(name, after=None, limit=1)
        return latest[0].id if latest else 0

    async def _follow(self, name: str | None, after: int) -> AsyncGenerator[bytes]:
        while True:
            try:
                found = await self._transport.events(name, after=after, limit=_LIMIT)
            except ModelyardError:  # the controller is away just now, and loses nothing by it
                found = ()
            for event in found:
                yield _encode_event(event)
                after = event.id
            if not found:
                await asyncio.sleep(_PAUSE_S)


def _is_watching(request: HttpRequest) -> bool:
    if request.scope["method"] == "HEAD":
        return False
    return find_flag(request, "watch") or "text/event-stream" in request.header("accept")


def _encode_event(event: Event) -> bytes:
    """Source: HTML standard, "Server-sent events"."""
    return b"event: %b\nid: %d\ndata: %b\n\n" % (event.kind.encode(), event.id, dump_json(event.to_dict()))
