# SPDX-License-Identifier: Apache-2.0
"""The verbs that manage models: by Serve handle inside the cluster, and as HTTP routes over the same handle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, TypeVar, Unpack

from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from modelyard.admin import AdminTransport, By, Event, ModelState, ModelStatus, Plan, Pool, Revision
from modelyard.batching import Call, split
from modelyard.dataplane import DataPlane
from modelyard.errors import DeadlineExceeded, InternalError, ModelyardError, Unavailable
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.http import Encoded, encode_json
from modelyard.routing import RevisionRoute
from modelyard.serve.changes import (
    check_query,
    encode_change,
    find_by,
    pop_message,
    read_change,
    read_document,
    to_by,
)
from modelyard.serve.handle import CONTROLLER_NAME, RevisionHandle, count
from modelyard.serve.history import HistoryHandlers
from modelyard.serve.http import HttpRequest, RouteEntry
from modelyard.serve.traffic import TrafficHandlers
from modelyard.statistics import Statistics
from modelyard.tensor import Tensors

PLATFORM_APPLICATION: Final = "platform"
_TIMEOUT_S: Final = 30.0
_READING_TIMEOUT_S: Final = 600.0
"""For verbs that read the whole artifact."""
_WATCHING_TIMEOUT_S: Final = 60.0
"""For events that are waited for: the controller answers sooner, with none where there are none."""
_T = TypeVar("_T")


class HandleTransport:
    """Reaches the controller of the platform in this Ray cluster.

    Args:
        controller: Its handle; looked up by name where left out.
    """

    def __init__(self, controller: DeploymentHandle[Any] | None = None) -> None:
        self._controller = controller or serve.get_deployment_handle(CONTROLLER_NAME, app_name=PLATFORM_APPLICATION)

    async def register(self, spec: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("register", dict(spec), **by, timeout_s=_READING_TIMEOUT_S)

    async def plan(self, spec: Mapping[str, Any], *, expected_generation: int | None = None) -> Plan:
        """See ``AdminTransport``."""
        found: Plan | ModelyardError = await self._ask(
            "plan", dict(spec), expected_generation, timeout_s=_READING_TIMEOUT_S
        )
        return _unwrap(found)

    async def spec(self, name: str) -> dict[str, Any]:
        """See ``AdminTransport``."""
        found: dict[str, Any] | ModelyardError = await self._ask("spec", name)
        return _unwrap(found)

    async def reload(self, specs: Sequence[Mapping[str, Any]], *, actor: str, message: str) -> tuple[ModelStatus, ...]:
        """See ``reload.ReloadTransport``."""
        found: tuple[ModelStatus, ...] | ModelyardError = await self._ask(
            "reload", list(map(dict, specs)), actor, message, timeout_s=_READING_TIMEOUT_S
        )
        return _unwrap(found)

    async def unregister(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("unregister", name, **by)

    async def load(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("load", name, **by, timeout_s=_READING_TIMEOUT_S)

    async def unload(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("unload", name, **by)

    async def set_traffic(self, name: str, change: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("set_traffic", name, dict(change), **by)

    async def set_label(self, name: str, label: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("set_label", name, label, revision, **by)

    async def rollout(self, name: str, plan: Mapping[str, Any], **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("rollout", name, dict(plan), **by)

    async def promote(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("promote", name, revision, **by)

    async def rollback(self, name: str, revision: str | None, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("rollback", name, revision, **by)

    async def abort(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("abort", name, **by)

    async def pause(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("pause", name, **by)

    async def resume(self, name: str, **by: Unpack[By]) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("resume", name, **by)

    async def pools(self) -> tuple[Pool, ...]:
        """See ``AdminTransport``."""
        found: tuple[Pool, ...] = await self._ask("list_pools")
        return found

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        """See ``AdminTransport``."""
        found: tuple[Revision, ...] | ModelyardError = await self._ask("revisions", name)
        return _unwrap(found)

    async def events(self, name: str | None, *, after: int | None, limit: int) -> tuple[Event, ...]:
        """See ``AdminTransport``."""
        found: tuple[Event, ...] | ModelyardError = await self._ask(
            "events", name, after, limit, timeout_s=_TIMEOUT_S if after is None else _WATCHING_TIMEOUT_S
        )
        return _unwrap(found)

    async def list(self) -> tuple[ModelStatus, ...]:
        """See ``AdminTransport``."""
        found: tuple[ModelStatus, ...] | ModelyardError = await self._ask("list_models")
        return _unwrap(found)

    async def status(self, name: str) -> ModelStatus:
        """See ``AdminTransport``."""
        return await self._change("status", name)

    async def infer(
        self, name: str, version: str, request: InferenceRequest, *, timeout_s: float | None
    ) -> InferenceResponse:
        """See ``AdminTransport``: by the handle of the revision's application."""
        table, _ = await self._ask("watch", "", -1)
        plane = DataPlane(_ByHandle())
        plane.table = table
        revision, signature = plane.choose(name, version)
        return await plane.infer(revision, signature, request, timeout_s)

    async def close(self) -> None:
        """Nothing to free: the handle is Serve's."""

    async def _change(self, verb: str, *args: Any, timeout_s: float = _TIMEOUT_S, **by: Any) -> ModelStatus:
        """A verb whose answer is the model's status."""
        found: ModelStatus | ModelyardError = await self._ask(verb, *args, timeout_s=timeout_s, **by)
        return _unwrap(found)

    async def _ask(self, verb: str, *args: Any, timeout_s: float = _TIMEOUT_S, **by: Any) -> Any:
        try:
            return await asyncio.wait_for(getattr(self._controller, verb).remote(*args, **by), timeout_s)
        except RayTaskError as exc:
            if isinstance(exc.cause, ModelyardError):  # with its own sentence, where Ray's has a traceback
                raise exc.cause from exc
            raise InternalError(f"the platform's controller failed: {type(exc.cause).__name__}") from exc
        except TimeoutError as exc:
            raise DeadlineExceeded(timeout_s, "the platform's controller may do it yet") from exc
        except Exception as exc:
            # Serve's many ways to say that the controller is away just now.
            raise Unavailable(f"the platform's controller does not answer: {type(exc).__name__}") from exc


