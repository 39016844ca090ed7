# SPDX-License-Identifier: Apache-2.0
"""Whatever arrives, a decoder answers with a request or with an error of the tree, and the error can be encoded."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from modelyard.errors import ModelyardError
from modelyard.inference import InferenceRequest
from modelyard.protocol import errors, events, generate, grpc, repository, v1, v2
from modelyard.protocol.compression import ENCODINGS, choose_encoding, find_encoding, inflate
from modelyard.protocol.http import Encoded, encode_json
from modelyard.protocol.tensors import may_hold_bools
from modelyard.protocol.tfserving import examples, messages, predict, reload
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.protos import tensorflow_serving_pb2 as serving
from modelyard.signature import SavedSignature, Signature, TensorSpec
from modelyard.tensor import DATATYPES

SIGNATURES = (
    Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "INT64", (-1,)),), any_input_name=True),
    Signature((TensorSpec("x", "FP64", (-1, 2)),), (), columns=("a", "b")),
    Signature((TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "BYTES", (-1, 1))), ()),
    Signature((TensorSpec("x", "BYTES", (-1,)),), ()),
    Signature((TensorSpec("x", "BOOL", (2, -1)), TensorSpec("a", "UINT8", ())), (), batch_axis=False),
)
SAVED = tuple(replace(one, saved=SavedSignature("serving_default", "")) for one in SIGNATURES)
EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, -0.0])
WORDS = st.sampled_from(
    ["x", "y", "a", "b", "0", "name", "data", "shape", "datatype", "inputs", "instances", "outputs", "parameters", "id",
     "binary_data_size", "binary_data", "content_type", "base64", "FP32", "BYTES", "FP16", "b64", "timeout", "type",
     "source", "specversion", "1.0", "time", "data_base64", "ready", "signature_name", "batchId", "examples", "context"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4)
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": WORDS | VALUES,
        "shape": st.lists(st.integers(-1, 4) | NUMBERS, max_size=4) | VALUES,
        "datatype": st.sampled_from(list(DATATYPES)) | VALUES,
        "data": st.lists(SCALARS, max_size=4) | VALUES,
        "parameters": VALUES,
    },
)
DOCUMENTS = (
    st.fixed_dictionaries(
        {}, optional={"inputs": st.lists(TENSORS, max_size=3), "parameters": VALUES, "outputs": VALUES}
    )
    | st.fixed_dictionaries({"instances": VALUES}, optional={"parameters": VALUES, "outputs": VALUES})
    | st.fixed_dictionaries({"instances": st.lists(st.dictionaries(WORDS, VALUES, max_size=2), max_size=3)})
    | st.dictionaries(WORDS, VALUES, max_size=4)
    | VALUES
)


def to_text(document: Any) -> bytes:
    """JSON with bare NaN, huge integers and lone surrogates, as a hostile client writes it."""
    return json.dumps(document).encode()


BODIES = (
    st.binary(max_size=80)
    | DOCUMENTS.map(to_text)
    | st.builds(
        bytes.join,
        st.just(b""),
        st.lists(
            st.sampled_from(
                [
                    b"[",
                    b"{",
                    b"]",
                    b"}",
                    b'"x":',
                    b",",
                    b"NaN",
                    b"-Infinity",
                    b'"\\ud800"',
                    b"1e999",
                    b"9" * 50,
                    b"\xff",
                ]
            ),
            max_size=12,
        ),
    )
)


def tried(decode: Callable[[], Any], statuses: tuple[int, ...] = (400, 413, 415)) -> Any:
    """What it makes of it, or the reply to its error."""
    try:
        return decode()
    except ModelyardError as exc:
        reply = errors.encode_http(exc)
    assert reply.status in statuses
    assert json.loads(reply.body)["error"]
    return reply


def check_bound(request: Any, signature: Signature) -> None:
    """A decoded request binds to what the signature says, or is refused."""
    if not isinstance(request, InferenceRequest):
        return
    bound = tried(lambda: signature.bind(request.inputs))
    for spec in signature.inputs if isinstance(bound, dict) else ():
        assert bound[spec.name].dtype == DATATYPES[spec.datatype].dtype
        assert all(want in (-1, got) for want, got in zip(spec.shape, bound[spec.name].shape, strict=True))


@given(body=BODIES, length=st.none() | st.integers(-1, 100), signature=st.sampled_from(SIGNATURES))
@EXAMPLES
def test_v2(body: bytes, length: int | None, signature: Signature) -> None:
    check_bound(tried(lambda: v2.decode_infer(body, length, signature)), signature)


@given(document=DOCUMENTS, blobs=st.binary(max_size=40), signature=st.sampled_from(SIGNATURES))
@EXAMPLES
def test_v2_with_bytes_after_the_json(document: Any, blobs: bytes, signature: Signature) -> None:
    text = to_text(document)
    check_bound(tried(lambda: v2.decode_infer(text + blobs, len(text), signature)), signature)


@given(
    blob=st.binary(max_size=40),
    size=st.integers(-1, 50),
    shape=st.lists(st.integers(0, 5) | st.sampled_from([2**31, 2**62]), max_size=3),
    datatype=st.sampled_from(list(DATATYPES)),
)
@EXAMPLES
def test_v2_binary_that_lies(blob: bytes, size: int, shape: list[int], datatype: str) -> None:
    entry = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    text = to_text({"inputs": [entry]})
    found = tried(lambda: v2.decode_infer(text + blob, len(text)))
    if isinstance(found, InferenceRequest):
        assert (found.inputs["x"].shape, size) == (tuple(shape), len(blob))


@given(body=BODIES, signature=st.sampled_from(SIGNATURES))
@EXAMPLES
def test_v1(body: bytes, signature: Signature) -> None:
    for decode in (v1.decode_predict, v1.decode_explain):
        decoded = tried(lambda decode=decode: decode(body, signature))
        check_bound(decoded[0] if isinstance(decoded, tuple) else decoded, signature)


@given(body=BODIES, signature=st.sampled_from(SIGNATURES))
@EXAMPLES
def test_generate(body: bytes, signature: Signature) -> None:
    check_bound(tried(lambda: generate.decode_generate(body, signature)), signature)


@given(body=BODIES)
@EXAMPLES
def test_repository(body: bytes) -> None:
    tried(lambda: repository.decode_index(body))
    tried(lambda: repository.decode_parameters(body))


ATTRIBUTES = st.dictionaries(WORDS | st.text(max_size=3), SCALARS, max_size=3)
REPLY = encode_json({"predictions": [1]})
OWN = events.ReplyAttributes("t", "s", merge=True)


def check_event(headers: dict[bytes, bytes], body: bytes) -> None:
    """An event that is taken is answered with one."""
    event = tried(lambda: events.decode_event(headers, body))
    if isinstance(event, events.Event):
        reply = events.encode_event(REPLY, event, OWN)
        assert isinstance(reply, Encoded)
        assert all(b"\n" not in value and b"\r" not in value for _, value in reply.headers)


@given(body=BODIES, attributes=ATTRIBUTES, data=VALUES)
@EXAMPLES
def test_structured_events(body: bytes, attributes: dict[str, Any], data: Any) -> None:
    headers = {b"content-type": events.STRUCTURED}
    check_event(headers, body)
    whole = {"specversion": "1.0", "id": "1", "type": "t", "source": "s", **attributes}
    for carried in ({"data": data}, {"data_base64": data}):
        check_event(headers, to_text(whole | carried))


@given(
    values=st.dictionaries(
        st.sampled_from(
            [b"ce-id", b"ce-type", b"ce-source", b"ce-specversion", b"ce-time", b"ce-x", b"ce-", b"ce-\xff"]
        ),
        st.sampled_from([b"1.0", b"0.3", b"", b"%0d%0a", b"%zz", b"%ff", b"2020-01-01T00:00:00Z"])
        | st.binary(max_size=8),
    )
)
@EXAMPLES
def test_binary_events(values: dict[bytes, bytes]) -> None:
    whole = {b"ce-id": b"1", b"ce-type": b"t", b"ce-source": b"s", b"ce-specversion": b"1.0"}
    check_event(values, b"{}")
    check_event(whole | values, b"{}")


@given(
    body=st.binary(max_size=200), encoding=st.sampled_from(ENCODINGS), flips=st.lists(st.integers(0, 10**6), max_size=4)
)
@EXAMPLES
def test_compressed_bodies(body: bytes, encoding: str, flips: list[int]) -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    damaged = bytearray(stream.compress(body) + stream.flush())
    for flip in flips:
        damaged[flip % len(damaged)] ^= 1 << flip % 8
    for sent in (body, bytes(damaged)):
        inflated = tried(lambda sent=sent: inflate(sent, encoding, 150))
        assert not isinstance(inflated, bytes) or len(inflated) <= 150


@given(header=st.text(max_size=30) | st.sampled_from(["gzip;q=", "*;q=0", "gzip, , ;q=1", "q=1", "identity;q=0,*;q=0"]))
@EXAMPLES
def test_encoding_headers(header: str) -> None:
    tried(lambda: find_encoding(header))
    assert choose_encoding(header).encoding in (*ENCODINGS, "")


CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "fp32_contents": st.lists(st.floats(width=32), max_size=4),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=4),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=4),
        "bool_contents": st.lists(st.booleans(), max_size=4),
    },
)
PARAMETERS = st.dictionaries(
    WORDS,
    st.builds(pb.InferParameter)
    | st.builds(pb.InferParameter, bool_param=st.booleans())
    | st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, string_param=WORDS)
    | st.builds(pb.InferParameter, double_param=st.floats()),
    max_size=2,
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=WORDS | st.just(""),
    datatype=st.sampled_from([*DATATYPES, "", "fp32", "FLOAT"]),
    shape=st.lists(st.integers(-2, 4) | st.sampled_from([2**62, -(2**63)]), max_size=4),
    contents=st.none() | st.builds(lambda fields: pb.InferTensorContents(**fields), CONTENTS),
    parameters=PARAMETERS,
)
MESSAGES = st.builds(
    pb.ModelInferRequest,
    model_name=st.text(max_size=3),
    id=st.text(max_size=3),
    inputs=st.lists(INPUTS, max_size=3),
    outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=WORDS, parameters=PARAMETERS)),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=3),
    parameters=PARAMETERS,
)


@given(message=MESSAGES, signature=st.sampled_from(SIGNATURES))
@EXAMPLES
def test_grpc(message: pb.ModelInferRequest, signature: Signature) -> None:
    check_bound(tried(lambda: grpc.decode_infer(message)), signature)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(raw=st.binary(max_size=40), shape=st.lists(st.integers(0, 5) | st.sampled_from([2**62, 2**31]), max_size=3))
@EXAMPLES
def test_grpc_raw_that_lies(datatype: str, raw: bytes, shape: list[int]) -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    found = tried(lambda: grpc.decode_infer(message))
    if isinstance(found, InferenceRequest):
        assert found.inputs["x"].shape == tuple(shape)
        assert found.inputs["x"].dtype == np.dtype(DATATYPES[datatype].dtype)


@given(body=BODIES, signature=st.sampled_from(SAVED))
@EXAMPLES
def test_tensorflow_serving(body: bytes, signature: Signature) -> None:
    document = tried(lambda: v1.load_predict(body))
    if isinstance(document, dict):
        decoded = tried(lambda: predict.decode_document(document, may_hold_bools(body), signature))
        check_bound(decoded[0] if isinstance(decoded, tuple) else decoded, signature)


FEATURES = st.dictionaries(
    WORDS | st.text(max_size=3), SCALARS | st.lists(SCALARS | st.just({"b64": "YQ"}) | VALUES, max_size=3), max_size=3
)


@given(document=DOCUMENTS | st.fixed_dictionaries({"examples": st.lists(FEATURES)}, optional={"context": FEATURES}))
@EXAMPLES
def test_examples(document: Any) -> None:
    document = tried(lambda: v1.load_predict(to_text(document)))
    found = tried(lambda: examples.decode_examples(document, 1000)) if isinstance(document, dict) else None
    if isinstance(found, list):
        assert [tf.Example.FromString(text) for text in found]


SIZES = st.integers(-1, 5) | st.sampled_from([2**31, 2**62, -(2**63)])
NUMBERS_32 = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4)
TENSOR_PROTOS = st.builds(
    lambda sizes, **fields: tf.TensorProto(
        tensor_shape={"dim": [{"size": size} for size in sizes]},
        **{name: value for name, value in fields.items() if value},
    ),
    st.lists(SIZES, max_size=4),
    dtype=st.sampled_from([number for _, number in tf.DataType.items()]) | st.integers(0, 200),
    tensor_content=st.binary(max_size=24),
    float_val=st.lists(st.floats(width=32), max_size=4),
    double_val=st.lists(st.floats(), max_size=4),
    int_val=NUMBERS_32,
    half_val=NUMBERS_32,
    int64_val=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    uint64_val=st.lists(st.integers(0, 2**64 - 1), max_size=4),
    string_val=st.lists(st.binary(max_size=4), max_size=4),
    bool_val=st.lists(st.booleans(), max_size=4),
)


@given(
    tensors=st.dictionaries(WORDS, TENSOR_PROTOS, max_size=3),
    outputs=st.lists(WORDS, max_size=3),
    signature=st.sampled_from(SAVED),
)
@EXAMPLES
def test_tensor_messages(tensors: dict[str, tf.TensorProto], outputs: list[str], signature: Signature) -> None:
    message = serving.PredictRequest(output_filter=outputs)
    for name, tensor in tensors.items():
        message.inputs[name].CopyFrom(tensor)
    found = tried(lambda: messages.decode_predict(message, 10_000))
    check_bound(found, signature)
    if isinstance(found, InferenceRequest):
        assert sum(array.nbytes for array in found.inputs.values()) <= 10_000


@given(data=st.binary(max_size=60))
@EXAMPLES
def test_bytes_that_may_be_a_message(data: bytes) -> None:
    for kind, decode in (
        (serving.PredictRequest, lambda message: messages.decode_predict(message, 10_000)),
        (serving.ClassificationRequest, lambda message: messages.decode_input(message.input, 10_000)),
        (serving.MultiInferenceRequest, messages.decode_tasks),
        (serving.ReloadConfigRequest, reload.decode_config),
    ):
        with contextlib.suppress(DecodeError):
            message = kind.FromString(data)
            tried(lambda decode=decode, message=message: decode(message), (400, 413, 501))
