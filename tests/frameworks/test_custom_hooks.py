# SPDX-License-Identifier: Apache-2.0
"""What stands around predict, models in front of others, and where the class comes from."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import ModelLoadError, ModelNotReady
from modelyard.model import Model, load_model
from modelyard.signature import TensorSpec
from modelyard.testing import FakeModel, FakeOptions, FakePeers

HEAD = """
import threading

import numpy as np

import modelyard
from modelyard import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP64", (-1, 4)),), (TensorSpec("y", "FP64", (-1,)),))
STREAM = Signature(SIGNATURE.inputs, SIGNATURE.outputs, decoupled=True)
"""
Load = Callable[..., Model]
ROWS = np.arange(8.0).reshape(2, 4)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a class whose body is given."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(body: str, **options: Any) -> Model:
        name = f"hooks_{abs(hash((tmp_path, body)))}"
        indented = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / f"{name}.py").write_text(f"{HEAD}\nclass Own(modelyard.Model):\n{indented}")
        return load_model("custom", tmp_path, {"entrypoint": f"{name}:Own", **options})

    return make


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[1, 2]", [1.0, 2.0]),
        ("np.array([1, 2])", [1.0, 2.0]),
        ("(one > 3 for one in [1, 5])", 'output "y": expected FP64, got generator of object'),
        ("['a', 'b']", 'output "y": expected FP64, got list of <U1'),
        ("[[1], [2, 3]]", 'output "y": expected FP64, got list: setting an array element with a sequence'),
    ],
)
def test_answers_become_what_the_signature_says(load: Load, given: str, expected: Any) -> None:
    model = load(f"signature = SIGNATURE\ndef predict(self, inputs, outputs, parameters):\n    return {{'y': {given}}}")
    if isinstance(expected, str):
        with pytest.raises(TypeError) as caught:
            model.predict({"x": ROWS}, ("y",), {})
        assert expected in str(caught.value)
        return
    answer: Any = model.predict({"x": ROWS}, ("y",), {})
    assert (answer["y"].dtype, answer["y"].tolist()) == (np.float64, expected)


def test_an_answer_that_fits_is_not_copied(load: Load) -> None:
    model = load(
        "signature = SIGNATURE\ndef predict(self, inputs, outputs, parameters):\n    return {'y': inputs['x']}"
    )
    assert model.predict({"x": ROWS}, ("y",), {})["y"] is ROWS  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def predict(self, *_):\n    return [1]", "predict: expected a dictionary with the outputs, got list"),
        ("def predict(self, *_):\n    return {}\ndef postprocess(self, *_): ...", "postprocess: expected a dictionary"),
        ("def predict(self, *_):\n    return {}\ndef preprocess(self, *_): ...", "preprocess: expected the inputs of"),
    ],
)
def test_a_forgotten_answer_says_whose(load: Load, body: str, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        load(f"signature = SIGNATURE\n{body}").predict({"x": ROWS}, ("y",), {})


def test_an_explanation_alone_does_not_predict(load: Load) -> None:
    model = load(
        "signature = Signature(SIGNATURE.inputs, SIGNATURE.outputs, (TensorSpec('why', 'FP64', (-1,)),),"
        " explanations=('why',))\n"
        "def predict(self, inputs, outputs, parameters):\n    raise ArithmeticError\n"
        "def explain(self, inputs, parameters):\n    return {'why': inputs['x'][:, 0]}"
    )
    assert model.predict({"x": ROWS}, ("why",), {})["why"].tolist() == [0, 4]  # type: ignore[index]


async def test_plain_steps_of_an_asynchronous_model_run_in_one_thread(load: Load) -> None:
    model = load(
        "signature = SIGNATURE\n"
        "def preprocess(self, inputs, parameters):\n    return {'threads': [threading.get_ident()]}\n"
        "async def predict(self, inputs, outputs, parameters):\n"
        "    return {'threads': [*inputs['threads'], threading.get_ident()]}\n"
        "def postprocess(self, outputs, parameters):\n    return {'y': [*outputs['threads'], threading.get_ident()]}"
    )
    answer: Any = await model.predict({"x": ROWS}, ("y",), {})  # type: ignore[misc]
    before, loop, after = answer["y"].tolist()
    assert loop == threading.get_ident()
    assert before == after != loop
    model.close()


async def test_in_front_of_a_stream_each_answer_goes_through_it(load: Load) -> None:
    with FakePeers({"steps": FakeModel(0, FakeOptions(answers=3))}):
        model = load(
            "def postprocess(self, outputs, parameters):\n    return {'output-0': outputs['output-0'] * 10}",
            model="steps",
        )
        stream: Any = model.stream({"input-0": ROWS[:1]}, ("output-0",), {})
        assert [one["output-0"].tolist() async for one in stream] == [[60], [70], [80]]
        model.close()


def test_a_stream_has_its_steps(load: Load) -> None:
    model = load(
        "signature = STREAM\n"
        "def preprocess(self, inputs, parameters):\n    return {'x': inputs['x'] * 2}\n"
        "def predict(self, *_): ...\n"
        "def stream(self, inputs, outputs, parameters):\n    for one in inputs['x']:\n        yield {'y': one.sum()}\n"
        "def postprocess(self, outputs, parameters):\n    return {'y': outputs['y'] + 1}"
    )
    assert [one["y"] for one in model.stream({"x": ROWS}, ("y",), {})] == [13, 45]  # type: ignore[union-attr]


async def test_a_stream_of_the_loop_has_its_steps(load: Load) -> None:
    model = load(
        "signature = STREAM\n"
        "async def preprocess(self, inputs, parameters):\n    return {'x': inputs['x'] * 2}\n"
        "def predict(self, *_): ...\n"
        "async def stream(self, inputs, outputs, parameters):\n"
        "    for one in inputs['x'].sum(axis=1):\n        yield {'y': one}\n"
        "def postprocess(self, outputs, parameters):\n    return {'y': outputs['y'] + 1}"
    )
    stream: Any = model.stream({"x": ROWS}, ("y",), {})
    assert [one["y"] async for one in stream] == [13, 45]
    model.close()


@pytest.mark.parametrize(
    "body",
    [
        "def predict(self, inputs, outputs, parameters):\n    for one in inputs['x']:\n        yield {'y': one.sum()}",
        "def stream(self, inputs, outputs, parameters):\n    for one in inputs['x']:\n        yield {'y': one.sum()}",
    ],
    ids=["predict", "stream"],
)
def test_a_stream_with_a_signature_of_its_own_is_written_once(load: Load, body: str) -> None:
    model = load(f"signature = STREAM\n{body}")
    assert [one["y"] for one in model.stream({"x": ROWS}, ("y",), {})] == [6, 22]  # type: ignore[union-attr]


async def test_an_asynchronous_predict_may_yield_as_well(load: Load) -> None:
    model = load(
        "signature = STREAM\n"
        "async def predict(self, inputs, outputs, parameters):\n"
        "    for one in inputs['x']:\n        yield {'y': one.sum()}"
    )
    stream: Any = model.stream({"x": ROWS}, ("y",), {})
    assert [one["y"] async for one in stream] == [6, 22]
    model.close()


@pytest.mark.parametrize(
    ("body", "options", "text"),
    [
        (
            "signature = SIGNATURE\ndef predict(self, *_): ...\ndef explain(self, inputs, parameters): ...",
            {},
            "it has an explain, so its signature names what that computes",
        ),
        (
            (
                "signature = STREAM\ndef predict(self, *_): ...\ndef stream(self, *_):\n    yield\n"
                "async def preprocess(self, inputs, parameters): ..."
            ),
            {},
            "the stream is a plain generator",
        ),
        ("def predict(self, x: str) -> str: ...", {"model": "other"}, "it has a predict, and the option model"),
        ("def preprocess(self, inputs, parameters): ...", {}, "predict is missing"),
        (
            "signature = SIGNATURE\ndef predict(self, *_):\n    yield",
            {},
            "predict yields, so its signature has decoupled",
        ),
        ("signature = STREAM\ndef predict(self, *_): ...", {}, "so predict has to yield each answer"),
    ],
)
def test_what_does_not_go_together_says_so(load: Load, body: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelLoadError, match=text):
        load(body, **options)


# -- in front of another model

SCALER = "def preprocess(self, inputs, parameters):\n    return {name: one * 10 for name, one in inputs.items()}"


async def test_in_front_of_a_model_it_has_that_models_signature(load: Load) -> None:
    behind = FakeModel(0.5, FakeOptions(tell_rows=True))
    with FakePeers({"iris": behind}) as peers:
        model = load(SCALER, model="iris")
        assert model.signature == behind.signature
        assert model.concurrency > 1
        answer: Any = await model.predict({"input-0": ROWS}, ("rows", "output-0"), {"temperature": 1})  # type: ignore[misc]
        assert answer["output-0"].tolist() == [60.5, 220.5]
        assert peers.requests[0].outputs == ("rows", "output-0")
        assert peers.requests[0].parameters == {"temperature": 1}
        peers.models["iris"] = FakeModel(0, FakeOptions(columns=("a", "b")))
        assert model.signature.columns == ("a", "b")
        model.close()


async def test_in_front_of_a_model_it_may_have_a_signature_of_its_own(load: Load) -> None:
    model = load(
        "signature = Signature((TensorSpec('text', 'BYTES', (-1,)),), (TensorSpec('label', 'BYTES', (-1,)),))\n"
        "def preprocess(self, inputs, parameters):\n"
        "    return {'input-0': [[len(text)] * 4 for text in inputs['text']]}\n"
        "def postprocess(self, outputs, parameters):\n"
        "    return {'label': np.where(outputs['output-0'] > 10, 'long', 'short')}",
        model="late",
    )
    texts = np.array([b"ab", b"abc"], dtype=object)
    with FakePeers({"late": FakeModel(0, FakeOptions())}):
        answer: Any = await model.predict({"text": texts}, ("label",), {})  # type: ignore[misc]
    assert answer["label"].tolist() == ["short", "long"]
    model.close()


def test_the_model_behind_has_to_be_ready(load: Load) -> None:
    with FakePeers({}), pytest.raises(ModelLoadError, match='waited 0 s: model "iris" is not ready'):
        load(SCALER, model="iris", wait_s=0)


async def test_what_the_model_behind_says_is_passed_on(load: Load) -> None:
    with FakePeers({"iris": FakeModel(0, FakeOptions())}) as peers:
        model = load(SCALER, model="iris")
        del peers.models["iris"]
        with pytest.raises(ModelNotReady):
            await model.predict({"input-0": ROWS}, ("output-0",), {})  # type: ignore[misc]
        model.close()


# -- where the class comes from

PACKAGED = """
import modelyard


class Sizes(modelyard.Model):
    def predict(self, text: str) -> int:
        return len(text)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages with one in it."""
    site = tmp_path / "site"
    package = site / "installed_models"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text(PACKAGED)
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


def test_an_installed_package_is_loaded_where_the_option_says_so(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    options = {"entrypoint": "installed_models.sizes:Sizes"}
    with pytest.raises(ModelLoadError, match="installed: true"):
        load_model("custom", folder, options)
    model = load_model("custom", folder, {**options, "installed": True})
    assert model.signature.inputs == (TensorSpec("text", "BYTES", (-1,)),)


def test_a_name_that_is_taken_is_not_loaded_from_elsewhere(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "json.py").write_text("")
    with pytest.raises(ModelLoadError, match="rename it where the name is taken"):
        load_model("custom", folder, {"entrypoint": "json:JSONDecoder", "installed": True})
