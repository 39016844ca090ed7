# SPDX-License-Identifier: Apache-2.0
"""How a model's replica calls other models: as an ingress replica does, over lanes and by the same route tables.

"One request": behind ``Model.call``. Nothing of it exists until a model first asks for another one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from time import monotonic_ns
from typing import Any, Final, TypeVar

import orjson
from ray import serve
from ray.serve.handle import DeploymentHandle

from modelyard import openai
from modelyard.admin import ModelState
from modelyard.dataplane import DataPlane
from modelyard.errors import InvalidRequest, ModelFailed, ModelNotFound, ModelNotReady
from modelyard.inference import InferenceRequest, RequestedOutput
from modelyard.outcomes import Outcomes
from modelyard.peers import NEVER_NS, Nobody, PeerRequest, Peers
from modelyard.protocol.openai import to_affinity
from modelyard.routing import RevisionRoute, RouteTable
from modelyard.serve.callers import Callers, Following, Report, Watch
from modelyard.serve.handle import CONTROLLER_NAME
from modelyard.serve.residents import Resident
from modelyard.signature import Signature
from modelyard.tensor import Tensors

_T = TypeVar("_T")
_NS: Final = 1_000_000_000
_FIRST_TABLE_S: Final = 30.0
_LOADING_S: Final = 120.0
"""How long a model that loads waits for one that it calls meanwhile, unless it says so itself."""
_UNKNOWN_S: Final = 10.0
"""How long a model or version that nobody has heard of is waited for: it may be about to be registered."""


class ReplicaPeers(Peers):
    """The other models, for the one in this process.

    Args:
        application: The Serve application of the model that calls.
        watch: The way to the controller.
        loop: Where its models' answers are made; the calls are made there too.
        make_callers: Makes the transport.
        report: The way to the controller for what it is told.
    """

    def __init__(
        self,
        application: str,
        watch: Watch,
        loop: asyncio.AbstractEventLoop,
        make_callers: Callable[[], Callers] = Callers,
        report: Report | None = None,
    ) -> None:
        self._application = application
        self._model = application.rpartition("@")[0]
        self._watch = watch
        self._loop = loop
        self._make_callers = make_callers
        self._report = report
        self._plane: DataPlane | None = None
        self._following: Following | None = None

    def find_signature(self, model: str, version: str = "") -> Signature | None:
        """See :class:`~modelyard.peers.Peers`; None until something else was asked for."""
        if self._plane is None:
            return None
        with contextlib.suppress(ModelNotFound, ModelNotReady):
            return self._plane.table.get_ready(model, version)[1]
        return None

    async def call(self, request: PeerRequest) -> Tensors:
        """See :class:`~modelyard.peers.Peers`."""
        return await self._here(self._call(request))

    async def _call(self, request: PeerRequest) -> Tensors:
        plane, revision, signature = await self._find(request)
        if signature.decoupled:
            raise ValueError(f'model "{request.model}" answers with a stream: use call_stream')
        checked = self._to_inference(request, signature)
        response = await plane.infer(revision, signature, checked, _timeout_s(request))
        return response.outputs

    async def stream(self, request: PeerRequest) -> AsyncGenerator[Tensors]:
        """See :class:`~modelyard.peers.Peers`."""
        answers, turn = self._stream(request), asyncio.Lock()
        try:
            while (answer := await self._here(_next(answers, turn))) is not None:
                yield answer
        finally:
            await self._here(_close(answers, turn))

    async def _here(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What the coroutine returns, on the loop of the calls; the one that asks may be a loop of the model's own."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _stream(self, request: PeerRequest) -> AsyncGenerator[Tensors]:
        plane, revision, signature = await self._find(request)
        checked = self._to_inference(request, signature)
        async with contextlib.aclosing(plane.stream(revision, signature, checked, _timeout_s(request))) as answers:
            async for answer in answers:
                yield answer.outputs

    async def until_ready(self, model: str, version: str, timeout_s: float) -> Signature:
        """See :class:`~modelyard.peers.Peers`."""
        if model == self._model and not version:
            raise ModelNotReady(model, "it would have to be there before itself")
        plane = await self._get_plane()
        until = self._loop.time() + timeout_s
        with contextlib.suppress(TimeoutError):
            known = plane.until(lambda table: _find_revision(table, model, version))
            await asyncio.wait_for(known, min(timeout_s, _UNKNOWN_S))
            settled = plane.until(lambda table: _find_settled(table, model, version))
            await asyncio.wait_for(settled, until - self._loop.time())
        return _choose(plane, model, version)[1]

    async def until_gone(self, model: str) -> None:
        """See :class:`~modelyard.peers.Peers`."""
        await self._here(self._until_gone(model))

    async def _until_gone(self, model: str) -> None:
        plane = await self._get_plane()
        await plane.until(lambda table: None if _is_ready(table, model) else model)

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """See :class:`~modelyard.peers.Peers`."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def is_used(self) -> bool:
        """See :class:`~modelyard.peers.Peers`."""
        return self._plane is not None

    def may_wait(self) -> bool:
        """Whether this thread does not run the loop of the calls.

        Serve may load a model on its own loop, which stands still meanwhile in any case.
        """
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return True

    async def close(self) -> None:
        """Follows the controller no longer."""
        if self._following is not None:
            await self._following.stop()

    async def _get_plane(self, timeout_s: float | None = None) -> DataPlane:
        """With a route table; it begins to follow the controller when it is first asked for."""
        if self._plane is None:
            callers = self._make_callers()
            self._plane = DataPlane(callers)
            self._following = Following(self._plane, callers, self._watch, self._report)
            self._following.start()
        if not self._plane.table.version:
            try:
                limit_s = _FIRST_TABLE_S if timeout_s is None else min(timeout_s, _FIRST_TABLE_S)
                await asyncio.wait_for(self._plane.until(lambda table: table.version or None), limit_s)
            except TimeoutError as exc:
                raise ModelNotReady(self._model, "the platform's controller does not say where others are") from exc
        return self._plane

    async def _find(self, request: PeerRequest) -> tuple[DataPlane, RevisionRoute, Signature]:
        plane = await self._get_plane(_timeout_s(request))
        if isinstance(request.origin, Nobody):  # it loads, maybe beside the other, and has nobody who could try again
            limit_s = _LOADING_S if request.timeout_s is None else request.timeout_s
            await self.until_ready(request.model, request.version, limit_s)
        revision, signature = _choose(plane, request.model, request.version)
        via = (*request.origin.via, self._application)
        if revision.application in via:
            circle = " → ".join((*via, revision.application))
            raise ModelFailed(self._model, f"the models call one another in a circle: {circle}")
        if not request.is_openai:
            return plane, revision, signature
        route = openai.request_from_tensors(request.inputs).route
        if route not in revision.openai_routes:
            raise ValueError(f'call of the model "{request.model}": it does not answer {route}')
        return plane, revision.for_member(openai.MEMBER), openai.SIGNATURE

    def _to_inference(self, request: PeerRequest, signature: Signature) -> InferenceRequest:
        try:
            signature.check_outputs(request.outputs)
            inputs = signature.bind(request.inputs)
        except InvalidRequest as exc:  # the model's mistake, not its client's
            raise ValueError(f'call of the model "{request.model}": {exc}') from exc
        priority = {"priority": request.origin.priority} if request.origin.priority else {}
        return InferenceRequest(
            inputs,
            outputs=tuple(RequestedOutput(name) for name in request.outputs),
            parameters={**priority, **request.parameters},
            affinity=_affinity(request),
            via=(*request.origin.via, self._application),
        )


