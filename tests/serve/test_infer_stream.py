# SPDX-License-Identifier: Apache-2.0
"""``ModelStreamInfer`` over models in this process: order, many answers, errors among them, clients that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from modelyard.batching import Call, split
from modelyard.dataplane import DataPlane
from modelyard.errors import ModelyardError
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.repository import Repository
from modelyard.serve.rpc import InferenceService
from modelyard.tensor import Tensors
from modelyard.testing import FakeModel


class Context:
    """Remembers what a method says of its call."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None:
        self.trailing = dict(trailing_metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class ByModel:
    """A transport with a runner for each model."""

    def __init__(self, runners) -> None:
        self._runners = runners

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        answer = await self._runners[revision.model].submit(call)
        outputs = split(answer, call.rows)[0]
        if isinstance(outputs, ModelyardError):
            raise outputs
        return outputs

    def stream(self, revision: RevisionRoute, call: Call, timeout_s: float):
        return self._runners[revision.model].stream(call)


@pytest.fixture
def serve(start_runner) -> Callable[..., InferenceService]:
    def make(**models: FakeModel) -> InferenceService:
        plane = DataPlane(ByModel({name: start_runner(model) for name, model in models.items()}))
        routes = {
            name: RevisionRoute(name, "1", f"{name}@1", "fake", "ready", signature=model.signature)
            for name, model in models.items()
        }
        plane.table = RouteTable("e", 1, {name: ModelRoute(name, "1", {"1": route}) for name, route in routes.items()})
        return InferenceService(plane, Repository(plane, None), lambda: True)  # type: ignore[arg-type]  # loads nothing

    return make


def _ask(model: str, ident: str, value: float = 1.0, **parameters: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id=ident)
    request.inputs.add(name="input-0", datatype="FP64", shape=[1, 4])
    request.raw_input_contents.append(np.full(4, value).tobytes())
    for name, given in parameters.items():
        request.parameters[name].bool_param = given
    return request


async def _send(*requests: pb.ModelInferRequest) -> AsyncIterator[pb.ModelInferRequest]:
    for request in requests:
        yield request


async def _collect(service: InferenceService, *requests: pb.ModelInferRequest, context: Context | None = None):
    return [response async for response in service.ModelStreamInfer(_send(*requests), context or Context())]


def _shape(responses) -> list[tuple[str, str, bool]]:
    """Id, error and whether it is the last, of each answer."""
    return [
        (
            one.infer_response.id,
            one.error_message,
            one.infer_response.parameters["triton_final_response"].bool_param,
        )
        for one in responses
    ]


async def test_answers_come_in_the_order_of_the_requests(serve, fake):
    service = serve(slow=fake(latency_s=0.1), fast=fake())
    found = await _collect(service, _ask("slow", "1"), _ask("fast", "2"), _ask("nope", "3"), _ask("fast", "4"))
    assert [one.infer_response.id for one in found] == ["1", "2", "3", "4"]
    assert 'model "nope" is not found' in found[2].error_message


async def test_requests_of_one_stream_are_in_flight_together(serve, gated, until):
    model = gated(batch_axis=False)
    service = serve(m=model)
    collecting = asyncio.create_task(_collect(service, *(_ask("m", str(i)) for i in range(3))))
    await until(lambda: model.begun == 1)
    await asyncio.sleep(0.01)
    assert service._plane._transport._runners["m"].ongoing == 3
    model.let(3)
    assert len(await collecting) == 3


async def test_a_decoupled_model_gives_all_its_answers(serve, fake):
    found = await _collect(serve(m=fake(answers=3)), _ask("m", "7"))
    assert _shape(found) == [("7", "", False)] * 3
    assert [np.frombuffer(one.infer_response.raw_output_contents[0]).item() for one in found] == [4.0, 5.0, 6.0]


async def test_an_empty_last_answer_comes_when_asked_for(serve, fake):
    found = await _collect(serve(m=fake(answers=1)), _ask("m", "7", triton_enable_empty_final_response=True))
    assert _shape(found) == [("7", "", False), ("7", "", True)]
    assert len(found[1].infer_response.outputs) == 0


async def test_a_long_stream_does_not_hold_up_other_models(serve, fake):
    service = serve(long=fake(answers=20, latency_s=0.01), fast=fake())
    found = await _collect(service, _ask("long", "long"), _ask("fast", "fast"))
    assert len(found) == 21
    assert [one.infer_response.id for one in found].index("fast") < 5


async def test_an_error_is_a_message_and_the_stream_goes_on(serve, fake):
    service = serve(m=fake(fail_on_value=13.0))
    found = await _collect(service, _ask("m", "1", 13.0), _ask("m", "2"))
    assert [(ident, bool(error)) for ident, error, _ in _shape(found)] == [("1", True), ("2", False)]


async def test_an_error_in_the_middle_of_many_answers(serve, fake):
    found = await _collect(serve(m=fake(answers=3, fail_after=1)), _ask("m", "7"))
    assert [(ident, bool(error)) for ident, error, _ in _shape(found)] == [("7", False), ("7", True)]


async def test_an_error_ends_the_stream_where_the_client_wants_it(serve, fake):
    context = Context(("triton_grpc_error", "true"))
    found = await _collect(serve(m=fake()), _ask("nope", "1"), _ask("m", "2"), context=context)
    assert found == []
    assert (context.code, context.details) == (grpc.StatusCode.NOT_FOUND, 'model "nope" is not found')


async def test_a_wrong_parameter_is_told(serve, fake):
    request = _ask("m", "7")
    request.parameters["triton_enable_empty_final_response"].string_param = "yes"
    (found,) = await _collect(serve(m=fake(answers=1)), request)
    assert "expected a boolean" in found.error_message


async def test_no_request_no_answer(serve, fake):
    assert await _collect(serve(m=fake())) == []


async def test_a_client_that_goes_away_ends_the_models_work(serve, fake, until):
    model = fake(answers=100_000, latency_s=0.001)
    responses = serve(m=model).ModelStreamInfer(_send(_ask("m", "7")), Context())
    await anext(responses)
    await responses.aclose()
    await until(lambda: model.ended == 1)


async def test_the_request_id_comes_back(serve, fake):
    context = Context(("x-request-id", "mine"))
    await _collect(serve(m=fake()), _ask("m", "1"), context=context)
    assert context.trailing == {"x-request-id": "mine"}
