# SPDX-License-Identifier: Apache-2.0
"""Other models for the test of one that calls them: no platform, no Ray.

::

    with FakePeers({"embedder": lambda inputs: {"vector": np.ones((len(inputs["text"]), 3))}}):
        assert Churn().predict({"text": texts}, ("score",), {})
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, cast

import numpy as np

from modelyard.errors import DeadlineExceeded, InvalidRequest, ModelFailed, ModelNotReady, ModelyardError
from modelyard.model import Model
from modelyard.openai import OpenAIMember, OpenAIModel
from modelyard.peers import NEVER_NS, Nobody, PeerRequest, Peers, set_origin, set_peers
from modelyard.signature import Signature
from modelyard.tensor import Tensors, to_protocol_array

_T = TypeVar("_T")
_LOOK_S = 0.01

Answering: TypeAlias = Callable[[Tensors], Mapping[str, Any]]
"""A function in a model's place: from inputs to outputs."""


class FakePeers(Peers):
    """Models in this process; inside of ``with`` they are what ``Model.call`` finds.

    Attributes:
        requests: What was asked for, in order.

    Args:
        models: A model, or a function from inputs to outputs, by name.
    """

    def __init__(self, models: Mapping[str, Model | Answering]) -> None:
        self.models = dict(models)
        self.requests: list[PeerRequest] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="peers", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        set_peers(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        set_peers(None)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def find_signature(self, model: str, version: str = "") -> Signature | None:
        """A model's own; functions have none."""
        found = self.models.get(model)
        return found.signature if isinstance(found, Model) else None

    async def until_ready(self, model: str, version: str, timeout_s: float) -> Signature:
        """See :class:`~modelyard.peers.Peers`."""
        signature = self.find_signature(model, version)
        if signature is None:
            raise ModelNotReady(model, "the platform has no model of that name")
        return signature

    async def until_gone(self, model: str) -> None:
        """Returns once it is taken out of ``models``."""
        while model in self.models:  # noqa: ASYNC110  # a dictionary, which tells nobody
            await asyncio.sleep(_LOOK_S)

    async def call(self, request: PeerRequest) -> Tensors:
        """See :class:`~modelyard.peers.Peers`."""
        limit_s = self._enter(request)
        try:
            return await asyncio.wait_for(asyncio.create_task(self._answer(request)), limit_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(limit_s or 0.0) from exc

    async def stream(self, request: PeerRequest) -> AsyncGenerator[Tensors]:
        """See :class:`~modelyard.peers.Peers`."""
        self._enter(request)
        model = self._get(request)
        if request.is_openai:
            if not isinstance(model, OpenAIModel):
                raise ValueError(f'call of the model "{request.model}": it is no OpenAIModel')
            model = OpenAIMember(model)
        if not isinstance(model, Model) or not model.signature.decoupled:
            yield await asyncio.create_task(self._answer(request))
            return
        source = model.stream(*_to_arguments(model.signature, request))
        if isinstance(source, AsyncIterator):
            async for answer in source:
                yield answer
        else:
            for answer in await asyncio.to_thread(list, source):
                yield answer

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """See :class:`~modelyard.peers.Peers`."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _enter(self, request: PeerRequest) -> float | None:
        """Remembers the request; how long it may take."""
        self.requests.append(request)
        origin = request.origin
        if request.model in origin.via:
            raise ModelFailed(request.model, f"the models call one another in a circle: {origin.via}")
        limits = [] if request.timeout_s is None else [request.timeout_s]
        if origin.deadline_ns != NEVER_NS:
            limits.append(max(0.0, (origin.deadline_ns - monotonic_ns()) / 1e9))
        return min(limits, default=None)

    def _get(self, request: PeerRequest) -> Model | Answering:
        model = self.models.get(request.model)
        if model is None:
            raise ModelNotReady(request.model, "the platform has no model of that name")
        return model

    async def _answer(self, request: PeerRequest) -> Tensors:
        origin = request.origin
        set_origin(Nobody(origin.deadline_ns, (*origin.via, request.model), priority=origin.priority))
        model = self._get(request)
        if not isinstance(model, Model):
            outputs = model(request.inputs)
            return {name: to_protocol_array(np.asarray(value)) for name, value in outputs.items()}
        arguments = _to_arguments(model.signature, request)
        try:
            if inspect.iscoroutinefunction(model.predict):
                answers = cast(Tensors, await model.predict(*arguments))
            else:
                answers = cast(Tensors, await asyncio.to_thread(model.predict, *arguments))
        except (ModelyardError, asyncio.CancelledError):
            raise
        except Exception as exc:
            # As a replica does: whatever the model raises is its failure.
            raise ModelFailed(request.model, f"{type(exc).__name__}: {exc}") from exc
        return {name: to_protocol_array(answers[name]) for name in arguments[1]}


def _to_arguments(signature: Signature, request: PeerRequest) -> tuple[Tensors, tuple[str, ...], Mapping[str, Any]]:
    try:
        signature.check_outputs(request.outputs)
        inputs = signature.bind(request.inputs)
    except InvalidRequest as exc:  # the model's mistake, not its client's
        raise ValueError(f'call of the model "{request.model}": {exc}') from exc
    return inputs, request.outputs or tuple(spec.name for spec in signature.outputs), request.parameters
