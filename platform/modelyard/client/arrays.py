# SPDX-License-Identifier: Apache-2.0
"""From what people have in a notebook - lists, arrays, tables - to named protocol arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest
from modelyard.tensor import Array, to_protocol_array

DEFAULT_INPUT: Final = "input-0"


def to_tensors(data: Any) -> dict[str, Array]:
    """Named protocol arrays; views where the data already has a protocol datatype.

    Args:
        data: One array or nested list (named ``input-0``, which models without input names take), a mapping of such
            by input name, a DataFrame (one input per column), or a list of records (one input per key).

    Raises:
        InvalidRequest: A value is missing, ragged, or of a kind no protocol carries (dates, complex numbers).
    """
    if isinstance(data, Mapping):
        columns = {str(name): values for name, values in data.items()}
    elif hasattr(data, "columns") and hasattr(data, "to_numpy"):
        columns = _frame_columns(data)
    elif isinstance(data, list | tuple) and data and isinstance(data[0], Mapping):
        columns = _record_columns(data)
    else:
        columns = {DEFAULT_INPUT: data}
    return {name: _to_array(values, f'input "{name}"') for name, values in columns.items()}


def _frame_columns(frame: Any) -> dict[str, Any]:
    names = list(frame.columns)
    if len({str(name) for name in names}) != len(names):
        raise InvalidRequest("the table has two columns of one name")
    return {str(name): frame[name].to_numpy() for name in names}


def _record_columns(records: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    names = list(records[0])
    for index, record in enumerate(records):
        if not isinstance(record, Mapping) or record.keys() != records[0].keys():
            raise InvalidRequest(f"record {index}: expected the keys of the first, {', '.join(map(str, names))}")
    return {str(name): [record[name] for record in records] for name in names}


def _to_array(values: Any, where: str) -> Array:
    try:
        array = np.asarray(values)
        return to_protocol_array(_from_objects(array, where) if array.dtype.kind == "O" else array)
    except (TypeError, ValueError) as exc:  # numpy: ragged; tensor: no such datatype
        raise InvalidRequest(f"{where}: {exc}") from exc


def _from_objects(array: Array, where: str) -> Array:
    """Objects that are all texts or bytes stay; numbers a table kept as objects become numbers again."""
    items = array.reshape(-1).tolist()
    for index, item in enumerate(items):
        if item is None or item != item or type(item).__name__ == "NAType":
            raise InvalidRequest(f"{where}: element {index} has no value; fill or drop what is missing")
    if all(isinstance(item, str | bytes) for item in items):
        return array
    if any(isinstance(item, str | bytes) for item in items):
        raise InvalidRequest(f"{where}: expected all texts or all numbers, got both")
    numbers = np.array(items)
    if numbers.dtype.kind == "O":
        raise InvalidRequest(f"{where}: expected texts or numbers, got {type(items[0]).__name__}")
    return numbers.reshape(array.shape)
