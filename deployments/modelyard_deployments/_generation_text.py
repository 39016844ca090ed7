# SPDX-License-Identifier: Apache-2.0
"""From tokens to text while they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

_UNFINISHED: Final = "\ufffd"
"""What a tokenizer puts where the bytes of a character are not all there."""
_CONTEXT: Final = 6
"""Tokens before the first one of an answer that decide whether it begins with a space."""


class Detokenizer:
    """The text of one answer.

    A token's text depends on its neighbours (spaces, characters of several tokens), so what is new is the difference
    between the last tokens' text with and without it.

    Args:
        tokenizer: A tokenizer of transformers.
        prompt: The tokens before the answer.
        skip_special_tokens: Leave out tokens like ``<|im_end|>``.

    Source: vLLM ``transformers_utils/detokenizer_utils.py``, for the idea of the two offsets.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._tokens = list(prompt[-_CONTEXT:])
        self._known = 0
        self._told = len(self._tokens)

    def add(self, token: int) -> str:
        """The text that is certain now; empty while a character is unfinished."""
        self._tokens.append(token)
        text = self._text_after_known()
        if not text or text.endswith(_UNFINISHED):
            return ""
        self._known, self._told = self._told, len(self._tokens)
        return text

    def flush(self) -> str:
        """What is left, now that nothing follows: never a part of a character."""
        return self._text_after_known().rstrip(_UNFINISHED)

    def _text_after_known(self) -> str:
        before = self._decode(self._tokens[self._known : self._told])
        return self._decode(self._tokens[self._known :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=self._skips, clean_up_tokenization_spaces=False)
        return text


class StopFinder:
    """Holds back what may be the beginning of a stop string, and ends at the first one that is whole.

    Args:
        stops: The strings; empty ones are not looked for.
        include: The text ends behind the stop string instead of before it.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def add(self, text: str) -> str:
        """What may be shown now, once this text has come; nothing after a stop string was found."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(place + len(stop), place, stop) for place, stop in places if place >= 0]
        if ends:
            # The one that was complete first, as if the text had come character by character.
            end, place, self.found = min(ends)
            shown, self._held = self._held[: end if self._include else place], ""
            return shown
        kept = max(self._overlap(stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return shown

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """How much of the end of the text is a beginning of the string."""
        for size in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:size]):
                return size
        return 0
