# SPDX-License-Identifier: Apache-2.0
"""The OpenAI protocol as far as the ingress reads it: whom a call is for, whether it streams, and errors.

"One request": everything else in a body is read where the model is, see ``modelyard.openai``.

Source: OpenAI API reference.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final

from modelyard.errors import InvalidRequest, ModelNotFound, ModelyardError
from modelyard.openai import ROUTES, read_disposition
from modelyard.protocol.errors import encode_http, to_message
from modelyard.protocol.fields import check_object, expected
from modelyard.protocol.http import Encoded, dump_json, encode_json, load_json

PREFIXES: Final = ("/v1", "/openai/v1")
"""Where its routes are; the second one is KServe's."""

BARE: Final = ("tokenize", "detokenize", "rerank", "score")
"""Routes that are at the root too. Source: vLLM "Online serving", "Supported APIs"."""

PATHS: Final = frozenset(f"{prefix}/{route}" for prefix in PREFIXES for route in ROUTES) | {f"/{name}" for name in BARE}
"""Where calls go, and errors have OpenAI's shape."""

_RESOURCES: Final = re.compile(
    "/v1/(?:agents|assistants|audio|batches|chat|chatkit|completions|containers|conversations|detokenize|embeddings|evals|"
    "files|fine_tuning|images|live|moderations|organization|projects|realtime|rerank|responses|safety|score|skills|threads|"
    "tokenize|uploads|vector_stores|videos)(?:/|$)"
)
"""What OpenAI's clients look for below ``/v1``, here or not; ``/v1/models`` is the v1 protocol's. Source: OpenAI API
reference."""

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment that clients skip. Source: HTML standard, "Server-sent events", "Authoring notes"."""

_BEGINNING: Final = 2000
"""Characters; two conversations that begin with as many alike share most of what a replica remembers."""

_BEGINNING_TOKENS: Final = 500
"""As many characters, about, of a prompt that is tokens."""


_TYPES: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Addressee:
    """Whom a JSON call is for.

    Attributes:
        model: The name in its body.
        is_stream: It asks for events.
        document: The whole body.
    """

    model: str
    is_stream: bool
    document: dict[str, Any]


def decode_addressee(body: bytes) -> Addressee:
    """Reads the body as far as the ingress must.

    Raises:
        InvalidRequest: It is no JSON object, or names no model.
    """
    document = check_object(load_json(body), "the request body")
    return Addressee(check_model(document.get("model")), document.get("stream") is True, document)


def check_model(name: object) -> str:
    """The model's name.

    Raises:
        InvalidRequest: It is missing, or no text.
    """
    if not isinstance(name, str) or not name:
        raise expected("model", "the name of a model", name) if name else InvalidRequest("model: it is missing")
    return name


def to_affinity(document: Mapping[str, Any]) -> int:
    """Equal for calls whose prompts begin alike, so that one replica computes that beginning once; 0 without one.

    The beginning is that of a conversation, its first two messages: the system's and what the user asked first, which
    are the same in every later turn. Of a text it is the first characters, of tokens the first of them.
    """
    begin = document.get("messages") or document.get("prompt") or document.get("input")
    tokens = begin[0] if isinstance(begin, list) and begin and isinstance(begin[0], list) else begin
    if isinstance(tokens, list) and tokens and isinstance(tokens[0], int):
        return zlib.crc32(dump_json(tokens[:_BEGINNING_TOKENS])) or 1
    if isinstance(begin, list):
        begin = begin[:2]
    if not isinstance(begin, str | list) or not begin:
        return 0
    text = begin if isinstance(begin, str) else dump_json(begin).decode()
    instructions = document.get("instructions") or ""
    return zlib.crc32(f"{instructions}{text}"[:_BEGINNING].encode("utf-8", "replace")) or 1


def rename(addressee: Addressee, name: str) -> bytes:
    """The body, for the model's own name in place of the one that the client used."""
    return dump_json(addressee.document | {"model": name})


def rename_in_form(body: bytes, content_type: str, name: str) -> bytes:
    """The form, for the model's own name in place of the one that the client used; all else passes as it is.

    Args:
        body: A form that has been read already, so a good one.
        content_type: With its boundary.
        name: The model's own.

    Source: RFC 7578, section 4.2; RFC 2046, section 5.1.1.
    """
    message = Message()
    message["content-type"] = content_type
    delimiter = b"\r\n--" + str(message.get_param("boundary")).encode("latin-1")
    pieces = (b"\r\n" + body).split(delimiter)  # the line break before a boundary belongs to it
    for index, piece in enumerate(pieces):
        head, separator, _ = piece.partition(b"\r\n\r\n")
        if separator and read_disposition(head).get(b"name") == b"model":
            pieces[index] = head + separator + name.encode()
    return delimiter.join(pieces).removeprefix(b"\r\n")


def to_model(name: str, created_s: int) -> dict[str, Any]:
    """OpenAI's model object.

    Args:
        name: The model.
        created_s: When it was made, in seconds since 1970.
    """
    return {"id": name, "object": "model", "created": created_s, "owned_by": "modelyard"}


def is_openai_path(path: str) -> bool:
    """Whether errors there have OpenAI's shape: where calls go, and where clients look for what there is not here."""
    return path in PATHS or path.startswith("/openai/") or _RESOURCES.match(path) is not None


def to_error(error: ModelyardError) -> dict[str, Any]:
    """OpenAI's error object, with the stable code of the error."""
    status = error.http_status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    is_name = isinstance(error, ModelNotFound)
    code = "model_not_found" if is_name else error.code.replace("-", "_")
    return {"error": {"message": to_message(error), "type": kind, "param": "model" if is_name else None, "code": code}}


def encode_error(error: ModelyardError) -> Encoded:
    """The reply to a call that failed."""
    extra = tuple(pair for pair in encode_http(error).headers if pair[0] == b"retry-after")
    return encode_json(to_error(error), error.http_status, extra)


def dump_error(error: ModelyardError) -> bytes:
    """The body of the reply to a call that failed, for a stream that has begun."""
    return dump_json(to_error(error))
