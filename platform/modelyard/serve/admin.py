# SPDX-License-Identifier: Apache-2.0
"""The verbs that manage models: by Serve handle inside the cluster, and as HTTP routes over the same handle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

from ray import serve
from ray.serve.handle import DeploymentHandle

from modelyard.admin import AdminTransport, ModelState, ModelStatus
from modelyard.batching import Call, split
from modelyard.dataplane import DataPlane
from modelyard.errors import DeadlineExceeded, InternalError, ModelyardError, TooLarge
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.fields import check_depth, check_object, check_text
from modelyard.protocol.http import Encoded, encode_json, load_json
from modelyard.routing import RevisionRoute
from modelyard.serve.handle import CONTROLLER_NAME, RevisionHandle
from modelyard.serve.http import HttpRequest, RouteEntry
from modelyard.statistics import Statistics
from modelyard.tensor import Tensors

PLATFORM_APPLICATION: Final = "platform"
_MAX_DOCUMENT_BYTES: Final = 1024 * 1024
"""Of a model's description: Serve's own messages end at 4 MiB."""
_MAX_DEPTH: Final = 64
_MAX_MESSAGE_CHARS: Final = 4096
_TIMEOUT_S: Final = 30.0
_READING_TIMEOUT_S: Final = 600.0
"""For verbs that read the whole artifact."""


class HandleTransport:
    """Reaches the controller of the platform in this Ray cluster.

    Args:
        controller: Its handle; looked up by name where left out.
    """

    def __init__(self, controller: DeploymentHandle[Any] | None = None) -> None:
        self._controller = controller or serve.get_deployment_handle(CONTROLLER_NAME, app_name=PLATFORM_APPLICATION)

    async def register(self, spec: Mapping[str, Any], *, actor: str, message: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return _unwrap(await self._ask("register", dict(spec), actor, message, timeout_s=_READING_TIMEOUT_S))

    async def reload(self, specs: Sequence[Mapping[str, Any]], *, actor: str, message: str) -> tuple[ModelStatus, ...]:
        """See ``reload.ReloadTransport``."""
        found = await self._ask("reload", list(map(dict, specs)), actor, message, timeout_s=_READING_TIMEOUT_S)
        if isinstance(found, ModelyardError):
            raise found
        statuses: tuple[ModelStatus, ...] = found
        return statuses

    async def unregister(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return _unwrap(await self._ask("unregister", name, actor, message))

    async def load(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return _unwrap(await self._ask("load", name, actor, message, timeout_s=_READING_TIMEOUT_S))

    async def unload(self, name: str, *, actor: str, message: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return _unwrap(await self._ask("unload", name, actor, message))

    async def list(self) -> tuple[ModelStatus, ...]:
        """See ``AdminTransport``."""
        found: tuple[ModelStatus, ...] = await self._ask("list_models")
        return found

    async def status(self, name: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return _unwrap(await self._ask("status", name))

    async def infer(
        self, name: str, version: str, request: InferenceRequest, *, timeout_s: float | None
    ) -> InferenceResponse:
        """See ``AdminTransport``: by the handle of the revision's application."""
        table, _ = await self._ask("watch", "", -1)
        plane = DataPlane(_ByHandle())
        plane.table = table
        revision, signature = plane.get_ready(name, version)
        return await plane.infer(revision, signature, request, timeout_s)

    async def close(self) -> None:
        """Nothing to free: the handle is Serve's."""

    async def _ask(self, verb: str, *args: Any, timeout_s: float = _TIMEOUT_S) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._controller, verb).remote(*args), timeout_s)
        except Exception as exc:
            # Serve's many ways to say that the controller is away just now.
            raise InternalError(f"the platform's controller does not answer: {type(exc).__name__}") from exc


