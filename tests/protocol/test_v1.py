# SPDX-License-Identifier: Apache-2.0
"""The forms of a v1 body, read into the same inputs; and answers that several families of clients read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest
from modelyard.inference import InferenceResponse
from modelyard.protocol import v1, v2
from modelyard.protocol.tfserving.status import to_version_status
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import to_bytes_array

GOLDEN = Path(__file__).parent / "golden" / "v1"
MATRIX = Signature((TensorSpec("input-0", "FP32", (-1, 2)),), (), columns=("a", "b"), any_input_name=True)
MIXED = Signature((TensorSpec("age", "INT64", (-1,)), TensorSpec("city", "BYTES", (-1, 1))), ())
TEXTS = Signature((TensorSpec("text", "BYTES", (-1,)),), (), any_input_name=True)
SIGNATURES = {"matrix": MATRIX, "mixed": MIXED, "texts": TEXTS}
WANTED = {
    "matrix": {"input-0": np.array([[1, 2], [3, 4.5]], np.float32)},
    "mixed": {"age": np.array([30, 41]), "city": to_bytes_array(np.array([["Bern"], ["Łódź"]]))},
    "texts": {"text": to_bytes_array(np.array(["NaN", "\N{SNOWMAN}"]))},
}


def decode(body: str, signature: Signature) -> tuple[dict[str, Any], v1.Form]:
    request, form = v1.decode_predict(body.encode(), signature)
    return {name: array.tolist() for name, array in request.inputs.items()}, form


def response(**outputs: Any) -> InferenceResponse:
    return InferenceResponse("m", "1", "id", outputs)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.request.json")), ids=lambda path: path.name.split(".")[0])
def test_golden_requests_are_read_and_echoed(path: Path) -> None:
    kind = path.name.split("-")[0]
    request, form = v1.decode_predict(path.read_bytes(), SIGNATURES[kind])
    bound = SIGNATURES[kind].bind(request.inputs)
    assert {name: (array.dtype, array.tolist()) for name, array in bound.items()} == {
        name: (array.dtype, array.tolist()) for name, array in WANTED[kind].items()
    }
    reply = path.with_name(path.name.replace(".request.", ".reply."))
    assert v1.encode_predict(response(**bound), form).body == reply.read_bytes()


def test_each_golden_request_has_a_reply() -> None:
    names = {path.name for path in GOLDEN.iterdir()}
    assert names == {name.replace(".reply.", ".request.") for name in names} | {
        name.replace(".request.", ".reply.") for name in names
    }
    assert len(names) >= 20


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"instances": [{"features": [1, 2]}]}', [[1, 2]]),
        ('{"instances": [{"a": [1, 3], "b": [2, 4]}, {"a": [5], "b": [6]}]}', [[1, 2], [3, 4], [5, 6]]),
        ('{"instances": [{"a": {"0": 1, "1": 3}, "b": {"0": 2, "1": 4}}]}', [[1, 2], [3, 4]]),
        ('{"instances": [{"b": 2, "a": 1}]}', [[1, 2]]),
        ('{"inputs": {"b": [2], "a": [1]}}', [[1, 2]]),
        ('{"inputs": {"anything": [[1, 2]]}}', [[1, 2]]),
        ('{"inputs": [{"a": 1, "b": 2}]}', [[1, 2]]),
    ],
)
def test_forms_for_one_matrix(body: str, wanted: Any) -> None:
    request, form = v1.decode_predict(body.encode(), MATRIX)
    assert MATRIX.bind(request.inputs)["input-0"].tolist() == wanted
    assert form is (v1.Form.COLUMNAR if '"inputs"' in body else v1.Form.ROW)


def test_a_columnar_scalar_is_taken_for_a_single_input() -> None:
    assert decode('{"inputs": 3}', Signature((TensorSpec("x", "INT64", ()),), ())) == ({"x": 3}, v1.Form.COLUMNAR)


def test_outputs_and_parameters_of_a_request() -> None:
    body = b'{"instances": ["a"], "signature_name": "serving_default", "outputs": ["p"], "parameters": {"k": 0.5}}'
    request, _ = v1.decode_predict(body, TEXTS)
    assert [output.name for output in request.outputs] == ["p"]
    assert request.parameters == {"k": 0.5}


def test_several_outputs_are_records_in_row_form_and_columns_in_columnar_form() -> None:
    answer = response(label=np.array([1, 0]), p=np.array([[0.1, 0.9], [0.5, 0.5]]))
    assert json.loads(v1.encode_predict(answer, v1.Form.ROW).body) == {
        "predictions": [{"label": 1, "p": [0.1, 0.9]}, {"label": 0, "p": [0.5, 0.5]}]
    }
    assert json.loads(v1.encode_predict(answer, v1.Form.COLUMNAR).body) == {
        "outputs": {"label": [1, 0], "p": [[0.1, 0.9], [0.5, 0.5]]}
    }


@pytest.mark.parametrize("outputs", [{"y": np.array(1.0)}, {"a": np.ones(2), "b": np.ones(3)}])
def test_outputs_without_common_rows_cannot_answer_instances(outputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match='send "inputs"'):
        v1.encode_predict(response(**outputs), v1.Form.ROW)
    assert v1.encode_predict(response(**outputs), v1.Form.COLUMNAR).status == 200


def test_headers_are_lower_case_and_the_length_is_right() -> None:
    encoded = v1.encode_predict(response(y=np.arange(100)), v1.Form.ROW)
    assert dict(encoded.headers) == {b"content-type": b"application/json", b"content-length": b"%d" % len(encoded.body)}


def test_the_model_list_is_kserves_and_openais() -> None:
    document = json.loads(v1.encode_model_list({"a": 3, "b": 5}).body)
    assert document["models"] == ["a", "b"]
    assert document["object"] == "list"
    assert document["data"][1] == {"id": "b", "object": "model", "created": 5, "owned_by": "modelyard"}


def test_a_ready_model_is_kserves_openais_and_tensorflow_servings() -> None:
    versions = [to_version_status("2", "ready", ""), to_version_status("3", "failed", "no file")]
    encoded = v1.encode_model_status("a", True, "", versions, 5)
    document = json.loads(encoded.body)
    assert encoded.status == 200
    assert {"name": "a", "ready": True}.items() <= document.items()
    assert {"id": "a", "object": "model", "created": 5, "owned_by": "modelyard"}.items() <= document.items()
    assert document["model_version_status"] == [
        {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        {"version": "3", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "no file"}},
    ]


def test_a_model_that_is_not_ready_is_503_with_its_reason_and_retry_after() -> None:
    versions = [to_version_status("2", "loading", "its replicas are starting")]
    status = v1.encode_model_status("a", False, "its replicas are starting", versions, 5)
    document = json.loads(status.body)
    assert (status.status, dict(status.headers)[b"retry-after"]) == (503, b"5")
    assert (document["ready"], document["error"]) == (False, 'model "a" is not ready: its replicas are starting')
    assert [version["state"] for version in document["model_version_status"]] == ["LOADING"]
    ready = v2.encode_model_ready("a", False)
    assert (ready.status, dict(ready.headers)[b"retry-after"]) == (503, b"5")


EXPLAINED = replace(MATRIX, on_request=(TensorSpec("c", "FP64", (-1, 3)),), explanations=("c",))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"instances": [[1, 2], [3, 4]]}', {"explanations": [[1, 2, 0], [3, 4, 0]]}),
        ('{"inputs": {"a": [1, 3], "b": [2, 4]}, "outputs": ["c"]}', {"explanations": [[1, 2, 0], [3, 4, 0]]}),
    ],
)
def test_an_explanation_is_asked_for_and_encoded_as_a_prediction(body: str, wanted: Any) -> None:
    request, form = v1.decode_explain(body.encode(), EXPLAINED)
    assert [output.name for output in request.outputs] == ["c"]
    rows = EXPLAINED.bind(request.inputs)["input-0"]
    answer = response(c=np.column_stack([rows, np.zeros(len(rows))]))
    assert json.loads(v1.encode_explain(answer, form).body) == wanted


def test_records_may_leave_out_an_optional_input() -> None:
    signature = Signature((TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "FP32", (-1,), optional=True)), ())
    assert decode('{"instances": [{"a": 1}, {"a": 2}]}', signature)[0] == {"a": [1, 2]}
    assert decode('{"instances": [{"b": 3, "a": 1}]}', signature)[0] == {"a": [1], "b": [3]}
    with pytest.raises(InvalidRequest, match=r'instances\[1\]: .* missing "b"'):
        decode('{"instances": [{"a": 1, "b": 3}, {"a": 2}]}', signature)


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [{"a": 1, "b": "x"}, {"a": 2, "c": 3}, {"b": null, "a": 4, "c": null}]}',
        '{"instances": [[1, "x", null], [2, null, 3], [4, null, null]]}',
        '{"inputs": {"a": [1, 2, 4], "b": ["x", null, null], "c": [null, 3, null]}}',
    ],
)
def test_rows_have_gaps_where_the_model_takes_them(body: str) -> None:
    text, number = (TensorSpec(n, kind, (-1,), optional=True, gaps=True) for n, kind in (("b", "BYTES"), ("c", "FP32")))
    tensors = v1.decode_predict(body.encode(), Signature((TensorSpec("a", "INT64", (-1,)), text, number), ()))[0].inputs
    assert (tensors["a"].tolist(), tensors["b"].tolist()) == ([1, 2, 4], [b"x", b"", b""])
    np.testing.assert_array_equal(tensors["c"], [np.nan, 3, np.nan])


def test_gaps_are_no_reason_to_leave_out_what_is_not_optional() -> None:
    signature = Signature((TensorSpec("a", "INT64", (-1,)), TensorSpec("b", "BYTES", (-1,), gaps=True)), ())
    assert decode('{"instances": [{"a": 1, "b": null}]}', signature)[0] == {"a": [1], "b": [b""]}
    for record in ('{"a": 1}', '{"b": "x"}', '{"a": 1, "b": "x", "c": 1}', "1"):
        with pytest.raises(InvalidRequest):
            decode(f'{{"instances": [{{"a": 1, "b": "x"}}, {record}]}}', signature)


def test_several_explanations_are_named() -> None:
    answer = response(c=np.ones((2, 1)), d=np.array([1, 2]))
    row, columnar = (json.loads(v1.encode_explain(answer, form).body)["explanations"] for form in v1.Form)
    assert row == [{"c": [1], "d": 1}, {"c": [1], "d": 2}]
    assert columnar == {"c": [[1], [1]], "d": [1, 2]}


def test_only_explanations_can_be_asked_to_explain() -> None:
    with pytest.raises(InvalidRequest, match='"output-0" is no explanation: expected one of "c"'):
        v1.decode_explain(b'{"instances": [[1, 2]], "outputs": ["output-0"]}', EXPLAINED)


def test_health_is_in_the_status() -> None:
    assert [(e.status, e.body) for e in map(v2.encode_live, (True, False))] == [
        (200, b'{"live":true}'),
        (503, b'{"live":false}'),
    ]
    assert [v2.encode_ready(ready).status for ready in (True, False)] == [200, 503]
    assert v2.encode_model_ready("a", True).body == b'{"name":"a","ready":true}'


PAIRS = Signature(
    (TensorSpec("text", "BYTES", (-1,)), TensorSpec("pair", "BYTES", (-1,), optional=True)), (), any_input_name=True
)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"instances": ["a", "b"]}', {"text": [b"a", b"b"]}),
        ('{"instances": [{"text": "a"}]}', {"text": [b"a"]}),
        ('{"instances": [{"sentence": "a"}]}', {"text": [b"a"]}),
        ('{"instances": [["a", "b"]]}', {"text": [b"a"], "pair": [b"b"]}),
        ('{"instances": [{"pair": "b", "text": "a"}]}', {"text": [b"a"], "pair": [b"b"]}),
        ('{"inputs": ["a"]}', {"text": [b"a"]}),
        ('{"inputs": {"sentence": ["a"]}}', {"text": [b"a"]}),
    ],
)
def test_the_one_input_that_is_needed_may_come_alone(body: str, wanted: dict[str, Any]) -> None:
    bound = PAIRS.bind(v1.decode_predict(body.encode(), PAIRS)[0].inputs)
    assert {name: array.tolist() for name, array in bound.items()} == wanted


@pytest.mark.parametrize(
    "body", ['{"instances": [["a"]]}', '{"instances": [{"pair": "b"}]}', '{"inputs": {"pair": ["b"]}}']
)
def test_an_optional_input_does_not_stand_for_the_needed_one(body: str) -> None:
    with pytest.raises(InvalidRequest, match="text"):
        PAIRS.bind(v1.decode_predict(body.encode(), PAIRS)[0].inputs)


def test_json_texts_become_part_of_the_answer() -> None:
    outputs = (TensorSpec("found", "BYTES", (-1,), content_type="json"), TensorSpec("name", "BYTES", (-1,)))
    texts = to_bytes_array(np.array(['[{"a": 1.5}]', "null"]))
    answer = response(found=texts, name=texts)
    body = json.loads(v1.encode_predict(answer, v1.Form.ROW, Signature((), outputs)).body)
    assert body["predictions"][0] == {"found": [{"a": 1.5}], "name": '[{"a": 1.5}]'}
    assert body["predictions"][1] == {"found": None, "name": "null"}
