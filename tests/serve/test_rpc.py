# SPDX-License-Identifier: Apache-2.0
"""The gRPC methods over a context that only remembers: the status of each kind of fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from modelyard.batching import Call
from modelyard.dataplane import DataPlane
from modelyard.errors import DeadlineExceeded, ModelFailed, Overloaded
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve.repository import Repository
from modelyard.serve.rpc import HealthService, InferenceService
from modelyard.serve.services import LenientServer
from modelyard.tensor import Tensors

Code = grpc.StatusCode
Health = health_pb2.HealthCheckResponse


class Context:
    """Remembers what a method says of its call."""

    def __init__(self, **metadata: str) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str] = {}
        self._metadata = tuple((key.replace("_", "-"), value) for key, value in metadata.items())

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def set_trailing_metadata(self, trailing_metadata: tuple[tuple[str, str], ...]) -> None:
        self.trailing = dict(trailing_metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


class Answering:
    """A transport that adds up the rows, or raises what it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def call(self, revision: RevisionRoute, call: Call, timeout_s: float) -> Tensors:
        if self.error is not None:
            raise self.error
        return {"output-0": call.inputs["input-0"].sum(axis=1)}


@pytest.fixture
def transport() -> Answering:
    return Answering()


@pytest.fixture
def methods(transport, fake) -> InferenceService:
    route = RevisionRoute("iris", "1", "iris@1", "fake", "ready", signature=fake().signature)
    late = replace(route, model="late", state="loading", reason="it starts")
    plane = DataPlane(transport)
    plane.table = RouteTable(
        "e", 1, {"iris": ModelRoute("iris", "1", {"1": route}), "late": ModelRoute("late", "1", {"1": late})}
    )
    return InferenceService(plane, _no_repository(plane), lambda: True)


@pytest.fixture
def health(methods) -> HealthService:
    return HealthService(methods._plane, lambda: True)


def _no_repository(plane: DataPlane) -> Repository:
    return Repository(plane, None)  # type: ignore[arg-type]  # these tests load nothing


def _request(model: str = "iris", version: str = "", datatype: str = "FP64", columns: int = 4) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="7")
    request.inputs.add(name="input-0", datatype=datatype, shape=[1, columns])
    request.raw_input_contents.append(np.ones(columns).tobytes())
    return request


async def test_raw_in_is_raw_out(methods):
    context = Context()
    response = await methods.ModelInfer(_request(), context)
    assert (context.code, response.model_name, response.model_version, response.id) == (None, "iris", "1", "7")
    assert np.frombuffer(response.raw_output_contents[0]).tolist() == [4]


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (_request("nope"), Code.NOT_FOUND, 'model "nope" is not found'),
        (_request(version="9"), Code.NOT_FOUND, 'has no version "9"'),
        (_request("late"), Code.UNAVAILABLE, "it starts"),
        (_request(columns=3), Code.INVALID_ARGUMENT, "expected FP64 [-1,4], got FP64 [1,3]"),
        (_request(datatype="FP63"), Code.INVALID_ARGUMENT, "FP63"),
        (_request(datatype="INT32"), Code.INVALID_ARGUMENT, "input-0"),
        (pb.ModelInferRequest(model_name="iris"), Code.INVALID_ARGUMENT, '"input-0" is missing'),
    ],
)
async def test_a_wrong_request_has_its_code_and_the_next_is_answered(methods, request_, code, text):
    context = Context()
    await methods.ModelInfer(request_, context)
    assert context.code is code
    assert text in context.details
    after = Context()
    await methods.ModelInfer(_request(), after)
    assert after.code is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Overloaded("full"), Code.RESOURCE_EXHAUSTED),
        (ModelFailed("iris", "ValueError: no"), Code.INTERNAL),
        (DeadlineExceeded(1.0), Code.DEADLINE_EXCEEDED),
    ],
)
async def test_an_error_behind_the_edge_has_its_code(methods, transport, error, code):
    transport.error = error
    context = Context()
    await methods.ModelInfer(_request(), context)
    assert (context.code, context.details) == (code, str(error))


async def test_a_message_over_the_limit_is_resource_exhausted(methods):
    small = InferenceService(methods._plane, _no_repository(methods._plane), lambda: True, max_body_bytes=63)
    context = Context()
    await small.ModelInfer(_request(), context)
    assert context.code is Code.RESOURCE_EXHAUSTED
    assert context.details == "request message: expected at most 63 bytes, got 64"


async def test_what_breaks_inside_is_not_told(methods, transport, caplog):
    transport.error = KeyError("/secret/path")
    context = Context()
    await methods.ModelInfer(_request(), context)
    assert context.code is Code.INTERNAL
    assert "secret" not in context.details
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize(
    ("model", "version", "ready", "code"),
    [
        ("iris", "", True, None),
        ("iris", "1", True, None),
        ("late", "", False, None),
        ("nope", "", False, Code.NOT_FOUND),
        ("iris", "9", False, Code.NOT_FOUND),
    ],
)
async def test_model_ready_tells_the_truth(methods, model, version, ready, code):
    context = Context()
    reply = await methods.ModelReady(pb.ModelReadyRequest(name=model, version=version), context)
    assert (reply.ready, context.code) == (ready, code)


async def test_metadata_is_the_models_own(methods):
    reply = await methods.ModelMetadata(pb.ModelMetadataRequest(name="iris"), Context())
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in reply.inputs] == [("input-0", "FP64", [-1, 4])]
    context = Context()
    await methods.ModelMetadata(pb.ModelMetadataRequest(name="nope"), context)
    assert context.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", Health.SERVING),
        ("inference.GRPCInferenceService", Health.SERVING),
        ("iris", Health.SERVING),
        ("late", Health.NOT_SERVING),
    ],
)
async def test_health_of_services_and_models(health, service, status):
    assert (await health.Check(health_pb2.HealthCheckRequest(service=service), Context())).status == status


async def test_health_of_an_unknown_service_is_not_found(health):
    context = Context()
    await health.Check(health_pb2.HealthCheckRequest(service="nope"), context)
    assert context.code is Code.NOT_FOUND


async def test_watching_an_unknown_service_begins_with_that(health):
    stream = health.Watch(health_pb2.HealthCheckRequest(service="nope"), Context())
    assert (await anext(stream)).status == Health.SERVICE_UNKNOWN
    await stream.aclose()


@pytest.fixture
async def address(methods) -> AsyncIterator[str]:
    """The methods on a port of their own, as the ingress has them."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(methods, LenientServer(server))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("data", [b"\xff" * 9, b"\x0a\x02\xff\xfe", _request().SerializeToString()[:-1]])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_bytes_that_are_no_message_are_the_clients_fault(address, method, data, caplog):
    async with grpc.aio.insecure_channel(address) as channel:
        path = f"/inference.GRPCInferenceService/{method}"
        call = channel.unary_unary(path)(data) if method == "ModelInfer" else channel.stream_stream(path)(iter([data]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call if method == "ModelInfer" else call.read())
        assert caught.value.code() is Code.INVALID_ARGUMENT
        assert caught.value.details() == f"{method}: the request is no message of its type"
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert (await stub.ModelInfer(_request())).id == "7"
    assert not caplog.records
