# SPDX-License-Identifier: Apache-2.0
"""Requests that a SavedModel brings along are answered before it counts as loaded; bad ones are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import load_model
from modelyard_deployments._tensorflow_start import import_tensorflow

FILE = "assets.extra/tf_serving_warmup_requests"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A SavedModel that counts in a variable how many rows its signatures have answered, as ``counted`` tells."""
    tf = import_tensorflow()
    module = tf.Module()
    module.rows = tf.Variable(np.zeros(3, dtype=np.int64))

    def count(place: int, rows: Any) -> Any:
        return module.rows.scatter_nd_add([[place]], tf.shape(rows, tf.int64)[:1])

    def predict(x: Any) -> Any:
        with tf.control_dependencies([count(0, x)]):
            return {"y": x * 2, "z": x + 1}

    def classify(inputs: Any) -> Any:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        with tf.control_dependencies([count(1, x)]):
            return {"scores": x * 2}

    def regress(inputs: Any) -> Any:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]
        with tf.control_dependencies([count(2, x)]):
            return {"outputs": x[:, 0]}

    examples = [tf.TensorSpec([None], tf.string, "inputs")]
    signatures = {
        "serving_default": tf.function(predict, input_signature=[tf.TensorSpec([None, 2], tf.float32, "x")]),
        "classify": tf.function(classify, input_signature=examples),
        "regress": tf.function(regress, input_signature=examples),
        "counted": tf.function(
            lambda q: {"rows": module.rows + 0 * q}, input_signature=[tf.TensorSpec([], tf.int64, "q")]
        ),
    }
    tf.saved_model.save(module, str(tmp_path), signatures=signatures)
    (tmp_path / "assets.extra").mkdir()
    return tmp_path


def _log(**parts: Any) -> Any:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    return PredictionLog(**parts)


def _predict_log(signature: str = "", outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictLog

    request = PredictRequest(output_filter=outputs)
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(import_tensorflow().make_tensor_proto(array))
    return _log(predict_log=PredictLog(request=request))


def _examples(*rows: tuple[float, ...]) -> Any:
    from tensorflow_serving.apis.input_pb2 import ExampleList, Input

    return Input(example_list=ExampleList(examples=[_example(row) for row in rows]))


def _example(row: tuple[float, ...]) -> Any:
    train = import_tensorflow().train
    features = {"x": train.Feature(float_list=train.FloatList(value=row))} if row else {}
    return train.Example(features=train.Features(feature=features))


def _classify_log(given: Any, signature: str = "classify") -> Any:
    from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
    from tensorflow_serving.apis.prediction_log_pb2 import ClassifyLog

    request = ClassificationRequest(input=given)
    request.model_spec.signature_name = signature
    return _log(classify_log=ClassifyLog(request=request))


def _regress_log(given: Any) -> Any:
    from tensorflow_serving.apis.prediction_log_pb2 import RegressLog
    from tensorflow_serving.apis.regression_pb2 import RegressionRequest

    request = RegressionRequest(input=given)
    request.model_spec.signature_name = "regress"
    return _log(regress_log=RegressLog(request=request))


def _multi_log(given: Any) -> Any:
    from tensorflow_serving.apis.inference_pb2 import InferenceTask, MultiInferenceRequest
    from tensorflow_serving.apis.prediction_log_pb2 import MultiInferenceLog

    tasks = [InferenceTask(method_name=f"tensorflow/serving/{name}") for name in ("classify", "regress")]
    for task, name in zip(tasks, ("classify", "regress"), strict=True):
        task.model_spec.signature_name = name
    return _log(multi_inference_log=MultiInferenceLog(request=MultiInferenceRequest(tasks=tasks, input=given)))


def _write(folder: Path, *logs: Any) -> None:
    with import_tensorflow().io.TFRecordWriter(str(folder / FILE)) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())


def _count(folder: Path) -> list[int]:
    counted = load_model("tensorflow", folder, {}).members["counted"]
    rows: list[int] = counted.predict({"q": np.array(0)}, ("rows",), {})["rows"].tolist()  # type: ignore[union-attr,index]
    return rows


def _refusal(folder: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_model("tensorflow", folder, {})
    assert str(folder) not in str(caught.value)
    return str(caught.value)


ROWS = np.ones((2, 2), dtype=np.float32)


def test_model_without_requests_is_loaded(folder: Path) -> None:
    assert _count(folder) == [0, 0, 0]


def test_each_request_is_answered_once_by_its_signature(folder: Path) -> None:
    _write(
        folder,
        _predict_log(x=ROWS),
        _predict_log("serving_default", ("z",), x=ROWS[:1]),
        _classify_log(_examples((1, 2), (3, 4), (5, 6), (7, 8))),
        _regress_log(_examples((1, 2))),
        _multi_log(_examples((1, 2), (3, 4))),
    )
    assert _count(folder) == [3, 6, 3]


def test_context_counts_in_every_example(folder: Path) -> None:
    from tensorflow_serving.apis.input_pb2 import ExampleListWithContext, Input

    listed = ExampleListWithContext(examples=[_example(()), _example((3, 4))], context=_example((1, 2)))
    _write(folder, _regress_log(Input(example_list_with_context=listed)))
    assert _count(folder) == [0, 0, 2]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (lambda: _predict_log("nosuch", x=ROWS), 'there is no signature "nosuch"'),
        (lambda: _predict_log(y=ROWS), 'input "x" is missing'),
        (lambda: _predict_log(x=ROWS[:, :1]), 'input "x": expected FP32 [-1,2], got FP32 [2,1]'),
        (lambda: _predict_log("", ("nosuch",), x=ROWS), 'unknown requested output "nosuch"'),
        (lambda: _classify_log(_examples()), "expected examples, got none"),
        (lambda: _classify_log(_examples(()), "regress"), "Feature: x (data type: float) is required"),
        (lambda: _classify_log(_examples((1, 2)), ""), 'input "x" is missing: expected "x", got "inputs"'),
        (lambda: b"", "expected a request of Predict, Classify, Regress or MultiInference, got none of them"),
        (lambda: b"nonsense", "Error parsing message"),
    ],
)
def test_request_that_is_not_answered_is_named(folder: Path, log: Any, reason: str) -> None:
    _write(folder, _predict_log(x=ROWS), log())
    message = _refusal(folder)
    assert message.startswith(f"{FILE}: request 2 is not answered: ")
    assert reason in message


def test_file_that_holds_no_records_is_refused(folder: Path) -> None:
    (folder / FILE).write_bytes(b"hello, these are no records")
    assert f"{FILE}: expected TFRecords, got something else or a part" in _refusal(folder)


def test_file_that_is_cut_off_is_refused(folder: Path) -> None:
    _write(folder, _predict_log(x=ROWS), _predict_log(x=ROWS))
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-3])
    assert f"{FILE}: expected TFRecords, got something else or a part" in _refusal(folder)


def test_there_are_no_more_than_tensorflow_serving_takes(folder: Path) -> None:
    _write(folder, *[_predict_log(x=ROWS[:1])] * 1000)
    assert _count(folder) == [1000, 0, 0]
    _write(folder, *[_predict_log(x=ROWS[:1])] * 1001)
    assert f"{FILE}: expected at most 1000 requests, got more" in _refusal(folder)


def test_streamed_predictions_are_passed_over(folder: Path) -> None:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictStreamedLog

    _write(folder, _log(predict_streamed_log=PredictStreamedLog()), _predict_log(x=ROWS))
    assert _count(folder) == [2, 0, 0]
