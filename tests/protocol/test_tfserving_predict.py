# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Serving's rules for the JSON of ``:predict``, one row of a table each.

Source: ``tensorflow_serving/util/json_tensor_test.cc`` for what is to be refused and answered; the words are ours where
they say more.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest
from modelyard.inference import InferenceRequest, InferenceResponse
from modelyard.protocol.http import load_json
from modelyard.protocol.tensors import may_hold_bools
from modelyard.protocol.tfserving.predict import add_dimension, decode_document, drop_dimension, encode_predict
from modelyard.protocol.v1 import Form, load_predict
from modelyard.signature import SavedSignature, Signature, TensorSpec
from modelyard.tensor import DATATYPES, to_bytes_array

SAVED = SavedSignature("serving_default", "tensorflow/serving/predict")


def of(*specs: TensorSpec) -> Signature:
    return Signature(specs, (), saved=SAVED)


def single(datatype: str, *dims: int) -> Signature:
    return of(TensorSpec("x", datatype, (-1, *dims)))


SEVERAL = of(
    TensorSpec("ints", "INT32", (-1, 3, 2)),
    TensorSpec("texts", "BYTES", (-1, 2)),
    TensorSpec("floats", "FP32", (-1, 2)),
    TensorSpec("doubles", "FP64", (-1, 1)),
)
PAIR = of(TensorSpec("ints", "INT32", (-1,)), TensorSpec("texts", "BYTES", (-1, 2)))
OPTIONAL = of(TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "INT32", (-1,), optional=True))


def decode(body: str | bytes, signature: Signature) -> tuple[InferenceRequest, Form]:
    text = body.encode() if isinstance(body, str) else body
    return decode_document(load_predict(text), may_hold_bools(text), signature)


def arrays(body: str, signature: Signature) -> dict[str, Any]:
    request, _ = decode(body, signature)
    dtypes = {spec.name: DATATYPES[spec.datatype].dtype for spec in signature.inputs}
    assert {name: array.dtype for name, array in request.inputs.items()} == {n: dtypes[n] for n in request.inputs}
    return {name: array.tolist() for name, array in request.inputs.items()}


HELLO, WORLD = '{"b64": "aGVsbG8="}', '{"b64": "d29ybGQ="}'


@pytest.mark.parametrize(
    ("signature", "body", "wanted"),
    [
        (single("INT32", 2), '{"instances": [[1,2],[3,4],[5,6]]}', [[1, 2], [3, 4], [5, 6]]),
        (single("INT32", 2), '{"signature_name": "predict_images", "instances": [[1,2]]}', [[1, 2]]),
        (single("INT32", 2), '{"instances": [{"x": [1,2]}, {"x": [3,4]}]}', [[1, 2], [3, 4]]),
        (single("FP32"), '{"instances": [1, 2.0, 3, 4, 5.5, 0.25, 0.0]}', [1, 2, 3, 4, 5.5, 0.25, 0]),
        (single("FP64"), '{"instances": [1.0, 2, 3, 4, 0.662, 0, 0.0]}', [1, 2, 3, 4, 0.662, 0, 0]),
        (single("FP64"), '{"instances": [9007199254740991, -9007199254740991]}', [2**53 - 1, 1 - 2**53]),
        (single("FP32"), '{"instances": [16777215, -16777215, 1e10]}', [16777215, -16777215, 1e10]),
        (single("BYTES"), f'{{"instances": [{HELLO}, {WORLD}]}}', [b"hello", b"world"]),
        (single("BYTES", 1), f'{{"instances": [[{HELLO}], [{WORLD}]]}}', [[b"hello"], [b"world"]]),
        (single("BYTES", 2, 1), f'{{"instances": [{{"x": [[{HELLO}], [{WORLD}]]}}]}}', [[[b"hello"], [b"world"]]]),
        (single("BYTES"), f'{{"instances": ["a", {HELLO}, "\\u00fc"]}}', [b"a", b"hello", "ü".encode()]),
        (single("BYTES"), '{"instances": [{"b64": "aGVs\\nbG8"}, {"b64": ""}]}', [b"hello", b""]),
        (single("BYTES"), '{"instances": ["a", ""]}', [b"a", b""]),
        (single("BOOL"), '{"instances": [true, false]}', [True, False]),
        (single("UINT32"), '{"instances": [4294967295]}', [2**32 - 1]),
        (single("UINT64"), '{"instances": [18446744073709551615]}', [2**64 - 1]),
        (single("INT64"), '{"instances": [-9223372036854775808]}', [-(2**63)]),
        (single("UINT8", 0), '{"instances": [[], []]}', [[], []]),
        (single("FP16"), '{"instances": [0.5]}', [0.5]),
        (single("INT32"), '{"inputs": [1, 2]}', [1, 2]),
        (single("INT32"), '{"inputs": {"x": [1, 2]}}', [1, 2]),
        (single("INT32"), '{"inputs": {"x": [1, 2], "else": "of no effect"}}', [1, 2]),
        (of(TensorSpec("x", "INT32", ())), '{"inputs": 3}', 3),
        (of(TensorSpec("x", "BYTES", ())), f'{{"inputs": {HELLO}}}', b"hello"),
    ],
)
def test_a_request_with_one_input(signature: Signature, body: str, wanted: Any) -> None:
    assert arrays(body, signature) == {"x": wanted}


