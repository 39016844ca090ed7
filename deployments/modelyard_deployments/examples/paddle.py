# SPDX-License-Identifier: Apache-2.0
"""PaddlePaddle programs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelyard_deployments.examples.example import Example


def train_iris(path: Path) -> None:
    """A small network on the four measurements of iris flowers; probabilities of three classes.

    Args:
        path: A folder, for the program and its parameters.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")  # else saving warns of a limit that it does not meet
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a compiler's cache
        import paddle
    paddle.disable_signal_handler()  # else it prints a traceback when this process is told to end
    from sklearn.datasets import load_iris

    features, target = load_iris(return_X_y=True)
    paddle.seed(7)
    nn = paddle.nn
    scores = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = paddle.optimizer.Adam(0.02, parameters=scores.parameters())
    rows, classes = paddle.to_tensor(features, dtype="float32"), paddle.to_tensor(target)
    for _ in range(200):
        nn.functional.cross_entropy(scores(rows), classes).backward()
        optimizer.step()
        optimizer.clear_grad()
    network = nn.Sequential(scores, nn.Softmax())
    network.eval()
    spec = paddle.static.InputSpec([None, 4], "float32", "measurements")
    paddle.jit.save(network, str(path / "inference"), input_spec=[spec])


EXAMPLES: Final[Mapping[str, Example]] = {"iris-paddle": Example(".", train_iris)}
