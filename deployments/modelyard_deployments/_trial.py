# SPDX-License-Identifier: Apache-2.0
"""What a model answers to made-up rows: the outputs' datatypes and shapes, and whether requests may share a batch.

A graph's first dimension may be free and still be no rows: time comes first, rows are ranked against each other, or a
detector answers as many rows as it finds. Merging requests there would answer clients with each other's data, so it is
tried once, when the model is loaded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy as np

from modelyard.errors import InvalidRequest, ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import DATATYPES, Array, Tensors, datatype_of, element_count, to_protocol_array

Run: TypeAlias = Callable[[Tensors], Tensors]
"""Answers all outputs; InvalidRequest says that the values or variable dimensions do not fit."""

_LOG: Final = logging.getLogger(__name__)

_ROWS: Final = 3
_SIZES: Final = (1, 2, 8, 32, 64, 224)
"""Tried for the variable dimensions behind the rows, until the model takes one."""
_MOST_ELEMENTS: Final = 1_000_000
"""Of all inputs together; more are not tried: a tensor with four variable dimensions grows fast."""
_LARGEST_EXAMPLE: Final = 256
"""Elements of an input that the documentation shows."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found out.

    Attributes:
        answers: Outputs for three rows, by name; empty where the model took none of the rows, and all below is unknown.
        outputs: Their datatypes and shapes; -1 is a dimension that was seen to vary.
        has_rows: Each output has a row for each row of the inputs, which depends on that row alone.
        keeps_inputs: The inputs were as before.
        example: A row that it takes, where zeros of the smallest shape are none.
        reason: Why it took no rows.
    """

    answers: Tensors = field(default_factory=dict)
    outputs: tuple[TensorSpec, ...] = ()
    has_rows: bool = False
    keeps_inputs: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


def try_out(run: Run, inputs: Sequence[TensorSpec]) -> Trial:
    """Runs the model on random rows, on parts of them, and on a row of zeros; at most a dozen sizes are tried.

    Args:
        run: The model.
        inputs: Those that it is given; rows are dimension 0 of those where that is variable.

    Raises:
        Exception: The model cannot run; what the library raises.
    """
    reason = ""
    for size, is_zero in itertools.product(_SIZES, (False, True)):
        if size > _SIZES[0] and sum(element_count(_shape(spec, size)) for spec in inputs) > _MOST_ELEMENTS:
            break
        rows = _make_rows(inputs, size, is_zero)
        given = {name: array.copy() for name, array in rows.items()}
        try:
            answers = _run(run, rows)
        except InvalidRequest as exc:
            reason = reason or str(exc)
            continue
        keeps = all(np.array_equal(rows[name], array) for name, array in given.items())
        parts = [_try(run, _take(inputs, given, *part)) for part in ((0, 2), (2, _ROWS))]
        larger = _try(run, _make_rows(inputs, size * 2, is_zero)) if _is_variable(inputs) else None
        others = [other for other in (*parts, larger) if other is not None]
        return Trial(
            answers=answers,
            outputs=tuple(_to_spec(name, array, others) for name, array in answers.items()),
            has_rows=bool(inputs) and all(_is_free(spec) for spec in inputs) and _have_rows(answers, parts),
            keeps_inputs=keeps,
            example=_to_example(run, inputs, given),
        )
    return Trial(reason=reason)


def find_batch_axis(specs: Sequence[TensorSpec], trial: Trial, wanted: bool | None) -> bool:
    """Whether rows are the first dimension of everything.

    Args:
        specs: Inputs and outputs.
        trial: What was found out; where the model took no rows, the shapes decide alone.
        wanted: The option ``batch_axis``.

    Raises:
        ModelLoadError: They cannot be, and the option says that they are.
    """
    fixed = [spec.name for spec in specs if spec.shape[:1] != (-1,)]
    if wanted and fixed:
        raise ModelLoadError(f"option batch_axis: the first dimension is not variable in {', '.join(fixed)}")
    if wanted is not None or fixed:
        return bool(wanted)
    if trial.answers and not trial.has_rows:
        _LOG.warning(
            "rows are not answered alike alone and with others, so requests do not share batches; "
            "the option batch_axis: true lets them"
        )
        return False
    return True


def refine(spec: TensorSpec, trial: Trial) -> TensorSpec:
    """An output as declared, corrected where the answer was another: ranks can be unknown, and declarations wrong."""
    seen = next((one for one in trial.outputs if one.name == spec.name), None)
    if seen is None:
        return spec
    if len(seen.shape) != len(spec.shape):
        return seen
    shape = tuple(
        -1 if -1 in (said, got) or said != got else said for said, got in zip(spec.shape, seen.shape, strict=True)
    )
    return replace(spec, shape=shape)


def show_example(inputs: Sequence[TensorSpec], trial: Trial, batch_axis: bool) -> dict[str, Any]:
    """The example of a signature: the trial's row, or tensors that hold nothing but it where there is no batch axis."""
    if batch_axis:
        return dict(trial.example)
    rows = {spec.name for spec in inputs if _is_free(spec)}
    return {name: [value] if name in rows else value for name, value in trial.example.items()}


