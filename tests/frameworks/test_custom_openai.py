# SPDX-License-Identifier: Apache-2.0
"""The user's own class as a model that answers calls of the OpenAI protocol."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from modelyard.errors import ModelLoadError
from modelyard.model import Model, describe, load_model
from modelyard.openai import Meter, OpenAIModel, OpenAIRequest, Part

BEGIN = """
import modelyard
from modelyard.openai import OpenAIModel, Part
"""
ECHO = """
class Echo(modelyard.Model, OpenAIModel):
    openai_routes = ("chat/completions", "completions")

    {kind} predict(self, text: str) -> str:
        return text.upper()

    async def answer(self, request):
        yield Part(request.route.encode())
        yield Part(request.body)
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load_source(source: str) -> Model:
        (tmp_path / "speaking.py").write_text(BEGIN + source)
        sys.modules.pop("speaking", None)
        return load_model("custom", tmp_path, {"entrypoint": "speaking:Echo"})

    yield load_source
    sys.modules.pop("speaking", None)


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_it_answers_both_protocols(load, kind: str) -> None:
    model = load(ECHO.format(kind=kind))
    assert isinstance(model, OpenAIModel)
    assert describe(model).openai_routes == ("chat/completions", "completions")
    parts = [part async for part in model.answer(OpenAIRequest("completions", b"{}"))]
    assert parts == [Part(b"completions"), Part(b"{}")]
    asked = model.predict({"text": np.array([b"a"], object)}, ("output-0",), {})
    answer = asked if kind == "def" else await asked
    assert answer["output-0"].tolist() == ["A"]


async def test_its_meter_is_the_replicas(load) -> None:
    model = load(ECHO.format(kind="def"))
    model.meter = meter = Meter()
    await model.start()
    assert model._model.meter is meter


def test_a_class_that_does_not_speak_is_as_it_was(load) -> None:
    model = load("class Echo(modelyard.Model):\n    def predict(self, text: str) -> str:\n        return text\n")
    assert not isinstance(model, OpenAIModel)
    assert describe(model).openai_routes == ()


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("async def answer", "def answer", "answer: expected an async generator"),
        ("yield Part", "return Part", "answer: expected an async generator"),
        ('("chat/completions", "completions")', '("chat",)', r"expected a tuple with some of .*, got \('chat',\)"),
        ('("chat/completions", "completions")', '"completions"', "expected a tuple"),
        ('("chat/completions", "completions")', "()", "expected a tuple"),
    ],
)
def test_what_could_answer_nothing_is_refused(load, before: str, after: str, problem: str) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        load(ECHO.format(kind="def").replace(before, after))
