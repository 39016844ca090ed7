# SPDX-License-Identifier: Apache-2.0
"""Sequences join and leave a batch, and each is answered as if it were alone."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import torch

from modelyard.errors import ModelFailed, ModelNotReady, Overloaded
from modelyard.openai import EngineStep, Meter
from modelyard_deployments._generation_engine import Engine, Generation
from modelyard_deployments._generation_rows import Rows, SeparateRows, SharedRows, make_rows
from modelyard_deployments._generation_sampling import Sampling
from modelyard_deployments._generation_seq2seq import Seq2SeqRows

Read = Callable[[Generation], Awaitable[list[int]]]
Greedy = Callable[..., Sampling]
Start = Callable[..., Engine]

PROMPTS = [[5 + (7 * row + 3 * place) % 90 for place in range(2 + 3 * row)] for row in range(8)]


async def wait_until(is_so: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110  # what is waited for happens in a thread that knows no event loop
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "bloom", "mamba"])
async def test_each_is_answered_as_if_it_were_alone(
    kind: str, tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    running = engine(make_rows(tiny(kind), 4096), max_running=5)
    tasks = []
    for number, prompt in enumerate(PROMPTS):
        before = running.counts.generated_tokens
        tasks.append(asyncio.create_task(read(running.submit(prompt, greedy(12 + number)))))
        await wait_until(lambda before=before: running.counts.generated_tokens > before)
    answers = await asyncio.gather(*tasks)
    assert answers == [generate(kind, prompt, 12 + number) for number, prompt in enumerate(PROMPTS)]
    assert isinstance(make_rows(tiny(kind), 1), SeparateRows if kind == "mamba" else SharedRows)


@pytest.mark.parametrize("kind", ["t5", "bart"])
async def test_encoder_decoders_too(
    kind: str, tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    running = engine(Seq2SeqRows(tiny(kind), 4096), max_running=3)
    answers = await asyncio.gather(*(read(running.submit(prompt, greedy(9))) for prompt in PROMPTS))
    assert answers == [generate(kind, prompt, 9) for prompt in PROMPTS]


async def test_a_prompt_in_pieces_is_the_same(
    tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    prompt = [5 + place % 80 for place in range(150)]
    running = engine(make_rows(tiny("llama"), 4096), prefill_tokens=16)
    assert await read(running.submit(prompt, greedy(8))) == generate("llama", prompt, 8)


async def test_more_than_the_first_columns(tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy) -> None:
    running = engine(make_rows(tiny("llama"), 4096))
    sampling = [greedy(count, ignore_eos=True) for count in (300, 140, 260)]
    answers = await asyncio.gather(
        *(read(running.submit(prompt, one)) for prompt, one in zip(PROMPTS, sampling, strict=False))
    )
    assert [len(answer) for answer in answers] == [300, 140, 260]
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        assert answer[:16] == generate("llama", prompt, 16)


async def test_a_beginning_in_common_is_computed_once(
    tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    shared = [5 + place % 80 for place in range(40)]
    running = engine(make_rows(tiny("llama"), 4096))
    first = asyncio.create_task(read(running.submit([*shared, 7], greedy(60, ignore_eos=True))))
    await wait_until(lambda: running.counts.generated_tokens > 0)
    second = running.submit([*shared, 9], greedy(8))
    assert await read(second) == generate("llama", [*shared, 9], 8)
    assert (second.cached_tokens, running.counts.prefix_hits) == (40, 40)
    await first


async def test_who_finds_no_room_waits_or_is_computed_again(
    tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    running = engine(make_rows(tiny("llama"), 512), cache_tokens=512)
    sampling = greedy(200, ignore_eos=True)
    answers = await asyncio.gather(*(read(running.submit(prompt, sampling)) for prompt in PROMPTS[:4]))
    assert running.counts.preemptions > 0
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        assert len(answer) == 200
        assert answer[:16] == generate("llama", prompt, 16)


async def test_a_closed_generation_frees_its_cache(tiny: Any, engine: Start, greedy: Greedy) -> None:
    running = engine(make_rows(tiny("llama"), 4096))
    steps = running.submit(PROMPTS[3], greedy(400, ignore_eos=True)).steps()
    await anext(steps)
    await wait_until(lambda: running.counts.cache_tokens > 0)
    await steps.aclose()
    await wait_until(lambda: running.counts.running == 0)
    assert running.counts.cache_tokens == 0
    assert running.counts.generated_tokens < 400


async def test_one_that_is_cancelled_before_its_turn_never_runs(tiny: Any, engine: Start, greedy: Greedy) -> None:
    running = engine(make_rows(tiny("llama"), 4096), max_running=1)
    first = running.submit(PROMPTS[0], greedy(300, ignore_eos=True))
    second = running.submit(PROMPTS[1], greedy(10))
    await wait_until(lambda: running.counts.generated_tokens > 3)
    second.cancel()
    await wait_until(lambda: running.counts.waiting == 0)
    first.cancel()
    await wait_until(lambda: running.counts.running == 0)
    assert running.counts.prompt_tokens == len(PROMPTS[0])


class Breaking(SharedRows):
    """Raises at the steps and prompts that it is told."""

    fails_at_step = -1
    fails_at_length = -1
    fails_to_join = -1
    taken = 0

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self.taken += 1
        if self.taken == self.fails_at_step:
            raise RuntimeError("out of memory")
        return super().step(tokens)

    def prefill(self, prompts: Sequence[Sequence[int]], *rest: Any) -> Any:
        if any(len(prompt) == self.fails_at_length for prompt in prompts):
            raise RuntimeError("no such prompt")
        made = super().prefill(prompts, *rest)
        if any(len(prompt) == self.fails_to_join for prompt in prompts):
            made.join = self._break  # type: ignore[method-assign]
        return made

    @staticmethod
    def _break() -> None:
        raise RuntimeError("no room for it")


async def test_a_failed_step_fails_those_in_it_and_no_other(
    tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    rows = Breaking(tiny("llama"), 4096)
    rows.fails_at_step = 5
    running = engine(rows)
    with pytest.raises(ModelFailed, match="out of memory"):
        await read(running.submit(PROMPTS[0], greedy(40, ignore_eos=True)))
    assert await read(running.submit(PROMPTS[1], greedy(8))) == generate("llama", PROMPTS[1], 8)
    running.check_health()


async def test_a_failed_prompt_fails_alone(tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy) -> None:
    rows = Breaking(tiny("llama"), 4096)
    rows.fails_at_length = len(PROMPTS[2])
    running = engine(rows)
    first = asyncio.create_task(read(running.submit(PROMPTS[0], greedy(30, ignore_eos=True))))
    await wait_until(lambda: running.counts.generated_tokens > 0)
    with pytest.raises(ModelFailed, match="no such prompt"):
        await read(running.submit(PROMPTS[2], greedy(8)))
    assert (await first)[:8] == generate("llama", PROMPTS[0], 8)


async def test_a_prompt_that_cannot_join_fails_all_whose_cache_it_has_touched(
    tiny: Any, engine: Start, generate: Any, read: Read, greedy: Greedy
) -> None:
    rows = Breaking(tiny("llama"), 4096)
    rows.fails_to_join = len(PROMPTS[2])
    running = engine(rows)
    first = asyncio.create_task(read(running.submit(PROMPTS[0], greedy(300, ignore_eos=True))))
    await wait_until(lambda: running.counts.generated_tokens > 0)
    for one in (read(running.submit(PROMPTS[2], greedy(8))), first):
        with pytest.raises(ModelFailed, match="no room for it"):
            await one
    assert await read(running.submit(PROMPTS[1], greedy(8))) == generate("llama", PROMPTS[1], 8)
    assert rows.used_tokens == 0


class Broken(SharedRows):
    """Stands for a device of which every later call fails too."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        raise torch.AcceleratorError("device-side assert")


