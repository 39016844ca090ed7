# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities in the two shapes that the protocol has for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from modelyard_deployments._generation_sampling import Chosen

_LEAST: Final = -9999.0
"""Minus infinity in JSON. Source: vLLM ``ChatCompletionLogProb``."""
_UNFINISHED: Final = "\ufffd"
"""What a tokenizer puts where the bytes of a character are not all there."""
_BYTE: Final = re.compile("<0x([0-9A-F]{2})>")
"""A single byte in a vocabulary of SentencePiece."""


class TokenNames:
    """What a token is called.

    Args:
        tokenizer: The model's.
        as_ids: ``token_id:123`` instead of the text, as ``return_tokens_as_token_ids`` asks.
    """

    def __init__(self, tokenizer: Any, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def __call__(self, token: int) -> str:
        """The token's name."""
        if self._as_ids:
            return f"token_id:{token}"
        name: str = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return name

    def to_bytes(self, token: int) -> bytes:
        """The token's own bytes, which may be a part of a character: those of several make one."""
        name = self(token)
        if _UNFINISHED not in name:
            return name.encode("utf-8", "replace")
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if (byte := _BYTE.fullmatch(piece)) is not None:
            return bytes.fromhex(byte[1])
        letters = _find_letters()
        return bytes(letters[one] for one in piece) if all(one in letters for one in piece) else name.encode()


@cache
def _find_letters() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for. Source: OpenAI GPT-2, ``bytes_to_unicode``."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def to_chat_logprobs(tokens: Sequence[Chosen], names: TokenNames, count: int) -> dict[str, Any]:
    """``logprobs`` of a chat's choice: each token with ``count`` alternatives."""
    return {"content": [_to_entry(one, names) | {"top_logprobs": _to_top(one, names, count)} for one in tokens]}


def _to_entry(one: Chosen, names: TokenNames) -> dict[str, Any]:
    logprob = max(one.logprob, _LEAST)
    return {"token": names(one.token), "logprob": logprob, "bytes": list(names.to_bytes(one.token))}


def _to_top(one: Chosen, names: TokenNames, count: int) -> list[dict[str, Any]]:
    return [_to_entry(Chosen(token, logprob), names) for token, logprob in one.top[:count]]


class CompletionLogprobs:
    """``logprobs`` of a completion's choice, whose offsets go on from piece to piece."""

    def __init__(self, names: TokenNames, count: int) -> None:
        self._names = names
        self._count = count
        self._offset = 0

    def add(self, tokens: Sequence[Chosen | int]) -> dict[str, Any]:
        """Those of the next tokens; one that is only an id, a prompt's first, has none."""
        document: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for one in tokens:
            name = self._names(one if isinstance(one, int) else one.token)
            document["text_offset"].append(self._offset)
            document["tokens"].append(name)
            document["token_logprobs"].append(None if isinstance(one, int) else max(one.logprob, _LEAST))
            document["top_logprobs"].append(None if isinstance(one, int) else self._to_top(one))
            self._offset += len(name)
        return document

    def _to_top(self, one: Chosen) -> dict[str, float]:
        """The likeliest, and the chosen one where it is none of them."""
        pairs = [*one.top[: self._count], (one.token, one.logprob)]
        return {self._names(token): max(logprob, _LEAST) for token, logprob in reversed(pairs)}
