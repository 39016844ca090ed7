# SPDX-License-Identifier: Apache-2.0
"""From an engine's tokens to the pieces of an answer's text, and several answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from modelyard_deployments._generation_engine import Generation
from modelyard_deployments._generation_sampling import Chosen
from modelyard_deployments._generation_text import Detokenizer, StopFinder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TextRules:
    """How an answer's tokens become its text.

    Attributes:
        stops: Strings that end it.
        include_stop: What ended it belongs to it.
        skip_special_tokens: Leave out tokens like ``<|im_end|>``.
        min_tokens: Stop strings count only behind so many tokens.
    """

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    min_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds to an answer.

    Attributes:
        text: May be empty: a character is unfinished, or the text may turn out to be a stop string.
        tokens: The token.
        finish: ``stop`` or ``length`` with the last piece; None before.
        stop_reason: The stop string or token that ended it, where one of the request's did.
    """

    text: str
    tokens: tuple[Chosen, ...]
    finish: str | None = None
    stop_reason: int | str | None = None


async def read_pieces(generation: Generation, tokenizer: Any, rules: TextRules) -> AsyncGenerator[Piece]:
    """The answer as it comes; closing it ends the generation.

    Raises:
        ModelyardError: Why it could not go on.
    """
    detokenizer = Detokenizer(tokenizer, generation.prompt, rules.skip_special_tokens)
    finder = StopFinder(rules.stops, rules.include_stop)
    count = 0
    async with aclosing(generation.steps()) as steps:
        async for step in steps:
            count += 1
            text = "" if step.is_end and not rules.include_stop else detokenizer.add(step.chosen.token)
            if step.finish is not None:
                text += detokenizer.flush()
            shown = finder.add(text) if count > rules.min_tokens else text
            if finder.found is not None:
                yield Piece(shown, (step.chosen,), "stop", finder.found)
                return
            if step.finish is not None:
                shown += finder.flush()
            yield Piece(shown, (step.chosen,), step.finish, step.stop_token)


async def merge(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """What several sources give, as it comes, with the number of the source; closing it closes them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for only in source:
                yield 0, only
        return
    items: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(index, source, items)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, source: AsyncGenerator[T], items: asyncio.Queue[tuple[int, T] | BaseException | None]
) -> None:
    async with aclosing(source):
        try:
            async for item in source:
                items.put_nowait((index, item))
        except Exception as exc:  # noqa: BLE001  # raised again where the items are taken
            items.put_nowait(exc)
        items.put_nowait(None)


@dataclass(slots=True)
class Whole:
    """A whole answer."""

    text: str = ""
    tokens: tuple[Chosen, ...] = ()
    finish: str = "stop"
    stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        """The next piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish = piece.finish or self.finish
        self.stop_reason = piece.stop_reason

    @property
    def mean_logprob(self) -> float:
        """How likely the model found it, for ``best_of``."""
        return sum(one.logprob for one in self.tokens) / max(1, len(self.tokens))


async def collect(sources: Sequence[AsyncGenerator[Piece]]) -> list[Whole]:
    """All answers, whole."""
    wholes = [Whole() for _ in sources]
    async with aclosing(merge(sources)) as pieces:
        async for index, piece in pieces:
            wholes[index].add(piece)
    return wholes
