# SPDX-License-Identifier: Apache-2.0
"""Pipelines over models in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.config import load_model_spec
from modelyard.errors import (
    DeadlineExceeded,
    InvalidConfig,
    InvalidRequest,
    ModelFailed,
    ModelLoadError,
    ModelNotReady,
)
from modelyard.model import Model, load_model
from modelyard.peers import Nobody, set_origin
from modelyard.signature import Signature, TensorSpec
from modelyard.testing import FakeModel, FakeOptions, FakePeers

NO_PATH = ""
ROWS = np.arange(12.0).reshape(3, 4)


class Table(Model):
    """Answers with functions of its inputs, column by column."""

    def __init__(self, inputs: dict[str, str], delay_s: float = 0, **outputs: Callable[..., Any]) -> None:
        self._outputs = outputs
        self._delay_s = delay_s
        self.begun: list[float] = []
        specs = {name: self._spec(name, text) for name, text in inputs.items()}
        sample = self._answer({name: np.zeros(1, dtype=_DTYPES[one.datatype]) for name, one in specs.items()})
        kinds = {"f": "FP64", "i": "INT64", "O": "BYTES", "b": "BOOL"}
        self._signature = Signature(
            tuple(specs.values()),
            tuple(TensorSpec(name, kinds[array.dtype.kind], (-1, *array.shape[1:])) for name, array in sample.items()),
        )

    @staticmethod
    def _spec(name: str, text: str) -> TensorSpec:
        return TensorSpec(name, text.removesuffix("?"), (-1,), optional=text.endswith("?"))

    @property
    def signature(self) -> Signature:
        return self._signature

    def _answer(self, inputs: Any) -> dict[str, np.ndarray]:
        return {name: np.asarray(make(**inputs)) for name, make in self._outputs.items()}

    def predict(self, inputs, outputs, parameters):
        self.begun.append(time.monotonic())
        time.sleep(self._delay_s)
        return self._answer(inputs)


_DTYPES = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BYTES": object, "BOOL": bool}
FP64 = {"x": "FP64"}


def _fake(bias: float = 0.0, **options: Any) -> FakeModel:
    return FakeModel(bias, FakeOptions.model_validate(options))


def _fail(**_: Any) -> Any:
    raise ArithmeticError("it broke")


class Pipelines:
    """Loads pipelines over its models."""

    def __init__(self, peers: FakePeers) -> None:
        self.peers = peers

    def load(self, *steps: dict[str, Any], **models: Model) -> Model:
        self.peers.models.update({name.replace("_", "-"): model for name, model in models.items()})
        return load_model("pipeline", NO_PATH, {"steps": list(steps), "wait_s": 0})


@pytest.fixture
def pipelines() -> Iterator[Pipelines]:
    with FakePeers({}) as peers:
        yield Pipelines(peers)


async def _ask(model: Model, inputs: dict[str, Any], names: tuple[str, ...] = (), **parameters: Any) -> dict[str, Any]:
    bound = model.signature.bind({name: np.asarray(value) for name, value in inputs.items()})
    wanted = names or tuple(spec.name for spec in model.signature.outputs)
    answer: Any = await model.predict(bound, wanted, parameters)  # type: ignore[misc]
    return {name: array.tolist() for name, array in answer.items()}


def _texts(*values: str) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)


# -- sequence


async def test_the_only_output_is_the_next_only_input(pipelines: Pipelines) -> None:
    model = pipelines.load({"model": "sums"}, {"model": "double"}, sums=_fake(1), double=Table(FP64, y=lambda x: x * 2))
    assert await _ask(model, {"input-0": ROWS}) == {"y": [14, 46, 78]}
    assert model.signature.columns == ("a", "b", "c", "d")
    assert model.signature.any_input_name
    assert [spec.name for spec in model.signature.outputs] == ["y"]


async def test_names_say_what_goes_where(pipelines: Pipelines) -> None:
    first = Table(
        {"text": "BYTES"}, length=lambda text: np.array([len(str(one)) for one in text]), text=lambda text: text
    )
    second = Table({"length": "INT64", "age": "INT64"}, y=lambda length, age: length + age)
    model = pipelines.load(
        {"model": "first", "outputs": {"size": "length"}},
        {"model": "second", "inputs": {"length": "size", "age": "request.years"}, "outputs": {"total": "y"}},
        first=first,
        second=second,
    )
    assert [spec.name for spec in model.signature.inputs] == ["text", "years"]
    assert await _ask(model, {"text": _texts("ab", "abc"), "years": [10, 20]}) == {"total": [15, 26]}
    assert pipelines.peers.requests[0].outputs == ("length",)


async def test_what_the_last_model_can_be_asked_for_the_pipeline_can(pipelines: Pipelines) -> None:
    scaler = Table({"input-0": "FP64"}, y=lambda **inputs: np.zeros((len(inputs["input-0"]), 4)))
    model = pipelines.load({"model": "scaler"}, {"model": "sums"}, scaler=scaler, sums=_fake(2, explains=True))
    assert model.signature.explanations == ("contributions",)
    answer = await _ask(model, {"input-0": [1.0]}, ("contributions", "output-0"))
    assert answer == {"contributions": [[0, 0, 0, 0, 2]], "output-0": [2]}


async def test_parameters_reach_every_model(pipelines: Pipelines) -> None:
    model = pipelines.load(
        {"model": "a", "parameters": {"top": 3}},
        {"model": "b"},
        a=Table(FP64, x=lambda x: x),
        b=Table(FP64, x=lambda x: x),
    )
    await _ask(model, {"x": [1.0]}, temperature=2, top=1)
    assert [dict(one.parameters) for one in pipelines.peers.requests] == [
        {"temperature": 2, "top": 3},
        {"temperature": 2, "top": 1},
    ]


# -- ensemble


async def test_an_ensemble_runs_at_the_same_time(pipelines: Pipelines) -> None:
    slow = [
        Table(FP64, delay_s=0.2, y=lambda x: x + 1),
        Table({"x": "FP32"}, delay_s=0.2, y=lambda x: x.astype(float) * 2),
    ]
    model = pipelines.load({"ensemble": [{"model": "a"}, {"model": "b", "name": "twice"}]}, a=slow[0], b=slow[1])
    assert model.signature.inputs == (TensorSpec("x", "FP64", (-1,)),)
    assert await _ask(model, {"x": [1.0, 2.0]}) == {"a.y": [2, 3], "twice.y": [2, 4]}
    assert abs(slow[0].begun[0] - slow[1].begun[0]) < 0.15


async def test_what_an_ensemble_gives_has_names_to_go_on_with(pipelines: Pipelines) -> None:
    model = pipelines.load(
        {"ensemble": [{"model": "a"}, {"model": "b"}]},
        {"model": "sum", "inputs": {"one": "a.y", "other": "b.y"}},
        a=Table(FP64, y=lambda x: x + 1),
        b=Table(FP64, y=lambda x: x * 2),
        sum=Table({"one": "FP64", "other": "FP64"}, y=lambda one, other: one + other),
    )
    assert await _ask(model, {"x": [1.0, 2.0]}) == {"y": [4, 7]}


async def test_the_first_hard_failure_ends_the_others(pipelines: Pipelines) -> None:
    class Long(Table):
        ended = False

        async def predict(self, inputs, outputs, parameters):
            try:
                await asyncio.sleep(30)
            finally:
                self.ended = True

    long, broken = Long(FP64, y=lambda x: x), Table(FP64, y=lambda x: x)
    broken._outputs = {"y": _fail}
    model = pipelines.load({"ensemble": [{"model": "a"}, {"model": "b"}]}, a=long, b=broken)
    begun = time.monotonic()
    with pytest.raises(ModelFailed, match="it broke"):
        await _ask(model, {"x": [1.0]})
    assert time.monotonic() - begun < 5
    assert long.ended


# -- switch

SWITCH = {
    "switch": [
        {"when": {"input": "country", "in": ["DE", "AT"]}, "model": "german"},
        {"when": [{"input": "x", "greater": 5}, {"input": "country", "not_equals": "IT"}], "model": "big"},
        {"model": "other"},
    ]
}


async def test_each_row_takes_the_step_whose_conditions_hold(pipelines: Pipelines) -> None:
    models = {
        name: Table(FP64, y=lambda x, value=value: x * 0 + value)
        for name, value in (("german", 1.0), ("big", 2.0), ("other", 3.0))
    }
    model = pipelines.load(SWITCH, **models)
    assert {spec.name: spec.datatype for spec in model.signature.inputs} == {"x": "FP64", "country": "BYTES"}
    inputs = {"x": [9.0, 9.0, 1.0, 9.0, 6.0], "country": _texts("FR", "DE", "AT", "IT", "UK")}
    assert await _ask(model, inputs) == {"y": [2, 1, 1, 3, 2]}
    assert len(pipelines.peers.requests) == 3
    assert await _ask(model, {"x": [1.0], "country": _texts("DE")}) == {"y": [1]}


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ({"equals": 2}, [False, True, False]),
        ({"not_equals": 2}, [True, False, True]),
        ({"in": [1, 3]}, [True, False, True]),
        ({"less": 2}, [True, False, False]),
        ({"at_most": 2}, [True, True, False]),
        ({"greater": 2}, [False, False, True]),
        ({"at_least": 2}, [False, True, True]),
        ({"at_least": 2, "less": 3}, [False, True, False]),
        ({"exists": True}, [True, True, True]),
        ({"exists": False}, [False, False, False]),
    ],
)
async def test_a_condition_on_an_input(pipelines: Pipelines, tests: dict[str, Any], expected: list[bool]) -> None:
    yes, no = Table(FP64, y=lambda x: x > 0), Table(FP64, y=lambda x: x < 0)
    model = pipelines.load(
        {"switch": [{"when": {"input": "x", **tests}, "model": "yes"}, {"model": "no"}]}, yes=yes, no=no
    )
    assert await _ask(model, {"x": [1.0, 2.0, 3.0]}) == {"y": expected}


@pytest.mark.parametrize(
    ("tests", "value", "holds"),
    [
        ({"equals": "gold"}, "gold", True),
        ({"equals": 1}, True, False),
        ({"equals": "1"}, 1, False),
        ({"not_equals": "1"}, 1, True),
        ({"in": ["gold", "silver"]}, "silver", True),
        ({"at_least": 3}, 3.5, True),
        ({"at_least": 3}, "x", False),
        ({"at_least": 3}, None, False),
        ({"exists": False}, None, True),
        ({"exists": True}, 0, True),
    ],
)
async def test_a_condition_on_a_parameter(pipelines: Pipelines, tests: dict[str, Any], value: Any, holds: bool) -> None:
    yes, no = Table(FP64, y=lambda x: x > 0), Table(FP64, y=lambda x: x < 0)
    step = {"switch": [{"when": {"parameter": "tier", **tests}, "model": "yes"}, {"model": "no"}]}
    model = pipelines.load(step, yes=yes, no=no)
    parameters = {} if value is None else {"tier": value}
    assert await _ask(model, {"x": [1.0]}, **parameters) == {"y": [holds]}


async def test_a_row_for_which_nothing_holds_is_the_clients_mistake(pipelines: Pipelines) -> None:
    step = {"name": "sizes", "switch": [{"when": {"input": "x", "less": 5}, "model": "a"}]}
    model = pipelines.load(step, a=Table(FP64, y=lambda x: x))
    with pytest.raises(InvalidRequest, match='switch "sizes": no step\'s condition holds for row 1'):
        await _ask(model, {"x": [1.0, 9.0]})


async def test_a_switch_may_ask_for_what_the_step_before_gave(pipelines: Pipelines) -> None:
    model = pipelines.load(
        {"model": "score"},
        {
            "switch": [
                {"when": {"input": "y", "greater": 2}, "model": "b", "inputs": {"x": "y"}},
                {"model": "b", "inputs": {"x": "request.x"}},
            ]
        },
        score=Table(FP64, y=lambda x: x * 2),
        b=Table(FP64, z=lambda x: x + 100),
    )
    assert await _ask(model, {"x": [1.0, 2.0]}) == {"z": [101, 104]}


async def test_a_row_is_named_as_the_client_counts_also_in_a_switch_of_a_switch(pipelines: Pipelines) -> None:
    inner = {"name": "inner", "switch": [{"when": {"input": "x", "less": 20}, "model": "a"}]}
    step = {"switch": [{"when": {"input": "x", "less": 5}, "model": "a"}, {**inner}]}
    model = pipelines.load(step, a=Table(FP64, y=lambda x: x))
    with pytest.raises(InvalidRequest, match='switch "inner": no step\'s condition holds for row 3'):
        await _ask(model, {"x": [1.0, 9.0, 2.0, 30.0]})


# -- conditions in a sequence

CASCADE = [
    {"model": "quick"},
    {"when": {"input": "sure", "less": 0.5}, "model": "thorough", "inputs": {"x": "request.x"}},
]


def _sure(answer: float) -> Table:
    return Table(FP64, y=lambda x: x * 0 + answer, sure=lambda x: np.minimum(x / 10, 1.0))


async def test_a_row_stops_where_the_next_steps_condition_does_not_hold(pipelines: Pipelines) -> None:
    model = pipelines.load(*CASCADE, quick=_sure(1), thorough=_sure(2))
    assert await _ask(model, {"x": [1.0, 9.0, 4.0]}) == {"y": [2, 1, 2], "sure": [0.1, 0.9, 0.4]}
    assert [one.inputs["x"].tolist() for one in pipelines.peers.requests] == [[1, 9, 4], [1, 4]]
    assert await _ask(model, {"x": [9.0]}) == {"y": [1], "sure": [0.9]}
    assert len(pipelines.peers.requests) == 3


async def test_what_has_stopped_takes_none_of_the_later_steps(pipelines: Pipelines) -> None:
    last = {"model": "quick", "inputs": {"x": "y"}}
    model = pipelines.load(*CASCADE, last, quick=_sure(1), thorough=_sure(20))
    assert await _ask(model, {"x": [1.0, 9.0]}) == {"y": [1, 1], "sure": [1, 0.9]}


async def test_a_condition_may_ask_for_a_parameter_and_stand_inside(pipelines: Pipelines) -> None:
    steps = [{"model": "quick"}, {**CASCADE[1], "when": {"parameter": "thorough", "equals": True}}]
    model = pipelines.load({"ensemble": [{"name": "both", "sequence": steps}]}, quick=_sure(1), thorough=_sure(2))
    assert (await _ask(model, {"x": [1.0]}))["both.y"] == [1]
    assert (await _ask(model, {"x": [1.0]}, thorough=True))["both.y"] == [2]


# -- splitter


async def test_a_splitter_follows_its_weights_request_by_request(pipelines: Pipelines) -> None:
    steps = {"splitter": [{"weight": 80, "model": "a"}, {"weight": 20, "model": "b"}]}
    model = pipelines.load(steps, a=Table(FP64, y=lambda x: x * 0), b=Table(FP64, y=lambda x: x * 0 + 1))
    count = 1000
    set_origin(Nobody(rows=(2,) * count))
    answer = (await _ask(model, {"x": np.zeros(2 * count)}))["y"]
    pairs = [(answer[2 * index], answer[2 * index + 1]) for index in range(count)]
    assert set(pairs) == {(0, 0), (1, 1)}
    assert 130 < sum(one for one, _ in pairs) < 270
    assert len(pipelines.peers.requests) == 2


# -- failures and time


def _optional_y(**models: Model) -> dict[str, Any]:
    last = Table({"x": "FP64", "y": "FP64?"}, z=lambda x, y=0.0: x + y)
    return {**models, "last": last}


async def test_a_soft_step_that_fails_is_left_out(pipelines: Pipelines, caplog: pytest.LogCaptureFixture) -> None:
    extra = Table(FP64, y=lambda x: x * 10)
    model = pipelines.load(
        {"model": "extra", "on_error": "soft"},
        {"model": "last", "inputs": {"x": "request.x"}},
        **_optional_y(extra=extra),
    )
    assert await _ask(model, {"x": [1.0]}) == {"z": [11]}
    extra._outputs = {"y": _fail}
    assert await _ask(model, {"x": [1.0]}) == {"z": [1]}
    assert 'step "extra" is left out: ModelFailed' in caplog.text


async def test_what_a_soft_step_of_an_ensemble_gives_is_missing(pipelines: Pipelines) -> None:
    broken = Table(FP64, y=lambda x: x)
    model = pipelines.load(
        {"ensemble": [{"model": "a"}, {"model": "b", "on_error": "soft", "timeout_s": 0.05}]},
        a=Table(FP64, y=lambda x: x),
        b=broken,
    )
    assert [spec.optional for spec in model.signature.outputs] == [False, True]
    broken._delay_s = 0.3
    assert await _ask(model, {"x": [1.0]}) == {"a.y": [1]}


async def test_a_failure_of_several_requests_together_is_not_left_out(pipelines: Pipelines) -> None:
    broken = Table(FP64, y=lambda x: x)
    model = pipelines.load(
        {"ensemble": [{"model": "a"}, {"model": "b", "on_error": "soft"}]}, a=Table(FP64, y=lambda x: x), b=broken
    )
    broken._outputs = {"y": _fail}
    set_origin(Nobody(rows=(1, 1)))
    with pytest.raises(ModelFailed):
        await _ask(model, {"x": [1.0, 2.0]})


async def test_a_model_that_is_away_is_left_out_for_several_requests_at_once(
    pipelines: Pipelines, caplog: pytest.LogCaptureFixture
) -> None:
    steps = {"ensemble": [{"model": "a"}, {"model": "b", "on_error": "soft"}]}
    model = pipelines.load(steps, a=Table(FP64, y=lambda x: x), b=Table(FP64, y=lambda x: x))
    away = pipelines.peers.models.pop("b")
    set_origin(Nobody(rows=(1, 1)))
    for _ in range(3):
        assert await _ask(model, {"x": [1.0, 2.0]}) == {"a.y": [1, 2]}
    assert caplog.text.count('step "b" is left out') == 1
    pipelines.peers.models["b"] = away
    assert await _ask(model, {"x": [1.0, 2.0]}) == {"a.y": [1, 2], "b.y": [1, 2]}


async def test_a_number_that_one_of_the_models_cannot_take_is_the_clients_mistake(pipelines: Pipelines) -> None:
    model = pipelines.load(
        {"ensemble": [{"model": "a"}, {"model": "b", "inputs": {"half": "request.x"}}]},
        a=Table(FP64, y=lambda x: x),
        b=Table({"half": "FP32"}, y=lambda half: half.astype(float)),
    )
    assert await _ask(model, {"x": [1.5]}) == {"a.y": [1.5], "b.y": [1.5]}
    with pytest.raises(
        InvalidRequest, match=r'step "b": input "x": expected numbers in the range of FP32, got 1e[+]300'
    ):
        await _ask(model, {"x": [1e300]})


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_step_has_its_own_time(pipelines: Pipelines, wrapped: bool) -> None:
    step = {"model": "slow", "timeout_s": 0.05}
    if wrapped:
        step = {"name": "slow", "sequence": [{"model": "slow"}], "timeout_s": 0.05}
    model = pipelines.load(step, slow=Table(FP64, delay_s=0.3, y=lambda x: x))
    with pytest.raises(DeadlineExceeded, match=r'0\.05 s; step "slow" has not answered'):
        await _ask(model, {"x": [1.0]})


async def test_what_a_model_refuses_names_the_step(pipelines: Pipelines) -> None:
    model = pipelines.load({"model": "sums"}, sums=_fake(refuse_value=3))
    with pytest.raises(InvalidRequest, match='step "sums": input "input-0": 3 is not a value'):
        await _ask(model, {"input-0": ROWS})


# -- what its models are


async def test_it_follows_its_models(pipelines: Pipelines) -> None:
    model = pipelines.load({"model": "a"}, a=_fake())
    assert model.signature.columns == ("a", "b", "c", "d")
    pipelines.peers.models["a"] = _fake(columns=("p", "q"))
    assert model.signature.columns == ("p", "q")
    assert await _ask(model, {"input-0": [[1.0, 2.0]]}) == {"output-0": [3]}
    del pipelines.peers.models["a"]
    assert model.signature.columns == ("p", "q")
    with pytest.raises(ModelNotReady):
        await _ask(model, {"input-0": [[1.0, 2.0]]})


async def test_models_that_no_longer_fit_say_so(pipelines: Pipelines, caplog: pytest.LogCaptureFixture) -> None:
    model = pipelines.load({"model": "a"}, {"model": "b"}, a=Table(FP64, y=lambda x: x), b=Table(FP64, z=lambda x: x))
    pipelines.peers.models["b"] = Table({"x": "BYTES"}, z=lambda x: x)
    with pytest.raises(ValueError, match='call of the model "b": input "x": expected BYTES'):
        await _ask(model, {"x": [1.0]})
    assert "do not fit any more" in caplog.text


PANEL = {"ensemble": [{"model": "a"}, {"model": "b", "on_error": "soft"}]}


async def test_a_soft_step_whose_model_is_not_there_yet_comes_later(pipelines: Pipelines) -> None:
    model = pipelines.load(PANEL, a=Table(FP64, y=lambda x: x))
    assert [spec.name for spec in model.signature.outputs] == ["a.y"]
    assert await _ask(model, {"x": [1.0]}) == {"a.y": [1]}
    pipelines.peers.models["b"] = Table(FP64, y=lambda x: x * 2)
    assert [spec.name for spec in model.signature.outputs] == ["a.y", "b.y"]
    assert await _ask(model, {"x": [1.0]}) == {"a.y": [1], "b.y": [2]}


async def test_what_a_soft_step_would_give_is_not_there_either(pipelines: Pipelines) -> None:
    steps = [
        {"sequence": [{"model": "away"}, {"model": "a"}], "on_error": "soft"},
        {"model": "last", "inputs": {"x": "request.x", "y": "extra"}},
    ]
    last = Table({"x": "FP64", "y": "FP64?"}, z=lambda x, y=0.0: x + y)
    model = pipelines.load(*steps, a=Table(FP64, extra=lambda x: x), last=last)
    assert await _ask(model, {"x": [1.0]}) == {"z": [1]}
    pipelines.peers.models["away"] = Table(FP64, x=lambda x: x * 10)
    assert await _ask(model, {"x": [1.0]}) == {"z": [11]}


async def test_a_soft_branch_whose_model_is_not_there_gives_nothing_to_its_rows(pipelines: Pipelines) -> None:
    step = {
        "switch": [{"when": {"input": "x", "less": 5}, "model": "a"}, {"model": "b", "on_error": "soft"}],
        "name": "sizes",
    }
    model = pipelines.load({"ensemble": [step, {"model": "a"}]}, a=Table(FP64, y=lambda x: x))
    assert await _ask(model, {"x": [1.0, 2.0]}) == {"sizes.y": [1, 2], "a.y": [1, 2]}
    assert await _ask(model, {"x": [1.0, 9.0]}) == {"a.y": [1, 9]}


def test_a_hard_model_in_a_soft_step_is_not_waited_for_in_vain(pipelines: Pipelines) -> None:
    with pytest.raises(ModelLoadError, match=r'for its models: model "a" is not ready'):
        pipelines.load(PANEL, b=Table(FP64, y=lambda x: x))
    with pytest.raises(ModelLoadError, match="every output may be missing"):
        pipelines.load({"model": "c", "on_error": "soft"})


def test_models_that_are_not_there_are_all_named(pipelines: Pipelines) -> None:
    with pytest.raises(ModelLoadError, match=r'waited 0 s for its models: model "a" is not .*; model "c" is not'):
        pipelines.load({"model": "a"}, {"model": "b"}, {"model": "c"}, b=_fake())


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        (
            [{"model": "num"}, {"model": "text"}],
            'step "text" (model "text"), input "t": expected BYTES [-1], and "y" is',
        ),
        ([{"model": "num"}, {"model": "two"}], 'step "two" (model "two"), input "p": the step before gives y, no "p"'),
        ([{"model": "num", "inputs": {"q": "x"}}], 'model "num" has no input "q", it has x'),
        ([{"model": "num", "outputs": {"a": "b"}}], 'outputs: expected one of y, got "b"'),
        (
            [{"ensemble": [{"model": "num"}, {"model": "textx"}]}],
            'input "x": one model takes FP64 [-1], another BYTES [-1]',
        ),
        ([{"switch": [{"when": {"input": "x", "equals": "a"}, "model": "num"}]}], "\"x\" is FP64, which 'a' cannot be"),
        (
            [{"switch": [{"when": {"input": "input-0", "equals": 1}, "model": "matrix"}]}],
            'expected a tensor with one value for each row, got "input-0": FP64 [-1,4]',
        ),
        (
            [{"switch": [{"when": {"input": "x", "equals": 1}, "model": "num"}, {"model": "matrix"}]}],
            'expected the same outputs of each step: "num" gives y, "matrix" gives output-0',
        ),
        (
            [{"model": "num"}, {"switch": [{"when": {"input": "z", "equals": 1}, "model": "num"}]}],
            'the step before gives y, no "z"',
        ),
        ([{"model": "num", "on_error": "soft"}, {"model": "num"}], '"y" is missing where its step is left out'),
        ([{"model": "num", "on_error": "soft"}], "every output may be missing"),
        (
            [
                {"model": "num"},
                {"model": "matrix", "inputs": {"input-0": "request.m"}, "when": {"input": "y", "less": 1}},
            ],
            'step "matrix", when: expected the same outputs of each step: "matrix" gives output-0, "num" gives y',
        ),
        (
            [{"sequence": [{"model": "num", "when": {"input": "x", "less": 1}}]}],
            'step "num", when: no step before it gives anything to answer with',
        ),
        ([{"model": "stream"}], 'model "stream" answers with a stream'),
    ],
)
def test_steps_that_do_not_fit_are_refused(pipelines: Pipelines, steps: list[dict[str, Any]], text: str) -> None:
    models = {
        "num": Table(FP64, y=lambda x: x),
        "text": Table({"t": "BYTES"}, y=lambda t: t),
        "textx": Table({"x": "BYTES"}, y=lambda x: x),
        "two": Table({"p": "FP64", "q": "FP64"}, y=lambda p, q: p + q),
        "matrix": _fake(),
        "stream": _fake(answers=2),
    }
    with pytest.raises(ModelLoadError) as caught:
        pipelines.load(*steps, **models)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], "options.steps: sequence: expected at least one step"),
        ([{"ensemble": []}], "options.steps[0]: ensemble: expected at least one step"),
        ([{}], "expected one of model, sequence, ensemble, switch, splitter, got none"),
        ([{"model": "a", "sequence": [{"model": "b"}]}], "got model and sequence"),
        ([{"sequence": [{"model": "b"}], "inputs": {"a": "b"}}], "inputs: expected beside model only"),
        ([{"ensemble": [{"model": "a"}, {"model": "a"}]}], "a name of its own for each step, got a, a"),
        ([{"splitter": [{"model": "a"}]}], "splitter: expected weight in every step"),
        (
            [{"model": "a", "weight": 1}, {"sequence": [{"model": "a", "weight": 1}]}],
            "weight: expected in the steps of a",
        ),
        ([{"model": "a", "weight": 1}], "weight: expected in the steps of a splitter only"),
        (
            [{"ensemble": [{"model": "a", "when": {"input": "x", "equals": 1}}]}],
            "when: expected in the steps of a switch or a sequence only",
        ),
        ([{"switch": [{"model": "a"}, {"model": "b"}]}], "switch: expected when in every step but the last"),
        ([{"switch": [{"model": "a", "when": {"input": "x"}}]}], "expected equals, not_equals, in, less"),
        ([{"switch": [{"model": "a", "when": {"equals": 1}}]}], "expected one of input and parameter"),
        ([{"model": "a", "on_error": "ignore"}], "on_error"),
        ([{"model": "a", "timeout_s": 0}], "timeout_s"),
        ([{"modle": "a"}], "modle"),
    ],
)
def test_options_that_say_nothing_are_refused(steps: list[dict[str, Any]], text: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_model_spec({"name": "p", "framework": "pipeline", "options": {"steps": steps}})
    assert text in str(caught.value)
    assert len(caught.value.problems) == 1


def test_it_has_no_uri(tmp_path: Path) -> None:
    options = {"steps": [{"model": "a"}]}
    with pytest.raises(InvalidConfig, match='uri: framework "pipeline": expected none, got "models/a"'):
        load_model_spec({"name": "p", "framework": "pipeline", "uri": "models/a", "options": options})
    assert load_model_spec({"name": "p", "framework": "pipeline", "options": options}).uri == ""
