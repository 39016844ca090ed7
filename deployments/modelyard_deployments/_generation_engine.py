# SPDX-License-Identifier: Apache-2.0
"""Token generation with continuous batching: sequences join and leave one running batch at any step.

transformers 5.24 has continuous batching of its own, and it runs on a CPU, but not for what the OpenAI protocol asks:
it has temperature, top_k and top_p per request and no penalties, biases, seeds, grammars or alternatives; whether to
sample at all is one choice for everybody; and an error in one step fails all requests, the waiting ones too. So this
is a loop of our own on the models and caches of transformers. One thread owns the model. In turn it drops what nobody
waits for, computes new prompts (a bounded number of tokens), and takes one step with all rows.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from modelyard.errors import ModelFailed, ModelNotReady, ModelyardError, Overloaded
from modelyard.openai import EngineStep, Meter
from modelyard_deployments._generation_rows import NO_REUSE, Prefill, PromptLogits, Rows, find_reuse
from modelyard_deployments._generation_sampling import Chosen, Mask, Sampler, Sampling, report

_LOG: Final = logging.getLogger(__name__)

_BROKEN_DEVICE: Final = (torch.AcceleratorError,)
"""After one of these every later call of the device fails too: the engine ends, and its replica is replaced."""


@dataclass(frozen=True, slots=True)
class Step:
    """One token of an answer.

    Attributes:
        chosen: The token.
        finish: ``stop`` or ``length`` with the last token; None before.
        stop_token: The token that ended the answer, where that is none of the model's own ends.
        is_end: The token is an end of the model's or a stop token, which the text leaves out.
    """

    chosen: Chosen
    finish: str | None = None
    stop_token: int | None = None
    is_end: bool = False


@dataclass(slots=True)
class Counts:
    """What the engine does and did.

    Attributes:
        running: Sequences in the batch, and those that are about to join it.
        waiting: Sequences that wait for a place in it.
        cache_tokens: Tokens in the key-value cache.
        prefix_queries: Prompt tokens that could have been in the cache.
        prefix_hits: Those that were, and were not computed again.
        prompt_tokens: Of all requests that began.
        generated_tokens: Of all answers.
        preemptions: Sequences that had to leave the batch for want of cache, and were computed again.
    """

    running: int = 0
    waiting: int = 0
    cache_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


class Generation:
    """One answer while it comes, for a consumer on an event loop.

    Iterate over it for its steps; close it, or leave the loop and call :meth:`cancel`, and it ends at the next step.

    Attributes:
        prompt: The prompt's tokens.
        prompt_logprobs: What was asked for of each token of the prompt but the first; whole before the first step.
        cached_tokens: Tokens of the prompt that were not computed again; known with the first step.
    """

    def __init__(self, prompt: Sequence[int], sampling: Sampling, wake: Callable[[], None]) -> None:
        self.prompt = tuple(prompt)
        self.sampling = sampling
        self.prompt_logprobs: list[Chosen] = []
        self.cached_tokens = 0
        self.began_at = time.monotonic()
        self.last_token_at = 0.0
        self.is_cancelled = False
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[Step | ModelyardError] = asyncio.Queue()

    async def steps(self) -> AsyncGenerator[Step]:
        """The tokens as they come; closing it ends the generation.

        Raises:
            ModelyardError: Why it could not go on.
        """
        try:
            while True:
                step = await self._steps.get()
                if isinstance(step, ModelyardError):
                    raise step
                yield step
                if step.finish is not None:
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self._wake()

    def deliver(self, step: Step | ModelyardError) -> None:
        """From the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._steps.put_nowait, step)
        except RuntimeError:  # the event loop is closed, and whoever waited on it gone
            self.is_cancelled = True


