# SPDX-License-Identifier: Apache-2.0
"""Which prompts another model reads, what it is asked, and what becomes of a request when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from modelyard.openai import OpenAIModel, OpenAIRequest, Part
from modelyard.peers import Nobody, set_origin
from modelyard.signature import Signature
from modelyard.tensor import Tensors
from modelyard.testing import FakePeers
from modelyard_deployments._openai_protocol import Refusal
from modelyard_deployments._text_generation import TEXT_SIGNATURE
from modelyard_deployments._vllm_prefill import Prefill
from modelyard_deployments._vllm_requests import KEEP, Requests

FOUND = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_block_ids": [1, 2], "remote_host": "h"}


class Chat(BaseModel):
    """As vLLM has it: whatever it does not know is kept."""

    model_config = ConfigDict(extra="allow")

    messages: list[dict[str, Any]]


class Completion(BaseModel):
    model_config = ConfigDict(extra="allow")

    prompt: Any
    temperature: float = 1.0
    kv_transfer_params: dict[str, Any] | None = None


def make_requests() -> Requests:
    """Of a server with these two bodies."""

    async def chat(body: Chat) -> None: ...
    async def complete(body: Completion) -> None: ...

    app = FastAPI()
    app.post("/v1/chat/completions")(chat)
    app.post("/v1/completions")(complete)
    return Requests(app.routes)


REQUESTS = make_requests()


class Reader(OpenAIModel):
    """A prefill model that keeps every prompt."""

    def __init__(self, status: int = 200, found: Any = FOUND) -> None:
        self.asked: list[dict[str, Any]] = []
        self._status = status
        self._found = found

    @property
    def signature(self) -> Signature:
        return TEXT_SIGNATURE

    async def predict(self, *_: object) -> Tensors:
        raise NotImplementedError

    async def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        self.asked.append(orjson.loads(request.body))
        yield Part(orjson.dumps({"kv_transfer_params": self._found}), self._status)


def read(reader: Reader | None, route: str = "chat/completions", **document: Any) -> dict[str, Any]:
    """The body that the engine then gets."""
    body = orjson.dumps({"model": "decode", **document})
    with FakePeers({} if reader is None else {"prefill": reader}):
        read = asyncio.run(Prefill("prefill", "decode", REQUESTS).read(OpenAIRequest(route, body, id="7")))
    assert (read.route, read.id) == (route, "7")
    return orjson.loads(read.body)  # type: ignore[no-any-return]


HELLO = [{"role": "user", "content": "hello"}]


def test_the_other_model_reads_the_prompt_and_generates_one_token() -> None:
    reader = Reader()
    body = {"messages": HELLO, "stream": True, "max_completion_tokens": 99, "temperature": 0.5, "logprobs": True}
    got = read(reader, **body, tools=[{"type": "function"}], tool_choice="required")
    assert got == {
        "model": "decode",
        **body,
        "tools": [{"type": "function"}],
        "tool_choice": "required",
        "kv_transfer_params": FOUND,
    }
    [asked] = reader.asked
    assert asked.pop("kv_transfer_params") == KEEP
    assert asked == {
        "model": "prefill",
        "messages": HELLO,
        "stream": False,
        "max_tokens": 1,
        "temperature": 0.5,
        "tools": [{"type": "function"}],
        "tool_choice": "required",
    }


@pytest.mark.parametrize(
    ("route", "document"),
    [
        ("chat/completions", {"messages": HELLO, "n": 2}),
        ("chat/completions", {"messages": HELLO, "prompt_logprobs": 1}),
        ("chat/completions", {"messages": HELLO, "prompt_logprobs": 0}),
        ("chat/completions", {"messages": HELLO, "truncate_prompt_tokens": -1}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
        ("chat/completions", {"messages": "hello"}),
        ("completions", {"prompt": "a", "temperature": "warm"}),
        ("chat/completions", {"messages": HELLO, "model": "an-adapter"}),
        ("completions", {"prompt": ["a", "b"]}),
        ("completions", {"prompt": [[1], [2]]}),
        ("completions", {"prompt": "a", "echo": True}),
        ("embeddings", {"input": "a"}),
        ("tokenize", {"prompt": "a"}),
    ],
)
def test_what_only_the_answering_engine_can_read_is_left_to_it(route: str, document: dict[str, Any]) -> None:
    reader = Reader()
    assert read(reader, route, **document) == {"model": "decode", **document}
    assert reader.asked == []


@pytest.mark.parametrize("prompt", ["a", [1, 2, 3]])
def test_one_prompt_may_be_a_text_or_tokens(prompt: Any) -> None:
    assert read(Reader(), "completions", prompt=prompt, n=1)["kv_transfer_params"] == FOUND


def test_a_prompt_is_read_here_where_the_other_cannot_and_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    prefill = Prefill("prefill", "decode", REQUESTS)
    call = OpenAIRequest("completions", orjson.dumps({"model": "decode", "prompt": "a"}))

    def is_read_there(**models: Reader) -> bool:
        with FakePeers(models):
            return asyncio.run(prefill.read(call)) is not call

    assert not is_read_there()
    assert not is_read_there()
    assert is_read_there(prefill=Reader())
    assert not is_read_there(prefill=Reader(found=None))
    assert not is_read_there(prefill=Reader(status=500))
    reasons = ("is not ready", "again", "it keeps nothing: its engine needs", "remote_engine_id")
    assert all(reason in told for reason, told in zip(reasons, caplog.messages, strict=True))


def test_a_model_whose_replica_dies_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Reader):
        async def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
            peers.models.clear()
            await asyncio.Event().wait()
            yield Part(b"")

    call = OpenAIRequest("completions", orjson.dumps({"model": "decode", "prompt": "a"}))
    with FakePeers({"prefill": Stuck()}) as peers:
        assert asyncio.run(asyncio.wait_for(Prefill("prefill", "decode", REQUESTS).read(call), 10)) is call
    assert "its replica is gone" in caplog.text


def test_a_mistake_is_told_by_the_engine_that_answers(caplog: pytest.LogCaptureFixture) -> None:
    assert "kv_transfer_params" not in read(Reader(status=400), messages=HELLO)
    assert caplog.messages == []


def check(via: tuple[str, ...] = (), **document: Any) -> None:
    async def check_here() -> None:
        set_origin(Nobody(via=via))
        REQUESTS.check(OpenAIRequest("completions", orjson.dumps({"prompt": "a", **document})))

    asyncio.run(check_here())


@pytest.mark.parametrize("via", [(), ("pipeline@1",)])
@pytest.mark.parametrize(
    "document",
    [
        {"kv_transfer_params": {**KEEP, "remote_host": "x"}},
        {"kv_transfer_params": {}},
        {"ec_transfer_params": {"remote_host": "x"}},
        {"vllm_xargs": {"kv_transfer_params": "x"}},
    ],
)
def test_nobody_else_names_a_host_to_fetch_from(document: dict[str, Any], via: tuple[str, ...]) -> None:
    with pytest.raises(Refusal, match="expected nothing: the models of the platform tell"):
        check(via, **document)


def test_only_a_model_asks_to_keep_what_was_read() -> None:
    check(("decode@1",), kv_transfer_params=KEEP)
    with pytest.raises(Refusal, match="kv_transfer_params: expected nothing"):
        check(kv_transfer_params=KEEP)


def test_what_another_parser_would_take_is_refused() -> None:
    with pytest.raises(Refusal, match="the request body is not JSON"):
        REQUESTS.check(OpenAIRequest("completions", b'{"prompt": NaN, "kv_transfer_params": {"remote_host": "x"}}'))
