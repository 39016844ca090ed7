# SPDX-License-Identifier: Apache-2.0
"""Answers that keep to a grammar: a JSON schema, a regular expression, a choice of texts, or a context-free grammar.

llguidance says, before each token, which ones may follow: all others get no probability. It is the library that needs
no other (7 MB; xgrammar asks for Triton's compiler), and one that vLLM has as well.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from modelyard.errors import InvalidRequest, Unsupported

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
"""The schema of ``response_format: {"type": "json_object"}``."""


def from_schema(schema: Mapping[str, Any] | bool) -> str:
    """The grammar of JSON texts that a schema describes, without white space, in which small models lose themselves.

    Raises:
        InvalidRequest: It is no schema, or has words that cannot be enforced.
    """
    from llguidance import LLMatcher

    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False}))
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the JSON schema cannot be enforced: {exc}") from exc


def from_regex(pattern: str) -> str:
    """The grammar of texts that the whole of a regular expression matches."""
    from llguidance import LLMatcher

    return str(LLMatcher.grammar_from_regex(pattern))


def from_choice(texts: Sequence[str]) -> str:
    """The grammar of one of the texts."""
    return from_lark("start: " + " | ".join(json.dumps(text) for text in texts))


def from_lark(grammar: str) -> str:
    """A context-free grammar in Lark's syntax, or GBNF with ``::=`` as llama.cpp and vLLM have it."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(LLMatcher.grammar_from_lark(any_to_lark(grammar)))
    except ValueError as exc:
        raise InvalidRequest(f"the grammar cannot be read: {exc}") from exc


class Grammars:
    """Makes masks for one tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.
        vocabulary: How many logits a row has; may be more than the tokenizer knows.
        ends: Tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: frozenset[int]) -> None:
        self._source = tokenizer
        self._vocabulary = vocabulary
        self._ends = ends
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def check(self, grammar: str) -> None:
        """Refuses what cannot be enforced, before anything is generated; takes its time, and may run in any thread.

        Raises:
            InvalidRequest: With the library's reason.
            Unsupported: The tokenizer is none of the fast ones.
        """
        from llguidance import LLMatcher

        problem = LLMatcher.validate_grammar(grammar, self._load())
        if problem:
            raise InvalidRequest(f"the grammar cannot be enforced: {problem.strip()}")

    def make(self, grammar: str) -> GrammarMask:
        """A mask at the beginning of the grammar; takes milliseconds for schemas of usual size."""
        from llguidance import LLMatcher

        return GrammarMask(LLMatcher(self._load(), grammar), self._vocabulary)

    def _load(self) -> Any:
        """The tokenizer in the library's form, which takes a second, so only where a request needs it."""
        with self._lock:
            if self._tokenizer is None:
                from llguidance import hf

                try:
                    self._tokenizer = hf.from_tokenizer(self._source, self._vocabulary, sorted(self._ends) or None)
                except ValueError as exc:
                    raise Unsupported(f"this model's tokenizer cannot keep to a grammar: {exc}") from exc
            return self._tokenizer


class GrammarMask:
    """One answer's place in its grammar; a :class:`~modelyard_deployments._generation_sampling.Mask`."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def apply(self, logits: torch.Tensor) -> None:
        """Makes the logits of all other tokens minus infinity, in place."""
        # Not the library's own function for torch, which compiles a kernel with a C++ compiler at the first call.
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: self._vocabulary].view(np.bool_)).to(logits.device)
        logits.masked_fill_(~allowed, -torch.inf)

    def accept(self, token: int) -> None:
        """Moves on behind the token.

        Raises:
            InvalidRequest: The library gave up, as a schema took more than it allows.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise InvalidRequest(f"the answer cannot be kept to the grammar: {self._matcher.get_error()}")

    @property
    def is_complete(self) -> bool:
        """Nothing can follow but the end."""
        return bool(self._matcher.is_stopped())
