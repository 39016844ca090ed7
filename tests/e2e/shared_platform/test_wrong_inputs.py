# SPDX-License-Identifier: Apache-2.0
"""Every wrong input gets its status and a sentence that helps, over HTTP and gRPC, and the server goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from answers import Answers
from made_models import write_broken, write_sleeper
from platform_process import PlatformProcess
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from modelyard.client import Platform
from modelyard.errors import ModelNotReady

LIMITS = {"max_ongoing_requests": 1, "max_queued_requests": 1}


@pytest.fixture(scope="module", autouse=True)
def made_models(platform: PlatformProcess) -> Iterator[None]:
    """`sleeper` sleeps or fails as asked, `narrow` takes few requests at once, `broken` cannot be loaded."""
    write_sleeper(platform.folder / "models" / "sleeper")
    write_broken(platform.folder / "models" / "broken")
    with Platform.connect(platform.url) as client:
        client.register("broken", framework="sklearn", uri="models/broken")
        client.register("narrow", framework="sklearn", uri="models/sleeper", limits=LIMITS)
        client.register("sleeper", framework="sklearn", uri="models/sleeper", wait=True)
        client.wait_ready("narrow")
        with pytest.raises(ModelNotReady, match="no complete joblib or pickle file"):
            client.wait_ready("broken")
        yield
        for name in ("broken", "narrow", "sleeper"):
            client.unregister(name, wait=True)


def tensor(name: str, shape: list[int], datatype: str = "FP64", data: Any = None) -> dict[str, Any]:
    values = [0.0] * int(np.prod(shape)) if data is None else data
    return {"name": name, "shape": shape, "datatype": datatype, "data": values}


IRIS, IRIS_V1 = "/v2/models/iris-sklearn/infer", "/v1/models/iris-sklearn:predict"
HOUSING, CANCER = "/v2/models/housing/infer", "/v2/models/breast-cancer/infer"
ROW = tensor("input-0", [1, 4])
GOOD = {"inputs": [ROW]}
SLEEP = "/v2/models/sleeper/infer"


def asked(seconds: float) -> dict[str, Any]:
    return {"inputs": [tensor("input-0", [1, 1], data=[seconds])]}


def case(name: str, path: str, body: Any, status: int, *words: str, headers: dict[str, str] | None = None) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return pytest.param(path, content, headers or {}, status, words, id=name)


POSTS = [
    case("v2 unknown model", "/v2/models/nobody/infer", GOOD, 404, 'model "nobody" is not found'),
    case("v1 unknown model", "/v1/models/nobody:predict", {"instances": [[1]]}, 404, 'model "nobody" is not found'),
    case("v2 unknown version", "/v2/models/iris-sklearn/versions/9/infer", GOOD, 404, 'has no version "9"'),
    case("v1 unknown version", "/v1/models/iris-sklearn/versions/9:predict", GOOD, 404, 'has no version "9"'),
    case("v1 unknown label", "/v1/models/iris-sklearn/labels/canary:predict", GOOD, 404, 'has no version "canary"'),
    case("v2 not JSON", IRIS, b"{", 400, "not JSON"),
    case("v1 not JSON", IRIS_V1, b"{", 400, "not JSON"),
    case("v2 empty body", IRIS, b"", 400, "empty"),
    case("v2 not an object", IRIS, [1], 400, "expected an object"),
    case("v2 no inputs", IRIS, {}, 400, "inputs: expected a list"),
    case("v1 neither instances nor inputs", IRIS_V1, {"rows": []}, 400, '"instances" or "inputs"', "rows"),
    case("v1 ragged rows", IRIS_V1, {"instances": [[1, 2, 3, 4], [1]]}, 400, "instances"),
    case("v1 text for numbers", IRIS_V1, {"instances": [["a", "b", "c", "d"]]}, 400, "instances"),
    case("v2 wrong width", IRIS, {"inputs": [tensor("input-0", [1, 3])]}, 400, "[-1,4]", "[1,3]"),
    case("v1 wrong width", IRIS_V1, {"instances": [[1, 2, 3]]}, 400, "[-1,4]", "[1,3]"),
    case("v2 element count", IRIS, {"inputs": [tensor("input-0", [1, 4], data=[1, 2])]}, 400, "4 elements", "2"),
    case("v2 wrong datatype", IRIS, {"inputs": [tensor("x", [1, 4], "BYTES", list("abcd"))]}, 400, "FP64", "BYTES"),
    case("v2 unknown datatype", IRIS, {"inputs": [tensor("x", [1, 4], "FLOAT")]}, 400, "FLOAT"),
    case("v2 missing column", HOUSING, {"inputs": [tensor("rooms", [1])]}, 400, "area_m2", "rooms"),
    case("v2 unknown column", CANCER, {"inputs": [tensor("a", [1]), tensor("b", [1])]}, 400, 'unknown "a", "b"'),
    case("v1 unknown column", "/v1/models/housing:predict", {"instances": [{"garden": 1}]}, 400, "garden", "area_m2"),
    case("v2 unknown output", IRIS, {**GOOD, "outputs": [{"name": "shape"}]}, 400, '"shape"', "predict"),
    case("v2 no probabilities", IRIS, {**GOOD, "outputs": [{"name": "predict_proba"}]}, 400, "predict_proba"),
    case("v2 input twice", IRIS, {"inputs": [ROW, ROW]}, 400, '"input-0"', "twice"),
    case("v2 FP16 in JSON", IRIS, {"inputs": [tensor("x", [1, 4], "FP16")]}, 400, "FP16", "binary"),
    case("v2 bad timeout", IRIS, {**GOOD, "parameters": {"timeout": "soon"}}, 400, '"timeout"', "microseconds"),
    case("v2 header longer than body", IRIS, b"{}", 400, headers={"inference-header-content-length": "99"}),
    case("v2 header not a number", IRIS, b"{}", 400, headers={"inference-header-content-length": "x"}),
    case("header deadline no number", IRIS, GOOD, 400, "milliseconds", headers={"x-request-timeout-ms": "soon"}),
    case("header deadline negative", IRIS, GOOD, 400, "milliseconds", headers={"x-request-timeout-ms": "-1"}),
    case("content type", IRIS, b"<a/>", 415, "text/xml", headers={"content-type": "text/xml"}),
    case("content encoding", IRIS, b"\x00", 415, "zstd", headers={"content-encoding": "zstd"}),
    case("body too large", IRIS, b" " * 1_000_001, 413, "1000000 bytes", "1000001"),
    case("model fails", SLEEP, asked(-1), 500, 'model "sleeper" failed', "RuntimeError"),
    case("not ready", "/v2/models/broken/infer", GOOD, 503, 'model "broken" is not ready', "no complete joblib"),
    case("deadline by header", SLEEP, asked(5), 504, "no answer within 0.2 s", headers={"x-request-timeout-ms": "200"}),
    case("deadline by parameter", SLEEP, {**asked(5), "parameters": {"timeout": 200_000}}, 504, "within 0.2 s"),
]


@pytest.mark.parametrize(("path", "body", "headers", "status", "words"), POSTS)
def test_a_wrong_request_is_refused_with_a_reason(
    http: httpx.Client, path: str, body: bytes, headers: dict[str, str], status: int, words: tuple[str, ...]
) -> None:
    reply = http.post(path, content=body, headers={"content-type": "application/json", **headers})
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    for word in words:
        assert word in reply.json()["error"]
    assert reply.headers["x-request-id"]
    assert ("retry-after" in reply.headers) == (status in (429, 503))
    assert http.post(IRIS, json=GOOD).status_code == 200


WRONG_METHODS = [
    ("GET", IRIS, 405),
    ("GET", IRIS_V1, 405),
    ("POST", "/v1/models/iris-sklearn", 405),
    ("DELETE", "/v2/models/iris-sklearn", 405),
    ("PUT", "/platform/v1/models", 405),
    ("GET", "/nothing/here", 404),
    ("GET", "/v2/models/iris-sklearn/nothing", 404),
    ("GET", "/v2/models/nobody", 404),
    ("GET", "/v2/models/nobody/ready", 404),
    ("GET", "/v1/models/nobody", 404),
    ("GET", "/platform/v1/models/nobody", 404),
    ("GET", "/v2/models/broken", 503),
    ("GET", "/v2/models/broken/ready", 503),
    ("GET", "/v1/models/broken", 503),
]


@pytest.mark.parametrize(("method", "path", "status"), WRONG_METHODS)
def test_a_wrong_path_or_method_is_refused(http: httpx.Client, method: str, path: str, status: int) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert isinstance(reply.json()["error"], str)
    assert ("allow" in reply.headers) == (status == 405)
    assert reply.headers["x-request-id"]


def test_nothing_of_the_servers_inside_reaches_a_client(platform: PlatformProcess, http: httpx.Client) -> None:
    text = http.post(SLEEP, json=asked(-1)).text + http.post("/v2/models/broken/infer", json=GOOD).text
    assert str(platform.folder) not in text
    assert "Traceback" not in text


def test_a_chunked_body_over_the_limit_is_refused(http: httpx.Client) -> None:
    reply = http.post(IRIS, content=iter([b" " * 600_000] * 2))
    assert reply.status_code == 413
    assert "1000000 bytes" in reply.json()["error"]


def test_a_full_queue_refuses_with_retry_after(platform: PlatformProcess) -> None:
    with httpx.Client(base_url=platform.url, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: client.post("/v2/models/narrow/infer", json=asked(0.5)), range(8)))
    assert {reply.status_code for reply in replies} == {200, 429}
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert 'model "narrow"' in refused.json()["error"]


def test_a_client_that_goes_away_frees_its_model(http: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v2/models/narrow/infer", json=asked(1), timeout=0.3)
    assert http.post("/v2/models/narrow/infer", json=asked(0)).status_code == 200


def test_a_stuck_model_does_not_hold_up_the_others(platform: PlatformProcess, http: httpx.Client) -> None:
    thread = threading.Thread(target=lambda: httpx.post(f"{platform.url}{SLEEP}", json=asked(2), timeout=60))
    thread.start()
    try:
        assert http.post(IRIS, json=GOOD).elapsed.total_seconds() < 1
        assert thread.is_alive()
    finally:
        thread.join()


@pytest.fixture(scope="module")
def stub(platform: PlatformProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(platform.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def message(
    model: str = "iris-sklearn",
    shape: tuple[int, ...] = (1, 4),
    *,
    raw: list[bytes] | None = None,
    datatype: str = "FP64",
    name: str = "input-0",
    typed: list[float] | None = None,
    **fields: Any,
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    if typed is not None:
        request.inputs[0].contents.fp64_contents.extend(typed)
    else:
        request.raw_input_contents.extend([bytes(8 * int(np.prod(shape)))] if raw is None else raw)
    return request


def sleep_message(seconds: float, model: str = "sleeper") -> pb.ModelInferRequest:
    return message(model, (1, 1), typed=[seconds])


def with_timeout(request: pb.ModelInferRequest, timeout_us: int) -> pb.ModelInferRequest:
    request.parameters["timeout"].int64_param = timeout_us
    return request


def mixed() -> pb.ModelInferRequest:
    request = message()
    request.inputs[0].contents.fp64_contents.append(1)
    return request


CODES = grpc.StatusCode
CALLS = [
    ("unknown model", message("nobody"), CODES.NOT_FOUND, 'model "nobody" is not found'),
    ("unknown version", message(model_version="9"), CODES.NOT_FOUND, 'has no version "9"'),
    ("wrong width", message(shape=(1, 3)), CODES.INVALID_ARGUMENT, "[1,3]"),
    ("wrong datatype", message(datatype="BYTES", raw=[bytes(16)]), CODES.INVALID_ARGUMENT, "BYTES"),
    ("unknown datatype", message(datatype="FLOAT"), CODES.INVALID_ARGUMENT, "FLOAT"),
    ("too few bytes", message(raw=[b"1234"]), CODES.INVALID_ARGUMENT, "32"),
    ("too few elements", message(typed=[1.0]), CODES.INVALID_ARGUMENT, "4 elements"),
    ("raw buffers do not match", message(raw=[b"", b""]), CODES.INVALID_ARGUMENT, "the number of inputs (1)"),
    ("raw and typed mixed", mixed(), CODES.INVALID_ARGUMENT, "contents field must not be specified when using raw"),
    ("missing column", message("housing", (1,), name="rooms"), CODES.INVALID_ARGUMENT, "area_m2"),
    (
        "unknown output",
        message(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="shape")]),
        CODES.INVALID_ARGUMENT,
        'unknown requested output "shape"',
    ),
    ("body too large", message(shape=(40_000, 4)), CODES.RESOURCE_EXHAUSTED, "1000000 bytes"),
    ("model fails", sleep_message(-1), CODES.INTERNAL, 'model "sleeper" failed'),
    ("not ready", message("broken"), CODES.UNAVAILABLE, 'model "broken" is not ready'),
    ("deadline", with_timeout(sleep_message(5), 200_000), CODES.DEADLINE_EXCEEDED, "within 0.2 s"),
]


@pytest.mark.parametrize(("request_", "code", "words"), [pytest.param(*rest, id=name) for name, *rest in CALLS])
def test_a_wrong_call_is_refused_with_a_reason(
    stub: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request_)
    assert caught.value.code() is code
    assert words in caught.value.details()
    assert stub.ModelInfer(message()).model_name == "iris-sklearn"


def test_a_grpc_deadline_ends_the_call(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(sleep_message(2), timeout=0.3)
    assert caught.value.code() is CODES.DEADLINE_EXCEEDED
    assert stub.ModelInfer(sleep_message(0), timeout=10).model_version == "1"


def test_a_full_queue_is_resource_exhausted(stub: GRPCInferenceServiceStub) -> None:
    calls = [stub.ModelInfer.future(sleep_message(0.5, "narrow")) for _ in range(8)]
    codes = {call.code() for call in calls}
    assert codes == {CODES.OK, CODES.RESOURCE_EXHAUSTED}


def test_metadata_of_an_unknown_model_is_not_found(stub: GRPCInferenceServiceStub) -> None:
    for method, request in (
        (stub.ModelMetadata, pb.ModelMetadataRequest(name="nobody")),
        (stub.ModelReady, pb.ModelReadyRequest(name="nobody")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(request)
        assert caught.value.code() is CODES.NOT_FOUND


def test_a_model_that_cannot_load_is_not_ready(stub: GRPCInferenceServiceStub) -> None:
    assert not stub.ModelReady(pb.ModelReadyRequest(name="broken")).ready


def test_an_rpc_that_is_not_there_is_unimplemented(stub: GRPCInferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.TraceSetting(pb.TraceSettingRequest())
    assert caught.value.code() is CODES.UNIMPLEMENTED


def test_a_raw_request_is_answered_raw_and_a_typed_one_typed(
    stub: GRPCInferenceServiceStub, answers: dict[str, Answers]
) -> None:
    rows = answers["iris-sklearn"].inputs["input-0"]
    raw = stub.ModelInfer(message(shape=rows.shape, raw=[rows.tobytes()]))
    typed = stub.ModelInfer(message(shape=rows.shape, typed=rows.reshape(-1).tolist()))
    expected = answers["iris-sklearn"].default.tolist()
    assert np.frombuffer(raw.raw_output_contents[0], np.int64).tolist() == expected
    assert list(typed.outputs[0].contents.int64_contents) == expected
    assert not typed.raw_output_contents