class _ByHandle:
    """Calls replicas through Serve; see ``dataplane.Transport``."""

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """See ``dataplane.Transport``."""
        try:
            answer = await asyncio.wait_for(RevisionHandle(revision.application).call(call), timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(timeout_s) from exc
        outputs = split(answer, call.rows)[0]
        if isinstance(outputs, ModelyardError):
            raise outputs
        return outputs

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See ``dataplane.Transport``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with contextlib.aclosing(RevisionHandle(revision.application).stream(call)) as answers:
            while True:
                try:
                    left_s = deadline - asyncio.get_running_loop().time()
                    item = await asyncio.wait_for(anext(answers, None), left_s)
                except TimeoutError as exc:
                    raise DeadlineExceeded(timeout_s) from exc
                if item is None:
                    return
                if isinstance(item, ModelyardError):
                    raise item
                yield item

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        """See ``dataplane.Transport``."""
        return await RevisionHandle(revision.application).statistics(revision.member, _TIMEOUT_S)


def _unwrap(result: ModelStatus | ModelyardError) -> ModelStatus:
    if isinstance(result, ModelyardError):
        raise result
    return result


class AdminHandlers:
    """``/platform/v1/models…``.

    Args:
        transport: The way to the controller.
    """

    def __init__(self, transport: AdminTransport) -> None:
        self._transport = transport

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        models, model = "/platform/v1/models", "/platform/v1/models/{model}"
        return [
            ("GET", models, self.list),
            ("POST", models, self.register),
            ("GET", model, self.status),
            ("DELETE", model, self.unregister),
            ("POST", f"{model}/load", self.load),
            ("POST", f"{model}/unload", self.unload),
        ]

    async def list(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models``."""
        return encode_json({"models": [status.to_dict() for status in await self._transport.list()]})

    async def register(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models``: a ``ModelSpec`` and an optional ``message``."""
        document = await _read_document(request)
        message = _pop_message(document)
        status = await self._transport.register(document, actor=actor_of(request), message=message)
        is_new = status.created_at == status.updated_at
        return encode_json(status.to_dict(), 201 if is_new else 200)

    async def status(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models/{model}``."""
        return encode_json((await self._transport.status(request.path("model"))).to_dict())

    async def unregister(self, request: HttpRequest) -> Encoded:
        """``DELETE /platform/v1/models/{model}?message=…``."""
        query = parse_qs(request.scope.get("query_string", b"").decode("latin-1"))
        message = _check_message(query.get("message", [""])[0])
        status = await self._transport.unregister(request.path("model"), actor=actor_of(request), message=message)
        return encode_json(status.to_dict(), 202)

    async def load(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models/{model}/load``, with an optional ``message``; 200 when nothing is left to do."""
        message = await _read_message(request)
        status = await self._transport.load(request.path("model"), actor=actor_of(request), message=message)
        return encode_json(status.to_dict(), 200 if status.state is ModelState.READY else 202)

    async def unload(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models/{model}/unload``, as ``load``."""
        message = await _read_message(request)
        status = await self._transport.unload(request.path("model"), actor=actor_of(request), message=message)
        return encode_json(status.to_dict(), 200 if status.state is ModelState.UNLOADED else 202)


async def _read_message(request: HttpRequest) -> str:
    """The ``message`` of a body that may be empty."""
    return _pop_message(await _read_document(request, b"{}"))


async def _read_document(request: HttpRequest, default: bytes = b"") -> dict[str, Any]:
    """The JSON object in a body, small and flat enough for the way to the controller.

    Args:
        request: The request.
        default: Stands for an empty body.
    """
    body = await request.body()
    if len(body) > _MAX_DOCUMENT_BYTES:
        raise TooLarge("request body", _MAX_DOCUMENT_BYTES, len(body))
    document = check_object(load_json(body if body.strip() else default), "the request body")
    check_depth(document, _MAX_DEPTH, "the request body")
    return document


def _pop_message(document: dict[str, Any]) -> str:
    return _check_message(check_text(document.pop("message", ""), "message"))


def _check_message(message: str) -> str:
    if len(message) > _MAX_MESSAGE_CHARS:
        raise TooLarge("message", _MAX_MESSAGE_CHARS, len(message), "characters")
    return message


def actor_of(request: HttpRequest) -> str:
    """Who asks, as far as known: without authentication, from where."""
    client = request.scope.get("client")
    return f"http:{client[0]}" if client else "http"