async def test_a_broken_device_is_told_to_health(tiny: Any, engine: Start, read: Read, greedy: Greedy) -> None:
    running = engine(Broken(tiny("llama"), 4096))
    with pytest.raises(ModelFailed, match="device-side assert"):
        await read(running.submit(PROMPTS[0], greedy(8)))
    with pytest.raises(RuntimeError, match="generation has stopped"):
        await wait_until(lambda: running.check_health() is not None)


class Dying(SharedRows):
    """Raises where the engine expects nothing of the kind."""

    def has_room(self, lengths: Sequence[int]) -> bool:
        raise MemoryError("gone")


async def test_a_dead_thread_is_told_to_those_who_wait_and_to_health(tiny: Any, engine: Start, greedy: Greedy) -> None:
    running = engine(Dying(tiny("llama"), 4096))
    steps = running.submit(PROMPTS[0], greedy(8)).steps()
    with pytest.raises(ModelNotReady):
        await anext(steps)
    with pytest.raises(RuntimeError, match="generation has stopped") as caught:
        running.check_health()
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(ModelNotReady):
        running.submit(PROMPTS[0], greedy(8))


async def test_too_many_are_refused(tiny: Any, engine: Start, greedy: Greedy) -> None:
    running = engine(make_rows(tiny("llama"), 4096), max_running=1, max_waiting=2)
    begun = [running.submit(PROMPTS[0], greedy(400, ignore_eos=True))]
    await wait_until(lambda: running.counts.generated_tokens > 0)
    begun += [running.submit(PROMPTS[0], greedy(8)) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 sequences wait"):
        running.submit(PROMPTS[0], greedy(8))
    for one in begun:
        one.cancel()


@pytest.mark.parametrize("is_busy", [True, False])
async def test_closing_ends_the_thread_and_what_is_unfinished(
    is_busy: bool, tiny: Any, engine: Start, greedy: Greedy
) -> None:
    running = engine(make_rows(tiny("llama"), 4096))
    steps = running.submit(PROMPTS[0], greedy(400 if is_busy else 1, ignore_eos=True)).steps()
    await anext(steps)
    threads = threading.active_count()
    await asyncio.to_thread(running.close)
    assert threading.active_count() <= threads
    assert not any(thread.name == "generation" for thread in threading.enumerate())
    if is_busy:
        with pytest.raises(ModelNotReady):
            [step async for step in steps]
    running.close()


class Recording(Meter):
    def __init__(self) -> None:
        self.steps: list[EngineStep] = []

    def record(self, step: EngineStep) -> None:
        self.steps.append(step)


async def test_its_steps_are_told(tiny: Any, engine: Start, read: Read, greedy: Greedy) -> None:
    running = engine(make_rows(tiny("llama"), 4096))
    meter = running.meter = Recording()
    sampling = greedy(10, ignore_eos=True)
    await asyncio.gather(*(read(running.submit(prompt, sampling)) for prompt in PROMPTS[:3]))
    await wait_until(lambda: meter.steps[-1].running == 0)
    assert sum(step.prompt_tokens for step in meter.steps) == sum(len(prompt) for prompt in PROMPTS[:3])
    assert sum(step.generated_tokens for step in meter.steps) == 30
    assert sum(len(step.first_token_s) for step in meter.steps) == 3
    assert sum(len(step.between_tokens_s) for step in meter.steps) == 27
    assert max(step.cache_usage for step in meter.steps) > 0
    assert meter.steps[-1].cache_usage == 0


def test_rows_are_complete(tiny: Any) -> None:
    for kind, made in (("llama", SharedRows), ("mamba", SeparateRows), ("t5", Seq2SeqRows)):
        rows: Rows = made(tiny(kind), 64)
        assert (len(rows), rows.used_tokens) == (0, 0)
