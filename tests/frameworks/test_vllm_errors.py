# SPDX-License-Identifier: Apache-2.0
"""What vLLM's server says of mistakes and failures is said in OpenAI's words, as transformers' models say it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from modelyard.openai import EVENTS, Part
from modelyard_deployments._vllm_errors import say_errors

LONG = "This model's maximum context length is 8 tokens. However, you requested 4 output tokens"
MISSING = (
    "1 validation error:\n  {'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required', "
    "'input': {'model': 'm'}}"
)
TYPE = (
    "2 validation errors:\n  {'type': 'float_parsing', 'loc': ('body', 'temperature'), 'msg': 'Input should be a valid "
    "number, unable to parse string as a number', 'input': 'hot'}\n  {'type': 'missing', 'loc': ('body',)}"
)


def error(message: str, kind: str = "BadRequestError", code: int = 400, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(document: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(document, separators=(", ", ": ")).encode()


async def said(*parts: Part, route: str = "chat/completions") -> list[Part]:
    async def source() -> AsyncGenerator[Part]:
        for part in parts:
            yield part

    return [part async for part in say_errors(route, source())]


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (error("no"), ("no", "invalid_request_error", None, "invalid_value")),
        (
            error(f"{LONG} (parameter=input_tokens, value=9)", param="input_tokens"),
            (LONG, "invalid_request_error", "messages", "context_length_exceeded"),
        ),
        (
            error(MISSING, "Bad Request", param="body.messages"),
            (
                'missing required parameter "messages"',
                "invalid_request_error",
                "messages",
                "missing_required_parameter",
            ),
        ),
        (
            error(TYPE, "Bad Request", param="body.temperature"),
            (
                "temperature: Input should be a valid number, unable to parse string as a number",
                "invalid_request_error",
                "temperature",
                "invalid_type",
            ),
        ),
        (
            error("The model `x` does not exist.", "NotFoundError", 404, "model"),
            ("The model `x` does not exist.", "invalid_request_error", "model", "model_not_found"),
        ),
        (error("full", "x", 429), ("full", "rate_limit_error", None, "overloaded")),
        (
            error(TYPE, "Bad Request", param="body.EmbeddingCompletionRequest.input"),
            (
                "input: Input should be a valid number, unable to parse string as a number",
                "invalid_request_error",
                "input",
                "invalid_type",
            ),
        ),
        (error("loading", "x", 503), ("loading", "server_error", None, "model_not_ready")),
        (error("broken", "InternalServerError", 500), ("broken", "server_error", None, "internal")),
        (error("no", "NotImplementedError", 501), ("no", "server_error", None, "unsupported")),
        ({"detail": "odd"}, ('{"detail": "odd"}', "invalid_request_error", None, "invalid_value")),
    ],
)
async def test_a_reply_has_openais_words(found: dict[str, Any], wanted: tuple[str | None, ...]) -> None:
    status = found.get("error", {}).get("code", 400)
    data = json.dumps(found).encode()
    (part,) = await said(Part(data[:9], status), Part(data[9:], status))
    assert (part.status, part.content_type) == (status, "application/json")
    got = json.loads(part.data)["error"]
    assert (got["message"], got["type"], got["param"], got["code"]) == wanted


async def test_the_prompt_is_what_the_route_calls_it() -> None:
    (part,) = await said(Part(json.dumps(error(LONG)).encode(), 400), route="completions")
    assert json.loads(part.data)["error"]["param"] == "prompt"


async def test_a_stream_that_begins_with_an_error_is_a_reply() -> None:
    (part,) = await said(Part(event(error("no", code=404)), 200, EVENTS), Part(b"data: [DONE]\n\n", 200, EVENTS))
    assert (part.status, json.loads(part.data)["error"]["code"]) == (404, "not_found")


async def test_a_full_queue_is_429() -> None:
    document = error("The engine is currently busy and cannot accept new requests.", "Service Unavailable", 503)
    for part in (Part(json.dumps(document).encode(), 503), Part(event(document), 200, EVENTS)):
        (answer,) = await said(part)
        found = json.loads(answer.data)["error"]
        assert (answer.status, found["type"], found["code"]) == (429, "rate_limit_error", "overloaded")


@pytest.mark.parametrize("together", [False, True])
async def test_an_error_ends_a_stream_that_has_begun(together: bool) -> None:
    events = [event({"choices": []}), event(error("broken", "InternalServerError", 500)), b"data: [DONE]\n\n"]
    first, last = await said(*(Part(one, 200, EVENTS) for one in ([b"".join(events)] if together else events)))
    assert first.data == events[0]
    assert json.loads(last.data.removeprefix(b"data: "))["error"] == {
        "message": "broken", "type": "server_error", "param": None, "code": "internal"
    }  # fmt: skip


async def test_what_is_no_error_passes_as_it_is() -> None:
    parts = [Part(b'{"text": "data: {\\"error\\""}'), Part(b'{"a": 1}')]
    assert await said(*parts) == parts
    events = [Part(event({"content": 'data: {"error"'}), 200, EVENTS), Part(b"data: [DONE]\n\n", 200, EVENTS)]
    assert await said(*events) == events
