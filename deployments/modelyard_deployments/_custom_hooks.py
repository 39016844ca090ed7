# SPDX-License-Identifier: Apache-2.0
"""What stands around the user's own ``predict``: preprocess, postprocess, explain, each plain or ``async def``.

One order of steps, and two ways to go through it: in the model's thread where all of them are plain, else on the event
loop, where the plain ones run in a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

from modelyard.model import Model
from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature
from modelyard.tensor import Parameters, Tensors
from modelyard_deployments._custom_answers import Answers

Predict: TypeAlias = Callable[[Tensors, tuple[str, ...], Parameters], Any]
Hook: TypeAlias = Callable[[Any, Parameters], Any]
_Step: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Steps:
    """What is called, in this order; any of them may be ``async def``.

    Attributes:
        predict: As ``Model.predict``.
        stream: As ``Model.stream``.
        preprocess: From inputs to what ``predict`` gets.
        postprocess: From what ``predict`` gives to the outputs.
        explain: From inputs to the outputs that the signature calls explanations.
    """

    predict: Predict
    stream: Predict
    preprocess: Hook | None = None
    postprocess: Hook | None = None
    explain: Hook | None = None

    @property
    def is_async(self) -> bool:
        """One of them runs on the event loop."""
        steps = (self.predict, self.preprocess, self.postprocess, self.explain)
        return any(step is not None and inspect.iscoroutinefunction(step) for step in steps)

    @property
    def streams_async(self) -> bool:
        """The answers of a stream come from the event loop."""
        return inspect.isasyncgenfunction(self.stream)


class PlainModel(Model):
    """The user's model with its steps, all of which run in the model's thread.

    Args:
        model: The user's.
        steps: What to call.
        find_signature: The signature as it is now.
        concurrency: As ``Model.concurrency``.
        may_change: As ``Model.signature_may_change``.
    """

    def __init__(
        self,
        model: Model,
        steps: Steps,
        find_signature: Callable[[], Signature],
        concurrency: int,
        *,
        may_change: bool = False,
    ) -> None:
        self._model = model
        self._steps = steps
        self._find_signature = find_signature
        self.concurrency = concurrency
        self.signature_may_change = may_change
        self.publishes_members = model.publishes_members
        self._answers = Answers()

    @property
    def signature(self) -> Signature:
        """The user's own, or what follows from the type hints."""
        return self._find_signature()

    @property
    def members(self) -> Mapping[str, Model]:
        """The user's."""
        return self._model.members

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Any:
        """Goes through the steps."""
        steps = self._order(inputs, outputs, parameters)
        call, arguments = next(steps)
        while True:
            answer = call(*arguments)
            try:
                call, arguments = steps.send(answer)
            except StopIteration as end:
                return end.value

    def _order(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Generator[_Step, Any, Tensors]:
        """The steps of one call, each as soon as the answer of the one before is sent; returns the outputs."""
        steps, signature = self._steps, self.signature
        answers: Tensors = {}
        if steps.preprocess is not None:
            inputs = _given((yield steps.preprocess, (inputs, parameters)))
        explained = signature.explanations if steps.explain is not None else ()
        wanted = tuple(name for name in outputs if name not in explained)
        if wanted:
            given, step = (yield steps.predict, (inputs, wanted, parameters)), "predict"
            if steps.postprocess is not None:
                given, step = (yield steps.postprocess, (given, parameters)), "postprocess"
            answers = self._answers.fit(given, wanted, signature, step)
        if steps.explain is not None and len(wanted) < len(outputs):
            given = yield steps.explain, (inputs, parameters)
            answers = {**answers, **self._answers.fit(given, outputs, signature, "explain")}
        return answers

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]:
        """The user's stream, with preprocess before it and postprocess for each answer."""
        return self._stream(inputs, outputs, parameters)

    def _stream(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Iterator[Tensors]:
        steps = self._steps
        if steps.preprocess is not None:
            inputs = _given(steps.preprocess(inputs, parameters))
        for answer in steps.stream(inputs, outputs, parameters):
            given = answer if steps.postprocess is None else steps.postprocess(answer, parameters)
            yield self._answers.fit(given, outputs, self.signature, "stream")

    def report_load(self) -> Mapping[str, float]:
        """The user's."""
        return self._model.report_load()

    def check_health(self) -> None:
        """The user's."""
        self._model.check_health()

    def close(self) -> None:
        """The user's."""
        self._model.close()


class LoopModel(PlainModel):
    """The same on the event loop; plain steps run in a thread of their own, so that nothing blocks it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steps")

    async def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        """Goes through the steps."""
        steps = self._order(inputs, outputs, parameters)
        call, arguments = next(steps)
        while True:
            answer = await self._run(call, *arguments)
            try:
                call, arguments = steps.send(answer)
            except StopIteration as end:
                found: Tensors = end.value
                return found

    async def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        if inspect.iscoroutinefunction(call):
            return await call(*arguments)
        here = contextvars.copy_context()  # which knows for whom this runs
        return await asyncio.get_running_loop().run_in_executor(self._thread, here.run, call, *arguments)

    def stream(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> Iterator[Tensors] | AsyncIterator[Tensors]:
        """The user's stream, with preprocess before it and postprocess for each answer."""
        return self._stream_async(inputs, outputs, parameters)

    async def _stream_async(
        self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters
    ) -> AsyncIterator[Tensors]:
        steps = self._steps
        if steps.preprocess is not None:
            inputs = _given(await self._run(steps.preprocess, inputs, parameters))
        source = steps.stream(inputs, outputs, parameters)
        try:
            async for answer in source:
                given = answer
                if steps.postprocess is not None:
                    given = await self._run(steps.postprocess, answer, parameters)
                yield self._answers.fit(given, outputs, self.signature, "stream")
        finally:
            await source.aclose()

    def close(self) -> None:
        """Ends the thread, then closes the user's model."""
        self._thread.shutdown()
        super().close()


class PlainSpeakingModel(PlainModel, OpenAIModel):
    """The same for a model that answers calls of the OpenAI protocol as well; no step stands around these."""

    _model: OpenAIModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.openai_routes = self._model.openai_routes

    async def start(self) -> None:
        """Gives the user's model its meter."""
        self._model.meter = self.meter
        await super().start()

    def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        """The user's."""
        return self._model.answer(request)


class LoopSpeakingModel(PlainSpeakingModel, LoopModel):
    """The same on the event loop."""


def _given(inputs: Any) -> Any:
    """What preprocess gave; forgetting to return it is easy.

    Raises:
        TypeError: Nothing.
    """
    if inputs is None:
        raise TypeError("preprocess: expected the inputs of predict, got None")
    return inputs
