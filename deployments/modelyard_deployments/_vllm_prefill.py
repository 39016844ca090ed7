# SPDX-License-Identifier: Apache-2.0
"""Prefill apart from decode: another model's replicas read the prompts, this one's fetch what they computed.

The other model is asked for one token and keeps the prompt's keys and values; what it says of where they are goes into
the request that this engine then runs. Source: vLLM "Disaggregated Prefilling"; ``ray.serve.llm``'s
``DefaultPDProtocolMixin``, whose parameters these are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson

from modelyard.errors import ModelNotReady
from modelyard.openai import OpenAIRequest, ask
from modelyard.peers import get_peers
from modelyard_deployments._vllm_requests import GENERATING, KEEP, TRANSFER, Requests

logger = logging.getLogger(__name__)

NIXL: Final[Mapping[str, Any]] = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",  # what cannot be fetched is read here
}
"""How keys and values travel where the user says nothing else."""

_OF_THE_ANSWER: Final = frozenset(
    {
        "ignore_eos",
        "logprob_token_ids",
        "logprobs",
        "max_completion_tokens",
        "min_tokens",
        "n",
        "stop",
        "stop_token_ids",
        "stream_options",
        "thinking_token_budget",
        "top_logprobs",
    }
)
"""Parameters that change no prompt: the one token that is thrown away needs none of them."""
_OF_THE_PROMPT: Final = (
    "echo",
    "prompt_embeds",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "use_beam_search",
    TRANSFER,
)
"""Parameters with which the prompt is another one where it is read, or has to be read where it is answered."""
_TEXTS: Final = ("text", "input_text", "output_text", "refusal", "thinking")
_LIMIT_S: Final = 60.0
"""How long reading a prompt may take, the queue included, before it is read here."""


class Prefill:
    """The model that reads prompts for another one.

    Args:
        model: Its name.
        for_model: The name of the other one.
        requests: What its server takes.
    """

    def __init__(self, model: str, for_model: str, requests: Requests) -> None:
        self._model = model
        self._for_model = for_model
        self._requests = requests
        self._reason = ""

    async def read(self, request: OpenAIRequest) -> OpenAIRequest:
        """The call with where its prompt's keys and values are; as it is where the prompt has to be read here.

        That is so where it has several prompts or wants several answers, whose blocks would be fetched more than once,
        where it has images or sound, which might be others when they are fetched again, where it is for an adapter, and
        where the other model cannot answer: then a request takes longer, and does not fail.
        """
        document = _decode(request)
        if document is None or document.get("model", self._for_model) != self._for_model:
            return request
        if not self._requests.fits(request):
            return request  # nobody keeps anything for what is refused
        try:
            reason, found = await self._ask_while_there(request, document)
        except Exception as exc:  # noqa: BLE001  # whatever the other model answers, this one can do without
            reason, found = str(exc) or type(exc).__name__, None
        if reason != self._reason:  # once, however many requests there are
            self._reason = reason
            if reason:
                logger.warning('prompts are read here, not by the model "%s": %s', self._model, reason)
            else:
                logger.warning('prompts are read by the model "%s" again', self._model)
        if found is None:
            return request
        body = orjson.dumps(document | {TRANSFER: found})
        return OpenAIRequest(request.route, body, request.content_type, request.id)

    async def _ask_while_there(
        self, request: OpenAIRequest, document: Mapping[str, Any]
    ) -> tuple[str, Mapping[str, Any] | None]:
        """As :meth:`_ask`; a model whose last replica dies meanwhile is not waited for.

        Raises:
            ModelNotReady: It is gone.
        """
        asking = asyncio.ensure_future(self._ask(request, document))
        gone = asyncio.ensure_future(get_peers().until_gone(self._model))
        try:
            await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ModelNotReady(self._model, "its replica is gone")
            return asking.result()
        finally:
            for task in (asking, gone):
                task.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)

    async def _ask(self, request: OpenAIRequest, document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
        """Why nothing was found though something should have been, and what was."""
        kept = {name: value for name, value in document.items() if name not in _OF_THE_ANSWER}
        body = orjson.dumps({**kept, "stream": False, "max_tokens": 1, TRANSFER: KEEP, "model": self._model})
        call = OpenAIRequest(request.route, body, id=request.id)
        parts = [part async for part in ask(self._model, call, timeout_s=_LIMIT_S)]
        if parts[0].status != 200:
            # A client's mistake, most of all: this engine says so in its own words.
            return (self._reason if parts[0].status < 500 else parts[0].data.decode(errors="replace")), None
        found = orjson.loads(b"".join(part.data for part in parts)).get(TRANSFER)
        if not found:
            return f"it keeps nothing: its engine needs {dict(NIXL)} as kv_transfer_config", None
        return "", found


def _decode(request: OpenAIRequest) -> dict[str, Any] | None:
    """The call's body, where another model may read its prompt."""
    if request.route not in GENERATING:
        return None
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or document.get("n") not in (None, 1):
        return None
    if any(document.get(name) not in (None, False) or _is_zero(document.get(name)) for name in _OF_THE_PROMPT):
        return None
    prompt = document.get("prompt")
    is_one = not isinstance(prompt, list) or all(isinstance(token, int) for token in prompt)
    return document if is_one and not _has_media(document.get("messages")) else None


def _is_zero(value: object) -> bool:
    """Zero is not nothing: ``prompt_logprobs`` of zero asks for those of the prompt's own tokens."""
    return value == 0 and not isinstance(value, bool)


def _has_media(messages: object) -> bool:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") not in _TEXTS:
                return True
    return False
