# SPDX-License-Identifier: Apache-2.0
"""The example model trains, loads and answers."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from modelyard.model import load_model
from modelyard_deployments.examples import make_examples


def test_digits_are_read(tmp_path: Path) -> None:
    make_examples(tmp_path, ["digits-pytorch"])
    model = load_model("pytorch", tmp_path / "digits-pytorch", {})
    digits = load_digits()
    images = (digits.images / 16)[:, np.newaxis]
    answer = model.predict(model.signature.bind({"input": images}), ("output-0",), {})
    assert (answer["output-0"].argmax(axis=1) == digits.target).mean() > 0.97
