# SPDX-License-Identifier: Apache-2.0
"""PMML: the fields a client sends, and what the document allows in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.signature import TensorSpec
from modelyard.tensor import Array, Tensors
from modelyard_deployments._pmml_document import DataField, Document, Interval

_DATATYPES: Final = {"integer": "INT64", "float": "FP32", "double": "FP64", "boolean": "BOOL"}
_LARGEST: Final = 2**53
"""Integers up to here are exact as doubles, as which they go to the evaluator."""
_SHOWN: Final = 20
"""Valid values that a message lists."""


def to_datatype(data_type: str) -> str:
    """The protocol's datatype of a PMML data type; texts, dates and times are BYTES."""
    return _DATATYPES.get(data_type, "BYTES")


@dataclass(frozen=True, slots=True)
class Field:
    """One field that the model takes.

    Attributes:
        spec: Its tensor.
        texts: Values that may be sent where it holds text, with those that stand for a missing one; empty allows all.
        numbers: The same where it holds numbers.
        intervals: Of numbers; empty allows all.
        refuses_missing: Missing values are refused.
        empty_is_missing: An empty text is a missing one.
        is_whole: Only whole numbers, though as FP64: an integer that may be missing, for which NaN stands.
        example: A value that the model takes; None where any is taken.
    """

    spec: TensorSpec
    texts: frozenset[bytes]
    numbers: Array
    intervals: tuple[Interval, ...]
    refuses_missing: bool
    empty_is_missing: bool
    is_whole: bool
    example: Any

    def check(self, column: Array) -> None:
        """Refuses what the document calls invalid.

        Raises:
            InvalidRequest: With the first such value.
        """
        if column.dtype == object:
            self._check_texts(column.tolist())
            return
        if self.refuses_missing and column.dtype.kind == "f" and np.isnan(column).any():
            raise self._fault("is missing")
        if self.is_whole or column.dtype.kind == "i":
            self._check_whole(column)
        if self.numbers.size or self.intervals:
            self._check_numbers(column)

    def _check_texts(self, values: list[bytes]) -> None:
        if self.refuses_missing and self.empty_is_missing and b"" in values:
            raise self._fault("is missing")
        if self.texts and not self.texts.issuperset(values):
            bad = next(value for value in values if value not in self.texts)
            raise self._fault(f"{bad.decode(errors='replace')[:100]!r} is not valid", self._describe())

    def _check_whole(self, column: Array) -> None:
        broken = (np.floor(column) != column) & ~np.isnan(column)
        if broken.any():
            raise self._fault(f"{column[broken][0]} is no integer", "an integer")
        beyond = (column > _LARGEST) | (column < -_LARGEST)
        if beyond.any():
            raise self._fault(f"{column[beyond][0]} is beyond ±2^53", "an integer")

    def _check_numbers(self, column: Array) -> None:
        valid = np.isin(column, self.numbers)
        for one in self.intervals:
            left = column >= one.left if one.closed_left else column > one.left
            right = column <= one.right if one.closed_right else column < one.right
            valid |= left & right
        if column.dtype.kind == "f":
            valid |= np.isnan(column)
        if not valid.all():
            first = column[~valid][0]
            raise self._fault(f"{int(first) if self.is_whole else first} is not valid", self._describe())

    def _describe(self) -> str:
        values = [value.decode() for value in sorted(self.texts) if value] or [f"{value:g}" for value in self.numbers]
        more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
        spans = [
            f"{'[' if one.closed_left else '('}{one.left:g}, {one.right:g}{']' if one.closed_right else ')'}"
            for one in self.intervals
        ]
        return ", ".join((*values[:_SHOWN], *spans)) + more

    def _fault(self, got: str, expected: str = "") -> InvalidRequest:
        return InvalidRequest(
            f'input "{self.spec.name}": {got}: expected {expected or "a value within its limits in each row"}'
        )


def to_field(name: str, data_type: str, is_active: bool, document: Document) -> Field:
    """The field as the document describes it."""
    described = document.fields.get(name) or DataField(name)
    mining = document.mining.get(name, {})
    treatment = mining.get("missingValueTreatment")
    refuses_missing = treatment == "returnInvalid"
    can_miss = "missingValueReplacement" in mining or treatment is not None or name in document.may_miss
    optional = not refuses_missing and (can_miss or document.misses_any or not is_active)
    declared = to_datatype(data_type)
    is_whole = optional and declared == "INT64"
    datatype = "FP64" if is_whole else declared
    empty_is_missing = "" not in described.values
    has_gaps = not refuses_missing and (datatype in ("FP32", "FP64") or (datatype == "BYTES" and empty_is_missing))
    is_strict = mining.get("invalidValueTreatment", "returnInvalid") == "returnInvalid"
    has_text = datatype == "BYTES"
    is_limited = is_strict and bool(described.values or (described.intervals and not has_text))
    values = [*described.values, *described.missing] if is_limited else []
    return Field(
        spec=TensorSpec(name, datatype, (-1,), optional, gaps=has_gaps),
        texts=frozenset((b"", *(value.encode() for value in values))) if has_text and values else frozenset(),
        numbers=_to_numbers([] if datatype in ("BYTES", "BOOL") else values),
        intervals=tuple(described.intervals) if is_limited else (),
        refuses_missing=refuses_missing,
        empty_is_missing=empty_is_missing,
        is_whole=is_whole,
        example=_to_example(described, declared),
    )


def _to_numbers(values: list[str]) -> Array:
    return np.array([number for value in values if (number := _to_number(value)) is not None])


def _to_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _to_example(described: DataField, datatype: str) -> Any:
    if datatype == "BYTES":
        return described.values[0] if described.values else None
    if datatype == "BOOL":
        return None
    for value in described.values:
        number = _to_number(value)
        if number is not None:
            return int(number) if datatype == "INT64" else number
    for one in described.intervals:
        ends = [end for end in (one.left, one.right) if np.isfinite(end)]
        if ends:
            middle = sum(ends) / len(ends) + (0 if len(ends) == 2 else (1 if np.isfinite(one.left) else -1))
            return int(middle) if datatype == "INT64" else middle
    return None


def to_texts(field: Field, column: Array) -> list[Any]:
    """A column as Python's values; None is a missing text or integer.

    Raises:
        InvalidRequest: A text is not UTF-8.
    """
    values: list[Any] = column.tolist()
    if field.is_whole:
        return [int(value) if value == value else None for value in values]
    if column.dtype != object:
        return values
    try:
        return [value.decode() if value or not field.empty_is_missing else None for value in values]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{field.spec.name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc


def to_matrix(fields: Mapping[str, Field], order: list[str], inputs: Tensors, rows: int) -> Array:
    """Numbers as FP64 ``[rows, order]``; NaN where a field is missing."""
    missing = np.full(rows, np.nan) if len(inputs) < len(order) else None
    columns = [inputs.get(name, missing) for name in order]
    return np.ascontiguousarray(np.array(columns, dtype=np.float64).T)
