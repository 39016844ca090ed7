# SPDX-License-Identifier: Apache-2.0
"""Between named arrays and what tasks take and give: texts, JSON texts, parameters of a request."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import orjson

from modelyard.errors import InvalidRequest
from modelyard.tensor import Array, Parameters

T = TypeVar("T")
_NUMBERS: Final = orjson.OPT_SERIALIZE_NUMPY
_SHOWN: Final = 60


def to_texts(name: str, array: Array) -> list[str]:
    """The texts of an input.

    Raises:
        InvalidRequest: One is not UTF-8.
    """
    try:
        return [item.decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f'input "{name}": expected UTF-8 text, got {exc.object[:20]!r}') from exc


def to_json_array(values: Sequence[Any]) -> Array:
    """One JSON text for each value."""
    array = np.empty(len(values), dtype=object)
    array[:] = [orjson.dumps(value, option=_NUMBERS) for value in values]
    return array


def to_text_array(texts: Any) -> Array:
    """Texts of any nesting, as an object array of strings."""
    return np.asarray(texts, dtype=object)


def to_files(name: str, array: Array, is_file: Callable[[bytes], bool]) -> list[bytes]:
    """Bytes of files: as they are, or from base64, which is how they come in JSON; a ``data:`` URL is one too.

    Raises:
        InvalidRequest: One is neither.
    """
    return [_to_file(f'input "{name}"[{row}]', item, is_file) for row, item in enumerate(array.reshape(-1).tolist())]


def _to_file(where: str, item: bytes, is_file: Callable[[bytes], bool]) -> bytes:
    if is_file(item):
        return item
    encoded = item.partition(b",")[2] if item.startswith(b"data:") else item
    if not item.isascii():  # of a kind that is not known by its first bytes
        return item
    try:
        return base64.b64decode(b"".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest(f"{where}: expected a file's bytes, or base64 of them, got {item[:20]!r}") from exc


def read_parameter(parameters: Parameters, name: str, kind: type[T], default: T) -> T:
    """A parameter of the request; the default where it has none.

    Raises:
        InvalidRequest: It is of another kind.
    """
    value: Any = parameters.get(name)
    if value is None:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InvalidRequest(f'parameter "{name}": expected {_KINDS[kind]}, got {show(value)}')
    found: T = value
    return found


def read_count(parameters: Parameters, name: str, default: int) -> int:
    """A parameter that counts something.

    Raises:
        InvalidRequest: It is no integer from 1 on.
    """
    value = read_parameter(parameters, name, int, default)
    if value < 1:
        raise InvalidRequest(f'parameter "{name}": expected an integer from 1 on, got {value}')
    return value


_KINDS: Final[dict[type, str]] = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def show(value: object) -> str:
    """A value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
