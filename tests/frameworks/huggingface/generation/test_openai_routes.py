# SPDX-License-Identifier: Apache-2.0
"""SmolLM2 answers the OpenAI protocol: what a reply says, whole and streamed, and what is refused."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import jsonschema
import pytest

from modelyard.openai import OpenAIRequest
from modelyard_deployments._generation_model import GenerationModel

Ask = Callable[..., Awaitable[Any]]

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"messages": CAPITAL, "temperature": 0, "max_tokens": 12}
SENTENCE = "The capital of France is Paris."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def text_of(events: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


# -- chat


async def test_chat(ask: Ask) -> None:
    reply = await ask("chat/completions", **GREEDY)
    (choice,) = reply["choices"]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", SENTENCE)
    assert (reply["object"], reply["model"], choice["finish_reason"]) == ("chat.completion", "smollm2", "stop")
    assert reply["usage"]["prompt_tokens"] == 37
    assert reply["usage"]["completion_tokens"] == 8  # the end is one
    assert reply["usage"]["total_tokens"] == 45


async def test_what_changes_no_answer_is_taken(ask: Ask) -> None:
    said = {"store": True, "service_tier": "flex", "user": "u", "metadata": {"a": "b"}, "prompt_cache_key": "k"}
    assert (await ask("chat/completions", **GREEDY, **said))["choices"][0]["message"]["content"] == SENTENCE


async def test_a_stream_says_the_same(ask: Ask) -> None:
    events = await ask("chat/completions", **GREEDY, stream=True, stream_options={"include_usage": True})
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == SENTENCE
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * (len(events) - 2) + ["stop"]
    assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"]) == ([], 45)


async def test_the_limit_ends_it_with_length(ask: Ask) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        reply = await ask("chat/completions", messages=CAPITAL, temperature=0, **{name: 3})
        assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_of_several_tokens(ask: Ask, stream: bool) -> None:
    reply = await ask("chat/completions", **GREEDY, stop=["France is"], stream=stream)
    last = reply[-1]["choices"][0] if stream else reply["choices"][0]
    assert (text_of(reply) if stream else last["message"]["content"]) == "The capital of "
    assert (last["finish_reason"], last["stop_reason"]) == ("stop", "France is")


async def test_text_parts_are_a_text(ask: Ask) -> None:
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    joined = await ask("tokenize", messages=[{"role": "user", "content": "What is the capital\nof France?"}])
    assert await ask("tokenize", messages=[{"role": "user", "content": parts}]) == joined


async def test_several_answers_and_seeds(ask: Ask) -> None:
    asked = {"messages": CAPITAL, "n": 3, "seed": 11, "temperature": 1.5, "max_tokens": 6}
    first, again = await ask("chat/completions", **asked), await ask("chat/completions", **asked)
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) > 1
    events = await ask("chat/completions", **asked, stream=True)
    assert [text_of(events, index) for index in range(3)] == texts


async def test_logprobs(ask: Ask) -> None:
    reply = await ask("chat/completions", **GREEDY, logprobs=True, top_logprobs=2)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == f"{SENTENCE}<|im_end|>"
    for entry in entries:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
    events = await ask("chat/completions", **GREEDY, logprobs=True, stream=True)
    streamed = [e for event in events for c in event["choices"] if c["logprobs"] for e in c["logprobs"]["content"]]
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in entries]


async def test_tokens_are_forbidden_and_favoured(ask: Ask) -> None:
    paris = (await ask("tokenize", prompt=" Paris"))["tokens"][0]
    for members in ({"logit_bias": {str(paris): -100}}, {"bad_words": ["Paris"]}):
        reply = await ask("chat/completions", **GREEDY, **members)
        assert "Paris" not in reply["choices"][0]["message"]["content"]
    reply = await ask("chat/completions", **GREEDY, allowed_token_ids=[paris], min_tokens=3)
    assert reply["choices"][0]["message"]["content"].startswith(" Paris Paris Paris")
    reply = await ask("chat/completions", **GREEDY, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == 12


# -- answers in a form


async def test_a_json_schema_is_kept(ask: Ask) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    asked = {"messages": CAPITAL, "max_tokens": 60, "temperature": 1.5, "n": 4, "seed": 3, "response_format": form}
    reply = await ask("chat/completions", **asked)
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)


async def test_json_objects_regular_expressions_and_choices(ask: Ask) -> None:
    reply = await ask("chat/completions", **{**GREEDY, "max_tokens": 40}, response_format={"type": "json_object"})
    assert isinstance(json.loads(reply["choices"][0]["message"]["content"]), dict)
    asked = {"messages": CAPITAL, "temperature": 1.2, "seed": 1, "max_tokens": 20}
    for form, pattern in (
        ({"regex": "[0-9]{3}-[a-c]{2}"}, "[0-9]{3}-[a-c]{2}"),
        ({"choice": ["yes", 'a "no"']}, 'yes|a "no"'),
        ({"grammar": 'root ::= "x" [0-9] | "y"'}, "x[0-9]|y"),
        ({"json": {"type": "integer", "minimum": 10, "maximum": 99}}, "[1-9][0-9]"),
    ):
        reply = await ask("chat/completions", **asked, structured_outputs=form)
        assert re.fullmatch(pattern, reply["choices"][0]["message"]["content"])


# -- tools


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_is_required(ask: Ask, choice: Any, stream: bool) -> None:
    asked = {**GREEDY, "max_tokens": 60, "tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    reply = await ask("chat/completions", **asked, stream=stream)
    if stream:
        deltas = [event["choices"][0]["delta"] for event in reply]
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        name, arguments = calls[0]["function"]["name"], "".join(call["function"]["arguments"] for call in calls)
        finish = reply[-1]["choices"][0]["finish_reason"]
    else:
        message, finish = reply["choices"][0]["message"], reply["choices"][0]["finish_reason"]
        (call,) = message["tool_calls"]
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        assert message["content"] is None
    assert name == "get_weather"
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])  # type: ignore[index]
    assert finish == ("tool_calls" if choice == "required" else "stop")


async def test_a_template_without_tools_is_told_of_them(ask: Ask) -> None:
    tokens = (await ask("tokenize", messages=CAPITAL, tools=[WEATHER]))["tokens"]
    prompt = (await ask("detokenize", tokens=tokens))["prompt"]
    assert prompt.startswith("<|im_start|>system\n")
    assert '"name": "get_weather"' in prompt
    reply = await ask("chat/completions", **GREEDY, tools=[WEATHER], tool_choice="none")
    assert reply["choices"][0]["message"]["content"] == SENTENCE


async def test_calls_and_their_results_are_part_of_a_conversation(ask: Ask) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *CAPITAL,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Sunny."},
    ]
    tokens = (await ask("tokenize", messages=messages))["tokens"]
    prompt = (await ask("detokenize", tokens=tokens))["prompt"]
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in prompt
    assert "Sunny." in prompt


# -- completions


async def test_completions_of_texts_and_tokens(ask: Ask) -> None:
    tokens = (await ask("tokenize", prompt="The capital of France is"))["tokens"]
    for prompt in ("The capital of France is", tokens, ["The capital of France is"], [tokens]):
        reply = await ask("completions", prompt=prompt, temperature=0, max_tokens=1)
        assert [choice["text"] for choice in reply["choices"]] == [" Paris"]
    prompts = ["The capital of France is", "The capital of Italy is"]
    reply = await ask("completions", prompt=prompts, temperature=0, max_tokens=1)
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [(0, " Paris"), (1, " Rome")]


async def test_echo_tells_the_prompts_logprobs(ask: Ask) -> None:
    asked = {"prompt": "The capital of France is", "echo": True, "logprobs": 1, "temperature": 0}
    reply = await ask("completions", **asked, max_tokens=1)
    choice = reply["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "The capital of France is Paris"
    assert logprobs["tokens"] == ["The", " capital", " of", " France", " is", " Paris"]
    assert logprobs["text_offset"] == [0, 3, 11, 14, 21, 24]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert all(value < 0 for value in logprobs["token_logprobs"][1:])
    alone = await ask("completions", **asked, max_tokens=0)
    assert alone["choices"][0]["text"] == "The capital of France is"
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:-1]
    assert alone["usage"]["completion_tokens"] == 0


async def test_the_best_of_several(ask: Ask) -> None:
    asked = {"prompt": "Once upon", "temperature": 1.3, "seed": 5, "max_tokens": 4, "logprobs": 0}
    every = await ask("completions", **asked, n=3)
    best = await ask("completions", **asked, best_of=3)
    mean = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / 4 for c in every["choices"]}
    assert [choice["text"] for choice in best["choices"]] == [max(mean, key=lambda text: mean[text])]
    assert best["usage"]["completion_tokens"] == 12


async def test_a_streamed_completion(ask: Ask) -> None:
    asked = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3, "stream": True, "echo": True}
    events = await ask("completions", **asked, stream_options={"include_usage": True})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "The capital of France is Paris.\n"
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["usage"]["completion_tokens"] == 3


# -- responses


async def test_a_response(ask: Ask) -> None:
    asked = {"input": "What is the capital of France?", "temperature": 0, "max_output_tokens": 12}
    reply = await ask("responses", **asked, store=True)
    (item,) = reply["output"]
    assert (reply["object"], reply["status"], reply["store"]) == ("response", "completed", False)
    assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "assistant", SENTENCE)
    assert reply["usage"]["output_tokens"] == 8


async def test_the_events_of_a_response(ask: Ask) -> None:
    asked = {"input": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    events = await ask("responses", **asked, max_output_tokens=3, stream=True)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.delta", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_a_response_that_calls(ask: Ask) -> None:
    tool = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    asked = {"input": "Weather in Rome?", "tools": [tool], "temperature": 0, "max_output_tokens": 60}
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        reply = await ask("responses", **asked, tool_choice=choice)
        call = reply["output"][0]
        assert (call["type"], call["name"]) == ("function_call", "get_weather")
        assert json.loads(call["arguments"])["city"] in ("Paris", "Rome")


# -- mistakes

CHAT = {"messages": CAPITAL}
TOOL = {"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}], "tool_choice": "required"}
MISTAKES = [
    ("chat/completions", {}, "messages"),
    ("chat/completions", {"messages": []}, "messages"),
    ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ("chat/completions", {**CHAT, "temprature": 1}, "temprature"),
    ("chat/completions", {**CHAT, "temperature": "hot"}, "temperature"),
    ("chat/completions", {**CHAT, "n": 0}, "n"),
    ("chat/completions", {**CHAT, "top_logprobs": 2}, None),
    ("chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, None),
    ("chat/completions", {**CHAT, "tool_choice": "required"}, None),
    ("chat/completions", {**CHAT, "max_tokens": 2000}, "messages"),
    ("chat/completions", {**CHAT, "logit_bias": {"99999999": 1}}, "logit_bias"),
    ("chat/completions", {**CHAT, "logit_bias": {"-1": 1}}, "logit_bias"),
    (
        "chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
        "response_format",
    ),
    ("chat/completions", {**CHAT, "structured_outputs": {"regex": "[0-"}}, "structured_outputs"),
    *(
        ("chat/completions", {**CHAT, "structured_outputs": {"json": "[" * deep + "]" * deep}}, "structured_outputs")
        for deep in (300, 5000)
    ),
    (
        "chat/completions",
        {**CHAT, "structured_outputs": {"json": '{"not": ' * 600 + "{}" + "}" * 600}},
        "structured_outputs",
    ),
    ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
    ("completions", {"prompt": ""}, "prompt"),
    ("completions", {"prompt": [99999999]}, "prompt"),
    ("completions", {"prompt": "x " * 1100}, "prompt"),
    ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
    ("completions", {"prompt": ["x"] * 300}, "prompt"),
    ("responses", {"input": []}, "input"),
    ("responses", {"input": "x", "tools": [{"type": "function", "name": "my func"}]}, "tools[0].name"),
    ("responses", {"input": "x", **TOOL, "text": {"format": {"type": "json_object"}}}, None),
    ("detokenize", {"tokens": [99999999]}, "tokens"),
]


@pytest.mark.parametrize(("route", "body", "param"), MISTAKES)
async def test_a_mistake_is_a_400_that_names_it(
    parts: Any, ask: Ask, route: str, body: dict[str, Any], param: str | None
) -> None:
    (part,) = [part async for part in parts(route, **body)]
    assert part.status == 400
    error = json.loads(part.data)["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param or "")


@pytest.mark.parametrize("member", ["temperature", "bogus"])
async def test_a_number_that_is_none_is_a_mistake_too(model: GenerationModel, member: str) -> None:
    body = b'{"model": "smollm2", "prompt": "x", "%b": NaN}' % member.encode()
    (part,) = [part async for part in model.answer(OpenAIRequest("completions", body))]
    assert (part.status, json.loads(part.data)["error"]["param"]) == (400, member)


async def test_too_long_a_prompt_is_told_the_limit_and_the_count(ask: Ask) -> None:
    error = (await ask("completions", prompt="x " * 1100))["error"]
    assert error["code"] == "context_length_exceeded"
    assert "1024 tokens" in error["message"]
    assert "1101 tokens" in error["message"]


# -- many


async def test_clients_that_hang_up_free_their_places(model: GenerationModel, parts: Any, ask: Ask) -> None:
    async def hang_up() -> None:
        async with aclosing(parts("chat/completions", **CHAT, max_tokens=400, ignore_eos=True, stream=True)) as events:
            for _ in range(3):
                await anext(events)

    whole = asyncio.gather(*(ask("chat/completions", **GREEDY) for _ in range(4)))
    await asyncio.gather(*(hang_up() for _ in range(4)))
    assert [reply["choices"][0]["message"]["content"] for reply in await whole] == [SENTENCE] * 4
    async with asyncio.timeout(20):
        while model.counts.running or model.counts.cache_tokens:  # noqa: ASYNC110  # a thread without an event loop
            await asyncio.sleep(0.01)
