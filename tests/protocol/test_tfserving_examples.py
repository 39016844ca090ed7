# SPDX-License-Identifier: Apache-2.0
"""``tf.Example`` from JSON and from messages, and what classification and regression answer.

Source: ``tensorflow_serving/util/json_tensor_test.cc``, ``servables/tensorflow/{classifier,regressor}_test.cc``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InvalidRequest, TooLarge, Unsupported
from modelyard.inference import InferenceResponse
from modelyard.protocol.http import load_json
from modelyard.protocol.tfserving import examples, messages
from modelyard.protocol.tfserving.examples import CLASSIFY, REGRESS
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.protos import tensorflow_serving_pb2 as pb
from modelyard.signature import SavedSignature, Signature, TensorSpec
from modelyard.tensor import to_bytes_array

INPUT = TensorSpec("inputs", "BYTES", (-1,))
CLASSES, SCORES = TensorSpec("classes", "BYTES", (-1, 3)), TensorSpec("scores", "FP32", (-1, 3))
OUTPUT = TensorSpec("outputs", "FP32", (-1, 1))
CLASSIFIER = Signature((INPUT,), (CLASSES, SCORES), saved=SavedSignature("serving_default", CLASSIFY))
REGRESSOR = Signature((INPUT,), (OUTPUT,), saved=SavedSignature("regress_x", REGRESS))
LARGE = 10_000


def features(text: bytes) -> dict[str, Any]:
    """The features of a serialized example by name: which list, and what is in it."""
    found = {}
    for name, feature in tf.Example.FromString(text).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value)) if kind else None
    return found


def decode(body: str) -> list[dict[str, Any]]:
    return [features(text) for text in examples.decode_examples(load_json(body.encode()), LARGE)]


def test_features_are_of_the_type_that_their_values_say() -> None:
    body = """{"examples": [
        {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
        {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "mixed": [1, true, false], "empty": []},
        {"names": "bar", "ratings": -Infinity}, {}]}"""
    first, second, third, fourth = decode(body)
    ratings = first.pop("ratings")
    np.testing.assert_array_equal(ratings[1], [8, 9, np.nan, np.inf])
    assert first == {"names": ("bytes_list", [b"foo", b"bar"]), "age": ("int64_list", [20])}
    assert second == {
        "names": ("bytes_list", [b"baz", b"hello"]),
        "ratings": ("float_list", [6]),
        "mixed": ("int64_list", [1, 1, 0]),
        "empty": None,
    }
    assert third == {"names": ("bytes_list", [b"bar"]), "ratings": ("float_list", [-np.inf])}
    assert fourth == {}


def test_the_context_is_in_every_example_that_has_not_its_own() -> None:
    body = '{"context": {"query": "pizza", "n": [1, 2]}, "examples": [{"a": 1}, {"query": "pasta"}]}'
    assert decode(body) == [
        {"query": ("bytes_list", [b"pizza"]), "n": ("int64_list", [1, 2]), "a": ("int64_list", [1])},
        {"query": ("bytes_list", [b"pasta"]), "n": ("int64_list", [1, 2])},
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"context": [{"a": 1}]}', "context: Example must be JSON object but got a list"),
        ("{}", "key 'examples' is expected and was not found"),
        ('{"instances": [1]}', "key 'examples' is expected and was not found: got \"instances\""),
        ('{"examples": {"a": 1}}', "Expecting 'examples' value to be a list/array: got an object"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [[{"a": 1}]]}', "examples[0]: Example must be JSON object but got a list"),
        ('{"examples": [{}, {"names": [10, null]}]}', 'examples[1] feature "names": element with unexpected JSON type'),
        ('{"examples": [{"a": {"test": 10}}]}', "unexpected JSON type"),
        ('{"examples": [{"a": [[10], 20]}]}', "unexpected JSON type: expected a number, boolean, string"),
        ('{"examples": [{"a": [10, 10.0]}]}', 'expected all of one type, got "float", "int64"'),
        ('{"examples": [{"a": ["x", 1]}]}', 'expected all of one type, got "bytes", "int64"'),
        ('{"examples": [{"a": [20, 18446744073709551603]}]}', "has uint64 element. Only int64 is supported"),
        ('{"examples": [{"a": 1.7976931348623157e308}]}', "to float without loss of precision"),
        ('{"examples": [{"a": {"b64": "%%"}}]}', "expected base64"),
        ('{"examples": [{"\\ud800": 1, "a": NaN}]}', "lone surrogate"),
    ],
)
def test_examples_that_are_refused(body: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body)
    assert message in str(caught.value)


def test_a_context_for_many_examples_counts_for_each() -> None:
    body = {"context": {"a": "x" * 1000}, "examples": [{}] * 11}
    with pytest.raises(TooLarge):
        examples.decode_examples(body, LARGE)
    assert len(examples.decode_examples({**body, "examples": [{}] * 9}, LARGE)) == 9


def example(**values: list[int]) -> tf.Example:
    found = tf.Example()
    for name, numbers in values.items():
        found.features.feature[name].int64_list.value.extend(numbers)
    return found


def test_messages_have_the_same_context() -> None:
    message = pb.Input()
    message.example_list_with_context.context.CopyFrom(example(a=[1], b=[2]))
    message.example_list_with_context.examples.extend([example(b=[3]), example(c=[4])])
    assert [features(text) for text in messages.decode_input(message, LARGE)] == [
        {"a": ("int64_list", [1]), "b": ("int64_list", [3])},
        {"a": ("int64_list", [1]), "b": ("int64_list", [2]), "c": ("int64_list", [4])},
    ]
    plain = pb.Input()
    plain.example_list.examples.append(example(a=[1]))
    assert messages.decode_input(plain, LARGE) == [example(a=[1]).SerializeToString()]


def test_an_input_without_examples_is_refused() -> None:
    for message in (pb.Input(), pb.Input(example_list=pb.ExampleList())):
        with pytest.raises(InvalidRequest, match="Input is empty"):
            messages.decode_input(message, LARGE)
    message = pb.Input()
    message.example_list_with_context.context.features.feature["a"].bytes_list.value.append(b"x" * 1000)
    message.example_list_with_context.examples.extend([tf.Example()] * 100)
    with pytest.raises(TooLarge):
        messages.decode_input(message, LARGE)


# -- signatures


@pytest.mark.parametrize(
    ("signature", "method"),
    [
        (CLASSIFIER, CLASSIFY),
        (replace(CLASSIFIER, outputs=(SCORES,)), CLASSIFY),
        (replace(CLASSIFIER, outputs=(CLASSES,)), CLASSIFY),
        (REGRESSOR, REGRESS),
        (
            replace(REGRESSOR, saved=SavedSignature("any", "tensorflow/serving/predict")),
            REGRESS,
        ),  # as TensorFlow 2 saves it
    ],
)
def test_signatures_that_take_examples(signature: Signature, method: str) -> None:
    examples.check_method(signature, method, "m")
    request = examples.to_request([b"a", b"b"], signature)
    assert request.inputs["inputs"].tolist() == [b"a", b"b"]
    assert [output.name for output in request.outputs] == [spec.name for spec in signature.outputs]


def test_an_output_of_another_name_is_not_asked_for() -> None:
    signature = replace(CLASSIFIER, outputs=(SCORES, TensorSpec("more", "FP32", (-1,))))
    examples.check_method(signature, CLASSIFY, "m")
    assert [output.name for output in examples.to_request([b""], signature).outputs] == ["scores"]


@pytest.mark.parametrize(
    ("signature", "method", "message"),
    [
        (REGRESSOR, CLASSIFY, 'expected classification outputs "classes" or "scores" or both, got "outputs"'),
        (CLASSIFIER, REGRESS, 'expected one regression output, "outputs", got "classes", "scores"'),
        (
            replace(CLASSIFIER, inputs=(replace(INPUT, name="x"),)),
            CLASSIFY,
            'one classification input, "inputs" of BYTES',
        ),
        (replace(CLASSIFIER, inputs=(replace(INPUT, datatype="FP32"),)), CLASSIFY, 'got "inputs" of FP32'),
        (replace(CLASSIFIER, inputs=(INPUT, replace(INPUT, name="y"))), CLASSIFY, '"inputs" of BYTES, "y" of BYTES'),
        (replace(CLASSIFIER, outputs=(CLASSES, SCORES, OUTPUT)), CLASSIFY, "expected classification outputs"),
        (replace(REGRESSOR, outputs=(OUTPUT, SCORES)), REGRESS, "expected one regression output"),
    ],
)
def test_signatures_that_do_not(signature: Signature, method: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        examples.check_method(signature, method, "m")
    assert message in str(caught.value)
    assert 'of model "m"' in str(caught.value)


def test_a_model_that_is_no_savedmodel_takes_no_examples() -> None:
    with pytest.raises(Unsupported, match='model "iris" has no classification signature'):
        examples.check_method(replace(CLASSIFIER, saved=None), CLASSIFY, "iris")


# -- answers

LABELS = to_bytes_array(np.array([["car", "bike"], ["bus", "ü"]]))
NUMBERS = np.float32([[0.2, 0.7], [np.nan, 0.1]])


def response(**outputs: Any) -> InferenceResponse:
    return InferenceResponse("m", "3", "id", outputs)


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"classes": LABELS, "scores": NUMBERS}, '[[["car",0.2],["bike",0.7]],[["bus",NaN],["ü",0.1]]]'),
        ({"classes": LABELS}, '[[["car",0.0],["bike",0.0]],[["bus",0.0],["ü",0.0]]]'),
        ({"scores": NUMBERS}, '[[["",0.2],["",0.7]],[["",NaN],["",0.1]]]'),
        ({"scores": NUMBERS[:, :0]}, "[[],[]]"),
    ],
)
def test_classes_as_json_and_as_messages(outputs: dict[str, Any], text: str) -> None:
    found = examples.to_classes(response(**outputs), 2)
    assert examples.encode_classes(*found).body.decode() == f'{{"results":{text}}}'
    result = pb.ClassificationResult()
    messages.fill_classes(*found, result)
    answered = [[[one.label, one.score] for one in row.classes] for row in result.classifications]
    for row, wanted in zip(answered, load_json(text.encode()), strict=True):
        assert [label for label, _ in row] == [label for label, _ in wanted]
        np.testing.assert_array_equal([s for _, s in row], np.float32([s for _, s in wanted]))


@pytest.mark.parametrize("values", [np.float32([0.2, np.inf]), np.float32([[0.2], [np.inf]])])
def test_values_as_json_and_as_messages(values: Any) -> None:
    found = examples.to_values(response(outputs=values), 2)
    assert examples.encode_values(found).body == b'{"results":[0.2,Infinity]}'
    result = pb.RegressionResult()
    messages.fill_values(found, result)
    assert [one.value for one in result.regressions] == [np.float32(0.2), np.inf]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"classes": LABELS[:, 0]}, 'output "classes": Expected Tensor shape: [batch_size num_classes], got BYTES [2]'),
        ({"scores": NUMBERS[0]}, 'output "scores": Expected Tensor shape: [batch_size num_classes], got FP32 [2]'),
        ({"classes": NUMBERS}, 'output "classes": Expected a Tensor of BYTES, got FP32 [2,2]'),
        ({"scores": NUMBERS.astype(np.float64)}, "Expected a Tensor of FP32, got FP64 [2,2]"),
        ({"classes": LABELS[:1]}, "Expected a batch size of 2, got BYTES [1,2]"),
        ({"classes": LABELS, "scores": NUMBERS[:, :1]}, "Expected as many as classes, 2, got 1"),
        ({}, 'output "classes" or "scores": Expected one of them, got none'),
    ],
)
def test_answers_that_are_no_classification(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        examples.to_classes(response(**outputs), 2)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, 'output "outputs": Expected a Tensor, got none'),
        ({"outputs": NUMBERS}, "either [batch_size] or [batch_size, 1], got FP32 [2,2]"),
        ({"outputs": NUMBERS[0][:1]}, "Expected a batch size of 2, got FP32 [1]"),
        ({"outputs": np.float64([1, 2])}, "Expected a Tensor of FP32, got FP64 [2]"),
    ],
)
def test_answers_that_are_no_regression(outputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        examples.to_values(response(**outputs), 2)
    assert message in str(caught.value)


def test_a_label_that_is_no_text_is_refused() -> None:
    found = (np.array([[b"\xff"]], dtype=object), None)
    for encode in (examples.encode_classes, lambda *pair: messages.fill_classes(*pair, pb.ClassificationResult())):
        with pytest.raises(InvalidRequest, match="not UTF-8"):
            encode(*found)


# -- several signatures at once


def task(method: str, model: str = "m", signature: str = "", version: int | None = None) -> pb.InferenceTask:
    found = pb.InferenceTask(method_name=method, model_spec=pb.ModelSpec(name=model, signature_name=signature))
    if version is not None:
        found.model_spec.version.value = version
    return found


def test_tasks_are_of_one_model_and_the_version_that_one_names() -> None:
    request = pb.MultiInferenceRequest(tasks=[task(CLASSIFY, version=3), task(REGRESS, signature="r")])
    assert messages.decode_tasks(request) == [
        (messages.Spec("m", "3", ""), CLASSIFY),
        (messages.Spec("m", "3", "r"), REGRESS),
    ]


@pytest.mark.parametrize(
    ("tasks", "kind", "message"),
    [
        ([], InvalidRequest, "at least one task"),
        ([task(CLASSIFY, "")], InvalidRequest, "ModelSpec has no name specified"),
        ([task(CLASSIFY), task(REGRESS, "n")], InvalidRequest, "must access the same model name"),
        ([task(CLASSIFY, version=1), task(REGRESS, version=2)], InvalidRequest, "the same version"),
        ([task("tensorflow/serving/predict")], Unsupported, 'method_name: "tensorflow/serving/predict"'),
        ([task("")], Unsupported, "Unsupported signature method_name"),
    ],
)
def test_tasks_that_are_refused(tasks: list[pb.InferenceTask], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        messages.decode_tasks(pb.MultiInferenceRequest(tasks=tasks))
    assert message in str(caught.value)


def test_a_signature_is_asked_once() -> None:
    messages.check_different(["a", "b"])
    with pytest.raises(InvalidRequest, match="Duplicate evaluation of signature: a"):
        messages.check_different(["a", "b", "a"])


def test_scores_have_no_noise_digits() -> None:
    reply = examples.encode_classes(None, np.float32([[0.1, 0.2, 0.3]])).body
    assert json.loads(reply) == {"results": [[["", 0.1], ["", 0.2], ["", 0.3]]]}