class _PromptLogprobs(PromptLogits):
    """Turns a prompt's logits into what is reported of its tokens."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def take(self, logits: torch.Tensor) -> None:
        """Behind the next tokens; the last of them says nothing of the prompt."""
        into, prompt = self._generation.prompt_logprobs, self._generation.prompt
        for row in logits:
            following = len(into) + 1
            if following < len(prompt):
                into.append(
                    report(
                        torch.log_softmax(row, -1), prompt[following], self._generation.sampling.prompt_logprobs or 0
                    )
                )


@dataclass(slots=True)
class _Sequence:
    """A generation in the engine's thread."""

    generation: Generation
    mask: Mask | None
    sampler: Sampler | None = None
    answer: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.generation.prompt, *self.answer]

    @property
    def wants_prompt(self) -> bool:
        """Its prompt's own log-probabilities have not been told yet."""
        return self.generation.sampling.prompt_logprobs is not None and not self.answer


class Engine:
    """Runs one model.

    Attributes:
        counts: What it does and did.
        meter: Where it tells of its steps.
        name: The model's, for messages.

    Args:
        rows: The model's side of the batch.
        ends: The model's own tokens that end an answer.
        device: Where the logits are.
        max_running: Most sequences in the batch.
        max_waiting: Most sequences before it.
        prefill_tokens: Most prompt tokens between two steps.
        threads: Threads of one step; None leaves it to torch.
        cache_tokens: Most token places of the cache.
    """

    def __init__(
        self,
        rows: Rows,
        ends: frozenset[int],
        device: Any,
        *,
        max_running: int,
        max_waiting: int,
        prefill_tokens: int,
        cache_tokens: int,
        threads: int | None = None,
    ) -> None:
        self._rows = rows
        self._ends = ends
        self._device = device
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_tokens = prefill_tokens
        self._threads = threads
        self._changed = threading.Condition()
        self._is_closing = False
        self._failure: BaseException | None = None
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: tuple[list[_Sequence], Prefill] | None = None
        self._running: list[_Sequence] = []
        self._unfinished: set[Generation] = set()
        self._places = cache_tokens
        self._told = Counts()
        self._first_token_s: list[float] = []
        self._between_tokens_s: list[float] = []
        self.counts = Counts()
        self.meter = Meter()
        self.name = ""
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling, mask: Mask | None = None) -> Generation:
        """Starts an answer; call it on the event loop that will take it.

        Args:
            prompt: At least one token.
            sampling: How to choose.
            mask: A grammar, at its beginning; used for this answer only.

        Raises:
            Overloaded: Too many wait.
            ModelNotReady: The engine has stopped.
        """
        generation = Generation(prompt, sampling, self._wake)
        with self._changed:
            if self._is_closing or self._failure is not None:
                raise ModelNotReady(self.name, "its generation has stopped")
            if len(self._waiting) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} sequences wait for their turn, which is the most that may")
            self._unfinished.add(generation)
            self._waiting.append(_Sequence(generation, mask))
            self.counts.waiting = len(self._waiting)
            self._changed.notify()
        return generation

    @property
    def most_at_once(self) -> int:
        """Sequences that may be submitted in one go."""
        return self._max_waiting

    def check_health(self) -> None:
        """Raises where nothing will be generated any more.

        Raises:
            RuntimeError: The thread has ended; the cause is attached.
        """
        if self._failure is not None or not self._thread.is_alive():
            raise RuntimeError("generation has stopped") from self._failure

    def close(self) -> None:
        """Ends the thread after the step that it is in; what was unfinished fails."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            with torch.inference_mode():
                while self._wait():
                    self._turn()
        except BaseException as exc:  # noqa: BLE001  # whatever it is, those who wait must not wait forever
            self._failure = exc
            _LOG.exception("generation has stopped")
        finally:
            self._fail_all(ModelNotReady("", "its generation has stopped"))

    def _wait(self) -> bool:
        """Sleeps until there is something to do; False ends the thread."""
        with self._changed:
            while not (self._is_closing or self._waiting or self._running or self._prefilling):
                self._changed.wait()
            return not self._is_closing

    def _turn(self) -> None:
        self._drop_cancelled()
        self._prefill()
        if self._running:
            self._step()
        self._count()

    def _drop_cancelled(self) -> None:
        with self._changed:
            self._waiting = deque(one for one in self._waiting if not one.generation.is_cancelled)
            self._unfinished = {one for one in self._unfinished if not one.is_cancelled}
        if self._prefilling and all(one.generation.is_cancelled for one in self._prefilling[0]):
            self._prefilling = None
        for index in range(len(self._running) - 1, -1, -1):
            if self._running[index].generation.is_cancelled:
                self._leave(index)

    def _prefill(self) -> None:
        """Computes prompts, as many tokens as may be between two steps; all that are done join."""
        budget = self._prefill_tokens
        while budget > 0:
            self._prefilling = self._prefilling or self._begin()
            if self._prefilling is None:
                return
            group, prefill = self._prefilling
            count = max(1, min(self._prefill_tokens // len(group), prefill.remaining))
            budget -= count * len(group)
            try:
                logits = prefill.advance(count)
            except Exception as exc:  # noqa: BLE001  # whatever the model raises concerns these prompts alone
                self._prefilling = None
                self._fail(group, exc)
                continue
            if logits is not None:
                self._prefilling = None
                self._join(group, prefill, logits)

    def _begin(self) -> tuple[list[_Sequence], Prefill] | None:
        """The next ones that wait, where the batch has room for them."""
        group = self._take_group()
        if not group:
            return None
        first = group[0]
        each = _PromptLogprobs(first.generation) if first.wants_prompt else None
        # The last token of each row is not in the cache yet.
        cached = [one.tokens[:-1] for one in self._running] if self._rows.reuses_beginnings else []
        reuse = find_reuse(first.tokens, cached) if len(group) == 1 and each is None else NO_REUSE
        try:
            prefill = self._rows.prefill([one.tokens for one in group], each, reuse)
        except Exception as exc:  # noqa: BLE001  # as below, where they are computed
            self._fail(group, exc)
            return None
        for sequence in group:
            self.counts.prefix_queries += len(sequence.tokens)
            if not sequence.answer:
                sequence.generation.cached_tokens = prefill.reused
                self.counts.prompt_tokens += len(sequence.generation.prompt)
        self.counts.prefix_hits += prefill.reused
        return group, prefill

    def _take_group(self) -> list[_Sequence]:
        """Those that are computed next: one, or several that are short and have nothing in common."""
        if self._running and not self._rows.joins_while_running:
            return []
        group: list[_Sequence] = []
        with self._changed:
            while self._waiting and len(self._running) + len(group) < self._max_running:
                if not self._fits(self._waiting[0], group):
                    break
                group.append(self._waiting.popleft())
        return group

    def _fits(self, sequence: _Sequence, group: Sequence[_Sequence]) -> bool:
        lengths = [len(one.tokens) for one in (*group, sequence)]
        if not self._rows.has_room(lengths):
            return False
        if not group:
            return True
        if not self._rows.groups_prompts or len(lengths) * max(lengths) > self._prefill_tokens:
            return False
        if sequence.wants_prompt or group[0].wants_prompt:
            return False
        # What has a beginning in common is computed after the other, and copies it.
        return (
            not self._rows.reuses_beginnings
            or not find_reuse(sequence.tokens, [one.tokens for one in (*group, *self._running)]).length
        )

    def _join(self, group: Sequence[_Sequence], prefill: Prefill, logits: torch.Tensor) -> None:
        try:
            prefill.join()
        except Exception as exc:  # noqa: BLE001  # the cache of all rows may be half changed
            self._fail_running(exc, group)
            return
        first = len(self._running)
        self._running += group
        for place in range(len(group) - 1, -1, -1):
            self._choose(first + place, logits[place])

    def _step(self) -> None:
        while not self._rows.has_room_to_step():
            self._preempt()
        try:
            logits = self._rows.step([sequence.answer[-1] for sequence in self._running])
        except Exception as exc:  # noqa: BLE001  # whatever the model raises concerns all that took the step, and nobody else
            self._fail_running(exc)
            return
        for index in range(len(self._running) - 1, -1, -1):
            self._choose(index, logits[index])

    def _choose(self, index: int, logits: torch.Tensor) -> None:
        """The next token of a row; the row leaves with its last."""
        sequence = self._running[index]
        generation = sequence.generation
        try:
            if sequence.sampler is None:
                sequence.sampler = Sampler(
                    generation.sampling, generation.prompt, self._ends, self._device, sequence.mask
                )
            chosen = sequence.sampler.choose(logits)
        except Exception as exc:  # noqa: BLE001  # a grammar that went wrong, a parameter that the device refuses
            self._leave(index)
            self._fail([sequence], exc)
            return
        sequence.answer.append(chosen.token)
        self.counts.generated_tokens += 1
        self._time(generation)
        step = self._to_step(sequence, chosen)
        if step.finish is not None:
            self._leave(index)
            self._unfinished.discard(generation)
        generation.deliver(step)

    def _to_step(self, sequence: _Sequence, chosen: Chosen) -> Step:
        sampling = sequence.generation.sampling
        if chosen.token in sampling.stop_token_ids and len(sequence.answer) > sampling.min_tokens:
            return Step(chosen, "stop", chosen.token, is_end=True)
        if chosen.token in self._ends and not sampling.ignore_eos:
            return Step(chosen, "stop", is_end=True)
        if sequence.sampler is not None and sequence.sampler.is_complete:
            return Step(chosen, "stop")
        return Step(chosen, "length" if len(sequence.answer) >= sampling.max_tokens else None)

    def _preempt(self) -> None:
        """The youngest leaves, and is the first to be computed again."""
        index = max(range(len(self._running)), key=lambda one: self._running[one].generation.began_at)
        sequence = self._running[index]
        self._leave(index)
        with self._changed:
            self._waiting.appendleft(sequence)
        self.counts.preemptions += 1

    def _leave(self, index: int) -> None:
        self._rows.leave(index)
        self._running[index] = self._running[-1]
        self._running.pop()

    def _fail_running(self, exc: Exception, joining: Sequence[_Sequence] = ()) -> None:
        failed, self._running = [*self._running, *joining], []
        self._rows.clear()
        self._fail(failed, exc)

    def _fail(self, sequences: Sequence[_Sequence], exc: Exception) -> None:
        error = exc if isinstance(exc, ModelyardError) else ModelFailed(self.name, f"{type(exc).__name__}: {exc}")
        if error is not exc:
            _LOG.error("generation failed", exc_info=exc)
        for sequence in sequences:
            self._unfinished.discard(sequence.generation)
            sequence.generation.deliver(error)
        if isinstance(exc, _BROKEN_DEVICE):
            raise exc

    def _fail_all(self, error: ModelyardError) -> None:
        with self._changed:
            self._is_closing = True
            left, self._unfinished = self._unfinished, set()
            self._waiting.clear()
        self._prefilling = None
        self._running.clear()
        for generation in left:
            generation.deliver(error)
        self._rows.clear()
        self._count()

    def _count(self) -> None:
        counts, told = self.counts, self._told
        counts.running = len(self._running) + (len(self._prefilling[0]) if self._prefilling else 0)
        counts.waiting = len(self._waiting)
        counts.cache_tokens = self._rows.used_tokens
        self.meter.record(
            EngineStep(
                counts.running,
                counts.waiting,
                counts.cache_tokens / self._places,
                counts.prompt_tokens - told.prompt_tokens,
                counts.generated_tokens - told.generated_tokens,
                self._first_token_s,
                self._between_tokens_s,
                counts.prefix_queries - told.prefix_queries,
                counts.prefix_hits - told.prefix_hits,
            )
        )
        self._told = replace(counts)
        self._first_token_s, self._between_tokens_s = [], []

    def _time(self, generation: Generation) -> None:
        now = time.monotonic()
        into = self._between_tokens_s if generation.last_token_at else self._first_token_s
        into.append(now - (generation.last_token_at or generation.began_at))
        generation.last_token_at = now
