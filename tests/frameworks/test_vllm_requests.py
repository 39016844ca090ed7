# SPDX-License-Identifier: Apache-2.0
"""Parameters that vLLM's server would forget are refused, also within others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx
import orjson
import pytest
from fastapi import FastAPI, Form, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from modelyard.openai import OpenAIRequest
from modelyard_deployments._openai_protocol import Refusal
from modelyard_deployments._vllm_requests import Requests


class Base(BaseModel):
    """As vLLM has it: whatever it does not know is kept."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(Base):
    include_usage: bool = False


class Schema(Base):
    name: str
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")


class Format(Base):
    type: Literal["json_schema"]
    json_schema: Schema | None = None


class Tag(Base):
    type: Literal["structural_tag"]
    format: Any


class Function(Base):
    name: str


class Tool(Base):
    function: Function


@dataclass
class Structured:
    regex: str | None = None


class OneForm(Base):
    options: StreamOptions


class OtherForm(Base):
    options: Schema


class Heard(Base):
    file: UploadFile
    model: str | None = None
    language: str | None = None
    grains: list[Literal["word"]] = Field(alias="grains[]", default=[])


class Chat(Base):
    model: str
    stream_options: StreamOptions | None = None
    response_format: Format | Tag | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none"] | Tool | None = None
    structured_outputs: Structured | OneForm | OtherForm | None = None
    extra: dict[str, Any] | None = None


def make_requests() -> Requests:
    async def chat(body: Chat) -> None: ...
    async def hear(body: Annotated[Heard, Form()]) -> None: ...

    app = FastAPI()
    app.post("/v1/chat/completions")(chat)
    app.post("/v1/audio/transcriptions")(hear)
    return Requests(app.routes)


REQUESTS = make_requests()


def check(document: dict[str, Any]) -> None:
    REQUESTS.check(OpenAIRequest("chat/completions", orjson.dumps({"model": "m", **document})))


@pytest.mark.parametrize(
    ("document", "param", "near"),
    [
        ({"stream_option": {}}, "stream_option", "stream_options"),
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage"),
        ({"response_format": {"typ": "json_schema"}}, "response_format.typ", "type"),
        ({"response_format": {"json_schema": {"nam": "x"}}}, "response_format.json_schema.nam", "name"),
        ({"tools": [{"function": {"name": "f"}}, {"function": {"nam": "f"}}]}, "tools[1].function.nam", "name"),
        ({"response_format": {"json_schema": {"json_schema": 1}}}, "response_format.json_schema.json_schema", "schema"),
        ({"tool_choice": {"functio": {}}}, "tool_choice.functio", "function"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs.regx", "regex"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused_with_the_nearest(document: dict[str, Any], param: str, near: str) -> None:
    with pytest.raises(Refusal, match=f'did you mean "{near}"') as caught:
        check(document)
    assert (caught.value.param, caught.value.code) == (param, "unknown_parameter")


@pytest.mark.parametrize(
    "document",
    [
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"stream_options": None, "tools": [], "response_format": "json"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"anything": {"a": 1}}}}},
        {"response_format": {"type": "structural_tag", "format": {"anything": 1}}},
        {"tool_choice": "none", "structured_outputs": {"regex": "a"}, "extra": {"anything": 1}},
        {"user": "u", "store": True, "service_tier": "flex"},
        {"structured_outputs": {"options": {"include_usage": True}}},
        {"structured_outputs": {"options": {"name": "x", "schema": {}}}},
    ],
)
def test_what_is_known_or_may_be_anything_is_taken(document: dict[str, Any]) -> None:
    check(document)


@pytest.mark.parametrize("name", ["tools", "response_format"])
def test_what_is_nested_too_deeply_is_refused(name: str) -> None:
    body = b'{"model": "m", "%b": %b%b}' % (name.encode(), b"[" * 1000, b"]" * 1000)
    with pytest.raises(Refusal, match="nested too deeply") as caught:
        REQUESTS.check(OpenAIRequest("chat/completions", body))
    assert caught.value.param == name


def check_form(files: dict[str, Any] | None = None, **fields: Any) -> None:
    sent = httpx.Request("POST", "http://host/", files=files or {"file": ("a.wav", b"RIFF")}, data=fields)
    REQUESTS.check(OpenAIRequest("audio/transcriptions", sent.read(), sent.headers["content-type"]))


@pytest.mark.parametrize(
    ("name", "near"),
    [("langauge", "language"), ("grains", r"grains\[\]"), ("chunking_strategy", ""), ("include[]", "")],
)
def test_an_unknown_field_of_a_form_is_refused_too(name: str, near: str) -> None:
    with pytest.raises(Refusal, match=f'did you mean "{near}"' if near else "unknown parameter") as caught:
        check_form(model="m", **{name: "word"})
    assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")


def test_of_a_form_only_the_names_are_read() -> None:
    check_form(model="m", language="\xe9".encode("latin-1"))


def test_an_unknown_file_of_a_form_is_refused_and_known_fields_are_taken() -> None:
    check_form(model="m", language="en", **{"grains[]": ["word", "word"]})
    with pytest.raises(Refusal, match='unknown parameter "files"'):
        check_form(files={"file": ("a.wav", b"RIFF"), "files": ("b.wav", b"RIFF")})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_what_openais_client_sends_fits_vllms_own_classes() -> None:
    code = """
import orjson
from fastapi import FastAPI
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from modelyard.openai import OpenAIRequest
from modelyard_deployments._openai_protocol import Refusal
from modelyard_deployments._vllm_requests import Requests
app = FastAPI()
async def chat(body: ChatCompletionRequest) -> None: ...
app.post("/v1/chat/completions")(chat)
requests = Requests(app.routes)
function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
schema = {"name": "s", "description": "d", "schema": {"type": "object"}, "strict": True}
document = {
    "model": "m",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    "tools": [{"type": "function", "function": function}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": schema},
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "structured_outputs": {"regex": "a", "disable_any_whitespace": True},
}
requests.check(OpenAIRequest("chat/completions", orjson.dumps(document)))
for name, member in (("stream_options", {"include_usge": True}), ("structured_outputs", {"regx": "a"})):
    try:
        requests.check(OpenAIRequest("chat/completions", orjson.dumps(document | {name: member})))
    except Refusal as refusal:
        print(refusal.param)
"""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["stream_options.include_usge", "structured_outputs.regx"]
