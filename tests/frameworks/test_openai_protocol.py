# SPDX-License-Identifier: Apache-2.0
"""Bodies of the OpenAI protocol are decoded, and a client's mistakes answered, as OpenAI does."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field

from modelyard.errors import InvalidRequest
from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._openai_multipart import decode_form
from modelyard_deployments._openai_protocol import (
    Body,
    Refusal,
    decode,
    encode,
    encode_done,
    encode_event,
    read_text,
    refusing,
)


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["user"]
    content: str | list[Text]


class Asked(Body):
    messages: Annotated[list[Message], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0


def request(body: object, content_type: str = "application/json") -> OpenAIRequest:
    return OpenAIRequest("chat/completions", body if isinstance(body, bytes) else orjson.dumps(body), content_type)


HELLO = [{"role": "user", "content": "hello"}]


def test_a_good_body_is_typed() -> None:
    asked = decode(request({"model": "m", "messages": HELLO, "temperature": 1}), Asked)
    assert (asked.model, asked.messages[0].content, asked.temperature) == ("m", "hello", 1.0)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"model": ', None, "invalid_json"),
        (b'{"model": "m", "messages": "\xff"}', None, "invalid_json"),
        ([], None, "invalid_type"),
        ({"messages": HELLO}, "model", "missing_required_parameter"),
        ({"model": "m", "messages": HELLO, "temprature": 1}, "temprature", "unknown_parameter"),
        ({"model": "m", "messages": HELLO, "temperature": "1"}, "temperature", "invalid_type"),
        ({"model": "m", "messages": HELLO, "temperature": -1}, "temperature", "invalid_value"),
        ({"model": "m", "messages": []}, "messages", "empty_array"),
        ({"model": "m", "messages": [{"role": "robot", "content": ""}]}, "messages[0].role", "invalid_value"),
        ({"model": "m", "messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        (
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "txt": ""}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
    ],
)
def test_a_mistake_is_named_where_it_is(body: object, param: str | None, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode(request(body), Asked)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert str(caught.value)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_another_content_type_is_refused(kind: str) -> None:
    with pytest.raises(Refusal, match="expected a body of type application/json"):
        decode(request({"model": "m", "messages": HELLO}, kind), Asked)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", ""])
def test_json_is_accepted_under_its_names(kind: str) -> None:
    assert decode(request({"model": "m", "messages": HELLO}, kind), Asked).model == "m"


async def parts_then(error: Exception | None, *parts: Part) -> AsyncGenerator[Part]:
    for part in parts:
        yield part
    if error is not None:
        raise error


async def test_a_refusal_is_a_reply_of_status_400() -> None:
    (part,) = [part async for part in refusing(parts_then(Refusal("no", "seed", "invalid_value")))]
    assert (part.status, part.content_type) == (400, "application/json")
    assert orjson.loads(part.data) == {
        "error": {"message": "no", "type": "invalid_request_error", "param": "seed", "code": "invalid_value"}
    }


async def test_a_refusal_of_the_vocabulary_is_one_too() -> None:
    (part,) = [part async for part in refusing(parts_then(InvalidRequest("no")))]
    assert part.status == 400


async def test_a_refusal_after_the_first_event_is_an_event() -> None:
    first = encode_event({"a": 1})
    _, part = [part async for part in refusing(parts_then(Refusal("no"), first))]
    assert (part.status, part.content_type) == (200, first.content_type)
    assert orjson.loads(part.data.removeprefix(b"data: "))["error"]["message"] == "no"


async def test_a_refusal_in_a_response_is_an_event_of_its_type() -> None:
    first = encode_event({"type": "response.created", "sequence_number": 0}, "response.created")
    _, part = [part async for part in refusing(parts_then(Refusal("no"), first), "responses")]
    name, data = part.data.decode().strip().split("\n")
    error = orjson.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["message"], error["sequence_number"]) == ("event: error", "error", "no", 1)


async def test_what_is_no_mistake_of_the_client_is_raised() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        [part async for part in refusing(parts_then(RuntimeError("broken")))]


async def test_closing_closes_the_source() -> None:
    source = parts_then(None, encode({}), encode({}))
    parts = refusing(source)
    await anext(parts)
    await parts.aclose()
    assert [part async for part in source] == []


def form(*parts: bytes) -> OpenAIRequest:
    body = b"".join(b"--b\r\n%b\r\n" % part for part in parts) + b"--b--\r\n"
    return OpenAIRequest("audio/transcriptions", body, "multipart/form-data; boundary=b")


@pytest.mark.parametrize(
    "disposition",
    [
        b'name="file"; filename="a.wav"',
        b'filename="a.wav"; name="file"',
        b'filename="name=\\"model\\".wav"; name="file"',
        b"name=file; filename=a.wav",
    ],
)
def test_a_file_is_found_by_its_own_name(disposition: bytes) -> None:
    found = decode_form(form(b"content-disposition: form-data; %b\r\n\r\nRIFF" % disposition))
    assert (found.fields, found.files) == ({}, {"file": b"RIFF"})


@pytest.mark.parametrize("name", [b"filename", b'"filename"', b'"x filename"'])
def test_a_text_may_be_called_as_a_file_is(name: bytes) -> None:
    head = b"X-Note: filename=a\r\nContent-Disposition: form-data; name=%b\r\n\r\ntext" % name
    found = decode_form(form(head))
    assert (found.fields, found.files) == ({name.strip(b'"').decode(): ["text"]}, {})


def test_a_part_of_a_form_needs_a_name() -> None:
    for disposition in (b'filename="name=x"', b"", b'x="name"'):
        with pytest.raises(Refusal, match="expected a name for each part"):
            decode_form(form(b"Content-Disposition: form-data; %b\r\n\r\ntext" % disposition))


def test_a_text_that_is_nested_too_deeply_is_no_json() -> None:
    assert read_text('{"a": 99999999999999999999}') == {"a": 99999999999999999999}
    with pytest.raises(ValueError, match="nested too deeply"):
        read_text("[" * 5000 + "]" * 5000)


def test_events_have_their_frame() -> None:
    assert encode_event({"a": 1}).data == b'data: {"a":1}\n\n'
    assert encode_event({"a": 1}, "response.created").data == b'event: response.created\ndata: {"a":1}\n\n'
    assert encode_done().data == b"data: [DONE]\n\n"