class _ByHandle:
    """Calls replicas through Serve; see ``dataplane.Transport``."""

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        """See ``dataplane.Transport``."""
        try:
            answer = await asyncio.wait_for(RevisionHandle(revision).call(call), timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(timeout_s) from exc
        outputs = split(answer, call.rows)[0]
        if isinstance(outputs, ModelyardError):
            raise outputs
        return outputs

    async def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        """See ``dataplane.Transport``."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with contextlib.aclosing(RevisionHandle(revision).stream(call)) as answers:
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
        return await count(revision, _TIMEOUT_S)


def _unwrap(result: _T | ModelyardError) -> _T:
    if isinstance(result, ModelyardError):
        raise result
    return result


class AdminHandlers:
    """``/platform/v1/…``.

    Args:
        transport: The way to the controller.
        keep_alive_s: How long a stream of events may be silent, in seconds.
    """

    def __init__(self, transport: AdminTransport, keep_alive_s: float = 15.0) -> None:
        self._transport = transport
        self._keep_alive_s = keep_alive_s

    def routes(self) -> list[RouteEntry]:
        """Method, path and handler of each route."""
        models, model = "/platform/v1/models", "/platform/v1/models/{model}"
        return [
            ("GET", models, self.list),
            ("POST", models, self.register),
            ("GET", model, self.status),
            ("DELETE", model, self.unregister),
            ("GET", f"{model}/spec", self.spec),
            ("POST", f"{model}/load", self.load),
            ("POST", f"{model}/unload", self.unload),
            *TrafficHandlers(self._transport).routes(),
            *HistoryHandlers(self._transport, self._keep_alive_s).routes(),
        ]

    async def list(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models``."""
        return encode_json({"models": [status.to_dict() for status in await self._transport.list()]})

    async def register(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models``: a ``ModelSpec`` and an optional ``message``.

        With ``dry_run=true`` the answer is what would be done. ``expected_generation`` or ``If-Match`` say which
        generation of the model the change is for.
        """
        check_query(request)
        document = await read_document(request)
        by = to_by(request, pop_message(document))
        if by.pop("dry_run", False):
            plan = await self._transport.plan(document, expected_generation=by.get("expected_generation"))
            return encode_json(plan.to_dict())
        status = await self._transport.register(document, **by)
        is_new = status.created_at == status.updated_at
        return encode_json(status.to_dict(), 201 if is_new else 200)

    async def status(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models/{model}``."""
        return encode_json((await self._transport.status(request.path("model"))).to_dict())

    async def spec(self, request: HttpRequest) -> Encoded:
        """``GET /platform/v1/models/{model}/spec``: what would register it again."""
        return encode_json(await self._transport.spec(request.path("model")))

    async def unregister(self, request: HttpRequest) -> Encoded:
        """``DELETE /platform/v1/models/{model}?message=…``."""
        by = find_by(request)
        return encode_change(await self._transport.unregister(request.path("model"), **by), by, is_done=False)

    async def load(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models/{model}/load``, with an optional ``message``; 200 when nothing is left to do."""
        _, by = await read_change(request)
        status = await self._transport.load(request.path("model"), **by)
        return encode_change(status, by, is_done=status.state is ModelState.READY)

    async def unload(self, request: HttpRequest) -> Encoded:
        """``POST /platform/v1/models/{model}/unload``, as ``load``."""
        _, by = await read_change(request)
        status = await self._transport.unload(request.path("model"), **by)
        return encode_change(status, by, is_done=status.state is ModelState.UNLOADED)
