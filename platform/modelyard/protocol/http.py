# SPDX-License-Identifier: Apache-2.0
"""The encoded HTTP reply, and JSON text in and out with the bare tokens ``NaN``, ``Infinity`` and ``-Infinity``.

orjson neither reads nor writes these tokens, and tabular data is full of them. Reading falls back to the standard
library where orjson refuses and the text has such a token; writing notices the ``null`` that orjson puts in place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from modelyard.errors import InvalidRequest
from modelyard.tensor import Array

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
_JSON: Final = (b"content-type", b"application/json")
_NULL: Final = re.compile(rb"null")

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One HTTP reply.

    Attributes:
        status: The HTTP status.
        body: The whole body.
        headers: Lower-case pairs as ASGI wants them, with content-type and content-length.
    """

    status: int
    body: bytes
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True)
class Streamed:
    """One HTTP reply whose body comes bit by bit.

    Attributes:
        status: The HTTP status.
        chunks: The parts of the body; closed by the edge, also when the client goes away.
        headers: Lower-case pairs as ASGI wants them, with content-type.
        idle_chunk: What is sent where no other chunk comes for ``idle_s`` seconds.
        idle_s: See there; 0 for never.
    """

    status: int
    chunks: AsyncGenerator[bytes]
    headers: tuple[Header, ...]
    idle_chunk: bytes = b""
    idle_s: float = 0.0


def load_json(body: bytes) -> Any:
    """The JSON value in a body; ``NaN``, ``Infinity`` and ``-Infinity`` are read as floats.

    Raises:
        InvalidRequest: The body is not JSON in UTF-8.

    Source: TensorFlow Serving RESTful API, "JSON conformance".
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        if b"NaN" in body or b"Infinity" in body:
            return _load_tokens(body)
        reason = "it is empty" if not body else str(exc)
        raise InvalidRequest(f"the request body is not JSON: {reason}") from None


def _load_tokens(body: bytes) -> Any:
    try:
        document = json.loads(body.decode())
        if b"\\u" in body:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the request body is not JSON: a string has a lone surrogate") from None
    except (ValueError, RecursionError) as exc:  # ValueError: not UTF-8, not JSON, or an integer of thousands of digits
        raise InvalidRequest(f"the request body is not JSON: {exc}") from None
    return document


def holds_word(text: bytes, word: bytes, rare: bytes) -> bool:
    """Whether a word occurs in a text.

    In a long text it looks for one letter first: that is some hundred times faster among numbers, which nearly all
    long texts are made of.

    Args:
        text: Where to look.
        word: What to look for.
        rare: The letter of the word that bodies have least often.
    """
    if len(text) < 1024:
        return word in text
    at, start = word.index(rare), 0
    for _ in range(16):
        found = text.find(rare, start)
        if found < 0:
            return False
        if text.startswith(word, max(found - at, 0)):
            return True
        start = found + 1
    return text.find(word, start - at) >= 0


def dump_json(document: Any) -> bytes:
    """JSON text of a document that may hold C-contiguous numpy arrays and scalars; non-finite floats become tokens."""
    text = orjson.dumps(document, option=_OPTIONS)
    if holds_word(text, b"null", b"u"):
        text = orjson.dumps(_with_tokens(document), option=_OPTIONS)
    return text


def encode_json(document: Any, status: int = 200, headers: tuple[Header, ...] = ()) -> Encoded:
    """A reply with a JSON body."""
    body = dump_json(document)
    return Encoded(status, body, (_JSON, (b"content-length", b"%d" % len(body)), *headers))


def _with_tokens(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.floating):
        return _fragment(np.asarray(value)) if value.dtype.kind == "f" else value
    if isinstance(value, float):
        return value if math.isfinite(value) else _fragment(np.asarray(value))
    if isinstance(value, dict):
        return {key: _with_tokens(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tokens(item) for item in value]
    return value


def _fragment(array: Array) -> orjson.Fragment:
    # In the text of a float array, "null" stands for a non-finite element and for nothing else, in row-major order.
    tokens = _tokens(array)
    text = orjson.dumps(array if array.ndim else array[()], option=_OPTIONS)
    return orjson.Fragment(_NULL.sub(lambda _: next(tokens), text))


def _tokens(array: Array) -> Iterator[bytes]:
    for value in array[~np.isfinite(array)].tolist():
        yield b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
