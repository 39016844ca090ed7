# SPDX-License-Identifier: Apache-2.0
"""The example model trains in silence, loads, answers, and is the same at every training."""

from collections.abc import Callable
from pathlib import Path

from sklearn.datasets import load_wine

from modelyard.model import load_model


def test_wine_knows_the_names_of_cultivars(train_example: Callable[..., Path]) -> None:
    model = load_model("mlflow", train_example("wine-mlflow"), {})
    table = load_wine(as_frame=True).data[::60]
    inputs = model.signature.bind({name: column.to_numpy() for name, column in table.items()})
    answer = model.predict(inputs, ("output-0", "predict_proba"), {})
    assert answer["output-0"].tolist() == [b"class_0", b"class_1", b"class_1"]
    assert answer["predict_proba"].argmax(axis=1).tolist() == [0, 1, 1]
    assert model.signature.example["alcohol"] == 14.23


def test_training_again_makes_the_same_files(train_example: Callable[..., Path]) -> None:
    first, second = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (train_example("wine-mlflow"), train_example("wine-mlflow", again=True))
    )
    assert first == second
