# SPDX-License-Identifier: Apache-2.0
"""Numbers and texts that JSON gets wrong: NaN and Infinity, null, the largest integers, words that look like tokens."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol import http, v1, v2
from modelyard.protocol.tensors import from_json
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, to_bytes_array

TOKENS = "[NaN, Infinity, -Infinity, 1.5, null]"
WORDS = ["NaN", "null", "a,null,NaN]", "Infinity", '"null"', "true"]


def signature(datatype: str) -> Signature:
    return Signature((TensorSpec("x", datatype, (-1,)),), (), any_input_name=True)


def decode_v1(body: str, datatype: str = "FP64") -> Array:
    return v1.decode_predict(body.encode(), signature(datatype))[0].inputs["x"]


def decode_v2(data: str, datatype: str = "FP64", shape: str = "[5]") -> Array:
    body = f'{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}]}}'
    return v2.decode_infer(body.encode(), None).inputs["x"]


def reply(**outputs: Any) -> InferenceResponse:
    return InferenceResponse("m", "1", "id", outputs, {"loss": float("nan"), "note": "null"})


@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_tokens_and_null_are_read_into_floats(datatype: str) -> None:
    want = np.array([np.nan, np.inf, -np.inf, 1.5, np.nan], DATATYPES[datatype].dtype)
    for array in (decode_v1(f'{{"instances": {TOKENS}}}', datatype), decode_v2(TOKENS, datatype)):
        np.testing.assert_array_equal(array, want, strict=True)


def test_null_alone_is_nan() -> None:
    assert np.isnan(decode_v1('{"instances": [1, null, 2]}')).tolist() == [False, True, False]
    assert np.isnan(decode_v2("[null]", shape="[1]")).tolist() == [True]


@pytest.mark.parametrize("token", ["NaN", "Infinity", "null", "1e400"])
def test_integers_take_no_tokens(token: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_v1(f'{{"instances": [1, {token}]}}', "INT64")


def test_tokens_are_written_for_each_output_in_place() -> None:
    matrix = np.array([[np.nan, 1.0], [-np.inf, np.inf]], np.float32)
    outputs = {"a": matrix, "b": to_bytes_array(np.array(WORDS)), "c": np.array([np.nan, 2.0])}
    text = v2.encode_infer(reply(**outputs), InferenceRequest({})).body.decode()
    assert '"data":[NaN,1.0,-Infinity,Infinity]' in text
    assert '"data":[NaN,2.0]' in text
    assert '"parameters":{"loss":NaN,"note":"null"}' in text
    assert json.loads(text)["outputs"][1]["data"] == WORDS


def test_tokens_are_written_in_v1_rows_and_columns() -> None:
    scores = np.array([np.nan, np.inf])
    labels = to_bytes_array(np.array(["null", "NaN"]))
    assert v1.encode_predict(reply(s=scores), v1.Form.ROW).body == b'{"predictions":[NaN,Infinity]}'
    assert v1.encode_predict(reply(s=scores[0]), v1.Form.COLUMNAR).body == b'{"outputs":NaN}'
    assert v1.encode_predict(reply(s=scores, l=labels), v1.Form.ROW).body == (
        b'{"predictions":[{"s":NaN,"l":"null"},{"s":Infinity,"l":"NaN"}]}'
    )
    assert v1.encode_predict(reply(s=scores, l=labels), v1.Form.COLUMNAR).body == (
        b'{"outputs":{"s":[NaN,Infinity],"l":["null","NaN"]}}'
    )


@pytest.mark.parametrize("token", ["", "NaN"])
def test_words_that_look_like_tokens_stay_words(token: str) -> None:
    extra = f', "parameters": {{"p": {token}}}' if token else ""
    array = decode_v1(f'{{"instances": {json.dumps(WORDS)}{extra}}}', "BYTES")
    assert [item.decode() for item in array.tolist()] == WORDS
    assert json.loads(v1.encode_predict(reply(y=array), v1.Form.ROW).body) == {"predictions": WORDS}


def test_escapes_next_to_tokens_are_read() -> None:
    assert http.load_json(b'{"a": NaN, "b": "\\u2603 \\ud83d\\ude00"}')["b"] == "\N{SNOWMAN} \N{GRINNING FACE}"


def test_null_stays_null_outside_numbers() -> None:
    assert http.dump_json({"a": None, "b": [None, "null"]}) == b'{"a":null,"b":[null,"null"]}'


@pytest.mark.parametrize("name", ["UINT64", "INT64"])
def test_large_integers_keep_every_digit(name: str) -> None:
    bounds = np.iinfo(DATATYPES[name].dtype)
    array = decode_v2(f"[{bounds.min}, {bounds.max}, 9007199254740993, 0, 1]", name)
    assert array.tolist() == [bounds.min, bounds.max, 9007199254740993, 0, 1]
    assert json.loads(v1.encode_predict(reply(y=array), v1.Form.ROW).body)["predictions"] == array.tolist()


@pytest.mark.parametrize(
    ("name", "largest", "too_large"),
    [
        ("FP16", 65519.99, 65520.0),
        ("BF16", 3.3961e38, 3.3962e38),
        ("FP32", 3.4028235677973362e38, 3.4028235677973366e38),
    ],
)
def test_floats_that_round_to_infinity_are_refused(name: str, largest: float, too_large: float) -> None:
    row = DATATYPES[name]
    assert from_json([largest], row, "x", bools=False) == np.array(ml_dtypes.finfo(row.dtype).max)
    assert np.isinf(from_json([float("inf")], row, "x", bools=False).astype(float)).all()
    for data in ([1.0, too_large], [None, -too_large], [0, 10**400]):
        with pytest.raises(InvalidTensor, match=r"x\[1\]: expected a number in the range of"):
            from_json(data, row, "x", bools=False)


@pytest.mark.parametrize("name", [name for name, row in DATATYPES.items() if row.dtype.kind in "iuf"])
def test_numbers_are_read_in_their_own_dtype(name: str) -> None:
    array = from_json([[1, 2], [3, 4]], DATATYPES[name], "x", bools=False)
    assert (array.dtype, array.tolist()) == (DATATYPES[name].dtype, [[1, 2], [3, 4]])
    assert array.flags.writeable
    assert array.flags.c_contiguous


@pytest.mark.parametrize(("data", "shape"), [([], (0,)), ([[]], (1, 0)), ([[], []], (2, 0)), (5, ())])
def test_empty_lists_and_scalars_keep_their_shape(data: Any, shape: tuple[int, ...]) -> None:
    assert from_json(data, DATATYPES["FP32"], "x", bools=False).shape == shape


def test_half_floats_are_written_as_numbers_in_v1_and_refused_in_v2_json() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        array = np.array([1.5, np.nan]).astype(dtype)
        assert v1.encode_predict(reply(y=array), v1.Form.ROW).body == b'{"predictions":[1.5,NaN]}'
        with pytest.raises(InvalidRequest, match="ask for binary_data"):
            v2.encode_infer(reply(y=array), InferenceRequest({}))


def test_bytes_that_are_not_text_are_refused_in_json() -> None:
    array = np.array([b"\xff"], dtype=object)
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        v1.encode_predict(reply(y=array), v1.Form.ROW)
    with pytest.raises(InvalidRequest, match='output "y" has bytes that are not UTF-8'):
        v2.encode_infer(reply(y=array), InferenceRequest({}))
