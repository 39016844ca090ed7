# SPDX-License-Identifier: Apache-2.0
"""``/v1/chat/completions``.

Source: the OpenAI API reference, "Chat completions"; vLLM 0.29 for members beside them, and for their order.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._generation_answers import Piece, Whole, collect, merge
from modelyard_deployments._generation_grammar import from_schema
from modelyard_deployments._generation_runtime import Answering, Ask, Runtime
from modelyard_deployments._generation_sampling import Chosen
from modelyard_deployments._openai_logprobs import TokenNames, to_chat_logprobs
from modelyard_deployments._openai_protocol import decode, encode, encode_done, encode_event, to_id, to_usage
from modelyard_deployments._openai_requests import ChatRequest, NamedTool
from modelyard_deployments._openai_sampling import check_grammar, name_form, to_grammar, to_rules, to_sampling
from modelyard_deployments._openai_tools import (
    Call,
    CallReader,
    Found,
    More,
    NamedReader,
    Reader,
    TextReader,
    to_calls_schema,
    to_parameters_schema,
)


async def answer_chat(runtime: Runtime, request: OpenAIRequest) -> AsyncGenerator[Part]:
    """The reply, whole or as events.

    Raises:
        Refusal: The request is wrong.
    """
    body = decode(request, ChatRequest)
    ask = await to_ask(runtime, body)
    chat = _Chat(runtime, body, to_id("chatcmpl", request), len(ask.prompt))
    answers = runtime.start(ask)
    if body.stream:
        async with aclosing(chat.stream(answers, ask.prompt)) as parts:
            async for part in parts:
                yield part
    else:
        wholes = await collect([one.pieces for one in answers])
        yield encode(chat.to_reply(wholes, answers[0].generation.cached_tokens, ask.prompt))


async def to_ask(runtime: Runtime, body: ChatRequest) -> Ask:
    """The prompt, and how its answers are to be.

    Raises:
        Refusal: The messages do not fit the template or the context.
    """
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    prompt = await runtime.prompts.from_messages(
        body.messages,
        body.callable_tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        add_special_tokens=body.add_special_tokens,
        documents=body.documents,
        variables=variables,
    )
    max_tokens = runtime.prompts.check_length(prompt, body.limit, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = to_sampling(runtime, body, max_tokens, logprobs=logprobs)
    is_call = body.tool_choice not in (None, "none", "auto")
    grammar = await check_grammar(runtime, lambda: _to_grammar(body), "tools" if is_call else name_form(body))
    return Ask(prompt, sampling, to_rules(body), grammar, body.n or 1)


def _to_grammar(body: ChatRequest) -> str:
    """What the answer keeps to: the form that was asked for, or the call that is required."""
    if body.tool_choice == "required":
        return from_schema(to_calls_schema(body.callable_tools, body.parallel_tool_calls is not False))
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        tool = next(tool for tool in body.callable_tools if tool.function.name == name)
        return from_schema(to_parameters_schema(tool))
    return to_grammar(body)


class _Chat:
    """One call: what all of its answers and events have in common."""

    def __init__(self, runtime: Runtime, body: ChatRequest, ident: str, prompt_tokens: int) -> None:
        self._runtime = runtime
        self.body = body
        self._names = TokenNames(runtime.tokenizer, bool(body.return_tokens_as_token_ids))
        self._prompt_tokens = prompt_tokens
        self._head = {"id": ident, "created": int(time.time()), "model": body.model}

    def to_reply(self, wholes: Sequence[Whole], cached_tokens: int, prompt: Sequence[int]) -> dict[str, Any]:
        """The whole reply."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._to_choice(index, whole) for index, whole in enumerate(wholes)],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": to_usage(self._prompt_tokens, sum(len(whole.tokens) for whole in wholes), cached_tokens),
            "prompt_logprobs": None,
            "prompt_token_ids": list(prompt) if self.body.return_token_ids else None,
        }

    def _to_choice(self, index: int, whole: Whole) -> dict[str, Any]:
        found = self.read(whole.text)
        calls = [one for one in found if isinstance(one, Call)]
        text = "".join(one for one in found if isinstance(one, str))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not calls else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        if calls:
            message["tool_calls"] = [call.to_object() for call in calls]
        choice = {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": self.to_finish(whole.finish, bool(calls)),
            "stop_reason": whole.stop_reason,
            "token_ids": None,
        }
        self.tell_tokens(choice, whole.tokens)
        return choice

    def read(self, text: str) -> list[Found]:
        """Content and calls of a whole answer."""
        reader = self.new_reader()
        return self.limit([*reader.add(text), *reader.flush()], 0)

    def new_reader(self) -> Reader:
        """What finds the calls that this request allows."""
        if isinstance(self.body.tool_choice, NamedTool):
            return NamedReader(self.body.tool_choice.function.name)
        names = [tool.function.name for tool in self.body.callable_tools]
        return CallReader(names, self.body.tool_choice == "required") if names else TextReader()

    def limit(self, found: Iterable[Found], already: int) -> list[Found]:
        """Only the first call, where ``parallel_tool_calls`` is false."""
        kept: list[Found] = []
        for one in found:
            if isinstance(one, Call):
                already += 1
                if already > 1 and self.body.parallel_tool_calls is False:
                    continue
            kept.append(one)
        return kept

    def to_finish(self, finish: str, has_calls: bool) -> str:
        """A named function is no choice of the model's, so calling it is an ordinary end. Source: vLLM."""
        is_choice = has_calls and not isinstance(self.body.tool_choice, NamedTool)
        return "tool_calls" if is_choice and finish == "stop" else finish

    def tell_tokens(self, choice: dict[str, Any], tokens: Sequence[Chosen]) -> None:
        """Puts into a choice what the request asks about its tokens."""
        if self.body.logprobs:
            choice["logprobs"] = to_chat_logprobs(tokens, self._names, self.body.top_logprobs or 0)
        if self.body.return_token_ids:
            choice["token_ids"] = [one.token for one in tokens]

    async def stream(self, answers: Sequence[Answering], prompt: Sequence[int]) -> AsyncGenerator[Part]:
        """The reply's events."""
        streams = [_ChoiceStream(self, index) for index in range(len(answers))]
        first: dict[str, Any] = {"prompt_token_ids": list(prompt)} if self.body.return_token_ids else {}
        completion_tokens = 0
        has_begun = False
        async with aclosing(merge([one.pieces for one in answers])) as pieces:
            async for index, piece in pieces:
                completion_tokens += len(piece.tokens)
                choices = streams[index].add(piece)
                if not has_begun:
                    # Not sooner: what is refused when it begins is then a reply of its own, with its status.
                    has_begun = True
                    roles = [stream.begin() for stream in streams]
                    yield encode_event(self._to_chunk(roles, completion_tokens) | first)
                for choice in choices:
                    yield encode_event(self._to_chunk([choice], completion_tokens))
        if self.body.includes_usage:
            usage = to_usage(self._prompt_tokens, completion_tokens, answers[0].generation.cached_tokens)
            yield encode_event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield encode_done()

    def _to_chunk(self, choices: list[dict[str, Any]], completion_tokens: int) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        options = self.body.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = to_usage(self._prompt_tokens, completion_tokens)
        return chunk


