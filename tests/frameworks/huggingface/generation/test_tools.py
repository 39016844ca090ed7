# SPDX-License-Identifier: Apache-2.0
"""Calls are found in what models say, however it comes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard_deployments._generation_prompts import Prompts
from modelyard_deployments._openai_requests import AssistantMessage, FunctionCall, ToolCall
from modelyard_deployments._openai_tools import Call, CallReader, Found, NamedReader

CALL = '{"name": "f", "arguments": {"x": 1}}'
WANTED = ("f", {"x": 1})


def seen(found: list[Found]) -> list[object]:
    """Calls without their ids, and neighbouring texts as one."""
    result: list[object] = []
    for one in found:
        if isinstance(one, Call):
            result.append((one.name, json.loads(one.arguments)))
        elif isinstance(one, str) and result and isinstance(result[-1], str):
            result[-1] += one
        else:
            result.append(one)
    return result


def read(reader: CallReader, chunks: list[str]) -> list[object]:
    found = [one for chunk in chunks for one in reader.add(chunk)]
    return seen([*found, *reader.flush()])


TEXTS = {
    "tagged": (f"<tool_call>\n{CALL}\n</tool_call>", [WANTED]),
    "two": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [WANTED, WANTED]),
    "after words": (f"Let me see.<tool_call>{CALL}</tool_call>", ["Let me see.", WANTED]),
    "without an end": (f"<tool_call>\n{CALL}", [WANTED]),
    "bare": (CALL, [WANTED]),
    "bare parameters": ('{"name": "f", "parameters": {"x": 1}}', [WANTED]),
    "bare list": (f"[{CALL}, {CALL}]", [WANTED, WANTED]),
    "none": ("2 < 3, and <tool is no call", ["2 < 3, and <tool is no call"]),
    "broken": ("<tool_call>{nonsense}</tool_call>", ["<tool_call>{nonsense}</tool_call>"]),
    "other JSON": ('{"name": "g", "arguments": {}}', ['{"name": "g", "arguments": {}}']),
    "an answer in JSON": ('{"city": "Rome", "name": "f"}', ['{"city": "Rome", "name": "f"}']),
    "a link": ("[Rome](https://rome.it) is a city", ["[Rome](https://rome.it) is a city"]),
    "words behind": (f"{CALL} is a call", [f"{CALL} is a call"]),
    "tagged behind JSON": (f'{{"a": 1}}<tool_call>{CALL}</tool_call>', ['{"a": 1}', WANTED]),
    "nothing": ("", []),
}


DEEP = '{"x": ' + "[" * 5000 + "]" * 5000 + "}"


@pytest.mark.parametrize("text", [f'{{"name": "f", "arguments": {DEEP}}}', "[" * 5000 + "]" * 5000])
def test_what_is_nested_too_deeply_is_content(text: str) -> None:
    assert read(CallReader(["f"]), [text[:3000], text[3000:]]) == [text]
    assert read(CallReader(["f"]), [f"<tool_call>{text}</tool_call>"]) == [f"<tool_call>{text}</tool_call>"]
    assert read(CallReader(["f"], is_required=True), [text]) == [text]


class Template:
    """A tokenizer whose template knows tools, and shows what it is given."""

    chat_template = "{{ tools }}"

    def apply_chat_template(self, conversation: list[dict[str, Any]], **_: Any) -> str:
        self.conversation = conversation
        return "x"

    def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
        return {"input_ids": [1]}


@pytest.mark.parametrize(("text", "wanted"), [('{"x": 1}', {"x": 1}), (DEEP, DEEP), ("no JSON", "no JSON")])
async def test_earlier_arguments_are_an_object_where_they_can_be_read(text: str, wanted: object) -> None:
    template = Template()
    call = ToolCall(id="1", function=FunctionCall(name="f", arguments=text))
    await Prompts(template, None, 9, 9).from_messages([AssistantMessage(role="assistant", tool_calls=(call,))])
    assert template.conversation[0]["tool_calls"][0]["function"] == {"name": "f", "arguments": wanted}


@pytest.mark.parametrize("name", TEXTS)
@given(sizes=st.lists(st.integers(1, 9), max_size=30))
def test_calls_are_found_in_any_chunks(name: str, sizes: list[int]) -> None:
    text, wanted = TEXTS[name]
    chunks, rest = [], text
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    assert read(CallReader(["f"]), [*chunks, rest]) == wanted


def test_words_are_shown_at_once() -> None:
    assert CallReader(["f"]).add("The answer") == ["The answer"]


@pytest.mark.parametrize("text", ['{"city', "[R", "[1", "{ x", '{"name": "g', '{"name": 1', '["f'])
def test_brackets_are_shown_as_soon_as_they_begin_no_call(text: str) -> None:
    reader = CallReader(["f", "find"])
    assert reader.add(text[:1]) == []
    assert reader.add(text[1:]) == [text]


@pytest.mark.parametrize(
    "text", ['{"na', '{ "name" : "fi', '[{"name": "f", "argu', '{"type": "function", "name"', "[ {", "{"]
)
def test_what_may_be_a_call_is_held_back(text: str) -> None:
    assert CallReader(["f", "find"]).add(text) == []


def test_a_long_call_is_not_read_anew_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    read_whole, times = json.JSONDecoder.raw_decode, []

    def raw_decode(decoder: json.JSONDecoder, text: str, idx: int = 0) -> tuple[object, int]:
        times.append(len(text))
        return read_whole(decoder, text, idx)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", raw_decode)
    reader = CallReader(["f"])
    for piece in ['{"name": "f", ', '"arguments": {"x": "', *["word "] * 200, '"}', "}", "\n"]:
        assert reader.add(piece) == []
    assert len(times) == 2
    assert len(seen(reader.flush())) == 1


def test_of_a_named_function_the_arguments_come_as_they_are() -> None:
    reader = NamedReader("f")
    first, more = [*reader.add('{"x"'), *reader.add(": 1}")]
    assert isinstance(first, Call)
    assert (first.name, first.arguments + more.arguments) == ("f", '{"x": 1}')  # type: ignore[union-attr]
