# SPDX-License-Identifier: Apache-2.0
"""What is particular to PMML: fields, missing and invalid values, results, threads."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.model import load_model
from modelyard.protocol import v1
from modelyard.tensor import to_bytes_array


@pytest.fixture
def load(tmp_path: Path, trainers: Any) -> Any:
    def make(case: str) -> Any:
        trainers("pmml")[case](tmp_path)
        return load_model("pmml", tmp_path, {})

    return make


@pytest.fixture
def latin(tmp_path: Path, write_latin_tree: Any) -> Any:
    write_latin_tree(tmp_path)
    return load_model("pmml", tmp_path, {})


def _predict(model: Any, **inputs: Any) -> dict[str, Any]:
    names = tuple(spec.name for spec in model.signature.outputs)
    arrays = {name: np.asarray(one) for name, one in inputs.items()}
    arrays = {name: to_bytes_array(one) if one.dtype.kind in "UO" else one for name, one in arrays.items()}
    answers: dict[str, Any] = model.predict(model.signature.bind(arrays), names, {})
    return {name: array.tolist() for name, array in answers.items()}


def _predict_records(model: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    request, _ = v1.decode_predict(json.dumps({"instances": rows}).encode(), model.signature)
    return _predict(model, **request.inputs)


def _house(**changed: Any) -> dict[str, Any]:
    row = {"district": ["centre"], "rooms": [3], "area": [50.0], "lift": [True], "height": [2.5]}
    return row | changed


def _specs(specs: Any) -> dict[str, str]:
    return {spec.name: f"{spec}{' optional' if spec.optional else ''}" for spec in specs}


# -- signatures


def test_fields_have_their_data_types(load: Any) -> None:
    signature = load("every_data_type").signature
    assert _specs(signature.inputs) == {
        "district": "BYTES [-1]",
        "rooms": "FP64 [-1] optional",  # an integer that may be missing in a row
        "area": "FP64 [-1]",
        "lift": "BOOL [-1] optional",
        "height": "FP32 [-1] optional",
    }
    assert _specs(signature.outputs) == {"price": "FP64 [-1]", "thousands": "INT64 [-1]", "dear": "BOOL [-1]"}
    assert signature.example == {"district": "centre", "rooms": 10}


def test_results_without_an_output_element_have_the_evaluators_names(latin: Any) -> None:
    assert _specs(latin.signature.outputs) == {"predicted_klasse": "BYTES [-1]", "node_id": "BYTES [-1]"}


def test_strategy_for_missing_values_makes_all_fields_optional(latin: Any) -> None:
    assert _specs(latin.signature.inputs) == {"größe": "FP64 [-1] optional", "farbe": "BYTES [-1] optional"}


# -- missing values


def test_missing_field_takes_its_replacement(load: Any) -> None:
    model = load("every_data_type")
    whole = _predict(model, **_house(rooms=[3], lift=[False], height=[2.5]))
    row = _house()
    for name in ("rooms", "lift", "height"):
        del row[name]
    assert _predict(model, **row) == whole
    assert whole["price"] == [1000 + 6000 * 3 + 1500 * 50 + 100 * 2.5 + 90_000]


@pytest.mark.parametrize("rows", [1, 4])
def test_missing_integer_is_told_from_zero(load: Any, rows: int) -> None:
    model = load("scorecard")
    job = ["cook"] * rows
    assert _predict(model, job=job)["risk"] == [65.0] * rows
    assert _predict(model, job=job, age=[0] * rows)["risk"] == [70.0] * rows


def test_null_is_a_missing_number_and_an_empty_text_a_missing_text(load: Any) -> None:
    model = load("every_data_type")
    body = b'{"instances": [{"district": "", "rooms": 3, "area": 1.0, "lift": false, "height": null}]}'
    request, _ = v1.decode_predict(body, model.signature)
    answers = model.predict(model.signature.bind(request.inputs), ("price",), {})
    assert answers["price"].tolist() == [1000 + 6000 * 3 + 1500 + 250]


def test_rows_of_one_request_miss_different_fields(load: Any) -> None:
    model = load("every_data_type")
    row = {"district": "centre", "rooms": 4, "area": 10.0, "lift": False, "height": 2.0}
    rows = [row, *({key: value for key, value in row.items() if key != name} for name in ("rooms", "height"))]
    rows += [{**row, "rooms": None}, {**row, "district": None}, {**row, "height": None}]
    assert _predict_records(model, rows)["price"] == [
        pytest.approx(1000 + 6000 * rooms + 1500 * 10 + 100 * height + district)
        for rooms, height, district in (
            *((4, 2.0, 90_000), (3, 2.0, 90_000), (4, 2.5, 90_000)),
            *((3, 2.0, 90_000), (4, 2.0, 0), (4, 2.5, 90_000)),
        )
    ]


def test_each_row_may_miss_an_integer_and_a_text(load: Any) -> None:
    rows: list[dict[str, Any]] = [{"age": 20, "job": "cook"}, {"job": "cook"}, {"age": None, "job": None}]
    rows += [{"age": 40, "job": ""}]
    assert _predict_records(load("scorecard"), rows)["risk"] == [70.0, 65.0, 16.0, 41.0]


def test_required_field_is_named(load: Any) -> None:
    model = load("every_data_type")
    with pytest.raises(InvalidRequest, match='input "area" is missing'):
        _predict(model, district=["centre"])
    with pytest.raises(InvalidRequest, match='input "area": is missing'):
        _predict(model, **_house(area=[np.nan]))


def test_unknown_field_is_refused(load: Any) -> None:
    with pytest.raises(InvalidRequest, match='unknown input "floor"'):
        _predict(load("every_data_type"), **_house(floor=[1]))


def test_no_field_at_all_is_refused(latin: Any) -> None:
    with pytest.raises(InvalidRequest, match="expected at least one of the fields größe, farbe"):
        _predict(latin)


def test_tree_follows_its_default_where_a_value_is_missing(latin: Any) -> None:
    assert _predict(latin, größe=[3.0, 1.0])["predicted_klasse"] == ["süß".encode(), b"sauer"]
    assert _predict(latin, farbe=["grün", "blau"])["predicted_klasse"] == ["süß".encode(), b"sauer"]


def _flowers(rows: int) -> dict[str, Any]:
    """The last one has no measurements."""
    column = np.ones(rows)
    column[-1] = np.nan
    return dict.fromkeys(("sepal_length", "sepal_width", "petal_length", "petal_width"), column)


@pytest.mark.parametrize("rows", [1, 3])
def test_missing_answer_is_nan_or_empty(load: Any, rows: int) -> None:
    answers = _predict(load("tree"), **_flowers(rows))
    assert [text == b"" for text in answers["predicted_species"]] == [False] * (rows - 1) + [True]
    assert np.isnan(answers["probability_setosa"]).tolist() == [False] * (rows - 1) + [True]


@pytest.mark.parametrize("rows", [1, 3])
def test_missing_answer_that_is_an_integer_is_the_clients_fault(load: Any, rows: int) -> None:
    with pytest.raises(InvalidRequest, match=f'"predicted_species": the model has no answer for row {rows - 1}'):
        _predict(load("integer_classes"), **_flowers(rows))


# -- invalid values


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"district": ["moon"]}, "input \"district\": 'moon' is not valid: expected centre, harbour, n/a"),
        ({"rooms": [20]}, r'input "rooms": 20 is not valid: expected \[1, 20\)'),
        ({"rooms": [0]}, r'input "rooms": 0 is not valid: expected \[1, 20\)'),
        ({"rooms": [2.5]}, 'input "rooms": 2.5 is no integer: expected an integer'),
        ({"rooms": [np.inf]}, 'input "rooms": inf is beyond'),
        ({"rooms": [2.0**54]}, "is beyond"),
        ({"rooms": [-(2**63)]}, "is beyond"),
    ],
)
def test_invalid_value_is_the_clients_fault(load: Any, changed: dict[str, Any], message: str) -> None:
    model = load("every_data_type")
    with pytest.raises(InvalidRequest, match=message):
        _predict(model, **_house(**changed))


def test_text_that_is_not_utf8_is_the_clients_fault(load: Any) -> None:
    model = load("scorecard")
    job = np.array([b"\xff\xfe"], dtype=object)
    with pytest.raises(InvalidRequest, match='input "job": expected UTF-8 text'):
        model.predict({"age": np.array([1]), "job": job}, ("risk",), {})


def test_text_for_a_number_is_refused(load: Any) -> None:
    with pytest.raises(InvalidTensor, match='input "area"'):
        _predict(load("every_data_type"), **_house(area=["large"]))


def test_limits_are_inclusive_as_the_closure_says(load: Any) -> None:
    model = load("every_data_type")
    assert len(_predict(model, **_house(rooms=[1]))["price"]) == 1


# -- batches and threads


@pytest.mark.parametrize("case", ["tree", "forest_of_integer_classes", "every_data_type", "scorecard"])
def test_many_rows_are_answered_as_each_alone(load: Any, case: str, trainers: Any, tmp_path: Path) -> None:
    model, inputs = load(case), trainers("pmml")[case](tmp_path).inputs
    bound = model.signature.bind(inputs)
    picked = np.random.default_rng(7).integers(0, len(next(iter(bound.values()))), 300)
    names = tuple(spec.name for spec in model.signature.outputs)
    together = model.predict({name: array[picked] for name, array in bound.items()}, names, {})
    alone = [model.predict({name: array[[one]] for name, array in bound.items()}, names, {}) for one in picked]
    for name in names:
        assert np.array_equal(together[name], np.concatenate([answer[name] for answer in alone]))


@pytest.mark.parametrize("case", ["forest_of_integer_classes", "every_data_type", "boosting", "clusters", "scorecard"])
def test_each_thread_gets_its_own_rows(load: Any, case: str, trainers: Any, tmp_path: Path) -> None:
    model, inputs = load(case), trainers("pmml")[case](tmp_path).inputs
    bound = model.signature.bind(inputs)
    names = tuple(spec.name for spec in model.signature.outputs)
    rows = len(next(iter(bound.values())))

    def predict(number: int) -> dict[str, Any]:
        answers = model.predict({name: array[[number % rows]] for name, array in bound.items()}, names, {})
        return {name: array.tolist() for name, array in answers.items()}

    alone = [predict(number) for number in range(8)]
    with ThreadPoolExecutor(8) as executor:
        assert all(executor.map(lambda number: all(predict(number) == alone[number] for _ in range(200)), range(8)))
