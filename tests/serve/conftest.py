# SPDX-License-Identifier: Apache-2.0
"""What the in-process tests of serving share: a model that waits to be let, calls for it, an HTTP edge over it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace

import httpx
import numpy as np
import pytest

from modelyard.batching import BATCH_ID, Answer, Call, report_batch_id
from modelyard.dataplane import DataPlane
from modelyard.errors import DeadlineExceeded, ModelNotFound, ModelyardError
from modelyard.protocol.http import Encoded
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.events import CloudEvents
from modelyard.serve.extensions import ExtensionHandlers
from modelyard.serve.http import HttpRequest, make_app
from modelyard.serve.mlflow import MLflowHandlers
from modelyard.serve.runner import ModelRunner
from modelyard.serve.v1 import V1Handlers
from modelyard.serve.v2 import V2Handlers
from modelyard.signature import SavedSignature, Signature, TensorSpec
from modelyard.statistics import Statistics
from modelyard.tensor import Parameters, Tensors, to_bytes_array
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


_MAX_BODY_BYTES = 4096
_V2 = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
_V1 = {"instances": [[1, 2, 3, 4]]}


class RunnerTransport:
    """A data plane's transport that ends at a runner in this process."""

    def __init__(self, runner) -> None:
        self._runner = runner

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        try:
            answer = await asyncio.wait_for(self._runner.submit(call), timeout_s)
        except TimeoutError as exc:
            raise DeadlineExceeded(timeout_s) from exc
        if answer.merged is not None:
            return answer.merged
        (part,) = answer.parts
        if isinstance(part, ModelyardError):
            raise part
        return part

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float) -> AsyncGenerator[Tensors]:
        return self._runner.stream(call)

    async def statistics(self, revision: RevisionRoute) -> Statistics:
        return self._runner.statistics


class Edge:
    """The application, its model, and a client of it."""

    def __init__(self, model, runner) -> None:
        self.model = model
        self.plane = DataPlane(RunnerTransport(runner))
        first = RevisionRoute("iris", "1", "iris@1", "fake", "ready", signature=model.signature)
        second = replace(first, version="2", application="iris@2")
        models = {
            "iris": ModelRoute("iris", "2", {"1": first, "2": second}, {"stable": "2"}, created_s=1_700_000_000),
            "a.b-c_d": ModelRoute("a.b-c_d", "1", {"1": replace(first, model="a.b-c_d")}),
            "late": ModelRoute("late", "1", {"1": replace(first, model="late", state="loading", reason="it starts")}),
            "bad": ModelRoute("bad", "1", {"1": replace(first, model="bad", state="failed", reason="no such file")}),
        }
        self.plane.table = RouteTable("e", 1, models)
        self.is_ready = True
        inference = [
            *ExtensionHandlers(self.plane).routes(),
            *V2Handlers(self.plane, lambda: self.is_ready).routes(),
            *V1Handlers(self.plane).routes(),
            *MLflowHandlers(self.plane).routes(),
        ]
        admin = [("GET", "/platform/v1/models/{model}", _status), ("GET", "/platform/v1/broken", _break)]
        self.app = make_app(CloudEvents().wrap([*inference, *admin]), _MAX_BODY_BYTES, _lifespan, 1024)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://edge")

    async def post(self, path: str, content: bytes | None = None, headers: dict[str, str] | None = None):
        if content is None:
            content = json.dumps(_V1 if path.startswith("/v1") else _V2).encode()
        return await self.client.post(path, content=content, headers=headers or {})


async def _status(request: HttpRequest) -> Encoded:
    raise ModelNotFound(request.path("model"))


async def _break(request: HttpRequest) -> Encoded:
    raise KeyError("/secret/path")


@contextlib.asynccontextmanager
async def _lifespan(_app: object) -> AsyncIterator[None]:
    yield


@pytest.fixture
def make_edge(start_runner, fake) -> Callable[..., Edge]:
    def make(model=None, **limits: int) -> Edge:
        model = model or fake(fail_on_value=13.0, refuse_value=14.0)
        return Edge(model, start_runner(model, **limits))

    return make


PREDICT = "tensorflow/serving/predict"
SAVED = SavedSignature("serving_default", PREDICT, {"x": "serving_default_x:0"}, {"y": "StatefulPartitionedCall:0"})
OWN = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),), saved=SAVED)
EXAMPLES = (TensorSpec("inputs", "BYTES", (-1,)),)
MEMBERS = {
    "two": Signature(
        (TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "BYTES", (-1,))),
        (TensorSpec("sum", "INT64", (-1,)), TensorSpec("raw_bytes", "BYTES", (-1,))),
        saved=SavedSignature("two", PREDICT),
    ),
    "classify": Signature(
        EXAMPLES,
        (TensorSpec("classes", "BYTES", (-1, 2)), TensorSpec("scores", "FP32", (-1, 2))),
        saved=SavedSignature("classify", CLASSIFY),
    ),
    "regress": Signature(EXAMPLES, (TensorSpec("outputs", "FP32", (-1, 1)),), saved=SavedSignature("regress", REGRESS)),
}


class HalfPlusTwo:
    """A transport that answers as a SavedModel with these signatures would."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        self.calls.append(call)
        if call.member == "two":
            return {"sum": call.inputs["a"].astype("i8") + 1, "raw_bytes": call.inputs["b"]}
        if call.member in ("classify", "regress"):
            lists = [
                tf.Example.FromString(text).features.feature["x"].float_list.value for text in call.inputs["inputs"]
            ]
            values = np.float32([[one[0] / 2 + 2] for one in lists])
            labels = to_bytes_array(np.array([["low", "high"]] * len(lists)))
            answers = {"classes": labels, "scores": np.hstack([values, 1 - values]), "outputs": values}
            return {name: answers[name] for name in call.outputs}
        answer = {"y": call.inputs["x"] / 2 + 2}
        return answer | ({BATCH_ID: np.full(len(answer["y"]), b"7", dtype=object)} if BATCH_ID in call.outputs else {})


@pytest.fixture
def saved_plane() -> DataPlane:
    """Over such a model ``half``, and over others without its signatures; ``transport`` remembers the calls."""
    transport = HalfPlusTwo()
    plane = DataPlane(transport)  # type: ignore[arg-type]  # nothing streams here
    plane.transport = transport  # type: ignore[attr-defined]  # for tests
    route = RevisionRoute("half", "123", "half@123", "tensorflow", "ready", signature=OWN, members=MEMBERS)
    loading = replace(route, version="124", state="loading", reason="it starts", signature=None, members={})
    plain = replace(route, model="plain", framework="sklearn", signature=replace(OWN, saved=None), members={})
    named = replace(plain, model="named", members={"two": replace(MEMBERS["two"], saved=None)})
    batched = replace(route, model="batched", signature=report_batch_id(OWN))
    wide = (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),)
    column = replace(route, model="column", signature=Signature(*wide, saved=SAVED), members={})
    plane.table = RouteTable(
        "e",
        1,
        {
            "half": ModelRoute("half", "123", {"123": route, "124": loading}, {"stable": "123"}),
            **{one.model: ModelRoute(one.model, "123", {"123": one}) for one in (plain, named, batched, column)},
        },
    )
    return plane
