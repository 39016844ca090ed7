# SPDX-License-Identifier: Apache-2.0
"""What Triton's own clients write is read, and what we answer their own parsers read. No server."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
import tritonclient.http as tritonhttp
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import np_to_triton_dtype

from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol import grpc, v2
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, to_bytes_array

IN_JSON = [name for name in DATATYPES if name not in ("FP16", "BF16")]


def sample(name: str) -> Array:
    if name == "BYTES":
        return np.array([["a", "\N{SNOWMAN}"], ["", "NaN"]], dtype=object)
    return np.array([[0, 1], [1, 0]]).astype(DATATYPES[name].dtype)


def protocol(array: Array) -> Array:
    return to_bytes_array(array) if array.dtype.kind == "O" else array


def http_request(name: str, binary: bool, outputs: Any = None, **more: Any) -> InferenceRequest:
    given = tritonhttp.InferInput("x", [2, 2], name)
    given.set_data_from_numpy(sample(name), binary_data=binary)
    body, json_length = tritonhttp.InferenceServerClient.generate_request_body([given], outputs=outputs, **more)
    return v2.decode_infer(body if isinstance(body, bytes) else body.encode(), json_length)


def http_answer(response: InferenceResponse, request: InferenceRequest) -> Any:
    encoded = v2.encode_infer(response, request)
    length = dict(encoded.headers).get(b"inference-header-content-length")
    return tritonhttp.InferenceServerClient.parse_response_body(encoded.body, header_length=length and int(length))


def grpc_request(name: str, outputs: Any = None, **more: Any) -> Any:
    given = tritongrpc.InferInput("x", [2, 2], name)
    given.set_data_from_numpy(sample(name))
    defaults = {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 0, "timeout": None}
    settings: dict[str, Any] = {"model_version": "", "request_id": "", **defaults, "parameters": None, **more}
    request = _get_inference_request(model_name="m", inputs=[given], outputs=outputs, **settings)
    return pb.ModelInferRequest.FromString(request.SerializeToString())


def answer(**outputs: Array) -> InferenceResponse:
    return InferenceResponse("m", "3", "id", {name: protocol(array) for name, array in outputs.items()})


@pytest.mark.parametrize(("name", "binary"), [(n, True) for n in DATATYPES] + [(n, False) for n in IN_JSON])
def test_http_requests(name: str, binary: bool) -> None:
    array = http_request(name, binary).inputs["x"]
    assert array.dtype == DATATYPES[name].dtype
    assert array.tolist() == protocol(sample(name)).tolist()


@pytest.mark.parametrize("name", DATATYPES)
def test_http_answers_are_binary_unless_outputs_are_named(name: str) -> None:
    request = http_request(name, binary=True)
    assert request.parameters["binary_data_output"] is True
    result = http_answer(answer(y=sample(name)), request)
    assert result.as_numpy("y").tolist() == protocol(sample(name)).tolist()
    assert np_to_triton_dtype(result.as_numpy("y").dtype) == name


def test_http_answers_mix_json_and_binary() -> None:
    wanted = [tritonhttp.InferRequestedOutput(name, binary_data=name in "ac") for name in ("a", "b", "c")]
    request = http_request("FP32", binary=True, outputs=wanted)
    arrays = {"a": sample("INT64"), "b": np.array([np.nan, np.inf]), "c": sample("BYTES")}
    result = http_answer(answer(**arrays), request)
    assert [output.name for output in request.outputs] == ["a", "b", "c"]
    assert result.as_numpy("a").tolist() == arrays["a"].tolist()
    assert repr(result.as_numpy("b").tolist()) == "[nan, inf]"
    assert result.as_numpy("c").tolist() == protocol(arrays["c"]).tolist()
    assert "parameters" not in result.get_output("b")


def test_an_http_answer_in_json_alone_has_no_header_length() -> None:
    wanted = [tritonhttp.InferRequestedOutput("y", binary_data=False)]
    request = http_request("FP32", binary=False, outputs=wanted)
    encoded = v2.encode_infer(answer(y=sample("FP32")), request)
    assert [name for name, _ in encoded.headers] == [b"content-type", b"content-length"]
    assert http_answer(answer(y=sample("FP32")), request).as_numpy("y").tolist() == [[0, 1], [1, 0]]


def test_an_empty_binary_output_still_has_a_header_length() -> None:
    result = http_answer(answer(y=np.empty((0, 2), np.float32)), http_request("FP32", binary=True))
    assert result.as_numpy("y").shape == (0, 2)


def test_http_parameters_and_id() -> None:
    request = http_request(
        "FP32", True, request_id="7", priority=2, timeout=5, sequence_id=9, parameters={"k": "v", "n": 0.5}
    )
    assert request.id == "7"
    assert {"priority": 2, "timeout": 5, "sequence_id": 9, "k": "v", "n": 0.5}.items() <= request.parameters.items()


@pytest.mark.parametrize("name", DATATYPES)
def test_grpc_both_ways(name: str) -> None:
    message = grpc_request(name)
    request = grpc.decode_infer(message)
    assert request.inputs["x"].tolist() == protocol(sample(name)).tolist()
    assert grpc.is_raw(message)
    result = tritongrpc.InferResult(grpc.encode_infer(answer(a=sample("INT8"), y=sample(name)), request, raw=True))
    assert result.as_numpy("y").tolist() == protocol(sample(name)).tolist()
    assert result.as_numpy("a").tolist() == sample("INT8").tolist()


def test_grpc_parameters_outputs_and_id() -> None:
    wanted = [tritongrpc.InferRequestedOutput("y", class_count=3)]
    request = grpc.decode_infer(
        grpc_request("FP32", wanted, request_id="7", priority=2, timeout=5, parameters={"k": "v", "b": True})
    )
    assert (request.id, request.outputs[0].name, request.outputs[0].parameters) == ("7", "y", {"classification": 3})
    assert {"priority": 2, "timeout": 5, "k": "v", "b": True}.items() <= request.parameters.items()


def test_a_typed_request_is_answered_typed_unless_an_output_has_no_typed_form() -> None:
    request = InferenceRequest({})
    typed = grpc.encode_infer(answer(y=sample("UINT8")), request, raw=False)
    assert list(typed.outputs[0].contents.uint_contents) == [0, 1, 1, 0]
    raw = grpc.encode_infer(answer(a=sample("INT64"), y=np.ones(1, ml_dtypes.bfloat16)), request, raw=False)
    assert len(raw.raw_output_contents) == 2
    assert not raw.outputs[0].HasField("contents")


def test_grpc_answers_carry_parameters() -> None:
    given = {"b": True, "i": -1, "u": 2**64 - 1, "f": 0.5, "s": "x"}
    message = grpc.encode_infer(InferenceResponse("m", "1", "id", {}, given), InferenceRequest({}), raw=True)
    choices = {name: parameter.WhichOneof("parameter_choice") for name, parameter in message.parameters.items()}
    assert choices == {
        "b": "bool_param", "i": "int64_param", "u": "uint64_param", "f": "double_param", "s": "string_param",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "body", "shape"),
    [
        (TensorSpec("x", "FP32", (-1, 2)), b"\0" * 8, (1, 2)),
        (TensorSpec("x", "UINT8", (-1, -1)), b"abc", (1, 3)),
        (TensorSpec("x", "BYTES", (-1, 1)), b"\xffany bytes", (1, 1)),
    ],
)
def test_a_raw_binary_request_is_one_row_and_answered_in_binary(spec: TensorSpec, body: bytes, shape: Any) -> None:
    request = v2.decode_infer(body, 0, Signature((spec,), ()))
    assert request.inputs["x"].shape == shape
    assert request.parameters == {"binary_data_output": True}


def test_binary_tensors_are_views_on_the_body() -> None:
    array = http_request("FP32", binary=True).inputs["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_metadata_over_http_tells_what_a_datatype_does_not() -> None:
    content_types = {"": None, "datetime": "datetime", "json": "pd_json", "pd": "pd", "base64": None}
    specs = tuple(TensorSpec(f"x{kind}", "BYTES", (-1,), content_type=kind) for kind in content_types)
    document = json.loads(v2.encode_model_metadata("m", ("1",), "mlflow", Signature(specs, specs)).body)
    for tensors in (document["inputs"], document["outputs"]):
        assert [one.get("parameters", {}).get("content_type") for one in tensors] == list(content_types.values())


def test_metadata_over_http_and_grpc() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "INT64", (-1,)),))
    message = grpc.encode_model_metadata("m", ("1", "2"), "sklearn_joblib", signature)
    assert (message.name, list(message.versions), message.platform) == ("m", ["1", "2"], "sklearn_joblib")
    assert (message.inputs[0].datatype, list(message.inputs[0].shape)) == ("FP32", [-1, 4])
    assert v2.encode_model_metadata("m", ("1", "2"), "sklearn_joblib", signature).body == (
        b'{"name":"m","versions":["1","2"],"platform":"sklearn_joblib",'
        b'"inputs":[{"name":"x","datatype":"FP32","shape":[-1,4]}],'
        b'"outputs":[{"name":"y","datatype":"INT64","shape":[-1]}]}'
    )
    assert v2.encode_server_metadata("1.0", ["a"]).body == b'{"name":"modelyard","version":"1.0","extensions":["a"]}'
    assert list(grpc.encode_server_metadata("1.0", ["a"]).extensions) == ["a"]
