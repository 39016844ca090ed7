# SPDX-License-Identifier: Apache-2.0
"""A SavedModel with three signatures and requests for warming up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelyard.protos import tensorflow_pb2 as pb
from modelyard.protos import tensorflow_serving_pb2 as serving
from modelyard.tensor import Array
from modelyard_deployments._tensorflow_start import import_tensorflow
from modelyard_deployments.examples.example import Example

_FEATURES: Final = ("sepal_length", "sepal_width", "petal_length", "petal_width")
_METHODS: Final = {"classify": "classify", "petal_area": "regress"}
_FLOWER: Final = (6.8, 2.8, 4.8, 1.4)


def train_iris(path: Path) -> None:
    """A small network on the four measurements of iris flowers.

    ``serving_default`` takes a matrix and answers scores and species. ``classify`` takes examples with four features
    and answers classes and their scores, the likeliest first. ``petal_area`` takes them too and answers a number.

    Args:
        path: A folder, for the SavedModel.
    """
    tf = import_tensorflow()
    from sklearn.datasets import load_iris

    tf.config.threading.set_intra_op_parallelism_threads(1)  # the same numbers at every training
    tf.config.threading.set_inter_op_parallelism_threads(1)
    data = load_iris()
    module = tf.Module()
    module.layers = _train(data.data.astype(np.float32), data.target)
    names = data.target_names.tolist()

    def predict(measurements: Any) -> dict[str, Any]:
        scores = tf.nn.softmax(_score(module.layers, measurements))
        return {"scores": scores, "species": tf.gather(names, tf.argmax(scores, axis=1))}

    def classify(inputs: Any) -> dict[str, Any]:
        scores = tf.nn.softmax(_score(module.layers, _parse(inputs)))
        order = tf.argsort(scores, direction="DESCENDING")
        return {"classes": tf.gather(names, order), "scores": tf.gather(scores, order, batch_dims=1)}

    def petal_area(inputs: Any) -> dict[str, Any]:
        measurements = _parse(inputs)
        return {"outputs": measurements[:, 2] * measurements[:, 3]}

    matrix, texts = tf.TensorSpec([None, 4], tf.float32, "measurements"), tf.TensorSpec([None], tf.string, "inputs")
    signatures = {
        "serving_default": tf.function(predict, input_signature=[matrix]),
        "classify": tf.function(classify, input_signature=[texts]),
        "petal_area": tf.function(petal_area, input_signature=[texts]),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)
    _set_methods(path)
    _write_requests(path / "assets.extra" / "tf_serving_warmup_requests")


def _train(features: Array, target: Array) -> list[Any]:
    """A network with one hidden layer, by gradient descent: weights and biases."""
    tf = import_tensorflow()
    rng = np.random.default_rng(7)
    shapes = ((4, 16), (16,), (16, 3), (3,))
    layers = [tf.Variable(rng.normal(0, 0.3, shape).astype(np.float32)) for shape in shapes]
    speeds = [np.zeros(shape, dtype=np.float32) for shape in shapes]
    for _ in range(300):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(target, _score(layers, features))
            loss = tf.reduce_mean(losses)
        for place, gradient in enumerate(tape.gradient(loss, layers)):
            speeds[place] = 0.9 * speeds[place] - 0.02 * gradient
            layers[place].assign_add(speeds[place])
    return layers


def _score(layers: list[Any], rows: Any) -> Any:
    tf = import_tensorflow()
    weights, bias, last_weights, last_bias = layers
    return tf.matmul(tf.nn.relu(tf.matmul(rows, weights) + bias), last_weights) + last_bias


def _parse(examples: Any) -> Any:
    """The four measurements of each example, ``[n,4]``."""
    tf = import_tensorflow()
    features = {name: tf.io.FixedLenFeature([], tf.float32) for name in _FEATURES}
    parsed = tf.io.parse_example(examples, features)
    return tf.stack([parsed[name] for name in _FEATURES], axis=1)


def _set_methods(folder: Path) -> None:
    """Says which signatures classify and which regress: ``tf.saved_model.save`` says of each that it predicts."""
    updater = import_tensorflow().compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(folder))
    for name, method in _METHODS.items():
        updater.replace_method_name(name, f"tensorflow/serving/{method}")
    updater.save()
    (folder / "fingerprint.pb").unlink()  # of the file as it was before


def _write_requests(path: Path) -> None:
    """One request for each signature."""
    example = pb.Example()
    for name, value in zip(_FEATURES, _FLOWER, strict=True):
        example.features.feature[name].float_list.value.append(value)
    predict, classify, regress = serving.PredictionLog(), serving.PredictionLog(), serving.PredictionLog()
    matrix = predict.predict_log.request.inputs["measurements"]
    matrix.ParseFromString(import_tensorflow().make_tensor_proto(np.array([_FLOWER], np.float32)).SerializeToString())
    classify.classify_log.request.model_spec.signature_name = "classify"
    classify.classify_log.request.input.example_list.examples.append(example)
    regress.regress_log.request.model_spec.signature_name = "petal_area"
    regress.regress_log.request.input.example_list.examples.append(example)
    path.parent.mkdir()
    with import_tensorflow().io.TFRecordWriter(str(path)) as writer:
        for log in (predict, classify, regress):
            writer.write(log.SerializeToString(deterministic=True))


EXAMPLES: Final[Mapping[str, Example]] = {"iris-tensorflow": Example(".", train_iris)}