def test_rows_of_several_inputs_are_batched() -> None:
    body = """{"instances": [
        {"ints": [[1,2],[3,4],[5,6]], "texts": ["foo", "bar"], "floats": [1.0, NaN], "doubles": [NaN]},
        {"texts": ["baz", "bat"], "ints": [[7,8],[9,0],[1,2]], "floats": [-Infinity, Infinity], "doubles": [2.0]}]}"""
    request, form = decode(body, SEVERAL)
    found = request.inputs
    assert form is Form.ROW
    assert found["ints"].tolist() == [[[1, 2], [3, 4], [5, 6]], [[7, 8], [9, 0], [1, 2]]]
    assert found["texts"].tolist() == [[b"foo", b"bar"], [b"baz", b"bat"]]
    np.testing.assert_array_equal(found["floats"], np.float32([[1, np.nan], [-np.inf, np.inf]]))
    np.testing.assert_array_equal(found["doubles"], [[np.nan], [2]])


def test_columns_of_several_inputs_have_shapes_of_their_own() -> None:
    signature = of(
        TensorSpec("ints", "INT32", (1, 3, 2)), TensorSpec("texts", "BYTES", (-1,)), TensorSpec("bytes", "BYTES", ())
    )
    body = f'{{"inputs": {{"ints": [[[1,2],[3,4],[5,6]]], "texts": ["foo", "bar"], "bytes": {HELLO}}}}}'
    assert arrays(body, signature) == {"ints": [[[1, 2], [3, 4], [5, 6]]], "texts": [b"foo", b"bar"], "bytes": b"hello"}
    assert decode(body, signature)[1] is Form.COLUMNAR


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"instances": [{"a": 1}, {"a": 2}]}', ["a"]),
        ('{"instances": [{"a": 1, "b": 2}]}', ["a", "b"]),
        ('{"inputs": {"a": [1]}}', ["a"]),
    ],
)
def test_an_input_with_a_default_may_be_left_out_by_all_rows(body: str, names: list[str]) -> None:
    assert list(decode(body, OPTIONAL)[0].inputs) == names


def test_requested_outputs_and_parameters_are_v1s() -> None:
    request, _ = decode('{"instances": [1], "outputs": ["y"], "parameters": {"k": 1}}', single("INT32"))
    assert ([output.name for output in request.outputs], request.parameters) == (["y"], {"k": 1})


INTS, FLOATS, DOUBLES, TEXTS = single("INT32", 2), single("FP32"), single("FP64"), single("BYTES", 2)


