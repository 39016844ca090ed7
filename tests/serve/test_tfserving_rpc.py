# SPDX-License-Identifier: Apache-2.0
"""``PredictionService`` and ``ModelService`` on a port, asked by messages as TensorFlow Serving's stubs send them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from modelyard.admin import ModelState, ModelStatus
from modelyard.errors import InvalidConfig, InvalidRequest, ModelyardError, Overloaded
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.routing import ModelRoute, RevisionRoute, RouteTable
from modelyard.serve import ingress, rpc, services
from modelyard.serve.models import ModelService
from modelyard.serve.prediction import PredictionService
from modelyard.serve.reload import Reloads
from modelyard.signature import Signature

Code = grpc.StatusCode
LIMIT = 100_000
METHODS = {
    method.name: (service.full_name, GetMessageClass(method.output_type))
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Controller:
    """What reloads end at: it remembers the lists, and answers with statuses of what is in them.

    Attributes:
        error: Raised instead, where there is one.
        leaves: Names of models that the next list takes away.
    """

    def __init__(self) -> None:
        self.lists: list[list[Mapping[str, Any]]] = []
        self.actors: list[str] = []
        self.error: ModelyardError | None = None
        self.leaves: tuple[str, ...] = ()

    async def reload(self, specs: Sequence[Mapping[str, Any]], *, actor: str, message: str) -> tuple[ModelStatus, ...]:
        if self.error is not None:
            raise self.error
        self.lists.append(list(specs))
        self.actors.append(actor)
        status = {"framework": "tensorflow", "uri": "", "owner": "reloaded", "generation": 1}
        kept = [ModelStatus(spec["name"], state=ModelState.PENDING, **status) for spec in specs]
        return *kept, *(ModelStatus(name, state=ModelState.REMOVING, **status) for name in self.leaves)


class Client:
    """Calls a method by its name, with what the published stubs send."""

    def __init__(self, address: str, channel: grpc.aio.Channel, controller: Controller, plane: Any) -> None:
        self.address = address
        self.channel = channel
        self.controller = controller
        self.plane = plane

    def call(self, method: str, request: Any, **options: Any) -> Any:
        service, answer = METHODS[method]
        stub = self.channel.unary_unary(f"/{service}/{method}", response_deserializer=answer.FromString)
        return stub(request if isinstance(request, bytes) else request.SerializeToString(), **options)

    async def fail(self, method: str, request: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, request, **options)
        return caught.value.code(), caught.value.details() or ""


@pytest.fixture
async def client(saved_plane) -> AsyncIterator[Client]:
    controller = Controller()
    server = grpc.aio.server()
    services.add_prediction_service(PredictionService(saved_plane, LIMIT), server)
    services.add_model_service(ModelService(saved_plane, Reloads(saved_plane, controller)), server)
    reflection.enable_server_reflection([rpc.PREDICTION, rpc.MODELS, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield Client(address, channel, controller, saved_plane)
    await server.stop(None)


def spec(name: str = "half", version: int | str | None = None, signature: str = "") -> pb.ModelSpec:
    found = pb.ModelSpec(name=name, signature_name=signature)
    if isinstance(version, int):
        found.version.value = version
    elif version is not None:
        found.version_label = version
    return found


def floats(*values: float, shape: tuple[int, ...] = ()) -> tf.TensorProto:
    tensor = tf.TensorProto(dtype=tf.DT_FLOAT, float_val=values)
    for size in shape or (len(values),):
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def predict(*values: float, model: pb.ModelSpec | None = None, **inputs: tf.TensorProto) -> pb.PredictRequest:
    inputs = inputs or {"x": floats(*values)}
    return pb.PredictRequest(model_spec=model or spec(), inputs=inputs)


def examples(*values: float) -> pb.Input:
    found = pb.Input()
    for value in values:
        found.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return found


# -- Predict


@pytest.mark.parametrize("version", [None, 123, "stable"])
@pytest.mark.parametrize("signature", ["", "serving_default"])
async def test_predict_answers_typed_fields_and_says_who_answered(client, version, signature):
    answer = await client.call("Predict", predict(1, 2, 5, model=spec("half", version, signature)))
    assert list(answer.outputs["y"].float_val) == [2.5, 3, 4.5]
    assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == [3]
    assert not UnknownFieldSet(answer.outputs["y"])
    assert answer.model_spec == spec("half", 123, "serving_default")


async def test_content_and_one_element_for_all_are_read(client):
    content = tf.TensorProto(dtype=tf.DT_FLOAT, tensor_content=np.float32([1, 2]).tobytes())
    content.tensor_shape.dim.add(size=2)
    assert list((await client.call("Predict", predict(x=content))).outputs["y"].float_val) == [2.5, 3]
    answer = await client.call("Predict", predict(x=floats(4, shape=(3,))))
    assert list(answer.outputs["y"].float_val) == [4, 4, 4]


async def test_a_last_dimension_of_one_may_be_left_out(client):
    for shape in ((2,), (2, 1)):
        answer = await client.call("Predict", predict(model=spec("column"), x=floats(1, 2, shape=shape)))
        assert [dim.size for dim in answer.outputs["y"].tensor_shape.dim] == list(shape)
        assert list(answer.outputs["y"].float_val) == [2.5, 3]


async def test_predict_asks_the_signature_that_is_named(client):
    request = predict(model=spec(signature="two"), a=tf.TensorProto(dtype=tf.DT_INT32, int_val=[1, 2]))
    request.inputs["a"].tensor_shape.dim.add(size=2)
    request.inputs["b"].CopyFrom(tf.TensorProto(dtype=tf.DT_STRING, string_val=[b"\xff", b""]))
    request.inputs["b"].tensor_shape.dim.add(size=2)
    answer = await client.call("Predict", request)
    assert answer.model_spec.signature_name == "two"
    assert list(answer.outputs["sum"].int64_val) == [2, 3]
    assert list(answer.outputs["raw_bytes"].string_val) == [b"\xff", b""]
    request.output_filter.append("sum")
    assert list((await client.call("Predict", request)).outputs) == ["sum"]


async def test_models_of_every_framework_answer_predict(client):
    answer = await client.call("Predict", predict(1, 2, model=spec("plain")))
    assert (list(answer.outputs["y"].float_val), answer.model_spec) == ([2.5, 3], spec("plain", 123, "serving_default"))
    code, details = await client.fail("Predict", predict(1, model=spec("plain", signature="two")))
    assert (code, '"two" not found' in details) == (Code.FAILED_PRECONDITION, True)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (predict(1, model=spec("nope")), Code.NOT_FOUND, 'model "nope" is not found'),
        (predict(1, model=spec("half", 9)), Code.NOT_FOUND, 'has no version "9"'),
        (predict(1, model=spec("half", "canary")), Code.NOT_FOUND, 'has no version "canary"'),
        (predict(1, model=spec("half", 124)), Code.UNAVAILABLE, "it starts"),
        (predict(1, model=spec("half", signature="no")), Code.FAILED_PRECONDITION, 'signature name: "no" not found'),
        (predict(1, model=spec("")), Code.INVALID_ARGUMENT, "ModelSpec has no name specified"),
        (pb.PredictRequest(), Code.INVALID_ARGUMENT, "ModelSpec has no name specified"),
        (predict(z=floats(1)), Code.INVALID_ARGUMENT, 'input "x" is missing'),
        (predict(x=floats(1), z=floats(1)), Code.INVALID_ARGUMENT, 'unknown input "z"'),
        (predict(x=floats(1, 2, shape=(1, 2))), Code.INVALID_ARGUMENT, "expected FP32 [-1], got FP32 [1,2]"),
        (predict(x=floats(1, shape=(10**12,))), Code.RESOURCE_EXHAUSTED, "tensors of the request: expected at most"),
        (predict(x=floats(1, shape=(-1,))), Code.INVALID_ARGUMENT, "expected integers of 0 or more, got -1"),
        (predict(x=tf.TensorProto(dtype=tf.DT_COMPLEX64)), Code.INVALID_ARGUMENT, "got DT_COMPLEX64"),
        (predict(x=tf.TensorProto(dtype=tf.DT_STRING)), Code.INVALID_ARGUMENT, 'input "x": expected FP32'),
        (
            pb.PredictRequest(model_spec=spec(), inputs={"x": floats(1)}, output_filter=["z"]),
            Code.INVALID_ARGUMENT,
            'unknown requested output "z"',
        ),
        (
            pb.PredictRequest(model_spec=spec(), inputs={"x": floats(1)}, output_filter=["y", "y"]),
            Code.INVALID_ARGUMENT,
            "is requested twice",
        ),
    ],
)
async def test_a_wrong_request_has_its_code_and_the_next_is_answered(client, request_, code, text):
    found, details = await client.fail("Predict", request_)
    assert (found, text in details) == (code, True), details
    assert list((await client.call("Predict", predict(1))).outputs["y"].float_val) == [2.5]


async def test_an_error_behind_the_edge_has_its_code(client, monkeypatch):
    async def refuse(*_: object) -> None:
        raise Overloaded("full")

    monkeypatch.setattr(client.plane.transport, "call", refuse)
    assert await client.fail("Predict", predict(1)) == (Code.RESOURCE_EXHAUSTED, "full")


async def test_every_answer_has_the_requests_id(client):
    call = client.call("Predict", predict(1), metadata=[("x-request-id", "mine")])
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "mine"
    call = client.call("GetModelStatus", pb.GetModelStatusRequest(model_spec=spec()))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"]


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_no_message_are_the_clients_fault(client, method):
    code, details = await client.fail(method, b"\xff" * 9)
    assert (code, details) == (Code.INVALID_ARGUMENT, f"{method}: the request is no message of its type")


# -- Classify, Regress, MultiInference


async def test_classify_and_regress_answer_about_examples(client):
    request = pb.ClassificationRequest(model_spec=spec(signature="classify"), input=examples(1, 2.5))
    answer = await client.call("Classify", request)
    found = [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]
    assert found == [[("low", 2.5), ("high", -1.5)], [("low", 3.25), ("high", -2.25)]]
    assert answer.model_spec == spec("half", 123, "classify")
    answer = await client.call(
        "Regress", pb.RegressionRequest(model_spec=spec(version=123, signature="regress"), input=examples(1, 2.5))
    )
    assert [one.value for one in answer.result.regressions] == [2.5, 3.25]
    assert answer.model_spec == spec("half", 123, "regress")


def task(signature: str, method: str, model: str = "half", version: int | None = None) -> pb.InferenceTask:
    return pb.InferenceTask(model_spec=spec(model, version, signature), method_name=method)


async def test_several_signatures_answer_about_the_same_examples(client):
    request = pb.MultiInferenceRequest(
        tasks=[task("regress", REGRESS), task("classify", CLASSIFY, version=123)], input=examples(1)
    )
    regressed, classified = (await client.call("MultiInference", request)).results
    assert regressed.regression_result.regressions[0].value == 2.5
    assert classified.classification_result.classifications[0].classes[0].label == "low"
    assert [one.model_spec for one in (regressed, classified)] == [
        spec("half", 123, "regress"),
        spec("half", 123, "classify"),
    ]


MultiInference = pb.MultiInferenceRequest
CLASSIFICATION, REGRESSION = task("classify", CLASSIFY), task("regress", REGRESS)


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        (
            "Classify",
            pb.ClassificationRequest(model_spec=spec()),
            Code.INVALID_ARGUMENT,
            "expected one classification input",
        ),
        (
            "Classify",
            pb.ClassificationRequest(model_spec=spec(signature="no")),
            Code.INVALID_ARGUMENT,
            '"no" not found',
        ),
        (
            "Classify",
            pb.ClassificationRequest(model_spec=spec(signature="classify")),
            Code.INVALID_ARGUMENT,
            "Input is empty",
        ),
        ("Classify", pb.ClassificationRequest(model_spec=spec("plain")), Code.UNIMPLEMENTED, "ask it with predict"),
        ("Regress", pb.RegressionRequest(model_spec=spec("plain")), Code.UNIMPLEMENTED, "no regression signature"),
        ("Regress", pb.RegressionRequest(model_spec=spec("nope")), Code.NOT_FOUND, "nope"),
        ("MultiInference", MultiInference(input=examples(1)), Code.INVALID_ARGUMENT, "at least one task"),
        (
            "MultiInference",
            MultiInference(tasks=[REGRESSION, REGRESSION], input=examples(1)),
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: regress",
        ),
        (
            "MultiInference",
            MultiInference(tasks=[REGRESSION, task("classify", CLASSIFY, "other")], input=examples(1)),
            Code.INVALID_ARGUMENT,
            "must access the same model name",
        ),
        (
            "MultiInference",
            MultiInference(tasks=[task("classify", REGRESS)], input=examples(1)),
            Code.INVALID_ARGUMENT,
            "expected one regression output",
        ),
        (
            "MultiInference",
            MultiInference(tasks=[task("", "tensorflow/serving/predict")], input=examples(1)),
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name",
        ),
        (
            "MultiInference",
            MultiInference(tasks=[CLASSIFICATION, REGRESSION]),
            Code.INVALID_ARGUMENT,
            "Input is empty",
        ),
    ],
)
async def test_wrong_questions_about_examples_have_their_code(client, method, request_, code, text):
    found, details = await client.fail(method, request_)
    assert (found, text in details) == (code, True), details


async def test_the_first_failure_of_several_signatures_is_told(client, monkeypatch):
    async def refuse(revision: RevisionRoute, *_: object) -> Any:
        if revision.member == "regress":
            raise InvalidRequest("not this one")
        await asyncio.Event().wait()

    monkeypatch.setattr(client.plane.transport, "call", refuse)
    request = MultiInference(tasks=[CLASSIFICATION, REGRESSION], input=examples(1))
    assert await client.fail("MultiInference", request) == (Code.INVALID_ARGUMENT, "not this one")


# -- metadata and states


async def test_metadata_has_every_signature(client):
    request = pb.GetModelMetadataRequest(model_spec=spec(version="stable"), metadata_field=["signature_def"])
    answer = await client.call("GetModelMetadata", request)
    found = pb.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(found)
    assert set(found.signature_def) == {"serving_default", "two", "classify", "regress"}
    assert found.signature_def["serving_default"].inputs["x"].name == "serving_default_x:0"
    assert answer.model_spec == spec("half", 123)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.GetModelMetadataRequest(model_spec=spec()), Code.INVALID_ARGUMENT),
        (pb.GetModelMetadataRequest(model_spec=spec(), metadata_field=["graph"]), Code.INVALID_ARGUMENT),
        (pb.GetModelMetadataRequest(metadata_field=["signature_def"]), Code.INVALID_ARGUMENT),
        (pb.GetModelMetadataRequest(model_spec=spec("nope"), metadata_field=["signature_def"]), Code.NOT_FOUND),
        (
            pb.GetModelMetadataRequest(model_spec=spec(version=124), metadata_field=["signature_def"]),
            Code.UNAVAILABLE,
        ),
    ],
)
async def test_metadata_that_cannot_be_told(client, request_, code):
    assert (await client.fail("GetModelMetadata", request_))[0] is code


State = pb.ModelVersionStatus


@pytest.mark.parametrize(
    ("version", "states"),
    [
        (None, [(123, State.AVAILABLE), (124, State.LOADING)]),
        (124, [(124, State.LOADING)]),
        ("stable", [(123, State.AVAILABLE)]),
    ],
)
async def test_the_states_of_versions(client, version, states):
    answer = await client.call("GetModelStatus", pb.GetModelStatusRequest(model_spec=spec(version=version)))
    assert [(one.version, one.state) for one in answer.model_version_status] == states


@pytest.mark.parametrize(
    ("model", "code"),
    [(spec("nope"), Code.NOT_FOUND), (spec(version=9), Code.NOT_FOUND), (spec(""), Code.INVALID_ARGUMENT)],
)
async def test_states_of_what_is_not_there(client, model, code):
    assert (await client.fail("GetModelStatus", pb.GetModelStatusRequest(model_spec=model)))[0] is code


# -- reloads


def reload(*names: str, **more: Any) -> pb.ReloadConfigRequest:
    request = pb.ReloadConfigRequest(**more)
    request.config.model_config_list.SetInParent()
    for name in names:
        request.config.model_config_list.config.add(name=name, base_path=f"/m/{name}", model_platform="tensorflow")
    return request


def route(state: str = "ready", reason: str = "") -> ModelRoute:
    signature = None if reason else Signature((), ())
    revision = RevisionRoute("new", "1", "new@1", "tensorflow", state, reason, signature)
    return ModelRoute("new", "1", {"1": revision}, generation=1)


def follow(client: Client, **models: ModelRoute) -> None:
    table = client.plane.table
    kept = {name: model for name, model in (dict(table.models) | models).items() if model is not None}
    client.plane.follow(RouteTable(table.epoch, table.version + 1, kept))


async def test_a_reload_is_answered_when_its_models_are_ready(client, until):
    call = asyncio.ensure_future(client.call("HandleReloadConfigRequest", reload("new", metric_names=["/m"])))
    await until(lambda: client.controller.lists)
    follow(client, new=route("loading", "it starts"))
    await asyncio.sleep(0.02)
    assert not call.done()
    follow(client, new=route())
    answer = await call
    assert (answer.status.error_code, [one.name for one in answer.metric]) == (0, ["/m"])
    ((listed,),) = client.controller.lists
    assert (listed["name"], listed["framework"], listed["uri"]) == ("new", "tensorflow", "/m/new")
    assert client.controller.actors == ["grpc"]


async def test_a_reload_waits_until_nothing_is_sent_to_what_leaves(client, until):
    follow(client, new=route())
    client.controller.leaves = ("half",)
    call = asyncio.ensure_future(client.call("HandleReloadConfigRequest", reload()))
    await until(lambda: client.controller.lists)
    await asyncio.sleep(0.02)
    assert not call.done()
    follow(client, half=None)  # type: ignore[arg-type]  # it is gone
    await call


async def test_a_reload_tells_what_cannot_be_loaded(client, until):
    call = asyncio.ensure_future(client.fail("HandleReloadConfigRequest", reload("new")))
    await until(lambda: client.controller.lists)
    follow(client, new=route("failed", "no graph"))
    code, details = await call
    assert code is Code.UNAVAILABLE
    assert details == 'Some models did not become available: model "new" cannot be loaded: no graph'


async def test_a_reload_ends_with_its_deadline(client):
    code, _ = await client.fail("HandleReloadConfigRequest", reload("new"), timeout=0.2)
    assert code is Code.DEADLINE_EXCEEDED


async def test_a_reload_that_is_refused(client):
    client.controller.error = InvalidConfig(('model_config_list.config[0].name: model "half" is declared',))
    code, details = await client.fail("HandleReloadConfigRequest", reload("half"))
    assert (code, "is declared" in details) == (Code.INVALID_ARGUMENT, True)
    code, details = await client.fail("HandleReloadConfigRequest", pb.ReloadConfigRequest())
    assert (code, "Only ModelConfigList is currently supported" in details) == (Code.INVALID_ARGUMENT, True)
    assert client.controller.lists == []


# -- the services themselves


async def test_reflection_describes_the_services(client):
    def read() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(client.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(rpc.PREDICTION)
            return list(database.get_services()), [one.name for service in file.service for one in service.method]

    found, methods = await asyncio.to_thread(read)
    assert {rpc.PREDICTION, rpc.MODELS} <= set(found)
    assert set(methods) == set(METHODS)


@pytest.mark.parametrize("name", [rpc.PREDICTION, rpc.MODELS])
async def test_health_knows_the_services(saved_plane, name):
    class Context:
        def set_code(self, code: grpc.StatusCode) -> None:
            raise AssertionError(code)

    health = rpc.HealthService(saved_plane, lambda: True)
    assert (await health.Check(health_pb2.HealthCheckRequest(service=name), Context())).status == 1  # type: ignore[arg-type]


def test_the_ingress_has_every_method_for_serves_python_proxy():
    assert set(METHODS) <= set(dir(ingress.Ingress))


def test_messages_can_be_pickled_for_serves_python_proxy():
    request = predict(1, 2)
    assert pickle.loads(pickle.dumps(request)) == request
