# SPDX-License-Identifier: Apache-2.0
"""What replies of the OpenAI protocol say, whatever parts and events they came in."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

import pytest

from modelyard.openai import EVENTS, OpenAIRequest, Part
from modelyard.protocol.openai_answers import is_fault, is_same_answer, is_sampled


def events(*documents: dict[str, Any]) -> list[Part]:
    """A stream with one event a part, and its end."""
    lines = [json.dumps(document).encode() for document in documents] + [b"[DONE]"]
    return [Part(b"data: %b\n\n" % line, content_type=EVENTS) for line in lines]


def chunk(ident: str, finish: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": ident, "object": "chat.completion.chunk", "created": len(ident), "choices": [choice]}


def whole(document: object, status: int = 200) -> list[Part]:
    return [Part(json.dumps(document).encode(), status)]


def call(arguments: str, name: str | None = None, ident: str | None = None) -> dict[str, Any]:
    """A part of a call of a tool."""
    return {"tool_calls": [{"index": 0, "id": ident, "function": {"name": name, "arguments": arguments}}]}


CHAT = events(
    chunk("a", role="assistant", content=""), chunk("a", content="one "), chunk("a", content="two"), chunk("a", "stop")
)
USAGE = {"id": "u", "choices": [], "usage": {"total_tokens": 3}}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (events(chunk("bb", role="assistant", content="one t"), chunk("bb", content="wo"), chunk("bb", "stop")), True),
        (events(chunk("b", role="assistant", content="one two"), chunk("b", "stop"), USAGE), True),
        (events(chunk("b", role="assistant", content="one three"), chunk("b", "stop")), False),
        (events(chunk("b", role="assistant", content="one two"), chunk("b", "length")), False),
        (events(chunk("b", role="assistant", content="one two"), {"error": {"code": 500}}), False),
        ([Part(b"".join(part.data for part in CHAT), content_type=EVENTS)], True),
        ([], False),
    ],
    ids=["other chunks", "usage", "other words", "cut", "an error", "one part", "nothing"],
)
def test_streams_of_chat(other: list[Part], same: bool) -> None:
    assert is_same_answer(CHAT, other, 0, in_words=True) is same


def test_choices_and_calls_of_tools_come_together_by_their_index() -> None:
    mixed = events(chunk("a", index=1, content="b"), chunk("a", content="a"), chunk("a", index=1, content="d"))
    sorted_ = events(chunk("b", content="a"), chunk("b", index=1, content="bd"))
    assert is_same_answer(mixed, sorted_, 0, in_words=True)
    one = events(chunk("a", **call("{", "f", "x")), chunk("a", **call("}")))
    assert is_same_answer(one, events(chunk("b", **call("{}", "f", "y"))), 0, in_words=True)
    assert not is_same_answer(one, events(chunk("b", **call("{}", "g", "y"))), 0, in_words=True)


def test_a_response_is_what_its_last_event_has() -> None:
    def response(text: str, *deltas: str) -> list[Part]:
        told = [{"type": "response.output_text.delta", "delta": delta} for delta in deltas]
        item = {"id": f"msg-{text}-{len(deltas)}", "content": [{"type": "output_text", "text": text}]}
        return events(*told, {"type": "response.completed", "response": {"id": "r", "output": [item]}})

    assert is_same_answer(response("ab", "a", "b"), response("ab", "ab"), 0, in_words=True)
    assert not is_same_answer(response("ab", "a", "b"), response("ac", "ac"), 0, in_words=True)


def test_a_transcription_has_neither_indices_nor_choices() -> None:
    def vllm(*texts: str) -> list[Part]:
        return events(*({"choices": [{"delta": {"content": text}}]} for text in texts))

    def own(*texts: str) -> list[Part]:
        return events(*({"type": "transcript.text.delta", "delta": text} for text in texts))

    for make in (vllm, own):
        assert is_same_answer(make("a", " b"), make("a b"), 0, in_words=True)
        assert not is_same_answer(make("a", " b"), make("a c"), 0, in_words=True)


def test_what_is_cut_is_not_what_has_ended() -> None:
    delta = {"type": "response.output_text.delta", "delta": "a", "sequence_number": 1}
    whole_ = events(delta, {"type": "response.completed", "response": {"output": ["a"]}})
    assert not is_same_answer(whole_, events(delta), 0, in_words=True)
    assert not is_same_answer(CHAT, CHAT[:-1], 0, in_words=True)
    assert not is_same_answer(events({"own": 1}), events({"own": 2}), 0, in_words=True)


def test_embeddings_are_numbers_also_as_base64() -> None:
    def embedding(*numbers: float) -> list[Part]:
        text = b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        return whole({"data": [{"embedding": text}]})

    assert is_same_answer(embedding(1, 2), embedding(1, 2.000001), 1e-5, in_words=True)
    assert not is_same_answer(embedding(1, 2), embedding(1, 2.1), 1e-5, in_words=True)
    assert not is_same_answer(embedding(1, 2), whole({"data": [{"embedding": "no"}]}), 1e-5, in_words=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"data": 100_000}, {"data": 100_001}, False),
        ({"data": 1, "refusal": None, "tool_calls": []}, {"data": 1}, True),
        ({"id": "a", "created": 1, "data": [1.0]}, {"id": "b", "created": 2, "data": [1.00001]}, True),
        ({"data": [1.0]}, {"data": [1.1]}, False),
        ({"data": [1.0]}, {"data": [1.0, 1.0]}, False),
        ({"data": True}, {"data": 1}, False),
        ({"data": 1}, {"data": 1.0}, True),
        ({"data": True}, {"data": 1.0}, False),
        ({"data": None}, {"data": "x"}, False),
        ({"data": 1}, {"other": 1}, False),
    ],
)
def test_whole_replies(one: object, other: object, same: bool) -> None:
    assert is_same_answer(whole(one), whole(other), 1e-4, in_words=True) is same


def test_a_status_counts_and_text_is_compared_as_it_is() -> None:
    assert not is_same_answer(whole({}), whole({}, 400), 0, in_words=False)
    assert is_same_answer(whole({"error": "a"}, 400), whole({"error": "a"}, 400), 0, in_words=True)
    assert is_same_answer([Part(b"hello")], [Part(b"hello")], 0, in_words=True)
    assert not is_same_answer([Part(b"hello")], [Part(b"hallo")], 0, in_words=True)
    assert is_same_answer([], [], 0, in_words=True)


def test_samples_need_only_be_answered() -> None:
    other = events(chunk("b", content="something else"))
    assert is_same_answer(CHAT, other, 0, in_words=False)
    assert not is_same_answer(CHAT, events({"error": {"code": None}}), 0, in_words=False)


@pytest.mark.parametrize(
    ("route", "body", "sampled"),
    [
        ("chat/completions", b"{}", True),
        ("chat/completions", b'{"temperature": 0}', False),
        ("completions", b'{"temperature": 0.5, "seed": 3}', False),
        ("completions", b'{"temperature": 0.5, "seed": null}', True),
        ("responses", b'{"temperature": 0.0}', False),
        ("embeddings", b"{}", False),
        ("audio/transcriptions", b"--x", False),
        ("chat/completions", b"no JSON", False),
    ],
)
def test_what_is_sampled(route: str, body: bytes, sampled: bool) -> None:
    assert is_sampled(OpenAIRequest(route, body)) is sampled


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (Part(b"{}", 500), True),
        (Part(b"{}", 400), False),
        (Part(b'data: {"error": {"code": 500}}\n\n', content_type=EVENTS), True),
        (Part(b'data: {"error": {"code": "model_failed", "type": "server_error"}}\n\n', content_type=EVENTS), True),
        (Part(b'data: {"error": {"code": 400}}\n\n', content_type=EVENTS), False),
        (Part(b'data: {"error": {"type": "invalid_request_error"}}\n\n', content_type=EVENTS), False),
        (Part(rb'data: {"choices": [{"delta": {"content": "\"error\""}}]}', content_type=EVENTS), False),
        (Part(b'data: "error"\n\n', content_type=EVENTS), False),
        (Part(b'data: {"type": "error", "code": "server_error"}\n\n', content_type=EVENTS), True),
        (Part(b'data: {"type": "error", "code": "invalid_prompt"}\n\n', content_type=EVENTS), False),
        (
            Part(
                b'data: {"type": "response.failed", "response": {"error": {"code": "server_error"}}}\n\n',
                content_type=EVENTS,
            ),
            True,
        ),
        (Part(b'{"object": "response", "status": "failed", "error": null}'), True),
        (Part(b'{"object": "response", "status": "completed", "error": null}'), False),
        (Part(b'data: {"error": {"type": "rate_limit_error", "code": "x"}}\n\n', content_type=EVENTS), False),
    ],
)
def test_faults_of_the_server(part: Part, fault: bool) -> None:
    assert is_fault(part) is fault
