# SPDX-License-Identifier: Apache-2.0
"""A model of the user's own: scores of three classes, with an explanation."""

import numpy as np

import modelyard

WEIGHTS = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 1.0]])


class Scores(modelyard.Model):
    signature = modelyard.Signature(
        inputs=(modelyard.TensorSpec("features", "FP64", (-1, 4)),),
        outputs=(modelyard.TensorSpec("output-0", "FP64", (-1, 3)),),
        on_request=(modelyard.TensorSpec("contributions", "FP64", (-1, 3, 4)),),
        columns=("a", "b", "c", "d"),
        any_input_name=True,
        explanations=("contributions",),
        labels={"output-0": ("cat", "dog", "bird")},
    )

    def predict(self, inputs, outputs, parameters):
        contributions = inputs["features"][:, None, :] * WEIGHTS
        scale = float(parameters.get("scale", 1))
        return {"output-0": contributions.sum(axis=2) * scale, "contributions": contributions}
