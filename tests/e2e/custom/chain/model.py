# SPDX-License-Identifier: Apache-2.0
"""Models that others call, and models that call others."""

import asyncio
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import modelyard
from modelyard import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1,)),), (TensorSpec("y", "FP64", (-1,)),))


class Answer(NamedTuple):
    y: float


class Plus(modelyard.Model):
    """Adds the setting `plus`; 13 breaks it, 98 it refuses, and 99 takes it two seconds."""

    def load(self, path, settings):
        self.plus = settings.get("plus", 0)

    def predict(self, x: float) -> Answer:
        if x == 13:
            raise ArithmeticError("cannot add to 13")
        if x == 98:
            raise modelyard.InvalidRequest("98 is no number to add to")
        if x == 99:
            time.sleep(2)
        return Answer(x + self.plus)


class PlusMore(Plus):
    """The same with another input."""

    def predict(self, x: float, more: float = 0.0) -> Answer:
        return Answer(super().predict(x).y + more)


class Asker(modelyard.Model):
    """Asks the model that the request names, in the thread of `predict`; and one while it loads, of which it tells."""

    signature = SIGNATURE

    def load(self, path, settings):
        found = self.call("plus-one", {"x": [41.0]})["y"][0]
        print("the answer is", found)
        print("and this is no error", file=sys.stderr)
        if found != 42:
            raise ArithmeticError(f"expected 42, got {found}")

    def predict(self, inputs, outputs, parameters):
        return self.call(parameters.get("model", "plus-one"), inputs, ["y"])


class AsyncAsker(modelyard.Model):
    """Asks one model ten times at once, on the event loop."""

    signature = SIGNATURE
    concurrency = 8

    async def predict(self, inputs, outputs, parameters):
        answers = await asyncio.gather(*(self.call_async("plus-one", inputs) for _ in range(10)))
        return {"y": sum(one["y"] for one in answers)}


class Front(modelyard.Model):
    """Stands in front of another model."""

    def preprocess(self, inputs, parameters):
        return {"x": inputs["x"] * 2}

    def postprocess(self, outputs, parameters):
        return {"y": outputs["y"] + 0.5}


class Letter(NamedTuple):
    text_output: str


class Speller(modelyard.Model):
    """Answers letter by letter."""

    def predict(self, text_input: str) -> Iterator[Letter]:
        for letter in text_input:
            yield Letter(letter)


class Loud(modelyard.Model):
    """Stands in front of a model that streams text."""

    def postprocess(self, outputs, parameters):
        return {"text_output": [text.upper() for text in outputs["text_output"]]}


class Leaver(modelyard.Model):
    """Ends its process while it loads."""

    def load(self, path, settings):
        sys.exit("the weights are not there")

    def predict(self, x: float) -> float:
        return x
