# SPDX-License-Identifier: Apache-2.0
"""``tensorflow.TensorProto`` to protocol arrays and back.

"One request": inside the two ends of ``Predict``. Answers have the typed fields (``float_val``), which is what clients
of TensorFlow Serving look at; see ``tensorflow_packed.proto`` for how they are written.

Source: TensorFlow ``framework/tensor.proto``, ``framework/tensor.cc`` ``FromProtoField``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidTensor, TooLarge
from modelyard.protocol.fields import check_shape
from modelyard.protos import tensorflow_packed_pb2 as packed
from modelyard.protos import tensorflow_pb2 as tf
from modelyard.tensor import DATATYPES, Array, Datatype, datatype_of, element_count, from_raw

_FIELDS: Final = {
    "BOOL": "bool_val",
    "UINT8": "int_val",
    "UINT16": "int_val",
    "UINT32": "uint32_val",
    "UINT64": "uint64_val",
    "INT8": "int_val",
    "INT16": "int_val",
    "INT32": "int_val",
    "INT64": "int64_val",
    "FP16": "half_val",
    "BF16": "half_val",
    "FP32": "float_val",
    "FP64": "double_val",
    "BYTES": "string_val",
}
"""Where the elements are, by datatype."""
_NUMBERS: Final[Mapping[str, int]] = {
    "BOOL": tf.DT_BOOL,
    "UINT8": tf.DT_UINT8,
    "UINT16": tf.DT_UINT16,
    "UINT32": tf.DT_UINT32,
    "UINT64": tf.DT_UINT64,
    "INT8": tf.DT_INT8,
    "INT16": tf.DT_INT16,
    "INT32": tf.DT_INT32,
    "INT64": tf.DT_INT64,
    "FP16": tf.DT_HALF,
    "BF16": tf.DT_BFLOAT16,
    "FP32": tf.DT_FLOAT,
    "FP64": tf.DT_DOUBLE,
    "BYTES": tf.DT_STRING,
}
_DATATYPES: Final = {number: DATATYPES[name] for name, number in _NUMBERS.items()}
_PACKED: Final = frozenset({"bool_val", "float_val", "double_val"})
"""Fields whose packed bytes are those of the array."""
_PACKED_FROM: Final = 256
"""From so many elements it pays to write the message again and read its bytes."""
_POINTER_BYTES: Final = 8
_MAX_VARINT_BYTES: Final = 5


@dataclass(slots=True)
class Budget:
    """How many bytes of tensors a request may still bring, so that a shape alone allocates nothing.

    Attributes:
        limit: All that it may bring.
        used: What it has brought.
    """

    limit: int
    used: int = 0

    def take(self, count: int) -> None:
        """Takes bytes of it.

        Raises:
            TooLarge: There are not so many.
        """
        self.used += count
        if self.used > self.limit:
            raise TooLarge("tensors of the request", self.limit, self.used)


def decode_tensor(message: tf.TensorProto, where: str, budget: Budget) -> Array:
    """The array in a message; where it has fewer elements than its shape says, the last one counts for the rest.

    Args:
        message: With ``tensor_content``, a read-only view on its bytes.
        where: Which tensor, for the message.
        budget: Pays for the array.

    Raises:
        InvalidTensor: The message contradicts its own datatype or shape.
        TooLarge: The array is larger than the budget allows.
    """
    datatype = _find_datatype(message.dtype, where)
    if message.tensor_shape.unknown_rank:
        raise InvalidTensor(f"{where} shape", "known dimensions", "unknown_rank")
    shape = check_shape([dim.size for dim in message.tensor_shape.dim], where)
    count = element_count(shape)
    budget.take(count * (datatype.item_bytes or _POINTER_BYTES))
    if message.tensor_content:
        return _from_content(message.tensor_content, datatype, shape, where, budget)
    if datatype.item_bytes is None:
        return _from_strings(list(message.string_val), count, where, budget).reshape(shape)
    return _fill(_read_field(message, datatype, where), count, where).reshape(shape)


def _find_datatype(number: int, where: str) -> Datatype:
    datatype = _DATATYPES.get(number)
    if datatype is None:
        name = tf.DataType.Name(number) if number in tf.DataType.values() else str(number)
        known = ", ".join(tf.DataType.Name(known) for known in _DATATYPES)
        raise InvalidTensor(f"{where} dtype", f"one of {known}", name)
    return datatype


def _read_field(message: tf.TensorProto, datatype: Datatype, where: str) -> Array:
    """The elements that there are, flat."""
    field = _FIELDS[datatype.name]
    elements = getattr(message, field)
    if field in _PACKED and len(elements) >= _PACKED_FROM:
        whole = packed.Tensor.FromString(message.SerializeToString())
        return np.frombuffer(getattr(whole, field), dtype=datatype.dtype)
    if field == "half_val":
        return _read_integers(elements, np.dtype("<u2"), "16 bits", where).view(datatype.dtype)
    return _read_integers(elements, datatype.dtype, datatype.name, where)


def _read_integers(elements: Any, dtype: np.dtype[Any], name: str, where: str) -> Array:
    """The elements as an array; those of 8 and 16 bits travel in 32 and are checked."""
    try:
        return np.array(elements[:], dtype=dtype)
    except OverflowError:
        bounds = np.iinfo(dtype)
        at, value = next((i, v) for i, v in enumerate(elements) if not bounds.min <= v <= bounds.max)
        expected = f"an integer from {bounds.min} to {bounds.max} ({name})"
        raise InvalidTensor(f"{where} element {at}", expected, str(value)) from None


def _fill(elements: Array, count: int, where: str) -> Array:
    if len(elements) == count:
        return elements
    _check_count(len(elements), count, where)
    out = np.zeros(count, dtype=elements.dtype)
    if len(elements):
        out[: len(elements)] = elements
        out[len(elements) :] = elements[-1]
    return out


def _check_count(got: int, count: int, where: str) -> None:
    if got > count:
        raise InvalidTensor(where, f"at most the {count} elements of its shape", str(got))


def _from_strings(elements: list[bytes], count: int, where: str, budget: Budget) -> Array:
    _check_count(len(elements), count, where)
    missing = count - len(elements)
    last = elements[-1] if elements else b""
    budget.take(sum(map(len, elements)) + missing * len(last))
    out = np.empty(count, dtype=object)
    out[: len(elements)] = elements
    out[len(elements) :] = last
    return out


def _from_content(content: bytes, datatype: Datatype, shape: tuple[int, ...], where: str, budget: Budget) -> Array:
    if datatype.item_bytes is not None:
        return from_raw(content, datatype, shape, f"{where} tensor_content")
    budget.take(len(content))
    return _split_content(content, element_count(shape), f"{where} tensor_content").reshape(shape)


def _split_content(content: bytes, count: int, where: str) -> Array:
    """Strings as TensorFlow itself writes them: all lengths as varints, then all bytes.

    Source: TensorFlow ``tsl/platform/tensor_coding.cc``, ``EncodeStringList``.
    """
    if count > len(content):
        raise InvalidTensor(where, f"{count} lengths", f"{len(content)} bytes")
    lengths, offset = [], 0
    for _ in range(count):
        length, offset = _read_varint(content, offset, where)
        lengths.append(length)
    if offset + sum(lengths) != len(content):
        raise InvalidTensor(where, f"{sum(lengths)} bytes after the lengths", f"{len(content) - offset}")
    out = np.empty(count, dtype=object)
    for index, length in enumerate(lengths):
        out[index] = content[offset : offset + length]
        offset += length
    return out


def _read_varint(content: bytes, offset: int, where: str) -> tuple[int, int]:
    """One number and where the next begins."""
    value = 0
    for index, byte in enumerate(content[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, offset + index + 1
    raise InvalidTensor(where, "a length before each element", f"{len(content) - offset} bytes at {offset}")


def encode_tensor(array: Array, into: packed.Tensor) -> None:
    """Writes a protocol array into a message."""
    datatype = datatype_of(array)
    into.dtype = _NUMBERS[datatype]  # type: ignore[assignment]  # the enum's number is what it holds
    for size in array.shape:
        into.tensor_shape.dim.add(size=size)
    into.tensor_shape.SetInParent()  # of a scalar too
    field = _FIELDS[datatype]
    if field in _PACKED:
        setattr(into, field, array.tobytes())
    elif field == "half_val":
        into.half_val.extend(np.ascontiguousarray(array).reshape(-1).view(np.uint16).tolist())
    else:
        getattr(into, field).extend(array.reshape(-1).tolist())
