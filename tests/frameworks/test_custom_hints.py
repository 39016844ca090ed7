# SPDX-License-Identifier: Apache-2.0
"""Signatures out of type hints, and what a function gets and gives."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelyard
from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.model import Model, load_model
from modelyard.signature import TensorSpec

HEAD = """
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

import modelyard
"""
Load = Callable[..., Model]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a class whose methods are given."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(body: str, before: str = "") -> Model:
        name = f"hints_{abs(hash((tmp_path, before, body)))}"
        indented = "".join(f"    {line}\n" for line in body.splitlines())
        (tmp_path / f"{name}.py").write_text(f"{HEAD}\n{before}\nclass Own(modelyard.Model):\n{indented}")
        return load_model("custom", tmp_path, {"entrypoint": f"{name}:Own"})

    return make


def _ask(model: Model, inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    bound = model.signature.bind({name: np.asarray(value) for name, value in inputs.items()})
    names = tuple(spec.name for spec in model.signature.outputs)
    answer = model.predict(bound, names, parameters)
    return {name: np.asarray(array).tolist() for name, array in dict(answer).items()}  # type: ignore[call-overload]


def _texts(*values: str) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode() for value in values]
    return array


@pytest.mark.parametrize(
    ("hint", "datatype", "shape"),
    [
        ("str", "BYTES", (-1,)),
        ("bytes", "BYTES", (-1,)),
        ("int", "INT64", (-1,)),
        ("float", "FP64", (-1,)),
        ("bool", "BOOL", (-1,)),
        ("np.float32", "FP32", (-1,)),
        ("np.uint8", "UINT8", (-1,)),
        ("Annotated[NDArray[np.uint8], (28, 28)]", "UINT8", (-1, 28, 28)),
        ("Annotated[NDArray[np.float32], ('size', 3)]", "FP32", (-1, -1, 3)),
        ("Annotated[NDArray[np.float32], ('rows', 4)]", "FP32", (-1, 4)),
        ("Annotated[NDArray[np.object_], ('rows',)]", "BYTES", (-1,)),
        ("np.ndarray[tuple[int, int], np.dtype[np.float16]]", "FP16", (-1, -1)),
        ("list[str]", "BYTES", (-1,)),
        ("list[float]", "FP64", (-1,)),
    ],
)
def test_an_annotation_is_a_tensor(load: Load, hint: str, datatype: str, shape: tuple[int, ...]) -> None:
    model = load(f"def predict(self, x: {hint}) -> {hint}:\n    return x")
    assert model.signature.inputs == (TensorSpec("x", datatype, shape),)
    assert model.signature.outputs == (TensorSpec("output-0", datatype, shape),)
    assert model.signature.batch_axis


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("def predict(self, x) -> str: ...", 'argument "x": it has no type hint: write str, bytes'),
        ("def predict(self, x: str): ...", "the type of its answer is missing"),
        ("def predict(self) -> str: ...", "at least one argument besides self"),
        ("def predict(self, x: dict) -> str: ...", 'argument "x": nothing follows from the type hint dict'),
        ("def predict(self, x: np.ndarray) -> str: ...", "nothing follows from the type hint ndarray"),
        ("def predict(self, x: NDArray[np.float32]) -> str: ...", "the array's shape is missing"),
        ("def predict(self, x: Annotated[NDArray[Any], ('rows',)]) -> str: ...", "the array's dtype is missing"),
        ("def predict(self, x: Annotated[NDArray[np.complex64], (2,)]) -> str: ...", "complex64"),
        ("def predict(self, x: str) -> dict[str, float]: ...", "a TypedDict, a dataclass or a NamedTuple names"),
        ("def predict(self, x: str) -> tuple[float, float]: ...", "does not say what its outputs are"),
        ("def predict(self, x: list[str]) -> float: ...", 'output "output-0": it is for one row, the arguments are'),
        ("def predict(self, x: float) -> list[str]: ...", 'output "output-0": it is for all rows, the arguments are'),
        (
            "def predict(self, x: list[str], y: Annotated[NDArray[np.float32], (3,)]) -> list[str]: ...",
            'argument "y": expected its first dimension to be "rows"',
        ),
        ("def predict(self, *x: str) -> str: ...", "expected one that can be given by name"),
        ("def predict(self, x: 'Unknown') -> str: ...", "its type hints cannot be read: NameError"),
        ("def predict(self, inputs, outputs, parameters): ...", "or give the class a signature"),
        (
            "def predict(self, x: str) -> str: ...\ndef explain(self, y: str) -> str: ...",
            'explain, argument "y": expected one that predict has',
        ),
        ("def predict(self, x: str) -> str: ...\ndef explain(self, x: str): ...", "explain: the type of its answer"),
        ("def predict(self, x: str) -> str:\n    yield x", "it yields, so the type of its answer is Iterator[…]"),
        (
            "def predict(self, x: str) -> AsyncIterator[str]:\n    yield x",
            "it yields, so the type of its answer is Iterator[…]",
        ),
        ("async def predict(self, x: str) -> Iterator[str]:\n    yield x", "its answer is AsyncIterator[…]"),
        ("async def predict(self, x: str) -> AsyncIterator[str]: ...", "so it has to yield each answer"),
    ],
)
def test_what_cannot_be_derived_says_how_to_write_it(load: Load, body: str, text: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(body)
    assert text in str(caught.value)


CONTAINERS = {
    "typed": "class Answer(TypedDict):\n    size: int\n    upper: str",
    "data": "@dataclass\nclass Answer:\n    size: int\n    upper: str",
    "named": "class Answer(NamedTuple):\n    size: int\n    upper: str",
}


@pytest.mark.parametrize("before", CONTAINERS.values(), ids=CONTAINERS)
def test_several_outputs_have_the_names_of_the_fields(load: Load, before: str) -> None:
    model = load("def predict(self, x: str) -> Answer:\n    return Answer(size=len(x), upper=x.upper())", before)
    assert [spec.name for spec in model.signature.outputs] == ["size", "upper"]
    assert _ask(model, {"x": _texts("ab", "cde")}) == {"size": [2, 3], "upper": ["AB", "CDE"]}


def test_what_has_a_default_may_be_left_out_or_be_a_parameter(load: Load) -> None:
    model = load(
        "def predict(self, x: str, times: int = 2, end: str | None = None) -> str:\n    return x * times + (end or '')"
    )
    assert [spec.optional for spec in model.signature.inputs] == [False, True, True]
    assert _ask(model, {"x": _texts("a", "b")}) == {"output-0": ["aa", "bb"]}
    assert _ask(model, {"x": _texts("a", "b"), "times": [1, 3]}) == {"output-0": ["a", "bbb"]}
    assert _ask(model, {"x": _texts("a")}, times=3, end="!") == {"output-0": ["aaa!"]}
    with pytest.raises(InvalidRequest, match='parameter "times": expected an integer, got True'):
        _ask(model, {"x": _texts("a")}, times=True)
    assert model.signature.example == {"times": 2}


def test_single_values_beside_all_rows_are_parameters(load: Load) -> None:
    model = load(
        "def predict(self, x: list[float], by: float, parameters) -> list[float]:\n    return [one * by for one in x]"
    )
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    assert _ask(model, {"x": [1.0, 2.0]}, by=2) == {"output-0": [2, 4]}
    with pytest.raises(InvalidRequest, match='parameter "by" is missing: expected a number'):
        _ask(model, {"x": [1.0]})
    with pytest.raises(InvalidRequest, match='parameter "by": expected a number, got'):
        _ask(model, {"x": [1.0]}, by="2")


def test_bytes_that_are_no_text_are_the_clients_mistake(load: Load) -> None:
    model = load("def predict(self, x: str) -> str:\n    return x")
    bad = np.array([b"\xff"], dtype=object)
    with pytest.raises(InvalidRequest, match="UTF-8"):
        model.predict({"x": bad}, ("output-0",), {})


@pytest.mark.parametrize(
    ("hint", "value", "text"),
    [
        ("int", "'a'", 'output "output-0": expected INT64, got list of <U1'),
        ("int", "3.7", 'output "output-0": expected INT64, got list of float64'),
        ("np.uint8", "300", 'output "output-0": expected numbers in the range of UINT8'),
        ("bool", "1", 'output "output-0": expected BOOL, got list of int64'),
        ("Annotated[NDArray[np.float32], (2,)]", "np.zeros(3)", r"expected shape \[2\] in each row, got \[3\]"),
    ],
)
def test_an_answer_that_is_something_else_says_so(load: Load, hint: str, value: str, text: str) -> None:
    model = load(f"def predict(self, x: str) -> {hint}:\n    return {value}")
    with pytest.raises(TypeError, match=text):
        _ask(model, {"x": _texts("a")})


def test_before_it_is_loaded_it_is_a_plain_class() -> None:
    class Own(modelyard.Model):
        def predict(self, x: str, times: int = 2) -> str:
            return x * times

    class Front(modelyard.Model):
        def preprocess(self, inputs, parameters):
            return {"x": inputs["x"] * 2}

    assert Own().predict("a", 3) == "aaa"
    assert Front().preprocess({"x": 2}, {}) == {"x": 4}
    assert isinstance(Own(), Model)
    with pytest.raises(NotImplementedError, match="has one when it is loaded"):
        _ = Own().signature
    with pytest.raises(NotImplementedError, match="no predict of its own"):
        Front().predict({}, (), {})


def test_a_generator_is_a_stream(load: Load) -> None:
    model = load(
        "def predict(self, prompt: str, limit: int = 2) -> Iterator[str]:\n"
        "    for word in prompt.split()[:limit]:\n        yield word"
    )
    signature = model.signature
    assert (signature.decoupled, signature.batch_axis) == (True, False)
    assert signature.inputs[0] == TensorSpec("prompt", "BYTES", (1,))
    answers = list(model.stream({"prompt": _texts("a b c"), "limit": np.array([3])}, ("output-0",), {}))  # type: ignore[arg-type]
    assert [one["output-0"].tolist() for one in answers] == [["a"], ["b"], ["c"]]
    assert len(list(model.stream({"prompt": _texts("a b c")}, ("output-0",), {"limit": 1}))) == 1  # type: ignore[arg-type]


async def test_an_asynchronous_generator_is_one_too(load: Load) -> None:
    model = load(
        "async def predict(self, count: int) -> AsyncIterator[Answer]:\n"
        "    for index in range(count):\n        yield Answer(index, [1.0] * index)",
        "class Answer(NamedTuple):\n    index: int\n    values: Annotated[NDArray[np.float32], ('size',)]",
    )
    stream: Any = model.stream({"count": np.array([3])}, ("index", "values"), {})
    answers = [one async for one in stream]
    assert [(one["index"].tolist(), one["values"].tolist()) for one in answers] == [
        ([0], []),
        ([1], [1]),
        ([2], [1, 1]),
    ]
    model.close()


async def test_a_plain_function_may_hand_out_an_asynchronous_stream(load: Load) -> None:
    model = load(
        "def predict(self, count: int) -> AsyncIterator[int]:\n    return self.numbers(count)\n"
        "async def numbers(self, count):\n    for index in range(count):\n        yield index"
    )
    stream: Any = model.stream({"count": np.array([3])}, ("output-0",), {})
    assert [one["output-0"].tolist() async for one in stream] == [[0], [1], [2]]
    model.close()


async def test_a_row_that_fails_ends_the_other_rows(load: Load) -> None:
    model = load(
        "ended = 0\n"
        "async def predict(self, x: int) -> int:\n"
        "    if x == 2:\n        raise ArithmeticError('no twos')\n"
        "    try:\n        await asyncio.sleep(60)\n    finally:\n        type(self).ended += 1",
        "import asyncio",
    )
    answer: Any = model.predict({"x": np.arange(4)}, ("output-0",), {})
    with pytest.raises(ArithmeticError, match="no twos"):
        await asyncio.wait_for(answer, 5)
    assert model._model.ended == 3  # type: ignore[attr-defined]
    model.close()


async def test_a_thousand_rows_do_not_all_run_at_once(load: Load) -> None:
    model = load(
        "now = most = 0\n"
        "async def predict(self, x: int) -> int:\n"
        "    self.now += 1\n    self.most = max(self.most, self.now)\n    await asyncio.sleep(0)\n"
        "    self.now -= 1\n    return self.most",
        "import asyncio",
    )
    answer: Any = await model.predict({"x": np.arange(1000)}, ("output-0",), {})  # type: ignore[misc]
    assert answer["output-0"].max() == 64
    model.close()


async def test_rows_of_an_asynchronous_function_run_at_the_same_time(load: Load) -> None:
    model = load(
        "async def predict(self, x: int) -> int:\n"
        "    self.now = getattr(self, 'now', 0) + 1\n    await asyncio.sleep(0.01)\n    return self.now",
        "import asyncio",
    )
    answer: Any = model.predict({"x": np.arange(5)}, ("output-0",), {})
    assert (await asyncio.wait_for(answer, 5))["output-0"].tolist() == [5] * 5
    model.close()
