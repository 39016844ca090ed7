# SPDX-License-Identifier: Apache-2.0
"""MLflow: from whatever a pyfunc answers to named tensors.

An array is ``output-0``, a table has an output for each column, a dict one for each key. What has no datatype becomes
BYTES: dates as ISO 8601 text, bytes as they are, objects as JSON text. A gap among texts is an empty text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from modelyard.signature import TensorSpec
from modelyard.tensor import DATATYPES, Array, datatype_of, to_protocol_array

OUTPUT: Final = "output-0"

_DATATYPES: Final = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
_CONTENT_TYPES: Final = {"binary": "base64", "datetime": "datetime"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a pyfunc answered.

    Attributes:
        arrays: By name; ``output-N`` where it has none.
        is_table: A table, a column of one, or a list of records.
    """

    arrays: Mapping[str, Array]
    is_table: bool = False


def outputs_from_schema(schema: Any) -> tuple[TensorSpec, ...]:
    """The outputs that a signature tells.

    Raises:
        ModelLoadError: A type cannot be carried.
    """
    return tuple(_output_spec(spec, index) for index, spec in enumerate(schema.inputs))


def to_answer(value: Any) -> Answer:
    """The arrays in what a pyfunc answered, in the order it has them.

    Raises:
        TypeError: It has numbers that no datatype fits.
    """
    if isinstance(value, np.ndarray):
        return Answer({OUTPUT: value if value.dtype.kind in "biuf" else to_plain(value)})
    kind = type(value).__name__
    if kind == "DataFrame":
        return Answer({str(name): to_plain(column) for name, column in value.items()}, is_table=True)
    if kind == "Series":
        return Answer({OUTPUT if value.name is None else str(value.name): to_plain(value)}, is_table=True)
    if isinstance(value, Mapping):
        return Answer({str(name): to_plain(item) for name, item in value.items()})
    if hasattr(value, "toarray"):
        return Answer({OUTPUT: value.toarray()})
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return _from_records(value)
    return Answer({OUTPUT: to_plain(value)})


