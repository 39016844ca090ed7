# SPDX-License-Identifier: Apache-2.0
"""Whether a row takes a step of a switch: comparisons of one value with fixed ones, nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, cast

import numpy as np

from modelyard.errors import ModelLoadError
from modelyard.signature import TensorSpec
from modelyard.tensor import Array
from modelyard_deployments._pipeline_steps import Condition, Value

_COMPARE: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "equals": operator.eq,
    "not_equals": operator.ne,
    "less": operator.lt,
    "at_most": operator.le,
    "greater": operator.gt,
    "at_least": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Test:
    """One condition, ready to be asked.

    Attributes:
        name: Of the tensor (or where it comes from) or parameter.
        is_parameter: It is a parameter.
        tests: What is compared, by the name of the comparison.
    """

    name: str
    is_parameter: bool
    tests: Mapping[str, object]

    def holds(self, found: object, rows: int) -> Array:
        """For each row whether all comparisons hold; nothing but ``exists: false`` holds of what was not sent.

        Args:
            found: An array with one value for each row, a parameter, or None.
            rows: How many rows there are.
        """
        held: Array = np.ones(rows, dtype=bool)
        for name, value in self.tests.items():
            if name == "exists":
                held &= (found is not None) == value
            elif found is None:
                held &= False
            else:
                held &= _compare(name, found, value)
        return held


def _compare(name: str, found: object, value: object) -> Any:
    """One comparison: an array of truth values for a tensor, one for a parameter."""
    if name == "one_of":
        return reduce(operator.or_, (_compare("equals", found, one) for one in cast(tuple[object, ...], value)), False)
    if isinstance(found, np.ndarray):
        return np.asarray(_COMPARE[name](found.reshape(-1), _to_element(value)), dtype=bool)
    if _kind(found) is not _kind(value):  # texts, numbers and truth values are never equal, and have no order
        return name == "not_equals"
    return bool(_COMPARE[name](found, value))


def _kind(value: object) -> type:
    return bool if isinstance(value, bool) else str if isinstance(value, str) else float


def _to_element(value: object) -> object:
    return value.encode() if isinstance(value, str) else value


def check_condition(condition: Condition, spec: TensorSpec, where: str, *, has_rows: bool) -> None:
    """Refuses a comparison of a tensor with something that it cannot be, or of one with many values in a row.

    Raises:
        ModelLoadError: With what was expected.
    """
    shapes = ((-1,), (-1, 1)) if has_rows else ((), (1,), (-1,))
    if spec.shape not in shapes:
        raise ModelLoadError(f'{where}: expected a tensor with one value for each row, got "{spec.name}": {spec}')
    for value in condition.values:
        if datatype_of_value(value) not in _LIKE[spec.datatype]:
            raise ModelLoadError(f'{where}: "{spec.name}" is {spec.datatype}, which {value!r} cannot be')


def datatype_of_value(value: Value) -> str:
    """The datatype of an input that nothing but a condition knows."""
    if isinstance(value, bool):
        return "BOOL"
    return "BYTES" if isinstance(value, str) else "INT64" if isinstance(value, int) else "FP64"


_LIKE: Final = {
    "BOOL": ("BOOL",),
    "BYTES": ("BYTES",),
    **dict.fromkeys(
        ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"),
        ("INT64", "FP64"),
    ),
}
