# SPDX-License-Identifier: Apache-2.0
"""``/v1/responses``: the Responses API without a memory.

Source: the OpenAI API reference, "Responses" and "Streaming events".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._generation_answers import Piece
from modelyard_deployments._generation_grammar import ANY_OBJECT, from_schema
from modelyard_deployments._generation_runtime import Answering, Ask, Runtime
from modelyard_deployments._generation_sampling import Chosen
from modelyard_deployments._openai_logprobs import TokenNames, to_chat_logprobs
from modelyard_deployments._openai_protocol import decode, encode, encode_event, to_id
from modelyard_deployments._openai_responses_requests import NamedFunctionTool, ResponsesRequest, SchemaText
from modelyard_deployments._openai_sampling import check_grammar, to_grammar, to_rules, to_sampling
from modelyard_deployments._openai_tools import (
    Call,
    CallReader,
    Found,
    NamedReader,
    Reader,
    TextReader,
    to_calls_schema,
    to_parameters_schema,
)


async def answer_responses(runtime: Runtime, request: OpenAIRequest) -> AsyncGenerator[Part]:
    """The reply, whole or as events.

    Raises:
        Refusal: The request is wrong.
    """
    body = decode(request, ResponsesRequest)
    ask = await _to_ask(runtime, body)
    (answering,) = runtime.start(ask)
    response = _Response(runtime, body, to_id("resp", request).replace("-", "_", 1), ask, answering)
    async with aclosing(response.events()) as events:
        async for event in events:
            if body.stream:
                yield encode_event(event, event["type"])
    if not body.stream:
        yield encode(response.to_document())


async def _to_ask(runtime: Runtime, body: ResponsesRequest) -> Ask:
    variables = {"reasoning_effort": body.reasoning.effort} if body.reasoning and body.reasoning.effort else {}
    prompt = await runtime.prompts.from_messages(body.messages, body.callable_tools, variables=variables)
    max_tokens = runtime.prompts.check_length(prompt, body.max_output_tokens, "input")
    logprobs = (body.top_logprobs or 0) if body.wants_logprobs else None
    sampling = to_sampling(runtime, body, max_tokens, logprobs=logprobs)
    is_call = body.tool_choice not in (None, "none", "auto")
    grammar = await check_grammar(runtime, lambda: _to_grammar(body), "tools" if is_call else "text.format")
    return Ask(prompt, sampling, to_rules(body), grammar)


def _to_grammar(body: ResponsesRequest) -> str:
    if body.tool_choice == "required":
        return from_schema(to_calls_schema(body.callable_tools, body.parallel_tool_calls is not False))
    if isinstance(body.tool_choice, NamedFunctionTool):
        name = body.tool_choice.name
        return from_schema(to_parameters_schema(next(t for t in body.callable_tools if t.function.name == name)))
    form = body.text.format if body.text is not None else None
    if isinstance(form, SchemaText):
        return from_schema(form.definition)
    return from_schema(ANY_OBJECT) if form is not None and form.type == "json_object" else to_grammar(body)


def _to_reader(body: ResponsesRequest) -> Reader:
    if isinstance(body.tool_choice, NamedFunctionTool):
        return NamedReader(body.tool_choice.name)
    names = [tool.function.name for tool in body.callable_tools]
    return CallReader(names, body.tool_choice == "required") if names else TextReader()


class _Response:
    """One response: its output grows with the events that tell of it."""

    def __init__(self, runtime: Runtime, body: ResponsesRequest, ident: str, ask: Ask, answering: Answering) -> None:
        self._body = body
        self._ident = ident
        self._ask = ask
        self._answering = answering
        self._names = TokenNames(runtime.tokenizer)
        self._reader = _to_reader(body)
        self._created = int(time.time())
        self._number = 0
        self._status = "in_progress"
        self._output: list[dict[str, Any]] = []
        self._is_open = False
        self._tokens = 0
        self._told: list[Chosen] = []

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """What a stream tells; closing it ends the generation."""
        async with aclosing(self._answering.pieces) as pieces:
            async for piece in pieces:
                if not self._tokens:
                    # Not sooner: what is refused when it begins is then a reply of its own, with its status.
                    for name in ("created", "in_progress"):
                        yield self._event(f"response.{name}", response=self.to_document())
                for event in self._add(piece):
                    yield event
        yield self._event(f"response.{self._status}", response=self.to_document())

    def to_document(self) -> dict[str, Any]:
        """The response as it is now."""
        body, sampling = self._body, self._ask.sampling
        is_over = self._status != "in_progress"
        return {
            "id": self._ident,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": self._output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "tool_choice": _dump(body.tool_choice) or "auto",
            "tools": [tool.model_dump() | {"strict": bool(tool.strict)} for tool in body.tools or ()],
            "background": False,
            "max_output_tokens": sampling.max_tokens,
            "previous_response_id": None,
            "reasoning": _dump(body.reasoning),
            "service_tier": "auto",
            "store": False,
            "text": _dump(body.text) or {"format": {"type": "text"}},
            "top_logprobs": body.top_logprobs,
            "truncation": "disabled",
            "usage": self._to_usage() if is_over else None,
            "user": body.user,
        }

    def _to_usage(self) -> dict[str, Any]:
        read = len(self._ask.prompt)
        return {
            "input_tokens": read,
            "input_tokens_details": {
                "cached_tokens": self._answering.generation.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": self._tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + self._tokens,
        }

    def _add(self, piece: Piece) -> Iterator[dict[str, Any]]:
        self._tokens += len(piece.tokens)
        if self._body.wants_logprobs:
            self._told += piece.tokens
        for found in self._reader.add(piece.text):
            yield from self._show(found)
        if piece.finish is None:
            return
        for found in self._reader.flush():
            yield from self._show(found)
        if not self._output:
            yield from self._show("")
        self._status = "incomplete" if piece.finish == "length" else "completed"
        yield from self._close()

    def _show(self, found: Found) -> Iterator[dict[str, Any]]:
        if not isinstance(found, str):
            self._told = []  # the tokens of a call are those of no text
        if isinstance(found, Call):
            calls = [item for item in self._output if item["type"] == "function_call"]
            if not calls or self._body.parallel_tool_calls is not False:
                yield from self._close()
                yield from self._open_call(found)
        elif isinstance(found, str):
            if not self._is_open or self._output[-1]["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            yield from self._add_text(found)
        else:
            yield self._add_arguments(found.arguments)

    def _open_message(self) -> Iterator[dict[str, Any]]:
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "in_progress"}
        yield self._open(item | {"content": []})
        self._output[-1]["content"].append(part)
        yield self._item_event("response.content_part.added", content_index=0, part=part)

    def _add_text(self, text: str) -> Iterator[dict[str, Any]]:
        part = self._output[-1]["content"][0]
        told = to_chat_logprobs(self._told, self._names, self._body.top_logprobs or 0)["content"]
        self._told = []
        part["text"] += text
        part["logprobs"] += told
        if text:
            yield self._item_event("response.output_text.delta", content_index=0, delta=text, logprobs=told)

    def _open_call(self, call: Call) -> Iterator[dict[str, Any]]:
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call.id, "name": call.name}
        yield self._open(item | {"arguments": "", "status": "in_progress"})
        if call.arguments:
            yield self._add_arguments(call.arguments)

    def _add_arguments(self, arguments: str) -> dict[str, Any]:
        self._output[-1]["arguments"] += arguments
        return self._item_event("response.function_call_arguments.delta", delta=arguments)

    def _open(self, item: dict[str, Any]) -> dict[str, Any]:
        self._output.append(item)
        self._is_open = True
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self) -> Iterator[dict[str, Any]]:
        """The last item is whole."""
        if not self._is_open:
            return
        self._is_open = False
        item = self._output[-1]
        if item["type"] == "message":
            part = item["content"][0]
            part["logprobs"] += to_chat_logprobs(self._told, self._names, self._body.top_logprobs or 0)["content"]
            self._told = []
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._item_event("response.output_text.done", content_index=0, **text)
            yield self._item_event("response.content_part.done", content_index=0, part=part)
        else:
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._item_event("response.function_call_arguments.done", **done)
        item["status"] = "incomplete" if self._status == "incomplete" else "completed"
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _item_event(self, kind: str, **members: Any) -> dict[str, Any]:
        item = self._output[-1]
        return self._event(kind, item_id=item["id"], output_index=len(self._output) - 1, **members)

    def _event(self, kind: str, **members: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **members}


def _dump(part: Any) -> Any:
    return part if part is None or isinstance(part, str) else part.model_dump(by_alias=True)
