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

from modelyard.errors import ModelNotReady, ModelyardError
from modelyard.openai import OpenAIRequest, ask
from modelyard.peers import get_peers

logger = logging.getLogger(__name__)

NIXL: Final[Mapping[str, Any]] = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",  # what cannot be fetched is read here
}
"""How keys and values travel where the user says nothing else."""

_ROUTES: Final = ("chat/completions", "completions")
_PARAMETERS: Final = "kv_transfer_params"
_ASKED: Final[Mapping[str, Any]] = {
    "stream": False,
    "max_tokens": 1,
    _PARAMETERS: {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    },
}
_OF_THE_ANSWER: Final = frozenset(
    {
        "ignore_eos",
        "logprobs",
        "max_completion_tokens",
        "min_tokens",
        "n",
        "response_format",
        "stop",
        "stop_token_ids",
        "stream_options",
        "structured_outputs",
        "thinking_token_budget",
        "top_logprobs",
    }
)
"""Parameters that change no prompt: the one token that is thrown away needs none of them."""
_OF_THE_PROMPT: Final = ("echo", "prompt_logprobs", "use_beam_search")
"""Parameters whose answer needs the prompt to be read where it is answered."""


class Prefill:
    """The model that reads prompts for another one.

    Args:
        model: Its name.
        for_model: The name of the other one.
    """

    def __init__(self, model: str, for_model: str) -> None:
        self._model = model
        self._for_model = for_model
        self._reason = ""

    async def read(self, request: OpenAIRequest) -> OpenAIRequest:
        """The call with where its prompt's keys and values are; as it is where the prompt has to be read here.

        That is so where it has several prompts or wants several answers, whose blocks would be fetched more than once,
        where it is for an adapter, and where the other model cannot answer: then a request takes longer, and does not
        fail.
        """
        document = _decode(request)
        if document is None or document.get("model") != self._for_model:
            return request
        try:
            reason, found = await self._ask_while_there(request, document)
        except (ModelyardError, ValueError) as exc:
            reason, found = str(exc), None
        if reason != self._reason:  # once, however many requests there are
            self._reason = reason
            if reason:
                logger.warning('prompts are read here, not by the model "%s": %s', self._model, reason)
            else:
                logger.warning('prompts are read by the model "%s" again', self._model)
        if found is None:
            return request
        body = orjson.dumps(document | {_PARAMETERS: found})
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
        if "tool_choice" in kept:
            kept["tool_choice"] = "none"  # the tools stay in the prompt; nothing binds the token
        body = orjson.dumps({**kept, **_ASKED, "model": self._model})
        parts = [part async for part in ask(self._model, OpenAIRequest(request.route, body, id=request.id))]
        if parts[0].status != 200:
            # A client's mistake, most of all: this engine says so in its own words.
            return (self._reason if parts[0].status < 500 else parts[0].data.decode(errors="replace")), None
        found = orjson.loads(b"".join(part.data for part in parts)).get(_PARAMETERS)
        if not found:
            return f"it keeps nothing: its engine needs {dict(NIXL)} as kv_transfer_config", None
        return "", found


def _decode(request: OpenAIRequest) -> dict[str, Any] | None:
    """The call's body, where another model may read its prompt."""
    if request.route not in _ROUTES:
        return None
    try:
        document = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or document.get("n") not in (None, 1):
        return None
    if any(document.get(name) for name in (*_OF_THE_PROMPT, _PARAMETERS)):
        return None
    prompt = document.get("prompt")
    is_one = not isinstance(prompt, list) or all(isinstance(token, int) for token in prompt)
    return document if is_one else None
