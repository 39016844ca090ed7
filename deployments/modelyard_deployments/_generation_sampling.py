# SPDX-License-Identifier: Apache-2.0
"""From one row of logits to the next token, as one request asks for it.

The order is vLLM's: what may not be chosen, ``logit_bias``, penalties, temperature, ``min_p``, ``top_k``, ``top_p``.
Log-probabilities that are reported are the model's own, from before all of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from modelyard.errors import InvalidRequest

_LIKELY: Final = 1024
"""So many of the likeliest tokens mostly hold ``top_p``; sorting the whole vocabulary takes ten times the time."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of each of its tokens.

    Attributes:
        max_tokens: Most tokens to generate.
        min_tokens: So many tokens before anything may end the answer.
        temperature: 0 takes the likeliest token.
        top_p: Only the likeliest tokens that make up this much of the probability.
        top_k: Only so many of the likeliest tokens; 0 or less is all.
        min_p: Only tokens at least this likely, relative to the likeliest.
        repetition_penalty: Over 1 makes tokens of the prompt and the answer less likely.
        presence_penalty: Taken from the logits of tokens that the answer has.
        frequency_penalty: Taken from them once for each time the answer has them.
        logit_bias: Added to the logits, by token.
        allowed_token_ids: Only these; empty is all.
        bad_words: Token sequences that must not occur in the answer.
        seed: Equal seeds give equal answers to equal requests.
        stop_token_ids: Tokens that end the answer, beside the model's own.
        ignore_eos: The model's own end does not end the answer.
        logprobs: How many alternatives to report of each token; None reports nothing.
        prompt_logprobs: The same of the prompt's tokens.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token.

    Attributes:
        token: Its id.
        logprob: Its log-probability; 0 where none was asked for.
        top: The likeliest tokens at its place with their log-probabilities, best first.
        rank: Its place among all, the likeliest is 1; 0 where none was asked for.
    """

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class Mask(Protocol):
    """What a grammar allows next; see ``_generation_grammar``."""

    def apply(self, logits: torch.Tensor) -> None:
        """Makes the logits of all other tokens minus infinity, in place."""

    def accept(self, token: int) -> None:
        """Moves on behind the token."""

    @property
    def is_complete(self) -> bool:
        """Nothing can follow but the end."""


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        sampling: As the request asks.
        prompt: The prompt's tokens.
        ends: The model's own tokens that end an answer.
        device: Where the logits are.
        mask: A grammar that the answer keeps to.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], ends: frozenset[int], device: Any, mask: Mask | None = None
    ) -> None:
        self._sampling = sampling
        self._mask = mask
        self._device = device
        self._generator = None
        if sampling.seed is not None and sampling.temperature > 0:
            self._generator = torch.Generator(device).manual_seed(sampling.seed)
        self._answer: list[int] = []
        self._counts: dict[int, int] = {}
        self._seen = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._ends = self._index(sorted((frozenset() if sampling.ignore_eos else ends) | sampling.stop_token_ids))
        self._never = self._index(sorted(ends)) if sampling.ignore_eos else None
        self._allowed = self._index(sampling.allowed_token_ids) if sampling.allowed_token_ids else None
        self._biased = self._index(list(sampling.logit_bias))
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=device)

    def choose(self, logits: torch.Tensor) -> Chosen:
        """The next token.

        Args:
            logits: FP32 ``[vocabulary]``; changed in place.

        Raises:
            InvalidRequest: The request leaves no token to choose.
        """
        reported = torch.log_softmax(logits, -1) if self._sampling.logprobs is not None else None
        self._restrict(logits)
        self._penalise(logits)
        token = int(logits.argmax()) if self._sampling.temperature <= 0 else self._draw(logits)
        self._remember(token)
        return Chosen(token) if reported is None else report(reported, token, self._sampling.logprobs or 0)

    @property
    def is_complete(self) -> bool:
        """The grammar has ended, so the answer has."""
        return self._mask is not None and self._mask.is_complete

    def _restrict(self, logits: torch.Tensor) -> None:
        if self._mask is not None:
            self._mask.apply(logits)
        if self._allowed is not None:
            kept = logits[self._allowed]
            logits.fill_(-torch.inf)
            logits[self._allowed] = kept
        if self._never is not None:
            logits[self._never] = -torch.inf
        if len(self._answer) < self._sampling.min_tokens:
            logits[self._ends] = -torch.inf
        for *before, last in self._sampling.bad_words:
            if self._answer[len(self._answer) - len(before) :] == before:
                logits[last] = -torch.inf
        if len(self._biased):
            logits[self._biased] += self._bias
        best = float(logits.max())
        if best == -math.inf:
            raise InvalidRequest(
                f"no token may follow the {len(self._answer)} of the answer: what the request allows and forbids, "
                "taken together, leaves none"
            )
        if not math.isfinite(best):
            raise ArithmeticError(f"the model gave {best} for a token: its weights or its dtype do not do")

    def _penalise(self, logits: torch.Tensor) -> None:
        sampling = self._sampling
        if sampling.repetition_penalty != 1 and self._seen:
            seen = self._index(sorted(self._seen))
            values = logits[seen]
            scale = sampling.repetition_penalty
            logits[seen] = torch.where(values > 0, values / scale, values * scale)
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=self._device)
            taken = sampling.presence_penalty + sampling.frequency_penalty * counts
            logits[self._index(list(self._counts))] -= taken

    def _draw(self, logits: torch.Tensor) -> int:
        sampling = self._sampling
        logits /= max(sampling.temperature, 1e-5)
        if sampling.min_p > 0:
            limit = logits.max() + torch.log(torch.tensor(sampling.min_p, device=self._device))
            logits[logits < limit] = -torch.inf
        if 0 < sampling.top_k < logits.numel():
            values, tokens = logits.topk(sampling.top_k)
        elif sampling.top_p < 1:
            values, tokens = self._likeliest(logits)
        else:
            return self._pick(torch.softmax(logits, -1))
        probabilities = torch.softmax(values, -1)
        if sampling.top_p < 1:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[before >= sampling.top_p] = 0
            probabilities[0] = max(float(probabilities[0]), 1e-30)  # top_p of 0 leaves the likeliest
        return int(tokens[self._pick(probabilities)])

    def _likeliest(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values, best first, whose softmax is the whole vocabulary's as far as ``top_p`` reaches, and their tokens."""
        whole = torch.logsumexp(logits, -1)
        values, tokens = logits.topk(min(_LIKELY, logits.numel()))
        if float((values - whole).exp().sum()) < self._sampling.top_p:
            return logits.sort(descending=True)
        # The rest as one value at the end keeps the sum at 1; top_p cuts it off.
        rest = (1 - (values - whole).exp().sum()).clamp(min=0).log()[None] + whole
        return torch.cat((values, rest)), torch.cat((tokens, tokens[:1]))

    def _pick(self, probabilities: torch.Tensor) -> int:
        """An index, each as likely as it says; exponential variates, as ``multinomial`` checks its input slowly."""
        noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
        return int((probabilities / noise).argmax())

    def _remember(self, token: int) -> None:
        self._answer.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._sampling.repetition_penalty != 1:
            self._seen.add(token)
        if self._mask is not None:
            self._mask.accept(token)

    def _index(self, tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self._device)


def report(logprobs: torch.Tensor, token: int, count: int) -> Chosen:
    """The token with its log-probability and those of the likeliest.

    Args:
        logprobs: FP32 ``[vocabulary]``.
        token: Which was chosen.
        count: How many of the likeliest; -1 is all.
    """
    own = float(logprobs[token])
    rank = int((logprobs > own).sum()) + 1
    if not count:
        return Chosen(token, own, (), rank)
    values, tokens = logprobs.topk(logprobs.numel() if count < 0 else min(count, logprobs.numel()))
    return Chosen(token, own, tuple(zip(tokens.tolist(), values.tolist(), strict=True)), rank)
