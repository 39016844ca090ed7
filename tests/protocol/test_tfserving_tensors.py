# SPDX-License-Identifier: Apache-2.0
"""``TensorProto`` and numpy: every datatype in every form, and messages that lie."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor, TooLarge
from modelyard.inference import InferenceResponse
from modelyard.protocol.tfserving import messages
from modelyard.protocol.tfserving.tensors import Budget, decode_tensor, encode_tensor
from modelyard.protos import tensorflow_packed_pb2 as packed
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.tensor import DATATYPES

LIMIT = 1_000_000


def proto(dtype: int, shape: tuple[int, ...] = (), **fields: Any) -> tf.TensorProto:
    message = tf.TensorProto(dtype=dtype, **fields)  # type: ignore[arg-type]
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def decode(message: tf.TensorProto, limit: int = LIMIT) -> Any:
    return decode_tensor(message, 'input "x"', Budget(limit))


def encode(array: Any) -> tf.TensorProto:
    """As a client reads it."""
    message = packed.Tensor()
    encode_tensor(array, message)
    return tf.TensorProto.FromString(message.SerializeToString())


SAMPLES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 65535],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-32768, 0, 32767],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [0.1, -2, np.inf],
    "BF16": [0.1, -2, np.inf],
    "FP32": [0.1, -2, np.nan],
    "FP64": [0.1, -2, np.nan],
    "BYTES": [b"", b"\xff\x00", "ü".encode()],
}


def sample(datatype: str, shape: tuple[int, ...] = (3,)) -> Any:
    array = np.empty(3, dtype=DATATYPES[datatype].dtype)
    array[:] = SAMPLES[datatype]
    return np.resize(array, shape)


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (), (0,), (2, 0), (700,)])
def test_what_is_encoded_is_decoded_the_same(datatype: str, shape: tuple[int, ...]) -> None:
    array = sample(datatype, shape)
    message = encode(array)
    assert [dim.size for dim in message.tensor_shape.dim] == list(shape)
    again = decode(message)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(again, array)


def test_there_is_a_sample_of_every_datatype() -> None:
    assert SAMPLES.keys() == DATATYPES.keys()


@pytest.mark.parametrize("datatype", [name for name, row in DATATYPES.items() if row.item_bytes])
def test_content_is_the_same_as_typed_fields(datatype: str) -> None:
    array = sample(datatype, (2, 3))
    message = encode(array)
    raw = proto(message.dtype, (2, 3), tensor_content=array.tobytes())
    np.testing.assert_array_equal(decode(raw), array)


def test_answers_have_the_typed_fields_that_clients_look_at() -> None:
    assert list(encode(np.float32([1.5, 2])).float_val) == [1.5, 2]
    assert list(encode(np.float64([1.5, 2])).double_val) == [1.5, 2]
    assert list(encode(np.int8([-1, 2])).int_val) == [-1, 2]
    assert list(encode(np.array([True])).bool_val) == [True]
    assert list(encode(np.float16([1])).half_val) == [0x3C00]
    assert list(encode(np.array([1], ml_dtypes.bfloat16)).half_val) == [0x3F80]
    assert list(encode(sample("BYTES")).string_val) == SAMPLES["BYTES"]
    assert encode(np.float32(3)).HasField("tensor_shape")


def test_an_array_that_is_not_contiguous_is_encoded_row_by_row() -> None:
    for dtype in ("f4", "f2", "i8"):
        array = np.arange(6, dtype=dtype).reshape(2, 3).T
        assert decode(encode(array)).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (proto(tf.DT_FLOAT, (2, 2), float_val=[1, 2]), [[1, 2], [2, 2]]),
        (proto(tf.DT_INT32, (3,), int_val=[7]), [7, 7, 7]),
        (proto(tf.DT_INT64, (3,)), [0, 0, 0]),
        (proto(tf.DT_BOOL, (2,), bool_val=[True]), [True, True]),
        (proto(tf.DT_BOOL, (2,)), [False, False]),
        (proto(tf.DT_HALF, (2,), half_val=[0x3C00]), [1, 1]),
        (proto(tf.DT_STRING, (3,), string_val=[b"a", b"b"]), [b"a", b"b", b"b"]),
        (proto(tf.DT_STRING, (2,)), [b"", b""]),
        (proto(tf.DT_FLOAT, ()), 0),
        (proto(tf.DT_FLOAT, (), float_val=[3]), 3),
        (proto(tf.DT_STRING, (2,), tensor_content=b"\x01\x02abc"), [b"a", b"bc"]),
        (proto(tf.DT_STRING, (1,), tensor_content=b"\xac\x02" + b"x" * 300), [b"x" * 300]),
        (proto(tf.DT_STRING, (2,), tensor_content=b"\x00\x00"), [b"", b""]),
    ],
)
def test_the_last_element_counts_for_the_rest(message: tf.TensorProto, wanted: Any) -> None:
    assert decode(message).tolist() == wanted


FLOATS = 2**17


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (proto(tf.DT_INVALID, (1,)), "got DT_INVALID"),
        (proto(tf.DT_COMPLEX64, (1,), scomplex_val=[1, 2]), "got DT_COMPLEX64"),
        (proto(tf.DT_RESOURCE), "got DT_RESOURCE"),
        (proto(tf.DT_FLOAT_REF, (1,)), "got DT_FLOAT_REF"),
        (proto(9999, (1,)), "dtype: expected one of DT_BOOL"),
        (proto(9999, (1,)), "got 9999"),
        (proto(tf.DT_FLOAT, (-1,), float_val=[1]), 'input "x" shape: expected integers of 0 or more, got -1'),
        (proto(tf.DT_FLOAT, (1,) * 33), "expected at most 32 dimensions, got 33"),
        (proto(tf.DT_FLOAT, (2**62, 2**62)), "expected at most 281474976710656 elements"),
        (proto(tf.DT_FLOAT, (2,), float_val=[1, 2, 3]), "expected at most the 2 elements of its shape, got 3"),
        (proto(tf.DT_STRING, (1,), string_val=[b"", b""]), "expected at most the 1 elements of its shape, got 2"),
        (proto(tf.DT_FLOAT, (0,), float_val=[1]), "expected at most the 0 elements"),
        (proto(tf.DT_INT8, (1,), int_val=[128]), "element 0: expected an integer from -128 to 127 (INT8), got 128"),
        (proto(tf.DT_UINT16, (2,), int_val=[1, -1]), "element 1: expected an integer from 0 to 65535"),
        (proto(tf.DT_HALF, (1,), half_val=[65536]), "expected an integer from 0 to 65535 (16 bits)"),
        (proto(tf.DT_FLOAT, (2,), tensor_content=b"1234"), "expected 8 bytes for FP32 [2], got 4 bytes"),
        (proto(tf.DT_FLOAT, (), tensor_content=b"12345"), "expected 4 bytes for FP32 [], got 5 bytes"),
        (proto(tf.DT_STRING, (9,), tensor_content=b"\x01a"), "expected 9 lengths, got 2 bytes"),
        (proto(tf.DT_STRING, (1,), tensor_content=b"\x05abc"), "expected 5 bytes after the lengths, got 3"),
        (proto(tf.DT_STRING, (1,), tensor_content=b"\xff" * 9), "expected a length before each element"),
    ],
)
def test_messages_that_lie(message: tf.TensorProto, text: str) -> None:
    with pytest.raises(InvalidTensor) as caught:
        decode(message)
    assert text in str(caught.value)


def test_a_tensor_of_unknown_rank_is_refused() -> None:
    message = proto(tf.DT_FLOAT, float_val=[1])
    message.tensor_shape.unknown_rank = True
    with pytest.raises(InvalidTensor, match="expected known dimensions, got unknown_rank"):
        decode(message)


@pytest.mark.parametrize(
    "message",
    [
        proto(tf.DT_FLOAT, (10**12,), float_val=[1]),
        proto(tf.DT_STRING, (10**12,)),
        proto(tf.DT_STRING, (100,), string_val=[b"x" * 100_000]),
        proto(tf.DT_BOOL, (LIMIT + 1,)),
        proto(tf.DT_DOUBLE, (2**24, 2**24)),
    ],
)
def test_a_shape_alone_allocates_nothing(message: tf.TensorProto) -> None:
    with pytest.raises(TooLarge) as caught:
        decode(message)
    assert caught.value.limit == LIMIT


def test_the_limit_counts_all_tensors_of_a_request() -> None:
    request = pb.PredictRequest()
    for index in range(3):
        request.inputs[f"x{index}"].CopyFrom(proto(tf.DT_FLOAT, (100,), float_val=[1]))
    assert len(messages.decode_predict(request, 1200).inputs) == 3
    with pytest.raises(TooLarge):
        messages.decode_predict(request, 1199)


def test_elements_that_come_one_by_one_are_read_too() -> None:
    """Protobuf reads a packed field that was not packed, or that comes in pieces."""
    head = proto(tf.DT_FLOAT, (600,)).SerializeToString()
    loose = b"".join(b"\x2d" + struct.pack("<f", i) for i in range(300))
    piece = b"\x2a\xb0\x09" + np.arange(300, 600, dtype="<f4").tobytes()
    assert decode(tf.TensorProto.FromString(head + loose + piece)).tolist() == list(range(600))


def test_content_is_a_view() -> None:
    array = decode(proto(tf.DT_INT64, (4,), tensor_content=np.arange(4).tobytes()))
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_requested_outputs_are_named_once() -> None:
    request = pb.PredictRequest(output_filter=["a", "b"])
    assert [output.name for output in messages.decode_predict(request, LIMIT).outputs] == ["a", "b"]
    with pytest.raises(InvalidRequest, match='"a" is requested twice'):
        messages.decode_predict(pb.PredictRequest(output_filter=["a", "a"]), LIMIT)


def test_an_answer_says_who_has_answered() -> None:
    answer = messages.encode_predict(InferenceResponse("m", "7", "id", {"y": np.float32([1])}), "serving_default")
    read = pb.PredictResponse.FromString(answer.SerializeToString())
    assert (read.model_spec.name, read.model_spec.version.value) == ("m", 7)
    assert read.model_spec.signature_name == "serving_default"
    assert list(read.outputs["y"].float_val) == [1]


@pytest.mark.parametrize(
    ("spec", "version"),
    [
        (pb.ModelSpec(name="m"), ""),
        (pb.ModelSpec(name="m", version={"value": 3}), "3"),
        (pb.ModelSpec(name="m", version={}), "0"),
        (pb.ModelSpec(name="m", version={"value": -1}), "-1"),
        (pb.ModelSpec(name="m", version_label="canary"), "canary"),
    ],
)
def test_the_version_that_a_message_names(spec: pb.ModelSpec, version: str) -> None:
    assert messages.decode_spec(spec) == messages.Spec("m", version, "")
