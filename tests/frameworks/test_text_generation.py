# SPDX-License-Identifier: Apache-2.0
"""``generate`` of v2 is one surface, whatever generates: what is asked of the model, and what comes of its answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import orjson
import pytest

from modelyard.errors import InternalError, InvalidRequest, Overloaded
from modelyard.openai import EVENTS, OpenAIModel, OpenAIRequest, Part
from modelyard.signature import Signature
from modelyard.tensor import Tensors
from modelyard_deployments._openai_protocol import encode, encode_done, encode_event
from modelyard_deployments._text_generation import TEXT_SIGNATURE, generate_text


class Writer(OpenAIModel):
    """Answers with these parts."""

    name = "writer"

    def __init__(self, *parts: Part) -> None:
        self.parts = parts
        self.asked: dict[str, Any] = {}

    @property
    def signature(self) -> Signature:
        return TEXT_SIGNATURE

    async def predict(self, *_: object) -> Tensors:
        raise NotImplementedError

    async def answer(self, request: OpenAIRequest) -> AsyncGenerator[Part]:
        assert request.route == "completions"
        self.asked = orjson.loads(request.body)
        for part in self.parts:
            yield part


def choice(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


WHOLE = Writer(encode(choice(" Paris.", "length")))
STREAM = Writer(
    encode_event(choice(" Paris")), encode_event(choice(".")), encode_event(choice("", "stop")), encode_done()
)


async def generate(
    model: Writer, text: bytes = b"The capital is", outputs: tuple[str, ...] = ("text_output",), **parameters: Any
) -> list[tuple[str, str]]:
    inputs = {"text_input": np.array([text], object)}
    can_stream = parameters.pop("can_stream", True)
    answers = [one async for one in generate_text(model, inputs, outputs, parameters, can_stream=can_stream)]
    return [(one["text_output"][0].decode(), one["finish_reason"][0].decode()) for one in answers]


async def test_what_is_asked_is_a_completion() -> None:
    assert await generate(WHOLE, max_tokens=3, temperature=0) == [(" Paris.", "length")]
    assert WHOLE.asked == {
        "model": "writer", "prompt": "The capital is", "stream": False, "max_tokens": 3, "temperature": 0
    }  # fmt: skip


async def test_sampling_parameters_are_parameters() -> None:
    await generate(WHOLE, sampling_parameters='{"max_tokens": 4, "stop": ["a"]}', max_tokens=3)
    assert (WHOLE.asked["max_tokens"], WHOLE.asked["stop"]) == (4, ["a"])
    assert "sampling_parameters" not in WHOLE.asked
    # Whether that is a seed, the model says.
    await generate(WHOLE, sampling_parameters='{"seed": 99999999999999999999}')
    assert WHOLE.asked["seed"] == 1e20


async def test_whoever_takes_one_answer_gets_one() -> None:
    await generate(WHOLE, sampling_parameters='{"stream": true}', can_stream=False)
    assert WHOLE.asked["stream"] is False
    assert "max_tokens" not in WHOLE.asked


async def test_a_stream_comes_in_pieces_and_ends_with_why_where_that_is_asked_for() -> None:
    assert await generate(STREAM, stream=True) == [(" Paris", ""), (".", "")]
    asked = await generate(STREAM, outputs=("text_output", "finish_reason"), stream=True)
    assert asked == [(" Paris", ""), (".", ""), ("", "stop")]


async def test_the_text_itself_comes_first_where_it_is_not_excluded() -> None:
    assert await generate(WHOLE, exclude_input_in_output=False) == [("The capital is Paris.", "length")]
    pieces = await generate(STREAM, exclude_input_in_output=False, stream=True)
    assert pieces == [("The capital is", ""), (" Paris", ""), (".", "")]
    assert "exclude_input_in_output" not in STREAM.asked


def refusal(status: int, kind: str, as_event: bool = False) -> Writer:
    document = {"error": {"message": "no", "type": kind, "param": None, "code": "x"}}
    if as_event:
        return Writer(encode_event(choice("a")), encode_event(document))
    return Writer(encode(document, status))


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (refusal(400, "invalid_request_error"), InvalidRequest),
        (refusal(429, "rate_limit_error"), Overloaded),
        (refusal(500, "server_error"), InternalError),
        (refusal(200, "server_error", as_event=True), InternalError),
        (refusal(200, "invalid_request_error", as_event=True), InvalidRequest),
        (Writer(Part(b"odd", 500, EVENTS)), InternalError),
    ],
)
async def test_what_the_model_refuses_is_an_error_of_its_kind(model: Writer, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await generate(model, stream=True)


@pytest.mark.parametrize(
    ("text", "parameters", "said"),
    [
        (b"\xff", {}, "UTF-8"),
        (b"a", {"sampling_parameters": "[]"}, "expected a JSON object"),
        (b"a", {"sampling_parameters": "{"}, "expected a JSON object"),
        (b"a", {"sampling_parameters": 7}, "expected a JSON object as text, got 7"),
        (b"a", {"sampling_parameters": "[" * 5000 + "]" * 5000}, "expected a JSON object"),
        (b"a", {"sampling_parameters": '{"a":' + "[" * 500 + "]" * 500 + "}"}, "cannot be written as JSON"),
        (b"a", {"sampling_parameters": r'{"user": "\ud800"}'}, "expected a JSON object"),
        (b"a", {"sampling_parameters": '{"temperature": NaN}'}, "expected a JSON object"),
        (b"a", {"temperature": float("nan")}, 'parameter "temperature": expected a finite number, got nan'),
        (b"a", {"temperature": float("-inf")}, 'parameter "temperature": expected a finite number, got -inf'),
        (b"a", {"seed": 10**20}, "cannot be written as JSON"),
        (b"a", {"user": "\ud800"}, "cannot be written as JSON"),
        (b"a", {"stream": "yes"}, 'parameter "stream": expected true or false'),
        (b"a", {"exclude_input_in_output": 1}, 'parameter "exclude_input_in_output": expected true or false'),
    ],
)
async def test_a_mistake_is_the_clients(text: bytes, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        await generate(WHOLE, text, **parameters)
