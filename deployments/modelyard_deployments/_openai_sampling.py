# SPDX-License-Identifier: Apache-2.0
"""From the members of a request that choose tokens to what the engine and the text are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from modelyard.errors import InvalidRequest
from modelyard_deployments._generation_answers import TextRules
from modelyard_deployments._generation_grammar import ANY_OBJECT, from_choice, from_lark, from_regex, from_schema
from modelyard_deployments._generation_runtime import Runtime
from modelyard_deployments._generation_sampling import Sampling
from modelyard_deployments._openai_protocol import Refusal, read_text
from modelyard_deployments._openai_requests import ResponseFormat, Sampled, SchemaFormat, StructuredOutputs


def to_sampling(runtime: Runtime, body: Sampled, max_tokens: int, **more: Any) -> Sampling:
    """How the request's tokens are chosen; what it leaves out is as the model's own defaults say.

    Args:
        runtime: The model.
        body: The request.
        max_tokens: Most tokens of the answer.
        more: Further members of :class:`Sampling`.

    Raises:
        Refusal: A token does not exist.
    """
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    bias = _to_bias(body)
    tokens = [*bias, *(body.allowed_token_ids or ()), *(body.stop_token_ids or ())]
    runtime.prompts.check_tokens(tokens, "logit_bias, allowed_token_ids, stop_token_ids")
    chosen = {
        **runtime.defaults,
        **given,
        "max_tokens": max_tokens,
        "min_tokens": min(body.min_tokens, max_tokens),
        "logit_bias": bias,
        "allowed_token_ids": body.allowed_token_ids or (),
        "bad_words": _to_bad_words(runtime, body),
        "seed": body.seed,
        "stop_token_ids": frozenset(body.stop_token_ids or ()),
        "ignore_eos": body.ignore_eos,
    }
    return Sampling(**{**chosen, **more})


def name_form(body: Sampled) -> str:
    """Which member asks for a form of the answer."""
    return "structured_outputs" if body.structured_outputs is not None else "response_format"


def to_rules(body: Sampled) -> TextRules:
    """How the answer's tokens become text."""
    return TextRules(body.stops, body.include_stop_str_in_output, body.skip_special_tokens, body.min_tokens)


async def check_grammar(runtime: Runtime, make: Callable[[], str], param: str) -> str:
    """What an answer has to keep to; empty where it is free.

    Args:
        runtime: The model.
        make: Makes it.
        param: Which member of the body asks for it.

    Raises:
        Refusal: It cannot be enforced.
    """
    try:
        grammar = make()
        if grammar:
            await asyncio.to_thread(runtime.grammars.check, grammar)
    except InvalidRequest as exc:
        raise Refusal(f"{param}: {exc}", param, "invalid_schema") from exc
    return grammar


def to_grammar(body: Sampled) -> str:
    """What the answer has to keep to; empty where it is free.

    Raises:
        InvalidRequest: It cannot be enforced.
    """
    if body.structured_outputs is not None:
        return _from_structured(body.structured_outputs)
    return from_format(body.response_format) if body.response_format is not None else ""


def from_format(form: ResponseFormat) -> str:
    """The grammar of a ``response_format``; empty for text."""
    if isinstance(form, SchemaFormat):
        return from_schema(form.json_schema.definition)
    return from_schema(ANY_OBJECT) if form.type == "json_object" else ""


def _from_structured(form: StructuredOutputs) -> str:
    if form.json_ is not None:
        return from_schema(_to_schema(form.json_))
    if form.regex is not None:
        return from_regex(form.regex)
    if form.choice is not None:
        return from_choice(form.choice)
    if form.grammar is not None:
        return from_lark(form.grammar)
    return from_schema(ANY_OBJECT) if form.json_object else ""


def _to_schema(schema: dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    try:
        document = read_text(schema)
    except ValueError as exc:
        raise Refusal(f"structured_outputs.json: no JSON: {exc}", "structured_outputs.json", "invalid_schema") from exc
    if not isinstance(document, dict):
        raise Refusal(
            "structured_outputs.json: expected a schema, an object", "structured_outputs.json", "invalid_schema"
        )
    return document


def _to_bias(body: Sampled) -> dict[int, float]:
    try:
        return {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError as exc:
        raise Refusal(f"logit_bias: expected tokens, which are whole numbers: {exc}", "logit_bias") from exc


def _to_bad_words(runtime: Runtime, body: Sampled) -> tuple[tuple[int, ...], ...]:
    """Each word as it begins a text and as it follows a space, which other tokens stand for.

    Source: vLLM ``SamplingParams.update_from_tokenizer``.
    """
    words: set[tuple[int, ...]] = set()
    for word in body.bad_words or ():
        for text in (word, f" {word.lstrip()}"):
            words.add(tuple(runtime.tokenizer(text, add_special_tokens=False)["input_ids"]))
    return tuple(sorted(word for word in words if word))