def _run(run: Run, inputs: Tensors) -> dict[str, Array]:
    return {name: to_protocol_array(np.asarray(array)) for name, array in run(inputs).items()}


def _try(run: Run, inputs: Tensors) -> dict[str, Array] | None:
    try:
        return _run(run, {name: array.copy() for name, array in inputs.items()})
    except InvalidRequest:
        return None


def _is_free(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (-1,)


def _is_variable(inputs: Sequence[TensorSpec]) -> bool:
    return any(-1 in spec.shape[1:] for spec in inputs)


def _make_rows(inputs: Sequence[TensorSpec], size: int, is_zero: bool) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    rows = {}
    for spec in inputs:
        rows[spec.name] = _fill(rng, _shape(spec, size), spec.datatype, is_zero)
    return rows


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    first = (_ROWS,) if _is_free(spec) else spec.shape[:1]
    return (*first, *(size if dim < 0 else dim for dim in spec.shape[1:]))


def _fill(rng: np.random.Generator, shape: tuple[int, ...], datatype: str, is_zero: bool) -> Array:
    """Numbers between 0 and 1, for integers and texts one of them: most indexes and vocabularies have these."""
    dtype = DATATYPES[datatype].dtype
    if dtype.kind == "O":
        texts = rng.integers(0, 2, shape).astype(str).astype(object)
        return np.full(shape, b"", dtype) if is_zero else to_protocol_array(np.asarray(texts, dtype=object))
    if is_zero:
        return np.zeros(shape, dtype)
    is_fraction = dtype.kind in "fV"
    return np.asarray(rng.random(shape) if is_fraction else rng.integers(0, 2, shape)).astype(dtype)


def _take(inputs: Sequence[TensorSpec], rows: Tensors, start: int, end: int) -> dict[str, Array]:
    return {spec.name: rows[spec.name][start:end] if _is_free(spec) else rows[spec.name] for spec in inputs}


def _to_spec(name: str, array: Array, others: Sequence[Tensors]) -> TensorSpec:
    shape = [
        -1 if any(other[name].shape[axis : axis + 1] != (dim,) for other in others) else dim
        for axis, dim in enumerate(array.shape)
    ]
    return TensorSpec(name, datatype_of(array), tuple(shape))


def _have_rows(whole: Tensors, parts: Sequence[Tensors | None]) -> bool:
    """The parts' answers one after another are the answer to the whole."""
    for name, array in whole.items():
        pieces = [part[name] for part in parts if part is not None]
        counts = [piece.shape[:1] for piece in (array, *pieces)]
        if counts != [(_ROWS,), (2,), (1,)]:
            return False
        if any(piece.shape[1:] != array.shape[1:] for piece in pieces) or not _is_close(array, np.concatenate(pieces)):
            return False
    return True


def _is_close(one: Array, other: Array) -> bool:
    """Equal but for rounding, which depends on the number of rows, and which rows that make no sense can amplify."""
    if one.dtype.kind not in "fV":
        return bool(np.array_equal(one, other))
    rtol = 0.03 if one.dtype.itemsize > 2 else 0.1
    left, right = one.astype(np.float64), other.astype(np.float64)
    finite = np.abs(left[np.isfinite(left)])
    scale = float(finite.max()) if finite.size else 1.0
    return bool(np.allclose(left, right, rtol=rtol, atol=rtol * scale, equal_nan=True))


def _to_example(run: Run, inputs: Sequence[TensorSpec], rows: Tensors) -> dict[str, Any]:
    """The first row, where zeros (and variable dimensions of 1) are not taken; nothing where it is too long to read."""
    zeros = _take(inputs, _make_rows(inputs, 1, True), 0, 1)
    row = _take(inputs, rows, 0, 1)
    if _try(run, zeros) is not None or any(array.size > _LARGEST_EXAMPLE for array in row.values()):
        return {}
    shown = {spec.name: row[spec.name][0, ...] if _is_free(spec) else row[spec.name] for spec in inputs}
    return {name: _to_json(array) for name, array in shown.items()}


def _to_json(array: Array) -> Any:
    if array.dtype.kind == "O":
        return np.asarray([item.decode() for item in array.reshape(-1)], dtype=object).reshape(array.shape).tolist()
    return np.round(array.astype(np.float64), 3).tolist() if array.dtype.kind in "fV" else array.tolist()
