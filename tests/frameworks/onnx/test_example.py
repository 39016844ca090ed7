# SPDX-License-Identifier: Apache-2.0
"""The example model trains, loads and answers."""

from pathlib import Path

import numpy as np

from modelyard.model import load_model
from modelyard_deployments.examples import make_examples

FLOWERS = np.float32([[6.8, 2.8, 4.8, 1.4], [5.1, 3.5, 1.4, 0.2]])


def test_iris_knows_the_names_of_flowers(tmp_path: Path) -> None:
    make_examples(tmp_path, ["iris-onnx"])
    model = load_model("onnx", tmp_path / "iris-onnx", {})
    answer = model.predict(model.signature.bind({"measurements": FLOWERS}), ("predict",), {})
    assert answer["predict"].tolist() == ["versicolor", "setosa"]
    assert model.signature.labels["predict_proba"] == ("setosa", "versicolor", "virginica")
