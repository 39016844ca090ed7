# SPDX-License-Identifier: Apache-2.0
"""What vLLM's server says of mistakes and failures is said in OpenAI's words, as transformers' models say it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from openai.types.responses import ResponseErrorEvent

from modelyard.errors import Overloaded, Unavailable
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
        (
            error(TYPE, "Bad Request", param="body.EmbeddingCompletionRequest.input"),
            (
                "input: Input should be a valid number, unable to parse string as a number",
                "invalid_request_error",
                "input",
                "invalid_type",
            ),
        ),
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


@pytest.mark.parametrize(
    ("message", "code", "wanted"),
    [
        ("The engine is currently busy and cannot accept new requests.", 503, Overloaded),
        ("full", 429, Overloaded),
        ("loading", 503, Unavailable),
    ],
)
async def test_after_what_may_pass_the_client_is_to_try_again(message: str, code: int, wanted: type[Exception]) -> None:
    document = error(f"{message} (parameter=x)", "Service Unavailable", code)
    for part in (Part(json.dumps(document).encode(), code), Part(event(document), 200, EVENTS)):
        with pytest.raises(wanted) as caught:
            await said(part)
        assert str(caught.value) == message


async def test_a_full_queue_is_an_event_where_the_stream_has_begun() -> None:
    *_, last = await said(Part(event({"choices": []}), 200, EVENTS), Part(event(error("full", "x", 429)), 200, EVENTS))
    assert json.loads(last.data.removeprefix(b"data: "))["error"]["code"] == "overloaded"


async def test_what_cannot_be_processed_is_a_mistake_as_any_other() -> None:
    document = error("the image cannot be fetched", "UnprocessableEntityError", 422, "messages")
    for part in (Part(json.dumps(document).encode(), 422), Part(event(document), 200, EVENTS)):
        (answer,) = await said(part)
        assert (answer.status, json.loads(answer.data)["error"]["type"]) == (400, "invalid_request_error")


async def test_an_error_of_a_response_is_an_event_with_a_name_and_a_number() -> None:
    begin = b'event: response.created\ndata: {"type": "response.created", "sequence_number": 4}\n\n'
    broken = event(error("broken", "InternalServerError", 500))
    for parts in ([begin, broken], [begin + broken]):
        *_, last = await said(*(Part(one, 200, EVENTS) for one in parts), route="responses")
        name, data = last.data.decode().strip().split("\n")
        told = {"code": "internal", "message": "broken", "param": None}
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: ")) == {
            "type": "error", **told, "sequence_number": 5, "error": {**told, "type": "server_error"}
        }  # fmt: skip
        assert ResponseErrorEvent.model_validate_json(data.removeprefix("data: ")).message == "broken"


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
