# SPDX-License-Identifier: Apache-2.0
"""The example model trains in silence, loads, answers, and is the same at every training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from modelyard.model import load_model

FLOWERS = {
    "sepal_length": np.array([6.8, 5.1]),
    "sepal_width": np.array([2.8, 3.5]),
    "petal_length": np.array([4.8, 1.4]),
    "petal_width": np.array([1.4, 0.2]),
}


def test_iris_knows_the_names_of_flowers(train_example: Callable[..., Path]) -> None:
    model = load_model("pmml", train_example("iris-pmml"), {})
    answer = model.predict(model.signature.bind(FLOWERS), ("predicted_species", "probability_setosa"), {})
    assert answer["predicted_species"].tolist() == [b"versicolor", b"setosa"]
    assert answer["probability_setosa"].tolist() == [0, 1]


def test_training_again_makes_the_same_files(train_example: Callable[..., Path]) -> None:
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (train_example("iris-pmml"), train_example("iris-pmml", again=True))
    )
    assert first == second
