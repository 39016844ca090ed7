# SPDX-License-Identifier: Apache-2.0
"""Checks of single fields of a decoded body, and how messages show what was found instead."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Container, Iterable
from typing import Any, Final

import numpy as np

from modelyard.errors import InvalidRequest, InvalidTensor, Unsupported
from modelyard.inference import RequestedOutput
from modelyard.tensor import Array, Parameters

MAX_RANK: Final = 32
"""More dimensions are refused; numpy itself ends at 64."""

MAX_ELEMENTS: Final = 2**48
"""More elements, zero dimensions left out, are refused before anything is computed with the shape."""

_SCALARS: Final = frozenset({bool, int, float, str})
_KINDS: Final = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}


def show(value: object) -> str:
    """A JSON value as messages name it: its kind, and a short string's text."""
    if value is None:
        return "null"
    if isinstance(value, str):
        text = value if len(value) <= 40 else f"{value[:40]}…"
        return f'the string "{text}"'
    if type(value) in (bool, int, float):
        text = str(value)
        return text if len(text) <= 40 else f"{text[:40]}…"
    return _KINDS.get(type(value), "something else")


def quoted(names: Iterable[str]) -> str:
    """Names for a message: ``"a", "b"``, at most twenty of them."""
    listed = [f'"{name}"' for name in names]
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return ", ".join(listed[:20]) + more or "none"


def expected(where: str, what: str, got: object) -> InvalidRequest:
    """The refusal of one field: ``id: expected a string, got 7``."""
    return InvalidRequest(f"{where}: expected {what}, got {show(got)}")


def check_object(value: Any, where: str) -> dict[str, Any]:
    """The value, which must be a JSON object.

    Raises:
        InvalidRequest: It is not.
    """
    if type(value) is not dict:
        raise expected(where, "an object", value)
    return value


def check_list(value: Any, where: str) -> list[Any]:
    """The value, which must be a JSON list.

    Raises:
        InvalidRequest: It is not.
    """
    if type(value) is not list:
        raise expected(where, "a list", value)
    return value


def check_text(value: Any, where: str) -> str:
    """The value, which must be a string.

    Raises:
        InvalidRequest: It is not.
    """
    if type(value) is not str:
        raise expected(where, "a string", value)
    return value


def check_flag(parameters: Parameters, name: str, where: str) -> bool | None:
    """A boolean parameter, None where it is absent.

    Raises:
        InvalidRequest: It is not a boolean.
    """
    value = parameters.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise expected(f'{where} "{name}"', "true or false", value)


def check_depth(value: Any, limit: int, where: str) -> None:
    """Refuses JSON that is nested deeper than what comes after a decoder can follow.

    Raises:
        InvalidRequest: There are more lists and objects inside each other than ``limit``.
    """
    level = [value]
    for _ in range(limit + 1):
        nested = [item for item in level if type(item) in (dict, list)]
        level = [child for item in nested for child in (item.values() if type(item) is dict else item)]
        if not level:
            return
    raise InvalidRequest(f"{where}: expected at most {limit} objects and lists inside each other, got more")


def check_parameters(value: Any, where: str) -> dict[str, Any]:
    """A ``parameters`` object; empty where it is absent or null.

    Raises:
        InvalidRequest: It is not an object of strings, numbers and booleans.

    Source: Open Inference Protocol, "Parameters".
    """
    if value is None:
        return {}
    for name, item in check_object(value, where).items():
        if type(item) not in _SCALARS:
            raise expected(f'{where} "{name}"', "a string, number or boolean", item)
    return value  # type: ignore[no-any-return]  # checked above to be a dict


def check_not_shared(parameters: Container[str], where: str) -> None:
    """The parameters of a tensor that is in the request, not in memory shared with its sender.

    Raises:
        Unsupported: They name a region.

    Source: Triton "Shared-Memory Extension".
    """
    if "shared_memory_region" in parameters:
        raise Unsupported(f"{where}: shared memory is not supported: send tensors in the request")


def check_shape(dims: Iterable[Any], where: str) -> tuple[int, ...]:
    """A request's shape: concrete, and small enough to compute with.

    Raises:
        InvalidTensor: A dimension is negative or no integer, or the shape is absurd.
    """
    shape = tuple(dims)
    if len(shape) > MAX_RANK:
        raise InvalidTensor(f"{where} shape", f"at most {MAX_RANK} dimensions", str(len(shape)))
    count = 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise InvalidTensor(f"{where} shape", "integers of 0 or more", show(dim))
        count *= dim or 1
    if count > MAX_ELEMENTS:
        raise InvalidTensor(f"{where} shape", f"at most {MAX_ELEMENTS} elements", f"[{','.join(map(str, shape))}]")
    return shape


def check_unique(outputs: tuple[RequestedOutput, ...]) -> tuple[RequestedOutput, ...]:
    """Requested outputs, each of which must be named once.

    Raises:
        InvalidRequest: One is named twice.
    """
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen:
            raise InvalidRequest(f'outputs: "{output.name}" is requested twice')
        seen.add(output.name)
    return outputs


def decode_content(array: Array, content_type: object, where: str) -> Array:
    """Undoes ``content_type: base64`` on a BYTES tensor; every other content type leaves the array as it is.

    Args:
        array: The tensor as it came.
        content_type: The tensor's own parameter, or the request's where it has none.
        where: Which tensor, for the message.

    Raises:
        InvalidTensor: An element is not base64.

    Source: MLServer, "Content Types".
    """
    if content_type != "base64" or array.dtype.kind != "O":
        return array
    out = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.reshape(-1).tolist()):
        try:
            out[index] = base64.b64decode(item, validate=True)
        except binascii.Error:
            raise InvalidTensor(f"{where} element {index}", "base64", "something else") from None
    return out.reshape(array.shape)
