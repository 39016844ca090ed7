# SPDX-License-Identifier: Apache-2.0
"""What the cases cannot show: parameters, values that are refused, batches, threads, and silence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.model import Model, check_options, get_framework, load_model
from modelyard.protocol import v1

OUT = ("output-0",)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, trainers: Any) -> Callable[..., Model]:
    def make(case: str, **options: Any) -> Model:
        folder = tmp_path_factory.mktemp(case)
        trained = trainers("mlflow")[case](folder)
        return load_model("mlflow", folder, {**trained.options, **options})

    return make


def predict(model: Model, inputs: dict[str, Any], **parameters: Any) -> Any:
    bound = model.signature.bind({name: np.asarray(array) for name, array in inputs.items()})
    return model.predict(bound, OUT, parameters)["output-0"].tolist()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [1.0, 3.0]),
        ({"factor": 3}, [1.0, 4.0]),
        ({"factor": 0.5, "offsets": "[1, 2]"}, [3.0, 3.5]),
        ({"unknown": "x"}, [1.0, 3.0]),
    ],
)
def test_params_of_the_request_are_the_models(
    load: Callable[..., Model], parameters: dict[str, Any], expected: list[float]
) -> None:
    assert predict(load("python_params"), {"a": [0.0, 1.0]}, **parameters) == expected


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"factor": "3"}, "parameter \"factor\": expected double, got '3'"),
        ({"factor": True}, 'parameter "factor": expected double, got True'),
        ({"offsets": 3}, 'parameter "offsets": expected long (a list, as JSON text), got 3'),
        ({"offsets": "[1"}, 'parameter "offsets"'),
        ({"offsets": '["x"]'}, 'parameter "offsets"'),
    ],
)
def test_a_param_of_another_type_is_the_clients_mistake(
    load: Callable[..., Model], parameters: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        predict(load("python_params"), {"a": [0.0]}, **parameters)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name", "value", "text"),
    [
        ("python_every_type", "datetime", b"yesterday", "expected dates such as"),
        ("python_every_type", "datetime", b"2024-02-29T00:00:00Z", "without a time zone"),
        ("python_every_type", "string", b"\xff", "expected UTF-8"),
        ("python_objects", "o", b"{", "expected a JSON text"),
        ("python_objects", "o", b'{"size": 1}', "Missing required properties"),
        ("sklearn_table", "a", np.nan, 'input "a" contains NaN'),
        ("sklearn_texts", "town", b"Rom", "unknown categories"),
    ],
)
def test_a_value_that_does_not_fit_is_the_clients_mistake(
    load: Callable[..., Model], trainers: Any, tmp_path: Path, case: str, name: str, value: Any, text: str
) -> None:
    model = load(case)
    inputs = {key: array[:1].copy() for key, array in trainers("mlflow")[case](tmp_path).inputs.items()}
    inputs[name][0] = value
    with pytest.raises(InvalidRequest, match=text):
        model.predict(model.signature.bind(inputs), tuple(spec.name for spec in model.signature.outputs), {})


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ({"a": [[1.0, 2.0]]}, InvalidTensor),
        ({"a": ["x"]}, InvalidTensor),
        ({"a": [1.0], "b": [1.5]}, InvalidTensor),
        ({"b": [1]}, InvalidRequest),
        ({"a": [1.0], "c": [1.0]}, InvalidRequest),
    ],
)
def test_inputs_that_the_signature_does_not_have_are_refused(
    load: Callable[..., Model], inputs: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        predict(load("python_optional_column"), inputs)


def test_rows_of_one_v1_request_leave_out_an_optional_number(load: Callable[..., Model]) -> None:
    model = load("python_optional_number")
    request, _ = v1.decode_predict(b'{"instances": [{"a": 1, "b": 2}, {"a": 3}]}', model.signature)
    assert predict(model, dict(request.inputs)) == [3.0, 103.0]


def test_metadata_is_the_signatures(load: Callable[..., Model]) -> None:
    signature = load("python_every_type").signature
    found = {spec.name: (spec.datatype, spec.shape, spec.content_type) for spec in signature.inputs}
    assert found == {
        "boolean": ("BOOL", (-1,), ""),
        "integer": ("INT32", (-1,), ""),
        "long": ("INT64", (-1,), ""),
        "float": ("FP32", (-1,), ""),
        "double": ("FP64", (-1,), ""),
        "string": ("BYTES", (-1,), ""),
        "binary": ("BYTES", (-1,), "base64"),
        "datetime": ("BYTES", (-1,), "datetime"),
    }
    assert [spec.optional for spec in load("python_optional_column").signature.inputs] == [False, True]
    (spec,) = load("tensor_without_name").signature.inputs
    assert (spec.datatype, spec.shape) == ("UINT8", (-1, 4))
    assert load("tensor_without_name").signature.any_input_name


@pytest.mark.parametrize(
    "case", ["sklearn_table", "sklearn_matrix", "xgboost_booster", "xgboost_classifier", "lightgbm_classifier"]
)
def test_estimators_are_asked_themselves(load: Callable[..., Model], case: str) -> None:
    assert getattr(load(case), "_native") is not None  # noqa: B009  # private: it shows in nothing but the time


def test_a_model_whose_rows_depend_on_each_other_shares_no_batch(load: Callable[..., Model], trainers: Any) -> None:
    assert load("python_with_nothing").signature.batch_axis
    assert not load("python_of_all_rows").signature.batch_axis
    assert not load("tensor_of_all_rows").signature.batch_axis
    assert load("python_of_all_rows", batch_axis=True).signature.batch_axis


def test_a_model_that_refuses_made_up_rows_shares_no_batch_unless_told_to(
    load: Callable[..., Model], caplog: pytest.LogCaptureFixture
) -> None:
    assert not load("python_of_known_texts").signature.batch_axis
    assert "so requests do not share its calls; the option batch_axis: true lets them" in caplog.text
    assert load("python_of_known_texts", batch_axis=True).signature.batch_axis
    assert load("sklearn_texts").signature.batch_axis


@pytest.mark.parametrize("case", ["sklearn_matrix", "python_params", "lightgbm_booster"])
def test_threads_get_their_own_rows_back(load: Callable[..., Model], trainers: Any, tmp_path: Path, case: str) -> None:
    model = load(case)
    bound = model.signature.bind(trainers("mlflow")[case](tmp_path).inputs)
    rows = len(next(iter(bound.values())))
    parts = [{name: array[row : row + 1] for name, array in bound.items()} for row in range(rows)] * 40
    expected = [model.predict(part, OUT, {})["output-0"].tolist() for part in parts]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda part: model.predict(part, OUT, {})["output-0"].tolist(), parts))
    assert got == expected


def test_saved_threads_are_replaced_by_the_option(load: Callable[..., Model]) -> None:
    model: Any = load("sklearn_matrix", n_jobs=2)
    assert model._native.predict.__self__.n_jobs == 2


@pytest.mark.parametrize("options", [{"n_jobs": 0}, {"inputs": [{"name": "x"}]}, {"nosuch": 1}, {"batch_axis": "x"}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="options"):
        check_options(get_framework("mlflow"), options)


def test_an_unknown_datatype_of_an_input_is_refused(load: Callable[..., Model]) -> None:
    with pytest.raises(Exception, match='option inputs: "FP65"'):
        load("python_with_nothing", inputs=[{"name": "x", "datatype": "FP65"}])


_ALONE = """
import socket, sys, threading
def refuse(*args, **more):
    print("CONNECTS", args)
    raise OSError("no network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from pathlib import Path
from modelyard.model import load_model
import numpy as np
model = load_model("mlflow", Path(sys.argv[1]), {})
model.predict(model.signature.bind({"a": np.zeros(2)}), ("output-0",), {})
print(sorted(thread.name for thread in threading.enumerate()))
"""


@pytest.mark.parametrize("case", ["python_params"])
def test_loading_and_predicting_says_nothing_and_calls_nobody(case: str, trainers: Any, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "empty"
    folder.mkdir()
    trainers("mlflow")[case](model)
    environment = {"PATH": "/usr/bin", "HOME": str(folder)}  # as it is nowhere: no pytest, no continuous integration
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(model)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "['MainThread']\n", "")
    assert [path.name for path in folder.iterdir()] == []  # no mlruns, no database
