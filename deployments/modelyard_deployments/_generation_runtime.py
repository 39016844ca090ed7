# SPDX-License-Identifier: Apache-2.0
"""A loaded generative model: what the routes of the OpenAI protocol and v2 start answers with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelyard_deployments._generation_answers import Piece, TextRules, read_pieces
from modelyard_deployments._generation_engine import Engine, Generation
from modelyard_deployments._generation_grammar import Grammars
from modelyard_deployments._generation_prompts import Prompts
from modelyard_deployments._generation_sampling import Sampling


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt, and how its answers are to be.

    Attributes:
        prompt: Its tokens.
        sampling: How to choose.
        rules: How tokens become text.
        grammar: What the answer keeps to, checked; empty where it is free.
        count: How many answers; each after the first adds 1 to the seed.
    """

    prompt: Sequence[int]
    sampling: Sampling
    rules: TextRules = field(default_factory=TextRules)
    grammar: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Answering:
    """An answer that has begun: its generation, for what the prompt's tokens say, and its pieces."""

    generation: Generation
    pieces: AsyncGenerator[Piece]


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded model.

    Attributes:
        engine: What generates.
        tokenizer: The model's, of transformers.
        prompts: Makes prompts.
        grammars: Makes masks.
        defaults: Members of :class:`Sampling` where a request says nothing, from ``generation_config.json``.
        default_max_tokens: For v2 requests that say nothing.
    """

    engine: Engine
    tokenizer: Any
    prompts: Prompts
    grammars: Grammars
    defaults: Mapping[str, Any]
    default_max_tokens: int

    def start(self, ask: Ask) -> list[Answering]:
        """Starts the answers to one prompt; close the pieces, or iterate to their end.

        Raises:
            Overloaded: Too many wait.
        """
        started: list[Answering] = []
        try:
            for number in range(ask.count):
                seed = None if ask.sampling.seed is None else ask.sampling.seed + number
                mask = self.grammars.make(ask.grammar) if ask.grammar else None
                generation = self.engine.submit(ask.prompt, replace(ask.sampling, seed=seed), mask)
                started.append(Answering(generation, read_pieces(generation, self.tokenizer, ask.rules)))
        except Exception:  # raised again; what has begun must not go on for nobody
            for one in started:
                one.generation.cancel()
            raise
        return started