@pytest.mark.parametrize(
    ("signature", "body", "message"),
    [
        # the document
        (INTS, "", "it is empty"),
        (INTS, "[[1,2]]", "expected an object"),
        (INTS, '{"instances": [[1,2]]', "is not JSON"),
        (INTS, '{"instances": [[1,2]], "inputs": [[1,2]]}', "Not formatted correctly expecting only one of"),
        (INTS, '{"rows": [[1,2]]}', "Missing 'inputs' or 'instances' key"),
        (INTS, "{}", "Missing 'inputs' or 'instances' key: got none"),
        (INTS, '{"instances": {"x": [1,2]}}', "Expecting 'instances' to be a list/array: got an object"),
        (INTS, '{"instances": null}', "Expecting 'instances' to be a list/array: got null"),
        (INTS, '{"instances": []}', "No values in 'instances' array"),
        # shapes
        (INTS, '{"instances": [[1,2],[3,4],[5,6,7]]}', "instances[2]: expected 2 integers, got 3"),
        (INTS, '{"instances": [[1,2],[3,4],[[5,6]]]}', "instances[2]: expected 2 integers, got 1"),
        (INTS, '{"instances": [1, [1]]}', "instances[1]: expected an integer (INT32), got a list"),
        (INTS, '{"instances": [[1], 1]}', "instances[1]: expected a list of 1 integer, got 1"),
        (PAIR, '{"instances": [{"ints": 1, "texts": ["a", "b"]}, {"ints": [1], "texts": ["a", "b"]}]}', '"ints"[1]'),
        (PAIR, '{"inputs": {"ints": [[1], 2], "texts": ["a"]}}', 'inputs "ints"[1]: expected a list'),
        (INTS, '{"instances": ' + "[" * 40 + "1" + "]" * 40 + "}", "expected at most 32 dimensions, got more"),
        # datatypes
        (INTS, '{"instances": [[1,2],["a","b"]]}', 'instances[1][0]: expected an integer (INT32), got the string "a"'),
        (INTS, '{"instances": [[1, 2.0]]}', "instances[0][1]: expected an integer (INT32), got 2.0"),
        (INTS, '{"instances": [[1, true]]}', "instances[0][1]: expected an integer (INT32), got True"),
        (INTS, '{"instances": [[1, null]]}', "instances[0][1]: expected an integer (INT32), got null"),
        (INTS, '{"instances": [[1, 2147483648]]}', "expected an integer from -2147483648 to 2147483647"),
        (single("UINT8"), '{"instances": [256]}', "expected an integer from 0 to 255 (UINT8), got 256"),
        (single("UINT64"), '{"instances": [-1]}', "expected an integer from 0"),
        (single("INT64"), '{"instances": [9223372036854775808]}', "expected an integer from"),
        (FLOATS, '{"instances": ["1.0"]}', 'instances[0]: expected a number (FP32), got the string "1.0"'),
        (FLOATS, '{"instances": [true, 1.0]}', "instances[0]: expected a number (FP32), got True"),
        (FLOATS, '{"instances": [1.0, null]}', "instances[1]: expected a number (FP32), got null"),
        (DOUBLES, '{"instances": [NaN, null]}', "instances[1]: expected a number (FP64), got null"),
        (FLOATS, f'{{"instances": [{HELLO}]}}', "instances[0]: expected a number (FP32), got an object"),
        (FLOATS, '{"instances": [16777217]}', "a number that FP32 holds without loss of precision, got 16777217"),
        (FLOATS, '{"instances": [16777216]}', "without loss of precision"),
        (FLOATS, '{"instances": [[1.0], [-16777217]]}', "instances[1][0]: expected a number that FP32 holds"),
        (FLOATS, '{"instances": [1.7976931348623157e308]}', "expected a number in the range of FP32"),
        (DOUBLES, '{"instances": [9007199254740993]}', "without loss of precision, got 9007199254740993"),
        (single("BOOL"), '{"instances": [1]}', "instances[0]: expected true or false, got 1"),
        (single("BOOL"), '{"instances": [true, "true"]}', "instances[1]: expected true or false"),
        (TEXTS, '{"instances": [["a", 1]]}', 'instances[0][1]: expected a string or {"b64": "…"}, got 1'),
        (TEXTS, '{"instances": [["a", {"b64": 1}]]}', 'expected a string or {"b64": "…"}, got an object'),
        (TEXTS, '{"instances": [["a", {"b64": "", "c": 1}]]}', 'expected a string or {"b64": "…"}, got an object'),
        (TEXTS, '{"instances": [["a", {"b64": "%"}]]}', "instances element 1: expected base64"),
        (TEXTS, '{"instances": [["a", {"b64": "aGVsbG8=x"}]]}', "expected base64"),
        (TEXTS, '{"instances": [["a", {"b64": "aGVsbG\\u00fc"}]]}', "expected base64"),
        # rows that are objects
        (PAIR, '{"instances": [1, 2]}', "instances is a plain list, but expecting list of objects"),
        (PAIR, '{"instances": [[1, ["a", "b"]]]}', "instances is a plain list, but expecting list of objects"),
        (PAIR, '{"instances": [{"ints": 1}]}', 'missing "texts", unknown none'),
        (PAIR, '{"instances": [{"ints": 1, "texts": ["a", "b"], "c": 1}]}', 'missing none, unknown "c"'),
        (PAIR, '{"instances": [{"ints": 1, "texts": ["a", "b"]}, [1]]}', "instances[1]: expected an object with"),
        (PAIR, '{"instances": [{"ints": 1, "texts": ["a", "b"]}, {"ints": 1, "y": 1}]}', "instances[1]: expected"),
        (INTS, '{"instances": [{"y": [1,2]}]}', 'missing "x", unknown "y"'),
        (INTS, '{"instances": [[1, 2], {"x": [1, 2]}]}', "instances[1]: expected a list of 2 integers, got an object"),
        (TEXTS, '{"instances": [["a", "b"], {"x": ["a", "b"]}]}', "instances[1]: expected a list of 2 strings"),
        (OPTIONAL, '{"instances": [{"a": 1}, {"a": 1, "b": 2}]}', 'missing none, unknown "b"'),
        # columns
        (PAIR, '{"inputs": [1, 2]}', "inputs is a plain value/list, but expecting an object"),
        (PAIR, f'{{"inputs": {HELLO}}}', "inputs is a plain value/list, but expecting an object"),
        (PAIR, '{"inputs": {"ints": [1]}}', "Missing named input: texts in 'inputs' object."),
        (INTS, '{"inputs": {"y": [1]}}', "Missing named input: x in 'inputs' object."),
        (INTS, '{"inputs": null}', "inputs: expected an integer (INT32), got null"),
        (of(), '{"instances": [1]}', 'Failed to get input map for signature: "serving_default" has no inputs'),
        (of(), '{"inputs": {}}', "Failed to get input map"),
    ],
)
def test_what_is_refused(signature: Signature, body: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, signature)
    assert message in str(caught.value)
    assert caught.value.http_status == 400


