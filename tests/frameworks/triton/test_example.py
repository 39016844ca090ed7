# SPDX-License-Identifier: Apache-2.0
"""The example repository is written, loads and answers."""

from pathlib import Path
from typing import Any

import numpy as np

from modelyard.model import load_model
from modelyard_deployments.examples import make_examples

FLOWERS = np.float32([[5.1, 3.5, 1.4, 0.2], [5.6, 2.8, 4.1, 1.3]])


def test_the_ensemble_knows_flowers_and_letters_are_streamed(tmp_path: Path, server: str, run: Any) -> None:
    make_examples(tmp_path, ["triton-demo"])
    model = load_model("triton", tmp_path / "triton-demo", {"server": server})
    try:
        iris, spell = model.members["triton-iris"], model.members["triton-spell"]
        labels = iris.signature.labels["closeness"]
        answer = run(iris.predict({"measurements": FLOWERS}, ("closeness",), {}))
        assert [labels[index] for index in answer["closeness"].argmax(axis=1)] == ["setosa", "versicolor"]

        async def letters() -> list[bytes]:
            text = {"text_input": np.array(["hä!".encode()], dtype=object)}
            return [one["text_output"][0] async for one in spell.stream(text, ("text_output",), {})]  # type: ignore[union-attr]

        assert run(letters()) == [b"h", "ä".encode(), b"!"]
    finally:
        model.close()