class _ChoiceStream:
    """One choice of a stream."""

    def __init__(self, chat: _Chat, index: int) -> None:
        self._chat = chat
        self._index = index
        self._calls = 0
        self._tokens: list[Chosen] = []
        self._reader = chat.new_reader()

    def begin(self) -> dict[str, Any]:
        """The role."""
        return self._choice({"role": "assistant", "content": ""})

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """What a piece changes; nothing where all of it is held back."""
        self._tokens += piece.tokens
        found = self._reader.add(piece.text) + (self._reader.flush() if piece.finish is not None else [])
        choices = [self._choice(self._to_delta(one)) for one in self._chat.limit(found, self._calls)]
        if piece.finish is not None:
            choices = choices or [self._choice({})]
            choices[-1]["finish_reason"] = self._chat.to_finish(piece.finish, bool(self._calls))
            choices[-1]["stop_reason"] = piece.stop_reason
        if choices:
            self._chat.tell_tokens(choices[-1], self._tokens)
            self._tokens = []
        return choices

    def _to_delta(self, found: Found) -> dict[str, Any]:
        if isinstance(found, str):
            return {"content": found}
        if isinstance(found, More):
            return {"tool_calls": [{"index": self._calls - 1, "function": {"arguments": found.arguments}}]}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **found.to_object()}]}

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}
