# SPDX-License-Identifier: Apache-2.0
"""The user's own classes, written to a folder as users would."""

from pathlib import Path

import numpy as np

from modelyard.testing import Case

_SCALER = """
import json

import numpy as np

import modelyard
from {helper} import scale


class Scaler(modelyard.Model):
    signature = modelyard.Signature(
        inputs=(modelyard.TensorSpec("x", "FP64", (-1, 2)),),
        outputs=(modelyard.TensorSpec("scaled", "FP64", (-1, 2)),),
        on_request=(modelyard.TensorSpec("factor", "FP64", (-1,)),),
    )

    def load(self, path, settings):
        self.factor = json.loads((path / "factor.json").read_text()) * settings.get("times", 1)

    def predict(self, inputs, outputs, parameters):
        rows = len(inputs["x"])
        return {{"scaled": scale(inputs["x"], self.factor), "factor": np.full(rows, float(self.factor))}}
"""
_HELPER = "def scale(x, factor):\n    return x * factor\n"


def scaler(folder: Path) -> Case:
    """A module that imports another one of its folder, with a file beside it and settings."""
    (folder / "scaler_model.py").write_text(_SCALER.format(helper="scaler_helper"))
    (folder / "scaler_helper.py").write_text(_HELPER)
    (folder / "factor.json").write_text("3")
    rows = np.arange(8.0).reshape(4, 2)
    options = {"entrypoint": "scaler_model:Scaler", "settings": {"times": 2}}
    return Case({"x": rows}, {"scaled": rows * 6, "factor": np.full(4, 6.0)}, options)


def packaged(folder: Path) -> Case:
    """The same in a package."""
    package = folder / "my_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "churn.py").write_text(_SCALER.format(helper="my_models.helper"))
    (package / "helper.py").write_text(_HELPER)
    (folder / "factor.json").write_text("2")
    rows = np.arange(6.0).reshape(3, 2)
    return Case({"x": rows}, {"scaled": rows * 2}, {"entrypoint": "my_models.churn:Scaler"})


_TYPED = """
from typing import Annotated, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

import modelyard


class Answer(TypedDict):
    words: int
    longest: str
    letters: Annotated[NDArray[np.int32], (26,)]


class ByRow(modelyard.Model):
    def predict(self, text: str, separator: str = " ", least: int = 0) -> Answer:
        words = [word for word in text.split(separator) if len(word) >= least]
        letters = np.bincount([ord(one) - 97 for one in text.lower() if "a" <= one <= "z"], minlength=26)
        return {"words": len(words), "longest": max(words, key=len, default=""), "letters": letters.astype(np.int32)}


class Scores(NamedTuple):
    score: Annotated[NDArray[np.float32], ("rows",)]
    label: list[str]


class AtOnce(modelyard.Model):
    def load(self, path, settings):
        self.seen = 0

    def predict(
        self, x: Annotated[NDArray[np.float32], ("rows", 2)], name: list[str], scale: float = 1.0
    ) -> Scores:
        score = x.sum(axis=1) * np.float32(scale)
        return Scores(score, [f"{one}!" if value > 0 else one for one, value in zip(name, score)])

    def explain(
        self, x: Annotated[NDArray[np.float32], ("rows", 2)], scale: float = 1.0
    ) -> Annotated[NDArray[np.float32], ("rows", 2)]:
        return x * np.float32(scale)


class InTurn(modelyard.Model):
    async def predict(self, x: Annotated[NDArray[np.float64], ("size",)], factor: np.float64) -> float:
        return float(x.sum() * factor)
"""


def typed_by_row(folder: Path) -> Case:
    """A function of one row, of texts, with an optional input."""
    (folder / "typed_by_row.py").write_text(_TYPED)
    texts = np.array([b"a bb ccc", b"x", "aa-b ü".encode()], dtype=object)
    letters = np.zeros((3, 26), dtype=np.int32)
    letters[0, :3], letters[1, 23], letters[2, :2] = (1, 2, 3), 1, (2, 1)
    expected = {"words": np.array([3, 1, 2]), "longest": np.array(["ccc", "x", "aa-b"], dtype=object)}
    return Case({"text": texts}, {**expected, "letters": letters}, {"entrypoint": "typed_by_row:ByRow"})


def typed_at_once(folder: Path) -> Case:
    """A function of all rows, with an explanation."""
    (folder / "typed_at_once.py").write_text(_TYPED)
    x = np.array([[1, 2], [-3, 1], [0.5, 0.25], [0, 0]], dtype=np.float32)
    names = np.array([b"a", b"b", b"c", b"d"], dtype=object)
    expected = {"score": x.sum(axis=1), "label": np.array(["a!", "b", "c!", "d"], dtype=object), "explanation": x}
    return Case({"x": x, "name": names}, expected, {"entrypoint": "typed_at_once:AtOnce"})


def typed_on_the_loop(folder: Path) -> Case:
    """An asynchronous function of one row, with an array of any length in it."""
    (folder / "typed_on_the_loop.py").write_text(_TYPED)
    x = np.arange(12.0).reshape(3, 4)
    factor = np.array([1.0, 2.0, -1.0])
    expected = {"output-0": x.sum(axis=1) * factor}
    return Case({"x": x, "factor": factor}, expected, {"entrypoint": "typed_on_the_loop:InTurn"})


_HOOKED = """
import numpy as np

import modelyard
from modelyard import Signature, TensorSpec


class Plain(modelyard.Model):
    signature = Signature(
        inputs=(TensorSpec("text", "BYTES", (-1,)),),
        outputs=(TensorSpec("length", "INT64", (-1,)), TensorSpec("is_long", "BOOL", (-1,))),
        on_request=(TensorSpec("capitals", "INT64", (-1,)),),
        explanations=("capitals",),
    )

    def preprocess(self, inputs, parameters):
        return {"text": [text.decode() for text in inputs["text"]]}

    def predict(self, inputs, outputs, parameters):
        return {"length": np.array([len(text) for text in inputs["text"]])}

    def postprocess(self, outputs, parameters):
        return {**outputs, "is_long": outputs["length"] > parameters.get("long", 3)}

    def explain(self, inputs, parameters):
        return {"capitals": np.array([sum(map(str.isupper, text)) for text in inputs["text"]])}


class Mixed(Plain):
    async def preprocess(self, inputs, parameters):
        return super().preprocess(inputs, parameters)

    async def explain(self, inputs, parameters):
        return super().explain(inputs, parameters)
"""


def _hooked(folder: Path, name: str, entry: str) -> Case:
    (folder / f"{name}.py").write_text(_HOOKED)
    texts = np.array([b"Ab", b"ABCD", "äöüß!".encode()], dtype=object)
    expected = {"length": np.array([2, 4, 5]), "is_long": np.array([False, True, True])}
    return Case({"text": texts}, {**expected, "capitals": np.array([1, 4, 0])}, {"entrypoint": f"{name}:{entry}"})


def hooked(folder: Path) -> Case:
    """Steps before and after predict, and an explanation, all plain."""
    return _hooked(folder, "hooked_plain", "Plain")


def hooked_on_the_loop(folder: Path) -> Case:
    """The same, some of them asynchronous."""
    return _hooked(folder, "hooked_mixed", "Mixed")
