# SPDX-License-Identifier: Apache-2.0
"""A class of the user's own, in front of another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example

_FLOWER_NAMES: Final = '''"""Stands in front of `iris-onnx`: millimetres in, Latin names out."""

import numpy as np

import modelyard
from modelyard import Signature, TensorSpec

USUAL = np.array([5.8, 3.1, 3.8, 1.2], dtype=np.float32)


class FlowerNames(modelyard.Model):
    signature = Signature(
        inputs=(TensorSpec("millimetres", "FP32", (-1, 4)),),
        outputs=(TensorSpec("name", "BYTES", (-1,)), TensorSpec("sure", "FP32", (-1,))),
        on_request=(TensorSpec("because", "FP32", (-1, 4)),),
        explanations=("because",),
        columns=("sepal_length", "sepal_width", "petal_length", "petal_width"),
    )

    def preprocess(self, inputs, parameters):
        return {"measurements": inputs["millimetres"] / 10}

    def postprocess(self, outputs, parameters):
        return {
            "name": [b"Iris " + label for label in outputs["label"]],
            "sure": outputs["probabilities"].max(axis=1),
        }

    def explain(self, inputs, parameters):
        """By how much the probability of some class changes where a measurement is the usual one."""
        rows = inputs["measurements"]
        changed = np.repeat(rows[:, None], 4, axis=1)
        changed[:, range(4), range(4)] = USUAL
        before, after = self.ask(rows), self.ask(changed.reshape(-1, 4)).reshape(-1, 4, 3)
        return {"because": np.abs(after - before[:, None]).max(axis=2)}

    def ask(self, rows):
        return self.call("iris-onnx", {"measurements": rows}, ["probabilities"])["probabilities"]
'''


def write_flower_names(path: Path) -> None:
    """Flowers by their Latin names, in front of the model ``iris-onnx``."""
    path.write_text(_FLOWER_NAMES)


EXAMPLES: Final[Mapping[str, Example]] = {"flower-names": Example("model.py", write_flower_names)}
