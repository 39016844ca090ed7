# SPDX-License-Identifier: Apache-2.0
"""What the in-process tests of serving share: a model that waits to be let, calls for it, waiting for a condition."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from modelyard.batching import Answer, Call
from modelyard.serve.runner import ModelRunner
from modelyard.tensor import Parameters, Tensors
from modelyard.testing import FakeModel, FakeOptions


class GatedModel(FakeModel):
    """The fake, answering a call only when the test lets it; ``begun`` counts the calls that have reached it."""

    def __init__(self, **options: object) -> None:
        super().__init__(0.0, FakeOptions.model_validate({"tell_rows": True, **options}))
        self.begun = 0
        self._gate = threading.Semaphore(0)

    def let(self, calls: int = 1) -> None:
        self._gate.release(calls)

    def predict(self, inputs: Tensors, outputs: tuple[str, ...], parameters: Parameters) -> Tensors:
        self.begun += 1
        assert self._gate.acquire(timeout=10)
        return super().predict(inputs, outputs, parameters)


async def _until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # conditions of sockets and threads have no event
            await asyncio.sleep(0.001)


def _make_call(*values: float, outputs: tuple[str, ...] = ("output-0",), **parameters: object) -> Call:
    """One request with a row of four equal numbers for each value."""
    rows = np.repeat(np.array(values, dtype=np.float64)[:, None], 4, axis=1)
    return Call({"input-0": rows}, (len(values),), outputs, parameters)


@pytest.fixture
def until() -> Callable[..., object]:
    return _until


@pytest.fixture
def make_call() -> Callable[..., Call]:
    return _make_call


@pytest.fixture
def gated() -> type[GatedModel]:
    return GatedModel


@pytest.fixture
def fake() -> Callable[..., FakeModel]:
    return lambda **options: FakeModel(0.0, FakeOptions.model_validate({"tell_rows": True, **options}))


@pytest.fixture
async def start_runner() -> AsyncIterator[Callable[..., ModelRunner]]:
    """Starts runners and ends what is left of them."""
    runners: list[ModelRunner] = []

    def start(model: FakeModel, max_batch_size: int = 64, wait_s: float = 0.0, max_queued: int = 1000) -> ModelRunner:
        runner = ModelRunner("m", model, max_batch_size, wait_s, max_queued)
        runner.start()
        runners.append(runner)
        return runner

    yield start
    for runner in runners:
        if isinstance(runner._model, GatedModel):
            runner._model.let(1000)
        await asyncio.wait_for(runner.drain(), 10)


@pytest.fixture
def outputs() -> Callable[[Answer], list[float]]:
    def read(answer: Answer, name: str = "output-0") -> list[float]:
        assert answer.merged is not None, answer
        return answer.merged[name].tolist()

    return read
