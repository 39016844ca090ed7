# SPDX-License-Identifier: Apache-2.0
"""The routes that move a model's traffic: weights, labels, rollouts."""

from __future__ import annotations

from modelyard.admin import AdminTransport, By, ModelStatus
from modelyard.config import RolloutPlan, TrafficPlan, parse_section
from modelyard.errors import InvalidRequest
from modelyard.protocol.http import Encoded
from modelyard.serve.changes import check_empty, encode_change, find_by, pop_revision, read_change
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
        change, by = await read_change(request)
        if not change:
            raise InvalidRequest("the request body: expected weights or shadow, got neither")
        parse_section(TrafficPlan, change)
        return encode_change(await self._transport.set_traffic(request.path("model"), change, **by), by, is_done=True)

    async def set_label(self, request: HttpRequest) -> Encoded:
        """``PUT …/labels/{label}``: a ``revision``, and an optional ``message``."""
        revision, by = await _read_revision(request)
        if revision is None:
            raise InvalidRequest("revision: expected a revision's number or label, got nothing")
        return await self._label(request, revision, by)

    async def remove_label(self, request: HttpRequest) -> Encoded:
        """``DELETE …/labels/{label}?message=…``."""
        return await self._label(request, None, find_by(request))

    async def _label(self, request: HttpRequest, revision: str | None, by: By) -> Encoded:
        status = await self._transport.set_label(request.path("model"), request.path("label"), revision, **by)
        return encode_change(status, by, is_done=True)

    async def rollout(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout``: ``to``, what differs from the model's own ``rollout``, and an optional ``message``."""
        plan, by = await read_change(request)
        parse_section(RolloutPlan, plan)
        return _encode_rollout(await self._transport.rollout(request.path("model"), plan, **by), by)

    async def promote(self, request: HttpRequest) -> Encoded:
        """``POST …/promote``: an optional ``revision`` and ``message``."""
        revision, by = await _read_revision(request)
        return _encode_rollout(await self._transport.promote(request.path("model"), revision, **by), by)

    async def rollback(self, request: HttpRequest) -> Encoded:
        """``POST …/rollback``, as ``promote``."""
        revision, by = await _read_revision(request)
        return _encode_rollout(await self._transport.rollback(request.path("model"), revision, **by), by)

    async def abort(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/abort``, with an optional ``message``."""
        by = await _read_by(request)
        return encode_change(await self._transport.abort(request.path("model"), **by), by, is_done=True)

    async def pause(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/pause``, with an optional ``message``."""
        by = await _read_by(request)
        return encode_change(await self._transport.pause(request.path("model"), **by), by, is_done=True)

    async def resume(self, request: HttpRequest) -> Encoded:
        """``POST …/rollout/resume``, as ``pause``."""
        by = await _read_by(request)
        return encode_change(await self._transport.resume(request.path("model"), **by), by, is_done=True)


async def _read_revision(request: HttpRequest) -> tuple[str | None, By]:
    """The revision in a body, and who makes the change."""
    document, by = await read_change(request)
    revision = pop_revision(document)
    check_empty(document, "revision and message")
    return revision, by


async def _read_by(request: HttpRequest) -> By:
    """Who makes the change of a body that says nothing else."""
    document, by = await read_change(request)
    check_empty(document, "message")
    return by


def _encode_rollout(status: ModelStatus, by: By) -> Encoded:
    return encode_change(status, by, is_done=status.rollout is None or not status.rollout.is_active)