def _find_revision(table: RouteTable, model: str, version: str) -> RevisionRoute | None:
    with contextlib.suppress(ModelNotFound):
        return table.get_revision(model, version)
    return None


def _is_ready(table: RouteTable, model: str) -> bool:
    revision = _find_revision(table, model, "")
    return revision is not None and revision.is_ready


def _find_settled(table: RouteTable, model: str, version: str) -> RevisionRoute | None:
    """The revision once it can answer, or has definitely failed."""
    revision = _find_revision(table, model, version)
    return revision if revision is not None and (revision.is_ready or revision.state == ModelState.FAILED) else None


class ControllerLink:
    """The way to the controller of a platform; its handle is made when it is first needed.

    Args:
        platform: The platform's application.
    """

    def __init__(self, platform: str) -> None:
        self._platform = platform
        self._handle: DeploymentHandle[Any] | None = None

    def _get(self) -> DeploymentHandle[Any]:
        if self._handle is None:
            self._handle = serve.get_deployment_handle(CONTROLLER_NAME, app_name=self._platform)
        return self._handle

    async def watch(self, epoch: str, version: int) -> tuple[RouteTable, bool]:
        """See ``Controller.watch``."""
        news: tuple[RouteTable, bool] = await self._get().watch.remote(epoch, version)
        return news

    async def residents(
        self, known: Mapping[str, str], failed: Mapping[str, str] | None = None
    ) -> Mapping[str, Resident | None]:
        """See ``Controller.residents``."""
        news: Mapping[str, Resident | None] = await self._get().residents.remote(dict(known), dict(failed or {}))
        return news

    async def report(self, counts: Mapping[str, Outcomes]) -> None:
        """See ``Controller.report``."""
        await self._get().report.remote(counts)


def _affinity(request: PeerRequest) -> int:
    """As the ingress has it for such a call."""
    if not request.is_openai:
        return 0
    call = openai.request_from_tensors(request.inputs)
    document = orjson.loads(call.body) if call.content_type == openai.JSON else {}
    return to_affinity(document) if isinstance(document, dict) else 0


def _choose(plane: DataPlane, model: str, version: str) -> tuple[RevisionRoute, Signature]:
    """As ``DataPlane.choose``; that a model is not there is no mistake of the client of the one that calls it."""
    try:
        return plane.choose(model, version)
    except ModelNotFound as exc:
        reason = f'it has no version "{version}"' if exc.version else "the platform has no model of that name"
        raise ModelNotReady(model, reason) from exc


def _timeout_s(request: PeerRequest) -> float | None:
    """The smaller of what the caller says and what its own requests have left."""
    if request.origin.deadline_ns == NEVER_NS:
        return request.timeout_s
    left_s = max(0.0, (request.origin.deadline_ns - monotonic_ns()) / _NS)
    return left_s if request.timeout_s is None else min(left_s, request.timeout_s)


async def _next(answers: AsyncGenerator[Tensors], turn: asyncio.Lock) -> Tensors | None:
    async with turn:
        return await anext(answers, None)


async def _close(answers: AsyncGenerator[Tensors], turn: asyncio.Lock) -> None:
    async with turn:  # what was cancelled on another loop may not have ended on this one
        await answers.aclose()
