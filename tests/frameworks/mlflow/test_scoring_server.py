# SPDX-License-Identifier: Apache-2.0
"""The same requests to MLflow's own scoring server and to ours: the same answers, but where the list says otherwise."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.dataplane import DataPlane
from modelyard.errors import ModelyardError
from modelyard.inference import InferenceResponse
from modelyard.model import Model, load_model
from modelyard.protocol import mlflow as protocol
from modelyard.routing import RevisionRoute

ROW = {"boolean": True, "integer": 1, "long": 2, "float": 0.5, "double": 0.1, "string": "a", "binary": "aGk=\n"}
ROW |= {"datetime": "2024-02-29T10:00:00"}
IRIS = [[5.1, 3.5, 1.4, 0.2], [6.2, 2.9, 4.3, 1.3]]
NAMES = ["a", "b", "c", "d"]
SPLIT = {"dataframe_split": {"columns": NAMES, "data": IRIS}}


def split(row: dict[str, Any]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(row), "index": [7], "data": [list(row.values())]}}


SAME: list[tuple[str, Any]] = [
    ("sklearn_table", SPLIT),
    ("sklearn_table", {"dataframe_split": {"columns": NAMES[::-1], "data": [row[::-1] for row in IRIS]}}),
    ("sklearn_table", {"dataframe_split": {"columns": [*NAMES, "more"], "data": [[*row, 1] for row in IRIS]}}),
    ("sklearn_table", {"dataframe_records": [dict(zip(NAMES, row, strict=True)) for row in IRIS]}),
    ("sklearn_table", {"instances": [dict(zip(NAMES, row, strict=True)) for row in IRIS]}),
    ("sklearn_table", {"inputs": [dict(zip(NAMES, row, strict=True)) for row in IRIS]}),
    ("sklearn_table", {"inputs": dict(zip(NAMES, zip(*IRIS, strict=True), strict=True))}),
    ("sklearn_table", {"inputs": dict(zip(NAMES, IRIS[0], strict=True))}),
    ("sklearn_table", "a,b,c,d\n5.1,3.5,1.4,0.2\n6.2,2.9,4.3,1.3\n"),
    ("sklearn_table", 'd,"a",b,c,x\n0.2,5.1,3.5,1.4,"q,\nr"\n'),
    ("sklearn_matrix", {"inputs": IRIS}),
    ("sklearn_matrix", {"instances": IRIS}),
    ("sklearn_matrix", {"dataframe_split": {"data": IRIS}}),
    ("sklearn_matrix", {"dataframe_split": {"columns": ["any", "name", "at", "all"], "data": IRIS}}),
    ("sklearn_string_classes", SPLIT),
    ("sklearn_probabilities", SPLIT),
    ("sklearn_texts", {"dataframe_records": [{"town": "Ulm", "rooms": 3}, {"town": "Köln", "rooms": 1}]}),
    ("sklearn_texts", "town,rooms\nUlm,3\nKöln,1\n"),
    ("xgboost_booster", SPLIT),
    ("xgboost_booster", {"dataframe_records": [{"a": 1.5, "b": None, "c": 2.5, "d": 3.5}]}),
    ("xgboost_booster", "a,b,c,d\n1.5,,NA,3.5\n"),
    ("xgboost_classifier", SPLIT),
    ("lightgbm_booster", SPLIT),
    ("lightgbm_classifier", SPLIT),
    ("python_every_type", split(ROW)),
    ("python_every_type", {"dataframe_records": [ROW, {**ROW, "boolean": False, "long": 2**53, "float": None}]}),
    ("python_every_type", {"instances": [ROW]}),
    ("python_every_type", {"inputs": [ROW]}),
    ("python_every_type", {"inputs": {name: [value] for name, value in ROW.items()}}),
    ("python_optional_column", {"dataframe_records": [{"a": 1.5}, {"a": 2.5}]}),
    ("python_optional_column", {"dataframe_records": [{"a": 1.5, "b": 4}, {"a": 2.5, "b": 5}]}),
    ("python_optional_column", {"inputs": {"a": [1.5, 2.5]}}),
    ("python_optional_number", {"dataframe_records": [{"a": 1.5, "b": 4.5}, {"a": 2.5}, {"a": 1.0, "b": None}]}),
    ("python_params", {"dataframe_split": {"columns": ["a"], "data": [[1.0]]}, "params": {"factor": 3}}),
    ("python_params", {"inputs": [1.0, 2.0], "params": {"offsets": [1, 2], "unknown": "x"}}),
    ("python_params", {"inputs": {"a": [1.0]}, "params": {}}),
    ("python_list_of_texts", {"inputs": ["a", "bcd"]}),
    ("python_series", {"inputs": {"a": [1.0, 2.0]}}),
    ("python_series_without_name", {"inputs": {"a": [1.0, 2.0]}}),
    ("python_lists", {"dataframe_records": [{"v": [1.0, 2.0]}, {"v": [3.0, 4.0]}]}),
    ("python_lists", {"inputs": {"v": [1.0, 2.0]}}),
    ("python_objects", {"dataframe_records": [{"o": {"name": "x"}}, {"o": {"name": "y", "size": 2}}]}),
    ("python_objects", {"inputs": [{"o": {"name": "Größe", "size": 2}}]}),
    ("python_objects", {"inputs": {"o": {"name": "x", "size": 2}}}),
    ("python_input_example", {"dataframe_records": [{"town": "Ulm", "rooms": 1.5}]}),
    ("tensors_by_name", {"inputs": {"x": [[[1, 2], [3, 4]]], "y": [0.1]}}),
    ("tensors_by_name", {"instances": [{"x": [[1, 2], [3, 4]], "y": 1}, {"x": [[5, 6], [7, 8]], "y": 2}]}),
    ("tensors_by_name", {"dataframe_records": [{"x": [1, 2, 3, 4], "y": 1.0}]}),
    ("tensor_without_name", {"inputs": [[1, 2, 3, 4], [5, 6, 7, 250]]}),
    ("tensor_without_name", {"dataframe_split": {"data": [[1, 2, 3, 4]]}}),
    ("tensor_of_texts", {"inputs": [["a", "Größe"]]}),
]

REFUSED: list[tuple[str, Any]] = [
    ("sklearn_table", {}),
    ("sklearn_table", []),
    ("sklearn_table", {**SPLIT, "inputs": []}),
    ("sklearn_table", "{"),
    ("sklearn_table", {"dataframe_split": {"columns": NAMES}}),
    ("sklearn_table", {"dataframe_split": {"columns": NAMES, "data": IRIS, "x": 1}}),
    ("sklearn_table", {"dataframe_split": {"columns": ["a"], "data": IRIS}}),
    ("sklearn_table", {"dataframe_split": {"columns": ["a"], "data": [[1.0]]}}),
    ("sklearn_table", {"dataframe_split": []}),
    ("sklearn_table", {"dataframe_records": {}}),
    ("sklearn_table", {"dataframe_records": []}),
    ("sklearn_table", {"dataframe_records": [{"a": "x", "b": 1, "c": 1, "d": 1}]}),
    ("sklearn_table", {"inputs": {"a": [1.0]}}),
    ("sklearn_table", {"inputs": {"a": [1.0], "b": [1.0, 2.0], "c": [1.0], "d": [1.0]}}),
    ("sklearn_table", {"signature_name": "x"}),
    ("sklearn_table", "a,b\n1,2\n"),
    ("sklearn_table", "a,b,c,d\n1,2,3,x\n"),
    ("sklearn_matrix", {"inputs": [[1.0, 2.0]]}),
    ("python_every_type", split({**ROW, "datetime": "2024-02-29T10:00:00Z"})),
    ("python_every_type", split({**ROW, "datetime": "yesterday"})),
    ("python_every_type", split({**ROW, "binary": "a"})),
    ("python_every_type", split({**ROW, "long": None})),
    ("python_params", {"inputs": {"a": [1.0]}, "params": {"factor": "x"}}),
    ("python_params", {"inputs": {"a": [1.0]}, "params": {"offsets": 3}}),
    ("python_objects", {"dataframe_records": [{"o": {"size": 2}}]}),
    ("python_objects", {"dataframe_records": [{"o": {"name": "x", "more": 1}}]}),
    ("tensor_without_name", {"inputs": [[1, 2]]}),
    ("tensors_by_name", {"inputs": {"x": [[[1, 2], [3, 4]]]}}),
]

STRICTER: list[tuple[str, Any]] = [
    # MLflow casts: the text to a number, 1.7 to 1, and 0 to False.
    ("sklearn_table", {"dataframe_records": [{"a": "1.5", "b": 1, "c": 1, "d": 1}]}),
    ("python_every_type", split({**ROW, "long": 1.7})),
    ("python_every_type", split({**ROW, "boolean": 0})),
    # It gives the model NaN among texts, which no tensor can carry.
    ("sklearn_texts_seen", {"dataframe_records": [{"town": None}]}),
    # And fills up rows that are too short.
    ("xgboost_booster", {"dataframe_split": {"columns": NAMES, "data": [IRIS[0], [1.0]]}}),
]


class Both:
    """One model behind both."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        import mlflow.pyfunc
        from mlflow.pyfunc import scoring_server

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._theirs = scoring_server.init(mlflow.pyfunc.load_model(str(folder)))
        self._ours: Model = load_model("mlflow", folder, options)

    def theirs(self, request: Any) -> tuple[int, Any]:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._theirs)
            async with httpx.AsyncClient(transport=transport, base_url="http://mlflow") as client:
                return await client.post("/invocations", content=body, headers={"content-type": kind})

        body, kind = _to_body(request)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reply = asyncio.run(ask())
        return reply.status_code, reply.json()

    def ours(self, request: Any) -> tuple[int, Any]:
        body, kind = _to_body(request)
        plane = DataPlane(_Direct(self._ours))
        try:
            decoded = protocol.decode_invocations(body, kind, self._ours.signature)
            route = RevisionRoute("m", "1", "m@1", "mlflow", "ready", signature=self._ours.signature)
            answer: InferenceResponse = asyncio.run(plane.infer(route, self._ours.signature, decoded))
            reply = protocol.encode_invocations(answer, self._ours.signature)
        except ModelyardError as exc:
            reply = protocol.encode_error(exc)
        return reply.status, json.loads(reply.body)