# -- answers


def answer(form: Form = Form.ROW, batch_id: str | None = None, **outputs: Any) -> str:
    found = {
        name: value if isinstance(value, np.ndarray) else to_bytes_array(np.array(value))
        for name, value in outputs.items()
    }
    return encode_predict(InferenceResponse("m", "1", "id", found), form, batch_id).body.decode()


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32([2, 0.1, -0.0]), "[2.0,0.1,-0.0]"),
        (np.float64([2, 0.1, 1e300]), "[2.0,0.1,1e+300]"),
        (np.float32([9000000, 999999, 0.5, 0.0003, 555557.5]), "[9000000.0,999999.0,0.5,0.0003,555557.5]"),
        (np.float32([np.nan, np.inf, 3, -np.inf]), "[NaN,Infinity,3.0,-Infinity]"),
        (np.float16([0.1, 2]), "[0.099975586,2.0]"),
        (np.int32([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.uint64([2**64 - 1]), "[18446744073709551615]"),
        (np.array([True, False]), "[true,false]"),
    ],
)
def test_numbers_in_answers(array: Any, text: str) -> None:
    assert answer(y=array) == f'{{"predictions":{text}}}'
    assert answer(Form.COLUMNAR, y=array) == f'{{"outputs":{text}}}'


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_always_have_a_point_or_an_exponent_and_come_back_the_same(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    whole = np.arange(-50, 50) * 10.0 ** rng.integers(0, 20, 100)
    numbers = np.concatenate([whole, rng.normal(size=100) * 10.0 ** rng.integers(-30, 30, 100)]).astype(dtype)
    texts = answer(y=numbers).partition("[")[2].partition("]")[0].split(",")
    assert all("." in text or "e" in text for text in texts)
    assert (np.array([float(text) for text in texts]).astype(dtype) == numbers).all()
    assert max(map(len, texts)) < (18 if dtype is np.float32 else 28)  # no noise digits of a wider float


def test_one_output_is_bare_and_several_are_named() -> None:
    outputs = {
        "double": np.float64([8, 9]),
        "floats": np.float32([[1], [2]]),
        "texts": [["foo", "bar"], ["baz", "bat"]],
        "texts_bytes": [["hello", "world"], ["tf", "serving"]],
    }
    encoded = [[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}], [{"b64": "dGY="}, {"b64": "c2VydmluZw=="}]]
    rows = json.loads(answer(**outputs))["predictions"]
    assert rows[0] == {"double": 8.0, "floats": [1.0], "texts": ["foo", "bar"], "texts_bytes": encoded[0]}
    assert rows[1] == {"double": 9.0, "floats": [2.0], "texts": ["baz", "bat"], "texts_bytes": encoded[1]}
    columns = json.loads(answer(Form.COLUMNAR, **outputs))["outputs"]
    assert columns["texts_bytes"] == encoded
    assert (columns["double"], columns["floats"], columns["texts"]) == ([8, 9], [[1], [2]], outputs["texts"])
    assert '"double":8.0' in answer(**outputs)


