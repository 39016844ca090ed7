# SPDX-License-Identifier: Apache-2.0
"""Requests that a replica answers before any others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import pytest

from modelyard import Model, Signature, TensorSpec
from modelyard.errors import ModelLoadError
from modelyard.serve.runners import Runners
from modelyard.serve.warmup import warm_up
from modelyard.tensor import Tensors


class Root(Model):
    """Square roots, of what has one."""

    signature = Signature((TensorSpec("x", "FP64", (-1,)),), (TensorSpec("y", "FP64", (-1,)),))

    def __init__(self) -> None:
        self.asked: list[list[float]] = []

    def predict(self, inputs: Tensors, outputs: Any, parameters: Any) -> Mapping[str, Any]:
        self.asked.append(inputs["x"].tolist())
        if (inputs["x"] < 0).any():
            raise ValueError("no root")
        return {"y": np.sqrt(inputs["x"])}


class Words(Model):
    """Says its text word by word."""

    signature = Signature(
        (TensorSpec("text_input", "BYTES", (1,)),),
        (TensorSpec("text_output", "BYTES", (1,)),),
        batch_axis=None,
        decoupled=True,
    )

    def __init__(self) -> None:
        self.said: list[bytes] = []

    async def stream(self, inputs: Tensors, outputs: Any, parameters: Any) -> AsyncIterator[Mapping[str, Any]]:
        for word in inputs["text_input"].item().split():
            self.said.append(word)
            yield {"text_output": np.array([word], dtype=object)}


async def ask(model: Model, *requests: Mapping[str, Any]) -> Runners:
    runners = Runners("m", model)
    runners.start()
    try:
        await warm_up(runners, model.signature, requests)
    finally:
        await runners.drain()
    return runners


async def test_each_is_answered_in_order_and_none_is_counted() -> None:
    model = Root()
    runners = await ask(model, {"instances": [1.0, 4.0]}, {"inputs": {"x": [9.0]}})
    assert model.asked == [[1.0, 4.0], [9.0]]
    assert runners.statistics[""].success.count == 0


async def test_a_stream_is_read_to_its_end() -> None:
    model = Words()
    await ask(model, {"text_input": "to be"})
    assert model.said == [b"to", b"be"]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"instances": [-1.0]}, 'its warm-up request 1 was not answered: model "m" failed: ValueError: no root'),
        ({"rows": [1.0]}, "its warm-up request 1 was not answered: the request body"),
        ({"instances": ["a"]}, "its warm-up request 1 was not answered: "),
    ],
)
async def test_one_that_is_not_answered_says_which_and_why(request_: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(ModelLoadError) as failed:
        await ask(Root(), {"instances": [1.0]}, request_)
    assert str(failed.value).startswith(reason)
