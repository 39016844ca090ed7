# SPDX-License-Identifier: Apache-2.0
"""The routes that move a model's traffic: weights, labels, rollouts."""

from __future__ import annotations

from typing import Any

from modelyard.admin import AdminTransport, ModelStatus
from modelyard.config import RolloutPlan, TrafficPlan, parse_section
from modelyard.errors import InvalidRequest
from modelyard.protocol.http import Encoded, encode_json
from modelyard.serve.changes import (
    actor_of,
    check_empty,
    check_query,
    find_message,
    pop_message,
    pop_revision,
    read_document,
)
from modelyard.serve.http import HttpRequest, RouteEntry


class TrafficHandlers:
    """``/platform/v1/models/{model}/…``: ``traffic``, ``labels``, ``rollout``, ``promote``, ``rollback``.

    Args:
        transport: The way to the controller.
    """

    def __init__(self, transport: AdminTransport) -> None:
        self._transport = transport

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/platform/v1/models/{model}"
        return [
            ("PUT", f"{model}/traffic", self.set_traffic),
            ("PUT", f"{model}/labels/{{label}}", self.set_label),
            ("DELETE", f"{model}/labels/{{label}}", self.remove_label),
            ("POST", f"{model}/rollout", self.rollout),
            ("POST", f"{model}/rollout/abort", self.abort),
            ("POST", f"{model}/rollout/pause", self.pause),
            ("POST", f"{model}/rollout/resume", self.resume),
            ("POST", f"{model}/promote", self.promote),
            ("POST", f"{model}/rollback", self.rollback),
        ]

    async def set_traffic(self, request: HttpRequest) -> Encoded:
        """``PUT …/traffic``: ``weights``, ``shadow`` or both, and an optional ``message``."""
        change, message = await _read(request)
        if not change:
            raise InvalidRequest("the request body: expected weights or shadow, got neither")
        parse_section(TrafficPlan, change)
        return _encode(
            await self._transport.set_traffic(request.path("model"), change, actor=actor_of(request), message=message)
        )

    async def set_label(self, request: HttpRequest) -> Encoded:
        """``PUT …/labels/{label}``: a ``revision``, and an optional ``message``."""
        revision, message = await _read_revision(request)
        if revision is None:
            raise InvalidRequest("revision: expected a revision's number or label, got nothing")
        return await self._label(request, revision, message)

    async def remove_label(self, request: HttpRequest) -> Encoded:
        """``DELETE …/labels/{label}?message=…``."""
        return await self._label(request, None, find_message(request))

    async def _label(self, request: HttpRequest, revision: str | None, message: str) -> Encoded:
        name, label = request.path("model"), request.path("label")
        return _encode(await self._transport.set_label(name, label, revision, actor=actor_of(request), message=message))

    async def rollout(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout``: ``to``, what differs from the model's own ``rollout``, and an optional ``message``."""
        plan, message = await _read(request)
        parse_section(RolloutPlan, plan)
        return _encode_rollout(
            await self._transport.rollout(request.path("model"), plan, actor=actor_of(request), message=message)
        )

    async def promote(self, request: HttpRequest) -> Encoded:
        """``POST …/promote``: an optional ``revision`` and ``message``."""
        revision, message = await _read_revision(request)
        return _encode_rollout(
            await self._transport.promote(request.path("model"), revision, actor=actor_of(request), message=message)
        )

    async def rollback(self, request: HttpRequest) -> Encoded:
        """``POST …/rollback``, as ``promote``."""
        revision, message = await _read_revision(request)
        return _encode_rollout(
            await self._transport.rollback(request.path("model"), revision, actor=actor_of(request), message=message)
        )

    async def abort(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/abort``, with an optional ``message``."""
        message = await _read_only_message(request)
        return _encode(await self._transport.abort(request.path("model"), actor=actor_of(request), message=message))

    async def pause(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/pause``, with an optional ``message``."""
        message = await _read_only_message(request)
        return _encode(await self._transport.pause(request.path("model"), actor=actor_of(request), message=message))

    async def resume(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/resume``, as ``pause``."""
        message = await _read_only_message(request)
        return _encode(await self._transport.resume(request.path("model"), actor=actor_of(request), message=message))


async def _read(request: HttpRequest) -> tuple[dict[str, Any], str]:
    """The change in a body, and its reason; the body is empty where nothing has to be said."""
    check_query(request)
    document = await read_document(request, b"{}")
    message = pop_message(document)
    return document, message


async def _read_revision(request: HttpRequest) -> tuple[str | None, str]:
    """The revision in a body, and the reason."""
    document, message = await _read(request)
    revision = pop_revision(document)
    check_empty(document, "revision and message")
    return revision, message


async def _read_only_message(request: HttpRequest) -> str:
    document, message = await _read(request)
    check_empty(document, "message")
    return message


def _encode(status: ModelStatus) -> Encoded:
    return encode_json(status.to_dict())


def _encode_rollout(status: ModelStatus) -> Encoded:
    """200 where nothing is left to do, else 202."""
    return encode_json(status.to_dict(), 202 if status.rollout is not None and status.rollout.is_active else 200)
