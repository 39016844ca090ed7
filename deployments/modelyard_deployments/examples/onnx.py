# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example


def train_iris(path: Path) -> None:
    """A linear classifier on the four measurements of iris flowers; three classes with their names."""
    import onnx
    from onnx import TensorProto, helper
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    model = LogisticRegression(max_iter=500).fit(data.data, data.target)
    node = helper.make_node(
        "LinearClassifier",
        ["measurements"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=model.coef_.ravel().tolist(),
        intercepts=model.intercept_.tolist(),
        classlabels_strings=data.target_names.tolist(),
        multi_class=0,
        post_transform="SOFTMAX",
    )
    graph = helper.make_graph(
        [node],
        "iris",
        [helper.make_tensor_value_info("measurements", TensorProto.FLOAT, ["flowers", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["flowers"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["flowers", 3]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


EXAMPLES: Final[Mapping[str, Example]] = {"iris-onnx": Example("model.onnx", train_iris)}
