# SPDX-License-Identifier: Apache-2.0
"""Each mistake a client can make is a 400 that says what, where, expected and got."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from modelyard.errors import InvalidRequest
from modelyard.protocol import errors, grpc, v1, v2
from modelyard.signature import Signature, TensorSpec

MATRIX = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "INT64", (-1,)),), any_input_name=True)
PAIR = Signature((TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "BYTES", (-1,))), ())


@contextmanager
def refused(*fragments: str) -> Iterator[None]:
    with pytest.raises(InvalidRequest) as caught:
        yield
    encoded = errors.encode_http(caught.value)
    message = json.loads(encoded.body)["error"]
    assert encoded.status == 400
    assert [fragment for fragment in fragments if fragment not in message] == [], message


def named(value: object) -> str:
    """A short id for a case: what the message has to say."""
    return str(value[0] if isinstance(value, list) else value)[:50] if isinstance(value, list | str) else ""


def infer(data: Any, datatype: str = "FP32", shape: Any = (2,), **more: Any) -> bytes:
    entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    return json.dumps({"inputs": [entry], **more}).encode()


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        (b"", "it is empty"),
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"x": "\xff"}', "not JSON"),
        (b'{"x": NaN, "y": "\xff"}', "not JSON"),
        (b'{"x": NaN', "not JSON"),
        (b'{"x": NaN, "y": "\\ud800"}', "lone surrogate"),
        (b'{"x": NaN, "y": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "not JSON"),
        (b"[NaN," * 100_000 + b"]" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"[]", "expected an object, got a list"),
        (b"null", "expected an object, got null"),
        (b"3", "expected an object, got 3"),
    ],
    ids=named,
)
def test_a_body_that_is_no_json_object(body: bytes, fragment: str) -> None:
    with refused("the request body", fragment):
        v2.decode_infer(body, None)
    with refused("the request body", fragment):
        v1.decode_predict(body, MATRIX)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        ("{}", ['expected "instances" or "inputs", got none']),
        ('{"rows": []}', ['got "rows"']),
        ('{"instances": [], "inputs": []}', ["both"]),
        ('{"instances": []}', ["instances", "non-empty list", "an empty list"]),
        ('{"instances": null}', ["instances", "non-empty list", "null"]),
        ('{"instances": {"a": 1}}', ["instances", "list", "an object"]),
        ('{"instances": "abc"}', ["instances", "list", 'the string "abc"']),
        ('{"instances": [[1, 2], [3]]}', ["instances[1]: expected 2 numbers, got 1"]),
        ('{"instances": [[1, 2], 3]}', ["instances[1]: expected a list of 2 numbers, got 3"]),
        ('{"instances": [[1, "2"]]}', ['instances[0][1]: expected a number (FP32), got the string "2"']),
        ('{"instances": ["ab", "cd"]}', ['instances[0]: expected a number (FP32), got the string "ab"']),
        ('{"instances": [[1, true]]}', ["instances[0][1]: expected a number (FP32), got True"]),
        ('{"instances": [[1, {}]]}', ["instances[0][1]: expected a number (FP32), got an object"]),
        ('{"instances": [[1, 1e39]]}', ["instances[0][1]: expected a number in the range of FP32"]),
        ('{"instances": [{"x": [1, 2]}, [1, 2]]}', ['instances[1]: expected an object with "x", got a list']),
        ('{"instances": [[1, 2]], "outputs": "y"}', ["outputs: expected a list"]),
        ('{"instances": [[1, 2]], "outputs": [1]}', ["outputs[0]: expected a string, got 1"]),
        ('{"instances": [[1, 2]], "outputs": ["y", "y"]}', ['outputs: "y" is requested twice']),
        ('{"instances": [[1, 2]], "signature_name": 1}', ["signature_name: expected a string, got 1"]),
        ('{"instances": [[1, 2]], "parameters": [1]}', ["parameters: expected an object, got a list"]),
        ('{"instances": [[1, 2]], "parameters": {"k": null}}', ['parameters "k"', "got null"]),
    ],
    ids=named,
)
def test_v1_bodies_for_one_matrix(body: str, fragments: list[str]) -> None:
    with refused(*fragments):
        v1.decode_predict(body.encode(), MATRIX)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        ('{"instances": [[1, "x", 2]]}', ['instances[0]: expected a list of 2 values ("a", "b"), got 3']),
        ('{"instances": [1]}', ["instances[0]", "got 1"]),
        ('{"instances": [[1, "x"], [1.5, "y"]]}', ['instances "a"[1]: expected an integer (INT64), got 1.5']),
        ('{"instances": [[1, 2]]}', ['instances "b"[0]: expected a string, got 2']),
        ('{"instances": [{"a": 1}]}', ['missing "b"', "unknown none"]),
        ('{"instances": [{"a": 1, "b": "x", "c": 1}]}', ["missing none", 'unknown "c"']),
        ('{"instances": [{"a": 1, "b": "x"}, {"a": 1}]}', ["instances[1]", 'missing "b"']),
        ('{"instances": [{"a": [1], "b": ["x"]}, {"a": 1, "b": ["x"]}]}', ['instances[1] "a": expected a list']),
        ('{"inputs": {"a": 1, "z": 1}}', ['unknown input "z"', '"a", "b"']),
        ('{"inputs": 3}', ["inputs", "an object with", "got 3"]),
    ],
    ids=named,
)
def test_v1_bodies_for_several_inputs(body: str, fragments: list[str]) -> None:
    with refused(*fragments):
        v1.decode_predict(body.encode(), PAIR)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        (b"{}", ["inputs: expected a list, got null"]),
        (b'{"inputs": {}}', ["inputs: expected a list, got an object"]),
        (b'{"inputs": [3]}', ["inputs[0]: expected an object, got 3"]),
        (b'{"inputs": [{}]}', ["inputs[0].name", "null"]),
        (b'{"inputs": [{"name": ""}]}', ["inputs[0].name", "non-empty"]),
        (b'{"inputs": [{"name": "x"}]}', ['input "x" datatype: expected a string, got null']),
        (infer([1, 2], "FLOAT"), ['input "x" datatype', "FP32", "got FLOAT"]),
        (infer([1, 2], shape=2), ['input "x" shape: expected a list, got 2']),
        (infer([1, 2], shape=[-1, 2]), ['input "x" shape: expected integers of 0 or more, got -1']),
        (infer([1, 2], shape=[2.0]), ["integers", "2.0"]),
        (infer([1, 2], shape=[True, 2]), ["integers", "True"]),
        (infer([1, 2], shape=["2"]), ["integers", 'the string "2"']),
        (infer([1, 2], shape=[1] * 33), ["at most 32 dimensions", "33"]),
        (infer([1, 2], shape=[3]), ['input "x": expected 3 elements for FP32 [3], got 2']),
        (infer([[1, 2, 3], [4, 5, 6]], shape=[3, 2]), ["FP32 [3,2]", "nested as [2, 3]"]),
        (infer([[1, 2], [3]]), ['input "x" data[1]: expected 2 numbers, got 1']),
        (infer([[], ""], shape=[0]), ["data[1]: expected a list of 0 numbers"]),
        (infer(None), ['input "x" data: expected a list', "null"]),
        (infer("ab"), ['input "x" data: expected a list', '"ab"']),
        (infer(["1", "2"]), ['data[0]: expected a number (FP32), got the string "1"']),
        (infer([True, 1]), ["data[0]: expected a number (FP32), got True"]),
        (infer([1, None], "INT32"), ["data[1]: expected an integer (INT32), got null"]),
        (infer([1, True], "INT32"), ["data[1]: expected an integer (INT32), got True"]),
        (infer([True, False], "INT32"), ["data[0]: expected an integer (INT32), got True"]),
        (infer([1, 2.0], "INT64"), ["data[1]: expected an integer (INT64), got 2.0"]),
        (infer([1, 2**64], "UINT64"), ["data[1]: expected an integer"]),
        (infer([1, 128], "INT8"), ["data[1]: expected an integer from -128 to 127 (INT8), got 128"]),
        (infer([1, -1], "UINT8"), ["data[1]: expected an integer from 0 to 255 (UINT8), got -1"]),
        (infer([1, 0], "BOOL"), ["data[0]: expected true or false, got 1"]),
        (infer([True, 0], "BOOL"), ["data[1]: expected true or false, got 0"]),
        (infer([True, None], "BOOL"), ["data[1]: expected true or false, got null"]),
        (infer(["a", 1], "BYTES"), ["data[1]: expected a string, got 1"]),
        (infer(["a", None], "BYTES"), ["data[1]: expected a string, got null"]),
        (infer([1, 2], "FP16"), ["JSON cannot carry FP16", "binary_data_size"]),
        (infer([1, 2], "BF16"), ["JSON cannot carry BF16", "binary_data_size"]),
        (infer([1, 2], id=7), ["id: expected a string, got 7"]),
        (infer([1, 2], parameters=[]), ["parameters: expected an object, got a list"]),
        (infer([1, 2], parameters={"k": {}}), ['parameters "k": expected a string, number or boolean, got an object']),
        (infer([1, 2], parameters={"binary_data_output": 1}), ['"binary_data_output": expected true or false, got 1']),
        (infer([1, 2], outputs={}), ["outputs: expected a list, got an object"]),
        (infer([1, 2], outputs=["y"]), ['outputs[0]: expected an object, got the string "y"']),
        (infer([1, 2], outputs=[{}]), ["outputs[0].name: expected a string, got null"]),
        (infer([1, 2], outputs=[{"name": "y"}, {"name": "y"}]), ['outputs: "y" is requested twice']),
        (infer([1, 2], outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]), ['output "y"', "true or false"]),
        (
            infer(["YQ==", "?"], "BYTES", parameters={"content_type": "base64"}),
            ['input "x" element 1: expected base64'],
        ),
    ],
    ids=named,
)
def test_v2_bodies(body: bytes, fragments: list[str]) -> None:
    with refused(*fragments):
        v2.decode_infer(body, None)


def test_an_input_given_twice() -> None:
    entry = json.loads(infer([1, 2]))["inputs"][0]
    with refused('input "x" is given twice'):
        v2.decode_infer(json.dumps({"inputs": [entry, entry]}).encode(), None)


def binary(size: Any, shape: list[int], blob: bytes, datatype: str = "FP32") -> tuple[bytes, int]:
    entry = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [entry]}).encode()
    return text + blob, len(text)


@pytest.mark.parametrize(
    ("body", "fragments"),
    [
        (binary(8, [2], b"1234"), ["binary_data_size", "at most 4 bytes", "got 8"]),
        (binary(4, [2], b"1234"), ['input "x": expected 8 bytes for FP32 [2], got 4 bytes']),
        (binary(4, [1], b"12345"), ["expected 4 bytes after the JSON, got 5"]),
        (binary(-4, [1], b"1234"), ["binary_data_size", "a number of bytes", "-4"]),
        (binary(True, [1], b"1234"), ["binary_data_size", "a number of bytes", "True"]),
        (binary("4", [1], b"1234"), ["binary_data_size", "a number of bytes"]),
        (binary(3, [1], b"abc", "BYTES"), ["4-byte length"]),
        (binary(5, [1], b"\x09\0\0\0a", "BYTES"), ["a BYTES element of 9 bytes", "1 bytes"]),
        (binary(5, [2], b"\x01\0\0\0a", "BYTES"), ["2 BYTES elements", "got 1"]),
    ],
    ids=named,
)
def test_v2_binary_bodies(body: tuple[bytes, int], fragments: list[str]) -> None:
    with refused(*fragments):
        v2.decode_infer(*body)


@pytest.mark.parametrize("length", [-1, 10_000])
def test_a_header_length_outside_the_body(length: int) -> None:
    with refused("Inference-Header-Content-Length", str(length)):
        v2.decode_infer(infer([1, 2]), length)


def test_binary_data_without_the_header() -> None:
    body, length = binary(4, [1], b"1234")
    with refused("Inference-Header-Content-Length", "got 4"):
        v2.decode_infer(body[:length], None)


@pytest.mark.parametrize(
    ("signature", "body", "fragments"),
    [
        (None, b"", ["one input", "unknown"]),
        (PAIR, b"", ["one input", "2"]),
        (Signature((TensorSpec("x", "FP32", (-1, -1, -1)),), ()), b"12345678", ["at most one variable dimension"]),
        (Signature((TensorSpec("x", "BYTES", (2,)),), ()), b"ab", ["shape [1]", "BYTES [2]"]),
        (MATRIX, b"1234", ['input "x"', "8 bytes", "4 bytes"]),
    ],
    ids=named,
)
def test_raw_binary_requests(signature: Signature | None, body: bytes, fragments: list[str]) -> None:
    with refused(*fragments):
        v2.decode_infer(body, 0, signature)


def message(shape: Any = (2,), datatype: str = "FP32", raw: Any = (), **contents: Any) -> Any:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=raw)
    entry = request.inputs.add(name="x", shape=shape, datatype=datatype)
    for field, values in contents.items():
        getattr(entry.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("request_", "fragments"),
    [
        (message(raw=[b"12345678", b""]), ["number of inputs (1)", "raw input contents (2) for model 'm'."]),
        (
            message(raw=[b"12345678"], fp32_contents=[1, 2]),
            ["contents field must not be specified when using raw_input_contents for 'x' for model 'm'"],
        ),
        (message(raw=[b"1234567"]), ['input "x": expected 8 bytes for FP32 [2], got 7 bytes']),
        (message(fp32_contents=[1]), ['input "x": expected 2 elements for FP32 [2], got 1']),
        (message(fp64_contents=[1, 2]), ["FP32 in fp32_contents", "got fp64_contents"]),
        (message(datatype="FP16", fp32_contents=[1, 2]), ["raw_input_contents", "cannot carry FP16"]),
        (message(datatype="BF16", fp32_contents=[1, 2]), ["raw_input_contents", "cannot carry BF16"]),
        (message(datatype="INT8", int_contents=[1, 128]), ["element 1", "-128 to 127 (INT8)", "128"]),
        (message(datatype="UINT16", uint_contents=[1, 65536]), ["element 1", "0 to 65535", "65536"]),
        (message(datatype="FLOAT"), ["datatype", "got FLOAT"]),
        (message(shape=[-1, 2]), ["shape", "0 or more", "-1"]),
    ],
    ids=named,
)
def test_grpc_messages(request_: Any, fragments: list[str]) -> None:
    with refused(*fragments):
        grpc.decode_infer(request_)


def test_grpc_names_and_parameters() -> None:
    twice = message(fp32_contents=[1, 2])
    twice.inputs.append(twice.inputs[0])
    with refused('input "x" is given twice'):
        grpc.decode_infer(twice)
    nameless = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(datatype="FP32")])
    with refused("inputs[0].name"):
        grpc.decode_infer(nameless)
    empty = message(fp32_contents=[1, 2])
    empty.parameters["k"].SetInParent()
    with refused('parameters "k": expected a value, got none'):
        grpc.decode_infer(empty)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Room for 1 GiB more than the process has now."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123  # a kernel file
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", [[2**40], [2**62, 2**62], [2**31, 2**31, 0], [2**47]])
@pytest.mark.parametrize("datatype", ["FP64", "BYTES"])
def test_absurd_shapes_cost_no_memory(shape: list[int], datatype: str) -> None:
    for body, length in ((infer([], datatype, shape), None), binary(1, shape, b"1", datatype)):
        with refused('input "x"'):
            v2.decode_infer(body, length)
    for request in (message(shape, datatype, raw=[b"1"]), message(shape, datatype)):
        if 0 not in shape or request.raw_input_contents:
            with refused('input "x"'):
                grpc.decode_infer(request)


@pytest.mark.usefixtures("little_memory")
def test_a_long_string_among_numbers_costs_no_memory() -> None:
    values = ["x" * 1_000_000, *range(100_000)]
    with refused("instances[0]: expected a number"):
        v1.decode_predict(json.dumps({"instances": values}).encode(), MATRIX)


def test_messages_are_bounded_and_name_at_most_twenty() -> None:
    records = json.dumps({"instances": [{f"column-{i}" * 10: 1 for i in range(5000)}]}).encode()
    with pytest.raises(InvalidRequest) as caught:
        v1.decode_predict(records, PAIR)
    assert "and 4980 more" in str(caught.value)
    assert len(errors.to_message(caught.value)) <= errors.MAX_MESSAGE_CHARS + 1
