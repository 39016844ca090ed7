# SPDX-License-Identifier: Apache-2.0
"""JSON lists to protocol arrays and back.

A list is flattened and read by :class:`array.array`, whose type codes take numbers of one kind and nothing else; numpy
would read the string ``"1"`` as a number, and make every element as wide as the longest string among them. Only where
that fails are the elements looked at one by one, to find the culprit (or the ``null`` that stands for NaN).
"""

from __future__ import annotations

import math
from array import array as typed_array
from collections.abc import Callable
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np

from modelyard.errors import InvalidRequest, InvalidTensor
from modelyard.protocol.fields import MAX_RANK, show
from modelyard.protocol.http import holds_word
from modelyard.signature import TensorSpec
from modelyard.tensor import DATATYPES, Array, Datatype, describe, element_count

_BOUNDS: Final = {
    name: (int(np.iinfo(row.dtype).min), int(np.iinfo(row.dtype).max))
    for name, row in DATATYPES.items()
    if row.dtype.kind in "iu"
}
# The smallest magnitude that rounds to infinity: half a step beyond the largest number.
_TOO_LARGE: Final = {"FP16": 65520.0, "BF16": 2.0**128 - 2.0**119, "FP32": 2.0**128 - 2.0**103, "FP64": math.inf}
_CODES: Final = dict.fromkeys(_TOO_LARGE, "d") | {name: DATATYPES[name].dtype.char for name in _BOUNDS}
_NUMBERS_AND_NULL: Final = frozenset({int, float, type(None)})


def may_hold_bools(text: bytes) -> bool:
    """Whether a JSON text can have a boolean anywhere: numpy takes one among numbers for a number without a word."""
    return holds_word(text, b"true", b"u") or holds_word(text, b"false", b"l")


def from_json(data: Any, datatype: Datatype, where: str, bools: bool) -> Array:
    """The array in a JSON value, in the shape its nesting has. A new array.

    Floats take any number, and ``null`` as NaN; integers take integers in range; BOOL takes booleans; BYTES takes
    strings, as UTF-8.

    Args:
        data: A list, nested or flat; or one value.
        datatype: What it has to hold.
        where: What it is, for the message: ``instances``.
        bools: Whether there can be booleans in it, see :func:`may_hold_bools`.

    Raises:
        InvalidTensor: An element is of another kind or out of range, or the list is ragged; the message says which.
    """
    if datatype.item_bytes is None:
        return _from_strings(data, where)
    found = _find_elements(data)
    if found is None:
        return _from_elements(data, datatype, where)
    elements, shape = found
    if bools and (bool in set(map(type, elements))) is not (datatype.name == "BOOL"):
        return _from_elements(data, datatype, where)
    try:
        array = _read(elements, datatype)
    except (TypeError, OverflowError, FloatingPointError):
        return _from_elements(data, datatype, where)
    return array.reshape(shape)


def fill_gaps(values: Any, spec: TensorSpec) -> Any:
    """The values of an input with what stands for a missing one in place of ``null``; floats have NaN for it anyway."""
    if not spec.gaps or spec.datatype != "BYTES" or type(values) is not list:
        return values
    return ["" if value is None else value for value in values]


def _find_elements(data: Any) -> tuple[list[Any], tuple[int, ...]] | None:
    """Elements and shape of a list of equal lists; None where it is empty, ragged, mixed or nested too deeply."""
    elements: list[Any] = data if type(data) is list else [data]
    shape = (len(elements),) if elements is data else ()
    while elements and type(elements[0]) is list:
        width = len(elements[0])
        if len(shape) == MAX_RANK or set(map(type, elements)) != {list} or set(map(len, elements)) != {width}:
            return None
        elements = list(chain.from_iterable(elements))
        shape = (*shape, width)
    return (elements, shape) if elements else None


def _read(elements: list[Any], datatype: Datatype) -> Array:
    """Elements of one kind, all in range, as a flat array.

    Raises:
        TypeError: One is of another kind.
        OverflowError: One does not fit.
        FloatingPointError: The same, for a float.
    """
    if datatype.name == "BOOL":
        if set(map(type, elements)) != {bool}:
            raise TypeError
        return np.array(elements, dtype=datatype.dtype)
    try:
        array: Array = np.frombuffer(typed_array(_CODES[datatype.name], elements), dtype=_CODES[datatype.name])
    except TypeError:
        if datatype.name in _BOUNDS or not _NUMBERS_AND_NULL.issuperset(map(type, elements)):
            raise
        array = np.array(elements, dtype=np.float64)
    if array.dtype == datatype.dtype:
        return array
    with np.errstate(over="raise"):
        narrowed = array.astype(datatype.dtype)
    if datatype.name == "BF16" and np.any(np.isinf(narrowed) & np.isfinite(array)):  # its casts raise nothing
        raise FloatingPointError
    return narrowed


def _from_strings(data: Any, where: str) -> Array:
    shape: tuple[int, ...]
    try:
        elements = [item.encode() for item in data] if type(data) is list else [data.encode()]
        shape = (len(elements),) if type(data) is list else ()
    except (AttributeError, UnicodeEncodeError):
        flat, shape = flatten(data, check_string, "string", where)
        elements = [item.encode() for item in flat]
    out = np.empty(len(elements), dtype=object)
    out[:] = elements
    return out.reshape(shape)


