# SPDX-License-Identifier: Apache-2.0
"""A table of a request, as JSON or CSV holds it, to the tensors of a model: by column name, or by place."""

from __future__ import annotations

import binascii
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.protocol.fields import quoted, show
from modelyard.protocol.tensors import fill_gaps, from_json
from modelyard.signature import Signature, TensorSpec
from modelyard.tensor import DATATYPES, Array, element_count

_GAPS: Final = frozenset(
    {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
"""Texts that are gaps in a CSV table's numbers. Source: pandas ``read_csv``, ``na_values``."""
_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of the same length.

    Attributes:
        columns: JSON values by name, or by number where there are no names.
        rows: How many values each has.
        where: What it is, for messages.
        is_named: It has names.
        is_text: Its values are still text, of CSV.
    """

    columns: Mapping[str, Sequence[Any]]
    rows: int
    where: str
    is_named: bool = True
    is_text: bool = False


def to_table(rows: Sequence[Any], names: Sequence[str] | None, where: str, is_text: bool = False) -> Table:
    """The columns of rows.

    Args:
        rows: Lists of equal length.
        names: Of the columns; None where they have none.
        where: What the rows are, for messages.
        is_text: They are of CSV.

    Raises:
        InvalidRequest: A name is there twice.
        InvalidTensor: A row is no list, or of another length.
    """
    width = len(names) if names is not None else len(rows[0]) if rows and type(rows[0]) is list else 0
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != width:
            got = f"{len(row)}" if type(row) is list else show(row)
            raise InvalidTensor(f"{where}[{index}]", f"a list of {width} values", got)
    labels = [str(index) for index in range(width)] if names is None else list(names)
    if len(set(labels)) != width:
        twice = [name for index, name in enumerate(labels) if name in labels[:index]]
        raise InvalidRequest(f"{where}: expected each column once, got twice: {quoted(twice)}")
    columns = zip(*rows, strict=True) if rows else [()] * width
    return Table(dict(zip(labels, columns, strict=True)), len(rows), where, names is not None, is_text)


def read_csv(body: bytes) -> Table:
    """The table in a CSV text, whose first line names the columns.

    Raises:
        InvalidRequest: It is not UTF-8, has no line, or a quote in it does not end.
        InvalidTensor: A line has more or fewer values than there are columns.
    """
    try:
        text = body.decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as exc:
        raise InvalidRequest(f"the request body is not CSV in UTF-8: {exc}") from None
    if not lines:
        raise InvalidRequest("the request body is not CSV: expected a line with the names of the columns, got none")
    return to_table(lines[1:], lines[0], "CSV row ", is_text=True)


def decode_columns(
    table: Table, signature: Signature, is_encoded: bool = False, bools: bool = True
) -> dict[str, Array]:
    """The model's inputs out of a table; columns that it does not have are ignored.

    Args:
        table: Named, or in the model's order.
        signature: The model's.
        is_encoded: Bytes that are no text are in base64.
        bools: See :func:`~modelyard.protocol.tensors.from_json`.

    Raises:
        InvalidRequest: A column is missing.
        InvalidTensor: A value is not what the input's datatype takes.
    """
    names = [spec.name for spec in signature.inputs]
    if not table.is_named and len(names) > 1:
        table = _name(table, names)
    found = [spec for spec in signature.inputs if _is_there(table, spec)]
    missing = [spec.name for spec in signature.inputs if spec not in found and not spec.optional]
    if not missing:
        return {spec.name: _decode(table, spec.name, spec, is_encoded, bools) for spec in found}
    if len(names) == 1:
        return {names[0]: _decode_single(table, signature, is_encoded, bools)}
    raise InvalidRequest(f"{table.where}: the model is missing inputs {quoted(missing)}, got {quoted(table.columns)}")


def _name(table: Table, names: Sequence[str]) -> Table:
    if len(table.columns) != len(names):
        raise InvalidTensor(table.where, f"rows of {len(names)} values ({quoted(names)})", f"{len(table.columns)}")
    return Table(dict(zip(names, table.columns.values(), strict=True)), table.rows, table.where, True, table.is_text)


def _is_there(table: Table, spec: TensorSpec) -> bool:
    """It has the column; one of nothing but null is as good as none where the input is optional."""
    values = table.columns.get(spec.name)
    if values is None:
        return False
    return not (spec.optional and all(value is None or (table.is_text and value in _GAPS) for value in values))


def _decode_single(table: Table, signature: Signature, is_encoded: bool, bools: bool) -> Array:
    """The one input: a matrix of its columns, or the one column there is."""
    (spec,) = signature.inputs
    chosen = list(table.columns)
    if signature.columns and table.is_named and not set(signature.columns).isdisjoint(chosen):
        missing = [name for name in signature.columns if name not in table.columns]
        if missing:
            raise InvalidRequest(f"{table.where}: the model is missing columns {quoted(missing)}, got {quoted(chosen)}")
        chosen = list(signature.columns)
    elif table.is_named and not signature.columns and not signature.any_input_name and len(spec.shape) != 2:
        raise InvalidRequest(f'{table.where}: the model is missing the input "{spec.name}", got {quoted(chosen)}')
    if len(chosen) == 1:
        array = _decode(table, chosen[0], spec, is_encoded, bools)
        return array[:, np.newaxis] if array.ndim == 1 and len(spec.shape) == 2 else array
    arrays = [_decode(table, name, spec, is_encoded, bools) for name in chosen]
    if not arrays or any(array.shape != (table.rows,) for array in arrays):
        raise InvalidTensor(table.where, f"{spec} as columns of single values", f"{len(arrays)} columns")
    return np.stack(arrays, axis=1)


def _decode(table: Table, name: str, spec: TensorSpec, is_encoded: bool, bools: bool) -> Array:
    where = f'{table.where} "{name}"'
    values: list[Any] = list(table.columns[name])
    if spec.content_type == "json":
        return _to_objects([value.encode() if table.is_text else orjson.dumps(value) for value in values])
    if table.is_text:
        values = _read_values(values, spec.datatype, where)
    values = fill_gaps(values, spec)
    if spec.datatype.startswith(("INT", "UINT")):
        values = [int(value) if type(value) is float and value.is_integer() else value for value in values]
    array = from_json(values, DATATYPES[spec.datatype], where, bools or table.is_text)
    if spec.content_type == "base64" and is_encoded:
        return _from_base64(array, where)
    return _unfold(array, spec)


def _unfold(array: Array, spec: TensorSpec) -> Array:
    """Rows of a tensor that came flat, in a table's cells.

    Source: mlflow ``models/utils.py``, ``_reshape_and_cast_pandas_column_values``.
    """
    inner = spec.shape[1:]
    if array.ndim == 2 and len(inner) > 1 and -1 not in inner and element_count(inner) == array.shape[1]:
        return array.reshape(array.shape[0], *inner)
    return array


def _to_objects(items: Sequence[bytes]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _from_base64(array: Array, where: str) -> Array:
    items = []
    for index, item in enumerate(array.reshape(-1).tolist()):
        try:
            items.append(binascii.a2b_base64(item))
        except binascii.Error:
            raise InvalidTensor(f"{where}[{index}]", "base64", show(item.decode())) from None
    return _to_objects(items).reshape(array.shape)


def _read_values(texts: Sequence[str], datatype: str, where: str) -> list[Any]:
    """JSON values out of CSV's texts.

    Raises:
        InvalidTensor: One is none of the datatype.
    """
    read = _reader(datatype)
    values = []
    for index, text in enumerate(texts):
        try:
            values.append(read(text))
        except (KeyError, ValueError):
            raise InvalidTensor(f"{where}[{index}]", datatype, show(text)) from None
    return values


def _reader(datatype: str) -> Callable[[str], Any]:
    if datatype == "BYTES":
        return str
    if datatype == "BOOL":
        return _WORDS.__getitem__
    return _read_integer if datatype.startswith(("INT", "UINT")) else _read_float


def _read_float(text: str) -> float | None:
    return None if text in _GAPS else float(text)


def _read_integer(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
