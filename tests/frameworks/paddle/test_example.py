# SPDX-License-Identifier: Apache-2.0
"""The example model trains in silence, loads and answers."""

from collections.abc import Callable
from pathlib import Path

from sklearn.datasets import load_iris

from modelyard.model import load_model


def test_iris_is_known(train_example: Callable[..., Path]) -> None:
    model = load_model("paddle", train_example("iris-paddle"), {})
    flowers = load_iris()
    answer = model.predict(model.signature.bind({"measurements": flowers.data}), ("fetch_name_0",), {})
    assert (answer["fetch_name_0"].argmax(axis=1) == flowers.target).mean() > 0.95
