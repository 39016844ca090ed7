# SPDX-License-Identifier: Apache-2.0
"""What every framework keeps to, written once: a model and the answers its library gives go in, a complaint comes out.

::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conforms(check, model, case):
        check(model, case)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InvalidRequest
from modelyard.model import Model
from modelyard.protocol import v1, v2
from modelyard.protocol.http import dump_json
from modelyard.protocol.openapi import to_infer_example, to_predict_example
from modelyard.tensor import DATATYPES, Array, Tensors, datatype_of, to_protocol_array


@dataclass(frozen=True, slots=True)
class Case:
    """One trained model and what is known about it.

    Attributes:
        inputs: Three rows or more that the model takes, as a client would send them.
        expected: What the library itself answers for them, by output name; outputs may be left out.
        options: The framework's options to load it with.
        rtol: How far answers may be from the library's, relatively.
        is_normalized: The rows of ``predict_proba`` add up to one.
    """

    inputs: Tensors
    expected: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 1e-6
    is_normalized: bool = True


def check_signature_is_complete(model: Model, case: Case) -> None:
    """Every tensor has its own name, a datatype of the protocol, and rows first where there is a batch axis."""
    signature = model.signature
    _require(bool(signature.inputs and signature.outputs), "the signature has inputs and outputs")
    for specs in (signature.inputs, (*signature.outputs, *signature.on_request)):
        names = [spec.name for spec in specs]
        _require(len(set(names)) == len(names), f"names are unique: {names}")
        for spec in specs:
            _require(spec.datatype in DATATYPES, f'"{spec.name}" has a datatype of the protocol, not {spec.datatype}')
            if signature.batch_axis:
                _require(spec.shape[:1] == (-1,), f'"{spec.name}" has rows first, not {spec.shape}')
    asked_for = [spec.name for spec in signature.on_request]
    _require(
        set(signature.explanations) <= set(asked_for), f"explanations are among what can be asked for: {asked_for}"
    )
    if signature.columns:
        _require(len(signature.inputs) == 1, "columns belong to a single matrix")
        _require(signature.inputs[0].shape == (-1, len(signature.columns)), "the matrix is as wide as its columns")


def check_answers_are_the_librarys(model: Model, case: Case) -> None:
    """The answers are what the library answers; every output the case knows is in the signature."""
    answers = _predict(model, case.inputs, tuple(case.expected))
    for name, expected in case.expected.items():
        _require_same(answers[name], to_protocol_array(np.asarray(expected)), case.rtol, f'"{name}"')


def check_outputs_fit_the_signature(model: Model, case: Case) -> None:
    """Datatype, shape and rows of each output are what the signature says."""
    rows = _rows(model, case) if model.signature.batch_axis else 0
    for spec in (*model.signature.outputs, *model.signature.on_request):
        answer = _predict(model, case.inputs, (spec.name,))[spec.name]
        _require(datatype_of(answer) == spec.datatype, f'"{spec.name}" is {spec.datatype}, got {datatype_of(answer)}')
        fits = len(answer.shape) == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, answer.shape, strict=True)
        )
        _require(fits, f'"{spec.name}" has shape {spec.shape}, got {answer.shape}')
        if model.signature.batch_axis:
            _require(answer.shape[0] == rows, f'"{spec.name}" has {rows} rows, got {answer.shape[0]}')


def check_batch_is_its_single_rows(model: Model, case: Case) -> None:
    """Rows answered together are answered as they are alone, so that requests may share a batch."""
    if not model.signature.batch_axis:
        return
    bound = model.signature.bind(case.inputs)
    names = _names(model)
    together = _run(model, bound, names)
    alone = [
        _run(model, {name: array[row : row + 1] for name, array in bound.items()}, names)
        for row in range(_rows(model, case))
    ]
    for name in names:
        _require_same(np.concatenate([answer[name] for answer in alone]), together[name], case.rtol, f'"{name}"')


def check_requested_outputs_are_given(model: Model, case: Case) -> None:
    """Each output alone is the same as all of them together."""
    names = _names(model)
    together = _predict(model, case.inputs, names)
    for name in names:
        _require_same(_predict(model, case.inputs, (name,))[name], together[name], case.rtol, f'"{name}"')


def check_probabilities(model: Model, case: Case) -> None:
    """``predict_proba`` is ``[rows, classes]`` between 0 and 1, and its rows add up to one."""
    if "predict_proba" not in _names(model):
        return
    answer = _predict(model, case.inputs, ("predict_proba",))["predict_proba"]
    _require(answer.ndim >= 2 and answer.shape[-1] >= 2, f"predict_proba has a column per class, got {answer.shape}")
    _require(bool((answer >= 0).all() and (answer <= 1 + 1e-6).all()), "probabilities are between 0 and 1")
    if case.is_normalized:
        _require(bool(np.allclose(answer.sum(axis=-1), 1, atol=1e-5)), "probabilities of a row add up to one")


def check_inputs_are_left_alone(model: Model, case: Case) -> None:
    """Inputs can be views on a request's body: read-only, and never changed."""
    bound = model.signature.bind(case.inputs)
    frozen = {name: array.copy() for name, array in bound.items()}
    for array in frozen.values():
        array.flags.writeable = False
    first, second = _run(model, frozen, _names(model)), _run(model, bound, _names(model))
    for name, answer in first.items():
        _require_same(answer, second[name], case.rtol, f'"{name}"')


