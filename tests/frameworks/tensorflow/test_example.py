# SPDX-License-Identifier: Apache-2.0
"""The example model trains in silence, always the same, loads and answers with each of its signatures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_iris

from modelyard.model import load_model
from modelyard.protos import tensorflow_pb2 as pb
from modelyard.store import digest
from modelyard_deployments.examples import make_examples_apart

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def _ask(model: Any, **inputs: Any) -> Any:
    names = tuple(spec.name for spec in model.signature.outputs)
    return model.predict(model.signature.bind(inputs), names, {})


def _example(row: Any) -> bytes:
    example = pb.Example()
    for name, value in zip(FEATURES, row, strict=True):
        example.features.feature[name].float_list.value.append(value)
    return example.SerializeToString()


def test_iris_is_known_by_each_signature(train_example: Callable[[str], Path]) -> None:
    model = load_model("tensorflow", train_example("iris-tensorflow"), {})
    flowers = load_iris()
    names = flowers.target_names.astype("S").astype(object)
    answer = _ask(model, measurements=flowers.data)
    assert (answer["species"] == names[flowers.target]).mean() > 0.95
    examples = np.array([_example(row) for row in flowers.data], dtype=object)
    classified = _ask(model.members["classify"], inputs=examples)
    assert np.array_equal(classified["classes"][:, 0], answer["species"])
    assert np.allclose(classified["scores"], -np.sort(-answer["scores"]), rtol=1e-5)
    area = _ask(model.members["petal_area"], inputs=examples)["outputs"]
    assert np.allclose(area, flowers.data[:, 2] * flowers.data[:, 3], rtol=1e-5)


def test_signatures_have_their_methods(train_example: Callable[[str], Path]) -> None:
    model: Any = load_model("tensorflow", train_example("iris-tensorflow"), {})
    methods = {name: one.signature.saved.method.rpartition("/")[2] for name, one in model.members.items()}
    assert methods == {"classify": "classify", "petal_area": "regress"}


def test_it_is_the_same_at_every_training(train_example: Callable[[str], Path], tmp_path: Path) -> None:
    make_examples_apart(tmp_path, ["iris-tensorflow"])
    assert digest(tmp_path / "iris-tensorflow") == digest(train_example("iris-tensorflow"))
