# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities name tokens by their own bytes, and stay with the text that they are of."""

import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelyard_deployments._generation_answers import Piece
from modelyard_deployments._generation_runtime import Answering, Ask
from modelyard_deployments._generation_sampling import Chosen, Sampling
from modelyard_deployments._openai_logprobs import TokenNames, to_chat_logprobs
from modelyard_deployments._openai_responses import _Response
from modelyard_deployments._openai_responses_requests import ResponsesRequest

EURO = "€".encode()


def byte_level() -> PreTrainedTokenizerFast:
    """Each byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def with_fallback() -> PreTrainedTokenizerFast:
    """Letters, and bytes for what is none of them."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b"]
    inner = Tokenizer(
        models.BPE({word: at for at, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("make", [byte_level, with_fallback])
def test_the_bytes_of_parts_of_a_character_are_their_own(make: Any) -> None:
    tokenizer = make()
    tokens = tokenizer("a€b", add_special_tokens=False)["input_ids"]
    told = to_chat_logprobs([Chosen(token, -1.0) for token in tokens], TokenNames(tokenizer), 0)["content"]
    assert [bytes(one["bytes"]) for one in told] == [b"a", EURO[:1], EURO[1:2], EURO[2:], b"b"]


async def test_the_tokens_of_a_call_are_those_of_no_message() -> None:
    call = json.dumps({"name": "f", "arguments": {}})
    texts = ["Hi", "<tool_call>", call, "</tool_call>", "bye"]

    async def pieces() -> AsyncGenerator[Piece]:
        for index, text in enumerate(texts):
            yield Piece(text, (Chosen(index, -1.0),), "stop" if index == len(texts) - 1 else None)

    tokenizer = SimpleNamespace(decode=lambda tokens, **_: texts[tokens[0]])
    tool = {"type": "function", "name": "f"}
    asked = {"model": "m", "input": "x", "tools": [tool], "include": ["message.output_text.logprobs"]}
    body = ResponsesRequest.model_validate_json(json.dumps(asked))
    answering = Answering(SimpleNamespace(cached_tokens=0), pieces())  # type: ignore[arg-type]  # what is asked of it
    response = _Response(SimpleNamespace(tokenizer=tokenizer), body, "r", Ask([1], Sampling(9)), answering)  # type: ignore[arg-type]
    assert [event async for event in response.events()]
    first, called, last = response.to_document()["output"]
    assert (called["type"], called["name"]) == ("function_call", "f")
    assert [one["token"] for one in first["content"][0]["logprobs"]] == ["Hi"]
    assert [one["token"] for one in last["content"][0]["logprobs"]] == ["bye"]