def check_any_thread_may_predict(model: Model, case: Case) -> None:
    """A model is loaded in one thread and predicts in another."""
    here = _predict(model, case.inputs, _names(model))
    with ThreadPoolExecutor(1) as executor:
        there = executor.submit(_predict, model, case.inputs, _names(model)).result()
    for name, answer in here.items():
        _require_same(answer, there[name], case.rtol, f'"{name}"')


def check_wrong_width_is_refused(model: Model, case: Case) -> None:
    """A matrix with a column too many is the client's mistake, and the message has both widths."""
    spec = model.signature.inputs[0]
    if len(model.signature.inputs) != 1 or len(spec.shape) != 2 or spec.shape[1] == -1:
        return
    array = model.signature.bind(case.inputs)[spec.name]
    wide = np.concatenate([array, array[:, :1]], axis=1)
    message = _refusal(model, {spec.name: wide})
    for width in (spec.shape[1], spec.shape[1] + 1):
        _require(f",{width}]" in message, f"the message has the width {width}: {message}")


def check_columns_make_the_matrix(model: Model, case: Case) -> None:
    """Named columns, in any order, are answered as the matrix is."""
    if not model.signature.columns:
        return
    matrix = model.signature.bind(case.inputs)[model.signature.inputs[0].name]
    columns = {name: matrix[:, index] for index, name in enumerate(model.signature.columns)}
    shuffled = {name: columns[name] for name in reversed(columns)}
    names = _names(model)
    expected, got = _predict(model, case.inputs, names), _predict(model, shuffled, names)
    for name in names:
        _require_same(got[name], expected[name], case.rtol, f'"{name}"')


def check_missing_and_unknown_inputs_are_refused(model: Model, case: Case) -> None:
    """One input too few or too many is the client's mistake, and the message has its name."""
    signature = model.signature
    bound = signature.bind(case.inputs)
    if signature.columns:
        matrix = bound[signature.inputs[0].name]
        bound = {name: matrix[:, index] for index, name in enumerate(signature.columns)}
    if len(bound) < 2:
        return
    optional = {spec.name for spec in signature.inputs if spec.optional}
    last = [name for name in bound if name not in optional][-1]
    _require(last in _refusal(model, {name: array for name, array in bound.items() if name != last}), f'names "{last}"')
    _require("nosuch" in _refusal(model, {**bound, "nosuch": bound[last]}), 'the message names "nosuch"')


def check_unknown_output_is_refused(model: Model, case: Case) -> None:
    """An output the model does not have is the client's mistake."""
    try:
        model.signature.check_outputs(("nosuch",))
    except InvalidRequest as exc:
        _require("nosuch" in str(exc), f"the message has the output's name: {exc}")
    else:
        raise AssertionError("an unknown output is refused")


