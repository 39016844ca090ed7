# SPDX-License-Identifier: Apache-2.0
"""Triton's extensions of the Open Inference Protocol: configuration, statistics, generate; and those we do not have.

"One request": between the HTTP edge and the data plane; the gRPC edge shares what is not about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Final

from modelyard.dataplane import DataPlane
from modelyard.errors import InternalError, InvalidRequest, ModelNotReady, Unsupported
from modelyard.inference import InferenceResponse
from modelyard.protocol.errors import as_modelyard_error
from modelyard.protocol.generate import (
    EVENT_HEADERS,
    decode_generate,
    encode_error_event,
    encode_event,
    encode_generate,
)
from modelyard.protocol.http import Encoded, Streamed, encode_json
from modelyard.protocol.triton import to_config, to_statistics
from modelyard.routing import RevisionRoute
from modelyard.serve.http import Handler, HttpRequest, RouteEntry
from modelyard.statistics import Statistics

logger = logging.getLogger(__name__)

_ASKED_AT_ONCE: Final = 32
_STREAM: Final = "stream"
"""A parameter of language models. Source: Triton's vLLM backend, "Sending your first inference"."""
SHARED_MEMORY: Final = "shared memory is not supported: send tensors in the request"
TRACE: Final = "trace settings are not supported here"
LOGGING: Final = "log settings cannot be changed at run time"


def describe_config(plane: DataPlane, model: str, version: str) -> dict[str, Any]:
    """The configuration of one model, in Triton's shape.

    Raises:
        ModelNotFound: Unknown model or version.
        ModelNotReady: Its signature is not known now.
    """
    route, signature = plane.get_ready(model, version)
    return to_config(
        route.model,
        route.framework,
        signature,
        route.max_batch_size,
        route.batch_wait_timeout_s,
        route.replicas,
        route.num_gpus > 0,
    )


async def count_models(plane: DataPlane, model: str = "", version: str = "") -> dict[str, Any]:
    """The statistics of one model, or of all that are ready; in Triton's shape.

    Raises:
        ModelNotFound: Unknown model or version.
        ModelNotReady: It cannot be asked now.
    """
    if model:
        route, _ = plane.get_ready(model, version)
        return to_statistics([(route.model, route.version, await plane.statistics(route))])
    routes = [route for entry in plane.table.models.values() for route in entry.revisions.values() if route.is_ready]
    room = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def count(route: RevisionRoute) -> Statistics | None:
        async with room:
            with contextlib.suppress(ModelNotReady):  # it went away meanwhile
                return await plane.statistics(route)
        return None

    found = await asyncio.gather(*map(count, routes))
    return to_statistics(
        (route.model, route.version, counts) for route, counts in zip(routes, found, strict=True) if counts is not None
    )


class ExtensionHandlers:
    """``/config``, ``/stats``, ``/generate``, ``/generate_stream``, and 501 for shared memory, trace and log settings.

    Args:
        plane: What answers.
    """

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        model = "/v2/models/{model}"
        routes: list[RouteEntry] = [("GET", "/v2/models/stats", self.all_statistics)]
        for path in (model, f"{model}/versions/{{version}}"):
            routes += [
                ("POST", f"{path}/generate", self.generate),
                ("POST", f"{path}/generate_stream", self.generate_stream),
                ("GET", f"{path}/config", self.config),
                ("GET", f"{path}/stats", self.statistics),
            ]
        return [*routes, *_unsupported_routes()]

    async def config(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]/config``."""
        return encode_json(describe_config(self._plane, request.path("model"), request.path("version")))

    async def statistics(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/{model}[/versions/{version}]/stats``."""
        return encode_json(await count_models(self._plane, request.path("model"), request.path("version")))

    async def all_statistics(self, request: HttpRequest) -> Encoded:
        """``GET /v2/models/stats``."""
        return encode_json(await count_models(self._plane))

    async def generate(self, request: HttpRequest) -> Encoded:
        """``POST /v2/models/{model}[/versions/{version}]/generate``: exactly one answer."""
        answers, ident = await self._open(request, is_stream=False)
        async with contextlib.aclosing(answers):
            first = await anext(answers, None)
            if first is None or await anext(answers, None) is not None:
                got = "none" if first is None else "more"
                raise InvalidRequest(
                    f'model "{request.path("model")}": expected one answer, got {got}: use generate_stream'
                )
        return encode_generate(first, ident)

    async def generate_stream(self, request: HttpRequest) -> Encoded | Streamed:
        """``POST /v2/models/{model}[/versions/{version}]/generate_stream``: each answer as an event when it comes.

        What goes wrong before the first answer is an ordinary error; afterwards it is the last event.
        """
        answers, ident = await self._open(request, is_stream=True)
        try:
            first = await anext(answers, None)
        except BaseException:
            await answers.aclose()
            raise
        return Streamed(200, _events(first, answers, ident, request), EVENT_HEADERS)

    async def _open(self, request: HttpRequest, is_stream: bool) -> tuple[AsyncGenerator[InferenceResponse], str]:
        """The answers to come, and the client's id. A language model is told whether its words are wanted singly."""
        route, signature = self._plane.choose(request.path("model"), request.path("version"), request)
        decoded = decode_generate(await request.body(), signature)
        if route.openai_routes and signature.decoupled and _STREAM not in decoded.parameters:
            decoded = replace(decoded, parameters={**decoded.parameters, _STREAM: is_stream})
        return self._plane.stream(route, signature, decoded, request.timeout_s()), decoded.id


async def _events(
    first: InferenceResponse | None,
    answers: AsyncGenerator[InferenceResponse],
    ident: str,
    request: HttpRequest,
) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(answers):
        try:
            if first is not None:
                yield encode_event(first, ident)
            async for answer in answers:
                yield encode_event(answer, ident)
        except Exception as exc:  # the edge: the reply has begun, so its last event says it
            error = as_modelyard_error(exc)
            if isinstance(error, InternalError):
                logger.exception("stream from %s failed", request.scope["path"])
            yield encode_error_event(error)


def _unsupported_routes() -> list[RouteEntry]:
    """Known paths of Triton's that answer 501 with the reason, so that nobody takes them for a typing error."""
    routes: list[RouteEntry] = []
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        handler = _refuse(SHARED_MEMORY)
        for region in ("", "/region/{region}"):
            path = f"/v2/{kind}{region}"
            routes += [("GET", f"{path}/status", handler), ("POST", f"{path}/unregister", handler)]
        routes.append(("POST", f"/v2/{kind}/region/{{region}}/register", handler))
    for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
        routes += [("GET", path, _refuse(TRACE)), ("POST", path, _refuse(TRACE))]
    return [*routes, ("GET", "/v2/logging", _refuse(LOGGING)), ("POST", "/v2/logging", _refuse(LOGGING))]


def _refuse(reason: str) -> Handler:
    async def refuse(request: HttpRequest) -> Encoded:
        raise Unsupported(reason)

    return refuse
