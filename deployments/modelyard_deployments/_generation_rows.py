# SPDX-License-Identifier: Apache-2.0
"""The model's side of the batch: prompts are computed, rows join, all take one step, rows leave.

Two kinds: :class:`SharedRows` for decoders whose cache is keys and values, all rows in one forward pass;
:class:`SeparateRows` for decoders with a cache of another kind (state space models), a pass for each. Encoder-decoders
are in ``_generation_seq2seq``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from modelyard_deployments._generation_cache import SPARE_COLUMNS, BatchCache, shared_prefix

_MIN_SHARED: Final = 16
"""Fewer tokens in common are computed again sooner than copied."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first ``length`` tokens of a prompt are in the cache of the row ``index`` as well."""

    index: int = 0
    length: int = 0


NO_REUSE: Final = Reuse()


def find_reuse(prompt: Sequence[int], running: Sequence[Sequence[int]]) -> Reuse:
    """Which row has most of a prompt in its cache; its last token has to be computed in any case.

    Args:
        prompt: Its tokens.
        running: The tokens in the cache of each row.
    """
    shared = [shared_prefix(prompt[:-1], row) for row in running]
    length = max(shared, default=0)
    return Reuse(shared.index(length), length) if length >= _MIN_SHARED else NO_REUSE


class PromptLogits(ABC):
    """Takes the logits of a prompt's tokens."""

    @abstractmethod
    def take(self, logits: torch.Tensor) -> None:
        """FP32 ``[tokens, vocabulary]``: behind the next tokens of the prompt."""


class Prefill(ABC):
    """Prompts that are being computed, in as many pieces as the steps of the others ask for."""

    reused: int = 0
    """Tokens whose keys and values another row had."""

    @property
    @abstractmethod
    def remaining(self) -> int:
        """Tokens of each prompt still to compute, those that pad it counted."""

    @abstractmethod
    def advance(self, count: int) -> torch.Tensor | None:
        """Computes so many tokens of each prompt or what remains.

        Returns:
            The logits behind the prompts' last tokens, FP32 ``[prompts, vocabulary]``, once all are computed; before,
            None.
        """

    @abstractmethod
    def join(self) -> None:
        """Adds what was computed behind the other rows."""


class Rows(ABC):
    """The sequences that run."""

    joins_while_running: bool = True
    """Sequences can join others that have begun."""

    groups_prompts: bool = False
    """Several prompts can be computed at once."""

    reuses_beginnings: bool = False
    """What a running row has of a prompt need not be computed again."""

    @property
    @abstractmethod
    def used_tokens(self) -> int:
        """Tokens in the cache."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of so many tokens can join now; one that is alone always can."""

    @abstractmethod
    def has_room_to_step(self) -> bool:
        """Whether all can take one more token; if not, one has to leave."""

    @abstractmethod
    def prefill(
        self, prompts: Sequence[Sequence[int]], each: PromptLogits | None = None, reuse: Reuse = NO_REUSE
    ) -> Prefill:
        """Begins with some prompts.

        Args:
            prompts: Their tokens; of one that had to leave, also what was generated before. Several only where
                ``groups_prompts``.
            each: Takes the logits of each prompt token; only with a single prompt.
            reuse: What another row has of a single prompt already.
        """

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token more for each row.

        Args:
            tokens: The last token of each row.

        Returns:
            The logits behind them, FP32 ``[rows, vocabulary]``.
        """

    @abstractmethod
    def leave(self, index: int) -> None:
        """Removes a row; the last one takes its place."""

    @abstractmethod
    def clear(self) -> None:
        """Removes all rows and frees their memory."""


class Decoder:
    """Forward passes of a decoder, whatever its parameters are called."""

    def __init__(self, model: Any) -> None:
        parameters = inspect.signature(model.forward).parameters
        self._model = model
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._takes_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.device = model.device

    def __call__(
        self, tokens: torch.Tensor, cache: Any, *, mask: torch.Tensor, positions: torch.Tensor, every: bool = False
    ) -> torch.Tensor:
        """Logits FP32 ``[rows, tokens, vocabulary]``; of the last token only unless ``every``."""
        arguments: dict[str, Any] = {self._cache_name: cache, "attention_mask": mask, "use_cache": True}
        if self._takes_positions:
            arguments["position_ids"] = positions
        if self._keeps_logits:
            arguments["logits_to_keep"] = 0 if every else 1
        logits: torch.Tensor = self._model(input_ids=tokens, **arguments).logits
        return (logits if every else logits[:, -1:]).float()


class DecoderPrefill(Prefill):
    """Prompts in a cache of their own, padded on the left.

    Args:
        decoder: What computes.
        cache: For these prompts alone; may hold the beginning of a single one.
        prompts: Their tokens.
        join: Given the cache and the prompts' lengths, once they are to run with the others.
        each: Takes the logits of each token of a single one.
        reused: How many of a single one's tokens the cache holds.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: Any,
        prompts: Sequence[Sequence[int]],
        join: Callable[[Any, Sequence[int]], None],
        each: PromptLogits | None = None,
        reused: int = 0,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._lengths = [len(prompt) for prompt in prompts]
        self._join = join
        self._each = each
        self._done = self.reused = reused
        self._width = max(self._lengths)
        padded = [[0] * (self._width - len(prompt)) + list(prompt) for prompt in prompts]
        self._tokens = torch.tensor(padded, device=decoder.device)
        first = self._width - torch.tensor(self._lengths, device=decoder.device)[:, None]
        self._positions = torch.arange(self._width, device=decoder.device)[None] - first

    @property
    def remaining(self) -> int:
        """Tokens of each prompt still to compute, those that pad it counted."""
        return self._width - self._done

    def advance(self, count: int) -> torch.Tensor | None:
        """Computes so many tokens of each prompt or what remains."""
        first, self._done = self._done, self._done + min(count, self.remaining)
        columns = slice(first, self._done)
        logits = self._decoder(
            self._tokens[:, columns],
            self._cache,
            mask=(self._positions[:, : self._done] >= 0).long(),
            positions=self._positions[:, columns].clamp(min=0),
            every=self._each is not None,
        )
        if self._each is not None:
            self._each.take(logits[0])
        return logits[:, -1] if not self.remaining else None

    def join(self) -> None:
        """Adds what was computed behind the other rows."""
        self._join(self._cache, self._lengths)