def check_documented_example_is_answered(model: Model, case: Case) -> None:
    """The request that the model's documentation shows is answered, sent as v2 and as v1."""
    signature = model.signature
    shown = to_infer_example(signature, ""), to_predict_example(signature, "")
    if signature.decoupled or None in shown:
        return
    v2_body, v1_body = (dump_json(example.body) for example in shown if example is not None)
    for request in (v2.decode_infer(v2_body, None), v1.decode_predict(v1_body, signature)[0]):
        answers = _predict(model, request.inputs, tuple(spec.name for spec in signature.outputs))
        _require(
            all(answer.shape[:1] == (1,) for answer in answers.values()) or not signature.batch_axis, "it has a row"
        )


CHECKS: Final[tuple[Callable[[Model, Case], None], ...]] = (
    check_signature_is_complete,
    check_answers_are_the_librarys,
    check_outputs_fit_the_signature,
    check_batch_is_its_single_rows,
    check_requested_outputs_are_given,
    check_probabilities,
    check_inputs_are_left_alone,
    check_any_thread_may_predict,
    check_wrong_width_is_refused,
    check_columns_make_the_matrix,
    check_missing_and_unknown_inputs_are_refused,
    check_unknown_output_is_refused,
    check_documented_example_is_answered,
)
"""Each takes a model and its case, and raises AssertionError with a sentence where the model breaks the rule."""


def _names(model: Model) -> tuple[str, ...]:
    return tuple(spec.name for spec in (*model.signature.outputs, *model.signature.on_request))


def _rows(model: Model, case: Case) -> int:
    return int(next(iter(model.signature.bind(case.inputs).values())).shape[0])


def _run(model: Model, bound: Tensors, names: tuple[str, ...]) -> dict[str, Array]:
    answers = model.predict(bound, names, {})
    if not isinstance(answers, Mapping):
        answers = _loop().run_until_complete(_wait_for(answers))
    missing = [name for name in names if name not in answers]
    _require(not missing, f"every output asked for is answered, missing {missing}")
    return {name: to_protocol_array(answers[name]) for name in names}


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all calls, as in a replica: clients and connections belong to the loop that made them."""
    return asyncio.new_event_loop()


async def _wait_for(answers: Awaitable[Tensors]) -> Tensors:
    return await answers


def _predict(model: Model, inputs: Tensors, names: tuple[str, ...]) -> dict[str, Array]:
    model.signature.check_outputs(names)
    return _run(model, model.signature.bind(inputs), names)


def _refusal(model: Model, inputs: Tensors) -> str:
    try:
        model.signature.bind(inputs)
    except InvalidRequest as exc:
        return str(exc)
    raise AssertionError(f"inputs that do not fit are refused: {list(inputs)}")


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise AssertionError(rule)


def _require_same(got: Array, expected: Array, rtol: float, what: str) -> None:
    _require(got.shape == expected.shape, f"{what}: expected shape {expected.shape}, got {got.shape}")
    if expected.dtype.kind == "f":
        same = np.allclose(got, expected, rtol=rtol, atol=rtol, equal_nan=True)
    else:
        same = np.array_equal(got, expected) or _are_same_json(got, expected, rtol)
    _require(same, f"{what}: expected {expected.tolist()!s:.200}, got {got.tolist()!s:.200}")


def _are_same_json(got: Array, expected: Array, rtol: float) -> bool:
    """Objects and lists as JSON texts that differ in nothing but the last digits of numbers."""
    if expected.dtype.kind != "O":
        return False
    pairs = zip(got.reshape(-1).tolist(), expected.reshape(-1).tolist(), strict=True)
    try:
        return all(one == other or _is_close(orjson.loads(one), orjson.loads(other), rtol) for one, other in pairs)
    except orjson.JSONDecodeError:
        return False


def _is_close(one: Any, other: Any, rtol: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[name], other[name], rtol) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other, [rtol] * len(one)))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=rtol, abs_tol=rtol)
    return type(one) is type(other) and bool(one == other)