def test_bytes_are_base64_where_the_outputs_name_says_so() -> None:
    raw = np.array([b"\xff\x00", b""], dtype=object)
    assert answer(y_bytes=raw) == '{"predictions":[{"b64":"/wA="},{"b64":""}]}'
    assert answer(Form.COLUMNAR, y_bytes=np.array(b"\xff", dtype=object).reshape(())) == '{"outputs":{"b64":"/w=="}}'
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        answer(y=raw)
    assert answer(y_bytes=np.float32([1])) == '{"predictions":[1.0]}'


@pytest.mark.parametrize(
    "outputs",
    [{"y": np.float32(1).reshape(())}, {"a": np.ones(2), "b": np.ones(3)}, {"a": np.ones(2), "b": np.array(1)}],
)
def test_outputs_without_common_rows_cannot_answer_instances(outputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match='send "inputs"'):
        answer(**outputs)
    assert answer(Form.COLUMNAR, **outputs)


def test_a_batchs_id_comes_first() -> None:
    assert answer(batch_id="7", y=np.float32([1])) == '{"message":"","batchId":"7","predictions":[1.0]}'


def test_text_that_reads_like_a_token_stays_text() -> None:
    assert json.loads(answer(y=["null", "NaN"], z=np.float32([np.nan, 1])))["predictions"][1] == {"y": "NaN", "z": 1.0}


def test_what_is_answered_can_be_read_back() -> None:
    floats = np.float32([[np.nan, 1.5], [np.inf, -2]])
    body = answer(y=floats).replace("predictions", "instances")
    again = decode(body, single("FP32", 2))[0].inputs["x"]
    np.testing.assert_array_equal(again, floats)
    assert math.isnan(load_json(body.encode())["instances"][0][0])


@pytest.mark.parametrize(
    ("shape", "body", "wanted", "is_flat"),
    [
        ((-1, 1), '{"instances": [1.0, 2.0, 5.0]}', [[1], [2], [5]], True),
        ((-1, 1), '{"inputs": [1.0]}', [[1]], True),
        ((-1, 2, 1), '{"instances": [[1, 2]]}', [[[1], [2]]], True),
        ((1,), '{"inputs": 3}', [3], True),
        ((-1, 1), '{"instances": [[1.0]]}', [[1]], False),
        ((-1, 1), '{"inputs": 3}', 3, False),
        ((-1,), '{"instances": [1.0]}', [1], False),
        ((-1, 2), '{"instances": [1.0]}', [1], False),
        ((-1, 3, 1), '{"instances": [[1, 2]]}', [[1, 2]], False),
        ((), '{"inputs": 3}', 3, False),
    ],
)
def test_a_last_dimension_of_one_may_be_left_out(shape: tuple[int, ...], body: str, wanted: Any, is_flat: bool) -> None:
    signature = of(TensorSpec("x", "FP32", shape), TensorSpec("y", "FP32", (1,), optional=True))
    found = add_dimension(decode(body, single("FP32"))[0], signature)
    assert (found[0].inputs["x"].tolist(), found[1]) == (wanted, is_flat)


def test_what_was_left_out_is_left_out_of_the_answer() -> None:
    outputs = {"a": np.ones((3, 1)), "b": np.ones((3, 2)), "c": np.ones(1), "d": np.ones((2, 3, 1))}
    dropped = drop_dimension(InferenceResponse("m", "1", "id", outputs)).outputs
    assert {name: array.shape for name, array in dropped.items()} == {"a": (3,), "b": (3, 2), "c": (1,), "d": (2, 3)}
