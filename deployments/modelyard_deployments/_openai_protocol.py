# SPDX-License-Identifier: Apache-2.0
"""The OpenAI protocol's two ends inside a model: bodies decoded into typed requests, replies and events encoded.

A client's mistake is a :class:`Refusal`; :func:`refusing` makes it a reply of status 400, or the last event of a stream
that has begun. Everything else that fails is raised, and the edge gives it its shape.

Source: the OpenAI API reference, "Errors" and "Streaming".
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from modelyard.errors import InvalidRequest
from modelyard.openai import EVENTS, JSON, OpenAIRequest, Part, encode_error_event

DONE: Final = b"data: [DONE]\n\n"
_CODES: Final = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
    "too_short": "empty_array",
    "string_too_short": "empty_string",
    "union_tag_invalid": "invalid_value",
    "union_tag_not_found": "missing_required_parameter",
}
"""What OpenAI calls a problem, by what pydantic calls it."""
_TYPED: Final = re.compile(r"_type$|_parsing$|^is_instance_of$")


class Body(BaseModel):
    """A request's body. Unknown members are refused, and numbers in quotation marks too.

    Attributes:
        model: The name that the client asked for, which the answer repeats.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: str


class Refusal(Exception):
    """The client's mistake.

    Args:
        reason: What is wrong, what was expected and what was got.
        param: Which member of the body, ``messages[0].role``; None where it is the whole.
        code: A word for programs.
    """

    def __init__(self, reason: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(reason, param, code)
        self.reason = reason
        self.param = param
        self.code = code

    def __str__(self) -> str:
        return self.reason


BodyT = TypeVar("BodyT", bound=BaseModel)


def decode(request: OpenAIRequest, kind: type[BodyT]) -> BodyT:
    """The body as a typed request.

    Raises:
        Refusal: It is no JSON, or not what ``kind`` takes; the message names the first mistake.
    """
    check_json(request)
    try:
        return kind.model_validate_json(request.body)
    except ValidationError as exc:
        raise _to_refusal(exc, request.body) from exc


def check_json(request: OpenAIRequest) -> None:
    """Refuses bodies that say they are something else.

    Raises:
        Refusal: The content type is not JSON.
    """
    kind = request.content_type.partition(";")[0].strip().lower()
    if kind and kind != JSON and not kind.endswith("+json"):
        raise Refusal(f'expected a body of type {JSON}, got "{kind[:80]}"', code="invalid_content_type")


def _to_refusal(exc: ValidationError, body: bytes) -> Refusal:
    # Of a union's members each has its own complaint; the one that reads furthest is the one that was meant.
    error = max(exc.errors(include_url=False), key=lambda one: len(one["loc"]))
    if error["type"] == "json_invalid":
        return Refusal(
            f"the body is not valid JSON: {error['msg'].removeprefix('Invalid JSON: ')}", None, "invalid_json"
        )
    param = _to_param(error["loc"], error["type"], json.loads(body))  # which may hold NaN
    return name_mistake(error["type"], error["msg"], param)


def name_mistake(kind: str, message: str, param: str) -> Refusal:
    """A mistake that pydantic found, in OpenAI's words.

    Args:
        kind: What pydantic calls it.
        message: What pydantic says.
        param: Where it is; empty for the body as a whole.
    """
    message = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return Refusal(f'unknown parameter "{param}"', param, "unknown_parameter")
    if kind == "missing":
        return Refusal(f'missing required parameter "{param}"', param, "missing_required_parameter")
    code = _CODES.get(kind) or ("invalid_type" if _TYPED.search(kind) else "invalid_value")
    return Refusal(f"{param}: {message}" if param else message, param or None, code)


def _to_param(where: tuple[int | str, ...], kind: str, document: Any) -> str:
    """The place in the client's own words: without the names that pydantic gives to a union's members."""
    path = ""
    for position, step in enumerate(where):
        is_absent = kind == "missing" and position == len(where) - 1
        if isinstance(document, list) and isinstance(step, int):
            path += f"[{step}]"
            document = document[step] if step < len(document) else None
        elif isinstance(document, dict) and isinstance(step, str) and (step in document or is_absent):
            path += f".{step}" if path else step
            document = document.get(step)
    return path


def read_text(text: str) -> Any:
    """What a JSON text within a body, or within an answer, says.

    Raises:
        ValueError: It is none, or nested more deeply than can be read.
    """
    try:
        return json.loads(text)  # not orjson, which makes fractions of large integers
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def encode(document: object, status: int = 200) -> Part:
    """A whole reply."""
    return Part(orjson.dumps(document), status, JSON)


def encode_event(document: object, name: str = "") -> Part:
    """One event of a stream.

    Args:
        document: Its data.
        name: Its type, for streams whose events have some (``/v1/responses``).
    """
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return Part(head + orjson.dumps(document) + b"\n\n", 200, EVENTS)


def encode_done() -> Part:
    """The end of a stream."""
    return Part(DONE, 200, EVENTS)


def to_error(refusal: Refusal) -> dict[str, Any]:
    """The error object of a client's mistake."""
    return {
        "error": {
            "message": str(refusal),
            "type": "invalid_request_error",
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def to_usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    """The object ``usage``, with the members that vLLM gives it."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None if cached_tokens is None else {"cached_tokens": cached_tokens},
    }


def to_id(prefix: str, request: OpenAIRequest) -> str:
    """An answer's ``id``: the request's own behind a prefix, ``chatcmpl-…``."""
    return f"{prefix}-{request.id or uuid.uuid4().hex}"


async def refusing(parts: AsyncGenerator[Part], route: str = "") -> AsyncGenerator[Part]:
    """The parts; a client's mistake becomes a reply of status 400, or the last event where some have left.

    Closing it closes ``parts``.

    Args:
        parts: Of the reply.
        route: What was asked, where its streams end in a way of their own.
    """
    sent: bytes | None = None
    try:
        async for part in parts:
            sent = part.data
            yield part
    except Refusal as exc:
        yield _refuse(exc, route, sent)
    except InvalidRequest as exc:  # the vocabulary's own, from code that v1 and v2 use as well
        yield _refuse(Refusal(str(exc)), route, sent)
    finally:
        await parts.aclose()


def _refuse(refusal: Refusal, route: str, sent: bytes | None) -> Part:
    reply = encode(to_error(refusal), 400)
    return reply if sent is None else Part(encode_error_event(route, reply.data, sent), 200, EVENTS)