def _from_elements(data: Any, datatype: Datatype, where: str) -> Array:
    checks: dict[str, tuple[Callable[[Any, Datatype], str], str]] = {"BOOL": (_check_bool, "boolean")}
    default = (_check_float, "number") if datatype.name in _TOO_LARGE else (_check_integer, "integer")
    check, noun = checks.get(datatype.name, default)
    flat, shape = flatten(data, lambda item: check(item, datatype), noun, where)
    return np.array(flat, dtype=datatype.dtype).reshape(shape)


def check_string(item: Any) -> str:
    """What an element of BYTES had to be; empty where it is right. For :func:`flatten`."""
    if type(item) is not str:
        return "a string"
    try:
        item.encode()
    except UnicodeEncodeError:
        return "text without lone surrogates"
    return ""


def _check_bool(item: Any, datatype: Datatype) -> str:
    return "" if type(item) is bool else "true or false"


def _check_integer(item: Any, datatype: Datatype) -> str:
    low, high = _BOUNDS[datatype.name]
    if type(item) is not int:
        return f"an integer ({datatype.name})"
    return "" if low <= item <= high else f"an integer from {low} to {high} ({datatype.name})"


def _check_float(item: Any, datatype: Datatype) -> str:
    if item is None:
        return ""
    if type(item) not in (int, float):
        return f"a number ({datatype.name})"
    try:
        value = abs(float(item))
    except OverflowError:
        value = math.nan
    if value < _TOO_LARGE[datatype.name] or item in (math.inf, -math.inf) or item != item:
        return ""
    return f"a number in the range of {datatype.name}"


def flatten(data: Any, check: Callable[[Any], str], noun: str, where: str) -> tuple[list[Any], tuple[int, ...]]:
    """Elements in row-major order and the shape, level by level so that nesting costs no stack.

    Args:
        data: A list, or one element.
        check: Says what an element had to be, empty where it is right.
        noun: What an element is, for ragged lists.
        where: What ``data`` is, for the message.

    Raises:
        InvalidTensor: With the first element or list that does not fit.
    """
    level: list[Any] = [data]
    shape: list[int] = []
    while level and type(level[0]) is list:
        if len(shape) == MAX_RANK:
            raise InvalidTensor(where, f"at most {MAX_RANK} dimensions", "more")
        width = len(level[0])
        for index, item in enumerate(level):
            if type(item) is not list:
                _refuse(where, shape, index, f"a list of {_plural(width, noun)}", show(item))
            if len(item) != width:
                _refuse(where, shape, index, _plural(width, noun if not _nested(level) else "list"), str(len(item)))
        level = list(chain.from_iterable(level))
        shape.append(width)
    for index, item in enumerate(level):
        wanted = check(item)
        if wanted:
            _refuse(where, shape, index, wanted, show(item))
    return level, tuple(shape)


def _nested(level: list[list[Any]]) -> bool:
    return bool(level[0]) and type(level[0][0]) is list


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _refuse(where: str, shape: list[int], index: int, expected: str, got: str) -> NoReturn:
    position = ""
    for width in reversed(shape):
        index, inner = divmod(index, width)
        position = f"[{inner}]{position}"
    raise InvalidTensor(f"{where}{position}", expected, got)


def to_shape(array: Array, datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    """A decoded array in the shape the client declared: a view.

    Flat data takes any shape with as many elements; nested data must agree with it, up to dimensions of 1.

    Raises:
        InvalidTensor: The element counts differ, or the nesting contradicts the shape.
    """
    if array.shape == shape:
        return array
    count = element_count(shape)
    if array.size != count:
        raise InvalidTensor(where, f"{count} elements for {describe(datatype.name, shape)}", f"{array.size}")
    nested = [dim for dim in array.shape if dim != 1]
    if count and len(nested) > 1 and nested != [dim for dim in shape if dim != 1]:
        raise InvalidTensor(where, describe(datatype.name, shape), f"data nested as {list(array.shape)}")
    return array.reshape(shape)


def fill_shape(spec: TensorSpec, count: int, batch_axis: bool, where: str) -> tuple[int, ...]:
    """The shape of data that comes without one: one row where requests have rows, the rest in the variable dimension.

    Args:
        spec: The input.
        count: How many elements came.
        batch_axis: The first dimension counts rows.
        where: What it is, for the message.

    Raises:
        InvalidTensor: More than one dimension is left open.
    """
    dims = list(spec.shape)
    if batch_axis and dims and dims[0] == -1:
        dims[0] = 1
    variable = [axis for axis, dim in enumerate(dims) if dim == -1]
    if len(variable) > 1:
        raise InvalidTensor(where, "at most one variable dimension in data without a shape", str(spec))
    known = 1
    for dim in dims:
        known *= abs(dim)
    for axis in variable:
        dims[axis] = count // known if known else 0
    return tuple(dims)


def to_json(array: Array, name: str) -> Any:
    """What the JSON encoder takes for one output: an array, a scalar, or nested lists of strings.

    Raises:
        InvalidRequest: It has bytes that are not UTF-8.
    """
    if array.dtype.kind == "O":
        return to_text(array, f'output "{name}"').tolist()
    if array.dtype.itemsize == 2 and array.dtype.kind in "fV":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array) if array.ndim else array[()]


def to_text(array: Array, where: str) -> Array:
    """An object array of strings from a BYTES array, same shape. A copy.

    JSON cannot carry bytes that are not UTF-8, and replacing them would change what the model said.

    Raises:
        InvalidRequest: An element is not UTF-8; the client has to ask for a binary form.
    """
    out = np.empty(array.size, dtype=object)
    try:
        out[:] = [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"{where} has bytes that are not UTF-8, which JSON cannot carry: ask for binary data (v2) or use gRPC"
        ) from None
    return out.reshape(array.shape)
