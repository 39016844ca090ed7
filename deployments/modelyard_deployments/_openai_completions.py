# SPDX-License-Identifier: Apache-2.0
"""``/v1/completions``: texts and tokens continued.

Source: the OpenAI API reference, "Completions"; vLLM 0.29 for members beside them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._generation_answers import Piece, Whole, collect, merge
from modelyard_deployments._generation_runtime import Answering, Ask, Runtime
from modelyard_deployments._generation_sampling import Chosen
from modelyard_deployments._openai_logprobs import CompletionLogprobs, TokenNames
from modelyard_deployments._openai_protocol import Refusal, decode, encode, encode_done, encode_event, to_id, to_usage
from modelyard_deployments._openai_requests import CompletionRequest
from modelyard_deployments._openai_sampling import check_grammar, name_form, to_grammar, to_rules, to_sampling

_DEFAULT_MAX_TOKENS = 16
"""Source: the OpenAI API reference."""


async def answer_completions(
    runtime: Runtime, request: OpenAIRequest, default_max_tokens: int = _DEFAULT_MAX_TOKENS
) -> AsyncGenerator[Part]:
    """The reply, whole or as events.

    Args:
        runtime: What generates.
        request: The call.
        default_max_tokens: Length of an answer where the request says none, or the room behind its prompt.

    Raises:
        Refusal: The request is wrong.
    """
    body = decode(request, CompletionRequest)
    if body.echo and body.logprobs is not None and runtime.prompts.is_apart:
        raise Refusal(
            "echo with logprobs: the model reads the prompt apart from the answer, and foretells none of its tokens",
            "echo",
        )
    grammar = await check_grammar(runtime, lambda: to_grammar(body), name_form(body))
    prompts = await _to_prompts(runtime, body)
    asks = [_to_ask(runtime, body, prompt, grammar, default_max_tokens) for prompt in prompts]
    completion = _Completion(runtime, body, to_id("cmpl", request), sum(len(ask.prompt) for ask in asks))
    answers = _start(runtime, asks)
    if body.stream:
        async with aclosing(completion.stream(answers)) as parts:
            async for part in parts:
                yield part
    else:
        wholes = await collect([one.pieces for one in answers])
        yield encode(completion.to_reply(answers, wholes))


def _start(runtime: Runtime, asks: Sequence[Ask]) -> list[Answering]:
    count, most = sum(ask.count for ask in asks), runtime.engine.most_at_once
    if count > most:
        raise Refusal(f"prompt, n, best_of: expected at most {most} answers in one request, got {count}", "prompt")
    started: list[Answering] = []
    try:
        for ask in asks:
            started += runtime.start(ask)
    except Exception:  # raised again; what has begun must not go on for nobody
        for one in started:
            one.generation.cancel()
        raise
    return started


async def _to_prompts(runtime: Runtime, body: CompletionRequest) -> list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [await runtime.prompts.from_text(prompt, body.add_special_tokens)]
    prompts = []
    for one in prompt:
        if isinstance(one, int):
            runtime.prompts.check_tokens([token for token in prompt if isinstance(token, int)], "prompt")
            return [[token for token in prompt if isinstance(token, int)]]
        if isinstance(one, str):
            prompts.append(await runtime.prompts.from_text(one, body.add_special_tokens))
        else:
            runtime.prompts.check_tokens(one, "prompt")
            prompts.append(list(one))
    return prompts


def _to_ask(runtime: Runtime, body: CompletionRequest, prompt: Sequence[int], grammar: str, default: int) -> Ask:
    max_tokens = runtime.prompts.check_length(prompt, body.max_tokens, "prompt")
    if body.max_tokens is None:
        max_tokens = min(default, max_tokens)
    count = max(body.best_of or 1, body.n or 1)
    is_contest = count > (body.n or 1)
    sampling = to_sampling(
        runtime,
        body,
        max(1, max_tokens),  # of 0, which asks for the prompt alone, one is generated and not shown
        logprobs=body.logprobs if body.logprobs is not None or not is_contest else 0,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    return Ask(prompt, sampling, to_rules(body), grammar, count)


@dataclass(slots=True)
class _Choice:
    """What is told of one answer so far."""

    index: int
    answering: Answering
    logprobs: CompletionLogprobs
    has_begun: bool = False


class _Completion:
    """One call: what all of its answers and events have in common."""

    def __init__(self, runtime: Runtime, body: CompletionRequest, ident: str, prompt_tokens: int) -> None:
        self._runtime = runtime
        self._body = body
        self._names = TokenNames(runtime.tokenizer, bool(body.return_tokens_as_token_ids))
        self._prompt_tokens = prompt_tokens
        self._head = {"id": ident, "object": "text_completion", "created": int(time.time()), "model": body.model}
        self._shows_answer = body.max_tokens != 0

    def to_reply(self, answers: Sequence[Answering], wholes: Sequence[Whole]) -> dict[str, Any]:
        """The whole reply: of each prompt the ``n`` best answers."""
        choices: list[dict[str, Any]] = []
        for answering, whole in self._pick(list(zip(answers, wholes, strict=True))):
            choice = self._new_choice(len(choices), answering)
            choices.append(self._to_choice(choice, Piece(whole.text, whole.tokens, whole.finish, whole.stop_reason)))
        completion_tokens = sum(len(whole.tokens) for whole in wholes) if self._shows_answer else 0
        return {
            **self._head,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": to_usage(self._prompt_tokens, completion_tokens, _cached(answers)),
        }

    def _pick(self, pairs: list[tuple[Answering, Whole]]) -> list[tuple[Answering, Whole]]:
        wanted = self._body.n or 1
        drawn = max(self._body.best_of or 1, wanted)
        picked = []
        for first in range(0, len(pairs), drawn):
            of_prompt = pairs[first : first + drawn]
            if drawn > wanted:
                of_prompt.sort(key=lambda pair: pair[1].mean_logprob, reverse=True)
            picked += of_prompt[:wanted]
        return picked

    def _new_choice(self, index: int, answering: Answering) -> _Choice:
        return _Choice(index, answering, CompletionLogprobs(self._names, self._body.logprobs or 0))

    def _to_choice(self, choice: _Choice, piece: Piece) -> dict[str, Any]:
        """What a piece adds to a choice; the first one brings the prompt, where it is to be repeated."""
        body, prompt = self._body, choice.answering.generation.prompt
        text, tokens, finish = piece.text, piece.tokens, piece.finish
        if not self._shows_answer:
            text, tokens, finish = "", (), "length" if finish else None
        told: list[Chosen | int] = [*tokens]
        is_first, choice.has_begun = not choice.has_begun, True
        if is_first and body.echo:
            text = self._runtime.tokenizer.decode(prompt, skip_special_tokens=body.skip_special_tokens) + text
            told = [prompt[0], *choice.answering.generation.prompt_logprobs, *tokens]
        document: dict[str, Any] = {
            "index": choice.index,
            "text": text,
            "logprobs": choice.logprobs.add(told) if body.logprobs is not None else None,
            "finish_reason": finish,
            "stop_reason": piece.stop_reason,
        }
        if body.return_token_ids:
            document["token_ids"] = [one.token for one in tokens]
            document["prompt_token_ids"] = list(prompt) if is_first else None
        return document

    async def stream(self, answers: Sequence[Answering]) -> AsyncGenerator[Part]:
        """The reply's events."""
        choices = [self._new_choice(index, answering) for index, answering in enumerate(answers)]
        completion_tokens = 0
        tells_tokens = self._body.logprobs is not None or bool(self._body.return_token_ids)
        async with aclosing(merge([one.pieces for one in answers])) as pieces:
            async for index, piece in pieces:
                completion_tokens += len(piece.tokens) if self._shows_answer else 0
                is_first = self._body.echo and not choices[index].has_begun
                if piece.text or piece.finish or tells_tokens or is_first:
                    yield encode_event(self._to_chunk(self._to_choice(choices[index], piece), completion_tokens))
        if self._body.includes_usage:
            usage = to_usage(self._prompt_tokens, completion_tokens, _cached(answers))
            yield encode_event({**self._head, "choices": [], "usage": usage})
        yield encode_done()

    def _to_chunk(self, choice: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        options = self._body.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = to_usage(self._prompt_tokens, completion_tokens)
        return chunk


def _cached(answers: Sequence[Answering]) -> int:
    """Prompt tokens that were not computed for this call; those of an answer that shares its prompt do not count."""
    first = {answering.generation.prompt: answering.generation.cached_tokens for answering in reversed(answers)}
    return sum(first.values())
