# SPDX-License-Identifier: Apache-2.0
"""Datatypes of the Open Inference Protocol and the numpy arrays that carry them.

A tensor is a plain ``numpy.ndarray``: its dtype says the datatype, so no wrapper travels with it. ``BYTES`` tensors
are object arrays of ``bytes``; ``BF16`` is ``ml_dtypes.bfloat16``.

Source: Open Inference Protocol, "Tensor Data Types" and the binary tensor data extension.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from modelyard.errors import InvalidTensor

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
ParameterValue: TypeAlias = bool | int | float | str
Parameters: TypeAlias = Mapping[str, ParameterValue]


@dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the protocol's datatype table.

    Attributes:
        name: The protocol's name, ``FP32``.
        dtype: The numpy dtype of an array of it, little-endian.
        item_bytes: Bytes of one element in raw form; None for BYTES, whose elements have their own length.
        contents: Field of ``InferTensorContents`` that carries it typed over gRPC; None where only raw works.
    """

    name: str
    dtype: np.dtype[Any]
    item_bytes: int | None
    contents: str | None


def _row(name: str, dtype: Any, contents: str | None) -> Datatype:
    numpy_dtype = np.dtype(dtype)
    return Datatype(name, numpy_dtype, None if name == "BYTES" else numpy_dtype.itemsize, contents)


DATATYPES: Final[Mapping[str, Datatype]] = {
    row.name: row
    for row in (
        _row("BOOL", "?", "bool_contents"),
        _row("UINT8", "u1", "uint_contents"),
        _row("UINT16", "<u2", "uint_contents"),
        _row("UINT32", "<u4", "uint_contents"),
        _row("UINT64", "<u8", "uint64_contents"),
        _row("INT8", "i1", "int_contents"),
        _row("INT16", "<i2", "int_contents"),
        _row("INT32", "<i4", "int_contents"),
        _row("INT64", "<i8", "int64_contents"),
        _row("FP16", "<f2", None),
        _row("BF16", ml_dtypes.bfloat16, None),
        _row("FP32", "<f4", "fp32_contents"),
        _row("FP64", "<f8", "fp64_contents"),
        _row("BYTES", object, "bytes_contents"),
    )
}
_BY_DTYPE: Final[Mapping[np.dtype[Any], str]] = {row.dtype: name for name, row in DATATYPES.items()}


def get_datatype(name: str, where: str) -> Datatype:
    """The datatype of that name, in any case.

    Args:
        name: As the client wrote it.
        where: Which tensor, for the message.

    Raises:
        InvalidTensor: There is no such datatype.
    """
    row = DATATYPES.get(name) or DATATYPES.get(name.upper())
    if row is None:
        raise InvalidTensor(where, f"a datatype of {', '.join(DATATYPES)}", name)
    return row


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's dtype; strings and other objects are ``BYTES``.

    Raises:
        TypeError: The dtype has no datatype (complex, structured, dates).
    """
    name = _BY_DTYPE.get(array.dtype)
    if name is not None:
        return name
    if array.dtype.kind in "USOT":
        return "BYTES"
    name = _BY_DTYPE.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise TypeError(f"no protocol datatype for numpy dtype {array.dtype}")
    return name


def to_bytes_array(array: Array) -> Array:
    """An object array of ``bytes`` with the same shape: strings become UTF-8, ``bytes`` stay. A copy."""
    out = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.reshape(-1).tolist()):
        if isinstance(item, bytes):
            out[index] = item
        elif isinstance(item, str):
            out[index] = item.encode()
        else:
            out[index] = str(item).encode()
    return out.reshape(array.shape)


def to_protocol_array(array: Array) -> Array:
    """An array whose dtype is exactly one of ``DATATYPES``: a view when it already is, else a copy.

    Raises:
        TypeError: The dtype has no datatype.
    """
    if array.dtype in _BY_DTYPE and array.dtype.kind != "O":
        return array
    name = datatype_of(array)
    if name == "BYTES":
        return to_bytes_array(array)
    return array.astype(DATATYPES[name].dtype)


def element_count(shape: tuple[int, ...]) -> int:
    """Product of the dimensions; 1 for a scalar."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def from_raw(raw: bytes | memoryview, datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    """The tensor in a raw buffer: a read-only view, except BYTES whose elements are copied.

    BOOL is copied where a byte is neither 0 nor 1; every one but 0 is true. A view is aligned only where the buffer is.

    Args:
        raw: Little-endian, row-major; BYTES elements with a 4-byte little-endian length before each.
        datatype: What the elements are.
        shape: Concrete dimensions.
        where: Which tensor, for the message.

    Raises:
        InvalidTensor: The buffer's size is not what datatype and shape say.

    Source: Open Inference Protocol, binary tensor data extension, "Raw Binary Request".
    """
    count = element_count(shape)
    if datatype.item_bytes is None:
        return _from_raw_bytes(raw, count, where).reshape(shape)
    expected = count * datatype.item_bytes
    if len(raw) != expected:
        raise InvalidTensor(where, f"{expected} bytes for {describe(datatype.name, shape)}", f"{len(raw)} bytes")
    if datatype.dtype.kind == "b":
        return _from_raw_bools(raw).reshape(shape)
    return np.frombuffer(raw, dtype=datatype.dtype).reshape(shape)


def _from_raw_bools(raw: bytes | memoryview) -> Array:
    # A numpy boolean of another byte than 0 and 1 is undefined: comparisons and sums go wrong.
    elements = np.frombuffer(raw, dtype=np.uint8)
    return elements != 0 if (elements > 1).any() else elements.view(np.bool_)


def _from_raw_bytes(raw: bytes | memoryview, count: int, where: str) -> Array:
    elements: list[bytes] = []
    offset, end = 0, len(raw)
    while offset < end:
        if offset + 4 > end:
            raise InvalidTensor(where, "a 4-byte length before each BYTES element", f"{end - offset} bytes at {offset}")
        (length,) = struct.unpack_from("<I", raw, offset)
        offset += 4
        if length > end - offset:
            raise InvalidTensor(where, f"a BYTES element of {length} bytes at {offset}", f"{end - offset} bytes")
        elements.append(bytes(raw[offset : offset + length]))
        offset += length
    if len(elements) != count:
        raise InvalidTensor(where, f"{count} BYTES elements", f"{len(elements)}")
    out = np.empty(count, dtype=object)
    out[:] = elements
    return out


def to_raw(array: Array) -> bytes | memoryview:
    """The raw form of a protocol array: a view where it is contiguous, a copy for BYTES and strided arrays.

    The inverse of :func:`from_raw`.
    """
    if array.dtype.kind == "O":
        parts: list[bytes] = []
        for item in array.reshape(-1).tolist():
            parts.append(struct.pack("<I", len(item)))
            parts.append(item)
        return b"".join(parts)
    if array.size == 0:
        return b""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def byte_size(array: Array) -> int:
    """Bytes of the elements: for BYTES those of the texts, not of the references to them."""
    return sum(map(len, array.flat)) if array.dtype.kind == "O" else array.nbytes


def describe(datatype: str, shape: tuple[int, ...]) -> str:
    """``FP32 [2,4]``, as messages write a tensor."""
    return f"{datatype} [{','.join(map(str, shape))}]"
