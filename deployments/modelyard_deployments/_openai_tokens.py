# SPDX-License-Identifier: Apache-2.0
"""``/tokenize`` and ``/detokenize``, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson

from modelyard.openai import OpenAIRequest, Part
from modelyard_deployments._generation_prompts import Prompts
from modelyard_deployments._openai_protocol import decode, encode
from modelyard_deployments._openai_requests import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest


async def answer_tokenize(tokenizer: Any, prompts: Prompts, request: OpenAIRequest) -> AsyncGenerator[Part]:
    """The tokens of a text, or of messages as the chat template writes them.

    Raises:
        Refusal: The request is wrong.
    """
    body: TokenizeChatRequest | TokenizeTextRequest
    if _has_messages(request.body):
        body = decode(request, TokenizeChatRequest)
        tokens = await prompts.from_messages(
            body.messages,
            body.tools or (),
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens,
            documents=body.documents,
            variables=body.chat_template_kwargs,
        )
    else:
        body = decode(request, TokenizeTextRequest)
        tokens = await prompts.from_text(body.prompt, body.add_special_tokens)
    names = tokenizer.convert_ids_to_tokens(tokens) if body.return_token_strs else None
    yield encode({"count": len(tokens), "max_model_len": prompts.max_model_len, "tokens": tokens, "token_strs": names})


async def answer_detokenize(tokenizer: Any, prompts: Prompts, request: OpenAIRequest) -> AsyncGenerator[Part]:
    """The text of tokens, special ones included.

    Raises:
        Refusal: The request is wrong, or a token does not exist.
    """
    body = decode(request, DetokenizeRequest)
    prompts.check_tokens(body.tokens, "tokens")
    yield encode({"prompt": tokenizer.decode(list(body.tokens), clean_up_tokenization_spaces=False)})


def _has_messages(body: bytes) -> bool:
    """Which of the two requests it is; what is no JSON object is refused as either."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and "messages" in document
