# SPDX-License-Identifier: Apache-2.0
"""Errors of vLLM's server, whole replies and events, in OpenAI's words, as every other model says them.

vLLM has the status as ``code`` and names of its own as ``type``; a stream that fails ends with ``[DONE]`` all the same.

Source: vLLM ``entrypoints/serve/exception_handling``; the OpenAI API reference, "Errors".
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson

from modelyard.errors import Overloaded, Unavailable
from modelyard.openai import EVENTS, Part, encode_error_event
from modelyard_deployments._openai_protocol import encode, name_mistake

_EVENT: Final = b"data: "
_ERROR_EVENT: Final = b'data: {"error"'
_END: Final = b"\n\n"
_PROMPTS: Final = {"chat/completions": "messages", "responses": "input", "embeddings": "input"}
"""Which member of the body the prompt is; ``prompt`` where it is not said."""
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {404: "not_found", 429: Overloaded.code, 501: "unsupported", 503: Unavailable.code}
_SERVER_ERROR: Final = 500
_UNAVAILABLE: Final = 503
_TOO_LONG: Final = "This model's maximum context length"
_MISTAKES: Final = re.compile(
    r"\d+ validation errors?:\s+\{'type': '(\w+)'.*?'msg': (['\"])(.*?)\2, 'input'", re.DOTALL
)
"""Pydantic's, as vLLM tells them: the first one."""
_FULL: Final = ("The engine is currently busy", "The engine has reached its prefill token backlog limit")
"""What vLLM says, with the status 503, where its queue is full. Source: vLLM ``exceptions.GracefulHTTPError``."""
_OVERLOADED: Final = 429
_UNPROCESSABLE: Final = 422
"""A mistake as well: an image that cannot be fetched. Source: vLLM ``exceptions.VLLMUnprocessableEntityError``."""
_BAD_REQUEST: Final = 400
_AGAIN: Final[dict[int, type[Overloaded | Unavailable]]] = {_OVERLOADED: Overloaded, _UNAVAILABLE: Unavailable}
"""After these, trying again helps: the edge says when, and who counts the model's answers knows that it is none."""
_DETAILS: Final = re.compile(r" \(parameter=[^()]*\)$")


async def say_errors(route: str, parts: AsyncGenerator[Part]) -> AsyncGenerator[Part]:
    """The parts of a reply; closing it closes them.

    A stream that begins with an error, to which vLLM gives the status 200, is a reply with the error's own status.

    Args:
        route: What was asked.
        parts: As vLLM's server sends them.

    Raises:
        Overloaded: Its queue is full.
        Unavailable: It cannot answer now.
    """
    sent = b""
    async with contextlib.aclosing(parts):
        async for part in parts:
            if part.status >= 400:
                found = _to_document(b"".join([part.data, *[rest.data async for rest in parts]]))
                status = _find_status(found, part.status)
                yield _encode(found, status, route)
                return
            before, error = _split_events(part) if _ERROR_EVENT in part.data else (part.data, None)
            if before:
                yield Part(before, part.status, part.content_type)
            if error is not None:
                code = error.get("code")
                status = _find_status(error, code if isinstance(code, int) and 400 <= code < 600 else 400)
                if sent := before or sent:
                    event = encode_error_event(route, orjson.dumps(to_error(error, status, route)), sent)
                    yield Part(event, 200, EVENTS)
                else:
                    yield _encode(error, status, route)
                return
            sent = part.data


def _encode(error: dict[str, Any], status: int, route: str) -> Part:
    """The reply that is an error.

    Raises:
        Overloaded: The status is 429.
        Unavailable: The status is 503.
    """
    document = to_error(error, status, route)
    if (kind := _AGAIN.get(status)) is not None:
        raise kind(document["error"]["message"])
    return encode(document, status)


def to_error(error: dict[str, Any], status: int, route: str) -> dict[str, Any]:
    """OpenAI's error object.

    Args:
        error: vLLM's, without what is around it.
        status: Of the reply, or what it would be.
        route: What was asked.
    """
    message, param = str(error.get("message", "")), error.get("param")
    param = (_to_param(param) or None) if isinstance(param, str) else None
    if status >= _SERVER_ERROR or status in _TYPES:
        code = _CODES.get(status, "internal" if status >= _SERVER_ERROR else "invalid_value")
    elif message.startswith(_TOO_LONG):
        code, param = "context_length_exceeded", _PROMPTS.get(route, "prompt")
    elif status == 404:
        code = "model_not_found" if param == "model" else "not_found"
    elif (found := _MISTAKES.match(message)) is not None:
        mistake = name_mistake(found[1], found[3], "" if param == "body" else param or "")
        message, param, code = str(mistake), mistake.param, mistake.code
    else:
        code = "invalid_value"
    kind = _TYPES.get(status, "server_error" if status >= _SERVER_ERROR else "invalid_request_error")
    return {"error": {"message": _DETAILS.sub("", message), "type": kind, "param": param, "code": code}}


def _to_param(place: str) -> str:
    """Where a mistake is, without the names of pydantic's classes, which are parts of its path in a union."""
    return ".".join(part for part in place.removeprefix("body.").split(".") if not part[:1].isupper())


def _find_status(error: dict[str, Any], status: int) -> int:
    """That of an error: a full queue is no model that is still loading, as another 503 is."""
    if status == _UNPROCESSABLE:
        return _BAD_REQUEST
    is_full = status == _UNAVAILABLE and str(error.get("message", "")).startswith(_FULL)
    return _OVERLOADED if is_full else status


def _to_document(data: bytes) -> dict[str, Any]:
    """The error in a reply's body."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {"message": data.decode(errors="replace")}
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {"message": data.decode(errors="replace")}


def _split_events(part: Part) -> tuple[bytes, dict[str, Any] | None]:
    """The events before the first error, and the error; of what is no stream, everything."""
    if part.content_type.partition(";")[0] != EVENTS.partition(";")[0]:
        return part.data, None
    before = b""
    for event in part.data.split(_END):
        if event.startswith(_ERROR_EVENT):
            return before, _to_document(event.removeprefix(_EVENT))
        before += event + _END if event else b""
    return part.data, None