class _Direct:
    """A transport that ends at the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def call(self, revision: Any, call: Any, timeout_s: float) -> Any:
        from modelyard.tensor import to_protocol_array

        answers = self._model.predict(call.inputs, call.outputs, call.parameters)
        return {name: to_protocol_array(answers[name]) for name in call.outputs}


def _to_body(request: Any) -> tuple[bytes, str]:
    if isinstance(request, str) and not request.startswith("{"):
        return request.encode(), "text/csv"
    return (request if isinstance(request, str) else json.dumps(request)).encode(), "application/json"


@pytest.fixture(scope="module")
def make_both(tmp_path_factory: pytest.TempPathFactory, trainers: Any) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def make(case: str) -> Both:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            made[case] = Both(folder, dict(trainers("mlflow")[case](folder).options))
        return made[case]

    return make


@pytest.mark.parametrize(("case", "request_"), SAME)
def test_the_answer_is_mlflows(case: str, request_: Any, make_both: Callable[[str], Both]) -> None:
    both = make_both(case)
    expected = both.theirs(request_)
    assert expected[0] == 200, expected
    assert json.dumps(both.ours(request_)) == json.dumps(expected)  # as text: NaN is not itself


@pytest.mark.parametrize(("case", "request_"), REFUSED)
def test_what_mlflow_refuses_is_refused_with_its_status(
    case: str, request_: Any, make_both: Callable[[str], Both]
) -> None:
    both = make_both(case)
    status, theirs = both.theirs(request_)
    assert status == 400, theirs
    status, ours = both.ours(request_)
    assert status == 400, ours
    assert ours.keys() == {"error_code", "message", "sqlstate", "error_class"}
    assert ours["error_code"] in ("BAD_REQUEST", "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize(("case", "request_"), STRICTER)
def test_what_mlflow_would_change_is_refused(case: str, request_: Any, make_both: Callable[[str], Both]) -> None:
    both = make_both(case)
    assert both.theirs(request_)[0] == 200
    assert both.ours(request_)[0] == 400
