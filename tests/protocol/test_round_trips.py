# SPDX-License-Identifier: Apache-2.0
"""Every datatype through every codec: what a reply says is what a request with the same tensors is read as."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol import grpc, v1, v2
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array

GOLDEN = Path(__file__).parent / "golden"
BINARY_ONLY = ("FP16", "BF16")
IN_JSON = [name for name in DATATYPES if name not in BINARY_ONLY]
BINARY = InferenceRequest({}, parameters={"binary_data_output": True})
JSON = InferenceRequest({})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def to_objects(items: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, name: str, text: bool = False) -> Array:
    shape = draw(SHAPES)
    count = math.prod(shape)
    if name == "BYTES":
        element = st.text(max_size=6).map(str.encode) if text else st.binary(max_size=6)
        return to_objects(draw(st.lists(element, min_size=count, max_size=count)), shape)
    if name == "BF16":
        return draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
    return draw(hnp.arrays(DATATYPES[name].dtype, shape))


def reply(array: Array) -> InferenceResponse:
    return InferenceResponse("m", "1", "id", {"x": array})


def assert_same(got: Array, want: Array) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if want.dtype.kind == "O":
        assert got.tolist() == want.tolist()
        return
    if want.dtype.kind == "V":  # numpy does not know that a bfloat16 can be NaN
        got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_array_equal(got, want)
    assert want.dtype.kind != "f" or np.signbit(got[want == 0]).tolist() == np.signbit(want[want == 0]).tolist()


def ask_v2(body: bytes, json_length: int | None) -> Array:
    """Sends a reply's tensors back as a request."""
    document = json.loads(body[:json_length])
    text = json.dumps({"inputs": document["outputs"]}).encode()
    blobs = b"" if json_length is None else body[json_length:]
    return v2.decode_infer(text + blobs, None if json_length is None else len(text)).inputs["x"]


def ask_v2_binary(array: Array) -> Array:
    encoded = v2.encode_infer(reply(array), BINARY)
    return ask_v2(encoded.body, int(dict(encoded.headers)[b"inference-header-content-length"]))


def ask_grpc(message: Any) -> Array:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=message.raw_output_contents)
    for output in message.outputs:
        entry = request.inputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        if not message.raw_output_contents:
            entry.contents.CopyFrom(output.contents)
    return grpc.decode_infer(pb.ModelInferRequest.FromString(request.SerializeToString())).inputs["x"]


@pytest.mark.parametrize("name", DATATYPES)
@given(data=st.data())
@EXAMPLES
def test_v2_binary(name: str, data: st.DataObject) -> None:
    array = data.draw(tensors(name))
    assert_same(ask_v2_binary(array), array)


@pytest.mark.parametrize("name", IN_JSON)
@given(data=st.data())
@EXAMPLES
def test_v2_json(name: str, data: st.DataObject) -> None:
    array = data.draw(tensors(name, text=True))
    assert_same(ask_v2(v2.encode_infer(reply(array), JSON).body, None), array)


@pytest.mark.parametrize("name", DATATYPES)
@given(data=st.data())
@EXAMPLES
def test_grpc_raw(name: str, data: st.DataObject) -> None:
    array = data.draw(tensors(name))
    assert_same(ask_grpc(grpc.encode_infer(reply(array), JSON, raw=True)), array)


@pytest.mark.parametrize("name", IN_JSON)
@given(data=st.data())
@EXAMPLES
def test_grpc_typed(name: str, data: st.DataObject) -> None:
    array = data.draw(tensors(name))
    message = grpc.encode_infer(reply(array), JSON, raw=False)
    assert not message.raw_output_contents
    assert_same(ask_grpc(message), array)


@pytest.mark.parametrize("name", IN_JSON)
@given(data=st.data())
@EXAMPLES
def test_v1_rows(name: str, data: st.DataObject) -> None:
    array = data.draw(tensors(name, text=True).filter(lambda array: array.ndim and array.size))
    signature = Signature((TensorSpec("x", name, (-1,) * array.ndim),), ())
    body = v1.encode_predict(reply(array), v1.Form.ROW).body.replace(b'{"predictions":', b'{"instances":', 1)
    assert_same(v1.decode_predict(body, signature)[0].inputs["x"], array)


@pytest.mark.parametrize("name", DATATYPES)
def test_strided_arrays_keep_their_order(name: str) -> None:
    array = golden_values(name).reshape(2, -1).T
    assert_same(ask_v2_binary(array), array)
    assert_same(ask_grpc(grpc.encode_infer(reply(array), JSON, raw=True)), array)
    if name in IN_JSON:
        assert_same(ask_v2(v2.encode_infer(reply(array), JSON).body, None), array)
        assert_same(ask_grpc(grpc.encode_infer(reply(array), JSON, raw=False)), array)


def golden_values(name: str) -> Array:
    """Four values of each datatype: its bounds, and what its text form gets wrong most easily."""
    dtype = DATATYPES[name].dtype
    if name == "BYTES":
        return to_objects([b"", "\N{SNOWMAN}".encode(), b"NaN null", b'"\\\n\x00'], (2, 2))
    if name == "BOOL":
        return np.array([[True, False], [False, True]])
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        return np.array([[bounds.min, bounds.max], [0, 1]], dtype=dtype)
    largest = ml_dtypes.finfo(dtype).max
    return np.array([[np.nan, -np.inf], [-0.0, largest]], dtype=dtype)


def golden_forms(name: str) -> dict[str, bytes]:
    """The reply with the golden values in each wire form, by file name."""
    answer = reply(golden_values(name))
    forms = {
        f"v2/{name}.bin": v2.encode_infer(answer, BINARY).body,
        f"grpc/{name}.raw.pb": grpc.encode_infer(answer, JSON, raw=True).SerializeToString(deterministic=True),
    }
    if name in IN_JSON:
        forms[f"v2/{name}.json"] = v2.encode_infer(answer, JSON).body
        forms[f"grpc/{name}.typed.pb"] = grpc.encode_infer(answer, JSON, raw=False).SerializeToString(
            deterministic=True
        )
    return forms


@pytest.mark.parametrize("name", DATATYPES)
def test_replies_are_the_golden_bytes(name: str) -> None:
    assert golden_forms(name) == {form: (GOLDEN / form).read_bytes() for form in golden_forms(name)}


@pytest.mark.parametrize("name", DATATYPES)
def test_golden_binary_is_read(name: str) -> None:
    body = (GOLDEN / "v2" / f"{name}.bin").read_bytes()
    assert_same(ask_v2(body, body.index(b"}]}") + 3), golden_values(name))


@pytest.mark.parametrize("name", IN_JSON)
def test_golden_json_is_read(name: str) -> None:
    assert_same(ask_v2((GOLDEN / "v2" / f"{name}.json").read_bytes(), None), golden_values(name))


@pytest.mark.parametrize("path", sorted((GOLDEN / "grpc").iterdir()), ids=lambda path: path.name)
def test_golden_messages_are_read(path: Path) -> None:
    message = pb.ModelInferResponse.FromString(path.read_bytes())
    assert_same(ask_grpc(message), golden_values(path.name.split(".")[0]))


def test_every_golden_file_belongs_to_a_datatype() -> None:
    files = {str(path.relative_to(GOLDEN)) for folder in ("v2", "grpc") for path in (GOLDEN / folder).iterdir()}
    assert files == {form for name in DATATYPES for form in golden_forms(name)}