def fit_answer(answer: Answer, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The outputs of the signature out of an answer, cast where the kinds of numbers fit.

    Raises:
        ValueError: They are not in it.
    """
    arrays = answer.arrays
    if len(specs) == 1 and len(arrays) == 1:
        (spec,), (array,) = specs, arrays.values()
        return {spec.name: _fit(array, spec)}
    if all(spec.name in arrays for spec in specs):
        return {spec.name: _fit(arrays[spec.name], spec) for spec in specs}
    found: Sequence[Array] = list(arrays.values())
    if len(found) == 1 and found[0].ndim == 2 and found[0].shape[1] == len(specs):
        found = list(found[0].T)
    if len(specs) == 1 and all(array.shape == found[0].shape and array.dtype.kind in "biuf" for array in found):
        found = [np.stack(found, axis=1)]
    if len(found) != len(specs):
        names = ", ".join(arrays)
        raise ValueError(f"its signature has the outputs {', '.join(s.name for s in specs)}, it answered {names}")
    return {spec.name: _fit(array, spec) for spec, array in zip(specs, found, strict=True)}


def to_specs(answer: Answer, tried: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The outputs of a model that tells none, from an answer.

    Args:
        answer: To made-up rows.
        tried: Datatypes and shapes that were found out with them.
    """
    specs = []
    for spec in tried:
        array = answer.arrays[spec.name]
        content = _content_type(array) or ("pd" if answer.is_table else "")
        specs.append(replace(spec, content_type=content))
    return tuple(specs)


def to_plain(value: Any) -> Array:
    """An array of booleans, numbers, texts, bytes or other objects. A view where it is one."""
    array = _nullable(value) if hasattr(value, "to_numpy") else _stack(value)
    if array.dtype.kind == "M":
        return _dates(array)
    if array.dtype.kind in "biufUS" or array.dtype.kind != "O":
        return array
    return _objects(array)


def _nullable(series: Any) -> Array:
    """A column's values; the extension types of pandas have gaps of their own."""
    if series.dtype.kind in "iufb" and not isinstance(series.dtype, np.dtype):
        has_gaps = bool(series.isna().any())
        array: Array = series.to_numpy(dtype=np.float64 if has_gaps else series.dtype.numpy_dtype, na_value=np.nan)
        return array
    if getattr(series.dtype, "tz", None) is not None:
        return np.array([item.isoformat() for item in series], dtype=object)
    found: Array = series.to_numpy()
    return found


def _stack(value: Any) -> Array:
    """A list as an array; rows that differ in length stay lists."""
    try:
        array = np.asarray(value)
    except ValueError:
        return _column(value)
    if array.dtype.kind in "US" and not _are_texts(value):
        return _column(value)  # numbers among texts, which numpy has made texts
    return array


def _are_texts(value: Any) -> bool:
    kinds = {type(item) for item in np.asarray(value, dtype=object).reshape(-1)}
    return kinds <= {str, np.str_} or kinds <= {bytes, np.bytes_}


def _column(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    for index, item in enumerate(values):
        array[index] = item
    return array


def _dates(array: Array) -> Array:
    import pandas as pd

    dates = pd.DatetimeIndex(array.reshape(-1))
    return _column([date.isoformat() for date in dates]).reshape(array.shape)


def _objects(array: Array) -> Array:
    """Texts, bytes, or numbers with gaps; else the objects as they are."""
    items = array.reshape(-1).tolist()
    kinds = {type(item) for item in items if not _is_gap(item)}
    if kinds and kinds <= {bool, int, float} and not (bool in kinds and len(kinds) > 1):
        has_gaps = any(map(_is_gap, items))
        if kinds == {bool} and not has_gaps:
            return array.astype(np.bool_)
        if not has_gaps or bool not in kinds:
            return np.array([np.nan if _is_gap(item) else item for item in items]).reshape(array.shape)
    if (kinds and kinds <= {str}) or kinds == {bytes}:
        gap = b"" if kinds == {bytes} else ""
        return _column([gap if _is_gap(item) else item for item in items]).reshape(array.shape)
    if kinds and all(hasattr(kind, "isoformat") for kind in kinds):
        return _column(["" if _is_gap(item) else item.isoformat() for item in items]).reshape(array.shape)
    return array


def _is_gap(item: Any) -> bool:
    return item is None or (type(item).__name__ in ("NaTType", "NAType")) or item != item


def _from_records(records: Sequence[Mapping[str, Any]]) -> Answer:
    """A list of objects with the same keys is a table; any other is one JSON text for each."""
    names = list(records[0])
    if any(list(record) != names for record in records):
        return Answer({OUTPUT: _column(records)})
    return Answer({str(name): to_plain([record[name] for record in records]) for name in names}, is_table=True)


def _fit(array: Array, spec: TensorSpec) -> Array:
    wanted = DATATYPES[spec.datatype].dtype
    if array.dtype == wanted and wanted.kind != "O":
        return array
    if spec.datatype == "BYTES":
        return _texts(array, spec.content_type == "json")
    if array.dtype.kind in "biuf" and np.can_cast(array.dtype, wanted, "same_kind"):
        return array.astype(wanted)
    return array if array.dtype.kind != "O" else _texts(array, False)


def _texts(array: Array, is_json: bool) -> Array:
    """BYTES: texts and bytes as they are, and all else, or where asked for everything, as JSON text."""
    if array.dtype.kind in "US" and not is_json:
        return to_protocol_array(array)
    items = array.reshape(-1).tolist() if not is_json or array.ndim == 1 else list(array.tolist())
    texts = [item if isinstance(item, (str, bytes)) and not is_json else _dump(item) for item in items]
    return to_protocol_array(_column(texts).reshape(array.shape[:1] if len(texts) != array.size else array.shape))


def _dump(item: Any) -> str:
    return json.dumps(item, default=_to_json, ensure_ascii=False)


def _to_json(item: Any) -> Any:
    for name in ("tolist", "isoformat", "model_dump"):
        if hasattr(item, name):
            return getattr(item, name)()
    return str(item)


def _content_type(array: Array) -> str:
    """What an answer's objects are, where they are no texts."""
    if array.dtype.kind != "O" or not array.size:
        return ""
    first = array.reshape(-1)[0]
    if isinstance(first, bytes):
        return "base64"
    return "" if isinstance(first, str) else "json"


def _output_spec(spec: Any, index: int) -> TensorSpec:
    name = f"output-{index}" if spec.name is None else str(spec.name)
    if not hasattr(spec, "required") or hasattr(spec, "shape"):
        try:
            datatype = datatype_of(np.empty(0, spec.type))
        except TypeError:
            datatype = "BYTES"
        return TensorSpec(name, datatype, tuple(map(int, spec.shape)))
    kind, depth = spec.type, 0
    while type(kind).__name__ == "Array":
        kind, depth = kind.dtype, depth + 1
    scalar = getattr(kind, "name", "")
    if depth == 0 and scalar in _CONTENT_TYPES:
        return TensorSpec(name, "BYTES", (-1,), content_type=_CONTENT_TYPES[scalar])
    if scalar not in _DATATYPES:
        return TensorSpec(name, "BYTES", (-1,), content_type="json")
    is_named = spec.name is not None
    return TensorSpec(name, _DATATYPES[scalar], (-1,) * (depth + 1), content_type="pd" if is_named else "")
