# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoders in the batch: those that wait begin together, and others when they have all ended.

Their decoders count positions from the batch's first step (BART), so nobody can join later; the texts they write are
short.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache

from modelyard_deployments._generation_rows import NO_REUSE, Prefill, PromptLogits, Reuse, Rows


class _Batch:
    """What a group of rows has in common: the encoder's states, and the decoder's caches.

    Rows that have left are computed along until all have, and not shown.
    """

    def __init__(self, states: torch.Tensor, mask: torch.Tensor, lengths: Sequence[int]) -> None:
        self.states = states
        self.mask = mask
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.lengths = list(lengths)
        self.places = list(range(len(lengths)))
        """Where each running row is in the batch."""
        self.steps = 0


class Seq2SeqRows(Rows):
    """Encoder-decoders.

    Args:
        model: One of transformers.
        places: Most tokens of the texts and the answers together.
    """

    joins_while_running = False
    groups_prompts = True

    def __init__(self, model: Any, places: int) -> None:
        parameters = inspect.signature(model.forward).parameters
        self._model = model
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._starts = _find_starts(model)
        self._places = places
        self._batch: _Batch | None = None

    @property
    def used_tokens(self) -> int:
        """Tokens of the texts and of the answers."""
        batch = self._batch
        return sum(batch.lengths[place] + batch.steps for place in batch.places) if batch is not None else 0

    def __len__(self) -> int:
        return len(self._batch.places) if self._batch is not None else 0

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether texts of so many tokens can be taken together."""
        return len(lengths) == 1 or len(lengths) * max(lengths) <= self._places

    def has_room_to_step(self) -> bool:
        """Always: answers are short beside what is read."""
        return True

    def prefill(
        self, prompts: Sequence[Sequence[int]], each: PromptLogits | None = None, reuse: Reuse = NO_REUSE
    ) -> Prefill:
        """Begins with some texts; ``each`` is never told anything, as the decoder does not say them again."""
        return _EncoderPrefill(prompts, self._begin, self._add)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """One token more for each row."""
        batch = self._get_batch()
        column = torch.full((len(batch.lengths), 1), self._starts[0], device=self._model.device)
        for place, token in zip(batch.places, tokens, strict=True):
            column[place] = token
        return self._decode(batch, column)[batch.places]

    def leave(self, index: int) -> None:
        """Removes a row; the last one takes its place."""
        batch = self._get_batch()
        batch.places[index] = batch.places[-1]
        batch.places.pop()
        if not batch.places:
            self._batch = None

    def clear(self) -> None:
        """Removes all rows and frees their memory."""
        self._batch = None

    def _get_batch(self) -> _Batch:
        if self._batch is None:
            raise RuntimeError("no row runs")
        return self._batch

    def _begin(self, prompts: Sequence[Sequence[int]]) -> tuple[_Batch, torch.Tensor]:
        lengths = [len(prompt) for prompt in prompts]
        padded = [list(prompt) + [0] * (max(lengths) - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=self._model.device)
        columns = torch.arange(max(lengths), device=self._model.device)[None]
        mask = (columns < torch.tensor(lengths, device=self._model.device)[:, None]).long()
        states = self._model.get_encoder()(input_ids=tokens, attention_mask=mask).last_hidden_state
        batch = _Batch(states, mask, lengths)
        starts = torch.tensor(self._starts, device=self._model.device)
        return batch, self._decode(batch, starts.expand(len(lengths), -1))

    def _decode(self, batch: _Batch, column: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=batch.states),
            attention_mask=batch.mask,
            decoder_input_ids=column,
            use_cache=True,
            **{self._cache_name: batch.cache},
        )
        batch.steps += 1
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _add(self, batch: _Batch) -> None:
        self._batch = batch


def _find_starts(model: Any) -> list[int]:
    """The tokens that an answer follows: the decoder's first, and the language where the model translates."""
    config = model.generation_config
    start = next(
        token
        for token in (config.decoder_start_token_id, model.config.decoder_start_token_id, config.bos_token_id, 0)
        if token is not None
    )
    return [start] if config.forced_bos_token_id is None else [start, config.forced_bos_token_id]


class _EncoderPrefill(Prefill):
    """Texts that are read, all in one piece."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        begin: Callable[[Sequence[Sequence[int]]], tuple[_Batch, torch.Tensor]],
        add: Callable[[_Batch], None],
    ) -> None:
        self._prompts = prompts
        self._begin = begin
        self._add = add
        self._batch: _Batch | None = None

    @property
    def remaining(self) -> int:
        """Tokens of each text, until it is read."""
        return max(len(prompt) for prompt in self._prompts) if self._batch is None else 0

    def advance(self, count: int) -> torch.Tensor | None:
        """Reads all texts."""
        self._batch, logits = self._begin(self._prompts)
        return logits

    def join(self) -> None:
        """They are the rows now."""
        if self._batch is not None:
            self._add(self._batch)