class _WholePrefill(DecoderPrefill):
    """In one piece: a state space model starts with nothing or goes on by one token."""

    def advance(self, count: int) -> torch.Tensor | None:
        """Computes the whole prompt."""
        return super().advance(self.remaining)


class SharedRows(Rows):
    """All rows in one forward pass.

    Args:
        model: A decoder of transformers.
        places: Most places for a token in the cache.
    """

    groups_prompts = True
    reuses_beginnings = True

    def __init__(self, model: Any, places: int) -> None:
        self._decoder = Decoder(model)
        self._batch = BatchCache(len(DynamicCache(config=model.config).layers), places)

    @property
    def used_tokens(self) -> int:
        """Tokens in the cache."""
        return sum(self._batch.lengths)

    def __len__(self) -> int:
        return len(self._batch.lengths)

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of so many tokens can join now; one that is alone always can."""
        return self._batch.has_room(lengths)

    def has_room_to_step(self) -> bool:
        """Whether all can take one more token; if not, one has to leave."""
        return self._batch.has_room_to_step()

    def prefill(
        self, prompts: Sequence[Sequence[int]], each: PromptLogits | None = None, reuse: Reuse = NO_REUSE
    ) -> Prefill:
        """Begins with some prompts, all in one pass."""
        cache = DynamicCache()
        if reuse.length:
            for layer, (keys, values) in enumerate(self._batch.copy_beginning(reuse.index, reuse.length)):
                cache.update(keys, values, layer)
        return DecoderPrefill(self._decoder, cache, prompts, self._add, each, reuse.length)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token more for each row, in one pass."""
        batch, device = self._batch, self._decoder.device
        batch.make_room()
        column = torch.tensor(tokens, device=device)[:, None]
        logits = self._decoder(column, batch.cache, mask=batch.mask(device), positions=batch.positions(device))
        batch.advance()
        return logits[:, 0]

    def leave(self, index: int) -> None:
        """Removes a row; the last one takes its place."""
        self._batch.leave(index)

    def clear(self) -> None:
        """Removes all rows and frees their memory."""
        self._batch.clear()

    def _add(self, cache: Any, lengths: Sequence[int]) -> None:
        for row, length in enumerate(lengths):
            part = (slice(row, row + 1), slice(None), slice(-length, None))
            self._batch.join([(layer.keys[part], layer.values[part]) for layer in cache.layers])


class SeparateRows(Rows):
    """A forward pass for each row, each with the cache that the model makes itself.

    Args:
        model: A decoder of transformers.
        places: Most tokens in the caches.
    """

    def __init__(self, model: Any, places: int) -> None:
        self._decoder = Decoder(model)
        self._config = model.config
        self._places = places
        self._caches: list[Any] = []
        self._lengths: list[int] = []

    @property
    def used_tokens(self) -> int:
        """Tokens in the caches."""
        return sum(self._lengths)

    def __len__(self) -> int:
        return len(self._caches)

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether sequences of so many tokens can join now; one that is alone always can."""
        return not self._caches or self.used_tokens + sum(lengths) + SPARE_COLUMNS <= self._places

    def has_room_to_step(self) -> bool:
        """Whether all can take one more token; if not, one has to leave."""
        return len(self) <= 1 or self.used_tokens + len(self) <= self._places

    def prefill(
        self, prompts: Sequence[Sequence[int]], each: PromptLogits | None = None, reuse: Reuse = NO_REUSE
    ) -> Prefill:
        """Begins with a prompt; states of other rows cannot be reused, nor can a prompt be cut in pieces."""
        return _WholePrefill(self._decoder, DynamicCache(config=self._config), prompts, self._add, each)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token more for each row, one after the other."""
        device, logits = self._decoder.device, []
        for index, token in enumerate(tokens):
            length = self._lengths[index]
            one = torch.tensor([[token]], device=device)
            mask = torch.ones((1, length + 1), dtype=torch.long, device=device)
            place = torch.tensor([[length]], device=device)
            logits.append(self._decoder(one, self._caches[index], mask=mask, positions=place)[0, 0])
            self._lengths[index] += 1
        return torch.stack(logits)

    def leave(self, index: int) -> None:
        """Removes a row; the last one takes its place."""
        self._caches[index], self._lengths[index] = self._caches[-1], self._lengths[-1]
        self._caches.pop()
        self._lengths.pop()

    def clear(self) -> None:
        """Removes all rows and frees their memory."""
        self._caches.clear()
        self._lengths.clear()

    def _add(self, cache: Any, lengths: Sequence[int]) -> None:
        self._caches.append(cache)
        self._lengths += lengths


def make_rows(model: Any, places: int) -> Rows:
    """The kind of rows that the cache of a decoder allows."""
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return SharedRows(model, places)
    return SeparateRows(model, places)
