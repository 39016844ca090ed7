# SPDX-License-Identifier: Apache-2.0
"""The example `flower-names`: a class of the user's own, in front of another model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.model import Model, load_model
from modelyard.tensor import Tensors
from modelyard.testing import FakePeers
from modelyard_deployments.examples import make_examples

ROWS = np.array([[68, 28, 48, 14], [50, 34, 14, 2]], dtype=np.float32)


def _iris(inputs: Tensors) -> dict[str, Any]:
    """As sure of the first class as the petal is short."""
    short = np.clip(1 - inputs["measurements"][:, 2] / 10, 0, 1)
    labels = np.array([b"setosa" if one > 0.5 else b"versicolor" for one in short], dtype=object)
    return {"label": labels, "probabilities": np.stack([short, 1 - short, 0 * short], axis=1)}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    (path,) = make_examples(tmp_path, ["flower-names"])
    with FakePeers({"iris-onnx": _iris}):
        model = load_model("custom", path.parent, {"model": "iris-onnx"})
        yield model
        model.close()
    del sys.modules["model"]


async def test_millimetres_become_names(model: Model) -> None:
    answer: Any = await model.predict({"millimetres": ROWS}, ("name", "sure"), {})  # type: ignore[misc]
    assert answer["name"].tolist() == [b"Iris setosa", b"Iris setosa"]
    assert answer["sure"].tolist() == pytest.approx([0.52, 0.86])


async def test_it_says_which_measurement_counted(model: Model) -> None:
    answer: Any = await model.predict({"millimetres": ROWS}, ("because",), {})  # type: ignore[misc]
    assert answer["because"].tolist() == [pytest.approx([0, 0, 0.1, 0]), pytest.approx([0, 0, 0.24, 0])]
    assert model.signature.columns == ("sepal_length", "sepal_width", "petal_length", "petal_width")
